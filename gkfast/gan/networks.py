"""Small multilayer perceptrons, sized to the data; any other torch modules do as well."""

from torch import Tensor, nn

from gkfast.gan.data import Data


class Affine(nn.Module):
    """x * scale + shift with two fixed numbers, so that the layers beside it work in units near 1."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def width(data: Data) -> int:
    """Hidden units: four per number in a sample, from 64 (points in the plane) to 1024 (images)."""
    return min(max(4 * data.train.shape[1], 64), 1024)


def generator(data: Data, noise_dim: int) -> nn.Sequential:
    """Noise (N, noise_dim + 1) of generate_data -> samples (N, D), through two hidden layers."""
    D, h = data.train.shape[1], width(data)
    last = nn.Sigmoid() if data.unit_range else Affine(data.train.std(), data.train.mean())
    return nn.Sequential(
        *_hidden(noise_dim + 1, h, data, normalise=True),
        *_hidden(h, h, data, normalise=True),
        nn.Linear(h, D),
        last,
    )


def discriminator(data: Data) -> nn.Sequential:
    """Samples (N, D) -> logits (N, 1), through two hidden layers."""
    D, h = data.train.shape[1], width(data)
    mean, std = data.train.mean(), data.train.std()
    return nn.Sequential(
        Affine(1 / std, -mean / std),
        *_hidden(D, h, data, normalise=False),
        *_hidden(h, h, data, normalise=False),
        nn.Linear(h, 1),
    )


def _hidden(inputs: int, outputs: int, data: Data, normalise: bool) -> list[nn.Module]:
    # points of few dimensions may lie in narrow clusters, which the noise of batch statistics would blur
    if data.train.shape[1] <= 16:
        return [nn.Linear(inputs, outputs), nn.Tanh()]
    norm = [nn.BatchNorm1d(outputs)] if normalise else []
    return [nn.Linear(inputs, outputs), *norm, nn.LeakyReLU(0.2)]
