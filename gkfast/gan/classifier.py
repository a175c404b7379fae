"""A classifier of real images, trained on their labels alone: generated ones are judged by its features.

No generator is trained by it. It is trained once for each data set, from a fixed seed, and kept in the user's cache.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkfast.gan.checkpoint import cached, write_tensors
from gkfast.gan.data import Data
from gkfast.gan.networks import Channels

# smaller images are told apart by a support vector machine (metrics.class_metrics)
LEAST_SIDE = 16

# of the file in the cache: weights of another network or training are not loaded
_VERSION = 1
_EPOCHS, _BATCH, _RATE, _DROPOUT = 30, 50, 2e-3, 0.4
# pixels by which an image is shifted at random
_SHIFT = 2


class Classifier(nn.Module):
    """Images (N, H W C), flattened -> logits (N, K), through 64 features."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        H, W, *C = shape
        self.body = nn.Sequential(
            Channels(shape),
            *(nn.Conv2d(C[0] if C else 1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (H // 4) * (W // 4), 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(N, 64), a thousand rows at a time."""
        return torch.cat([self.body(rows) for rows in x.split(1000)])

    @torch.no_grad()
    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class of each row, (N,)."""
        return self.head(self.features(x)).argmax(1)


def applies(data: Data) -> bool:
    """Whether the data are labelled images, or stacks of them, that are large enough for convolutions."""
    labelled = data.glyphs is not None or data.train_labels is not None
    return data.is_image and labelled and min(data.shape[:2]) >= LEAST_SIDE


def load(data: Data) -> Classifier:
    """The classifier of the data's images: of the single ones, where they are stacks."""
    images, labels = (data.train, data.train_labels) if data.glyphs is None else data.glyphs
    assert labels is not None
    shape = data.shape if data.glyphs is None else data.shape[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(shape, int(labels.max()) + 1)
    path = cached(f"classifier-{_VERSION}", images, labels)
    if path.is_file():
        # no code of the file is run
        classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    else:
        _train(classifier, images, labels, shape)
        write_tensors(path, classifier.state_dict())
    return classifier.eval().requires_grad_(False)


def _train(classifier: Classifier, images: Tensor, labels: Tensor, shape: tuple[int, ...]) -> None:
    """Cross-entropy by Adam along a cosine, on images that are shifted at random."""
    N, (H, W) = len(images), shape[:2]
    padded = F.pad(images.reshape(N, H, W, -1), (0, 0, _SHIFT, _SHIFT, _SHIFT, _SHIFT))
    rows, columns = torch.arange(H), torch.arange(W)
    batch = min(_BATCH, N)
    steps = _EPOCHS * (N // batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(classifier.parameters(), _RATE)
        order = torch.cat([torch.randperm(N)[: N // batch * batch] for _ in range(_EPOCHS)])
        for step, picked in enumerate(order.split(batch)):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
            top, left = torch.randint(0, 2 * _SHIFT + 1, (2, batch, 1))
            shifted = padded[picked[:, None, None], (top + rows)[:, :, None], (left + columns)[:, None, :]]
            features = F.dropout(classifier.body(shifted.flatten(1)), _DROPOUT)
            loss = F.cross_entropy(classifier.head(features), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
