"""Small networks, sized to the data: multilayer perceptrons and a DCGAN; and checks of any torch modules.

None of them looks at other rows of a batch (no batch normalisation): narrow clusters are not blurred by the noise of
batch statistics, and many processes compute what one does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gkfast.gan import checks
from gkfast.gan.data import Data

# rounding may take a sum of probabilities this far out of [0, 1]
_ROUNDING = 1e-6


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


class Channels(nn.Module):
    """Flattened images (N, H W C) to (N, C, H, W), or back."""

    def __init__(self, shape: tuple[int, ...], back: bool = False) -> None:
        super().__init__()
        H, W, *C = shape
        self.H, self.W, self.C = H, W, C[0] if C else 1
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        if self.back:
            return x.permute(0, 2, 3, 1).flatten(1)
        return x.reshape(-1, self.H, self.W, self.C).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.H} x {self.W} x {self.C}, back={self.back}"


class Discriminator(nn.Module):
    """Samples (N, D) -> features (N, F) -> outputs (N, 1), or as many as a kernel critic has."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x))
        return outputs


def width(data: Data) -> int:
    """Hidden units: four per number in a sample, from 64 (points in the plane) to 1024 (images)."""
    return min(max(4 * data.train.shape[1], 64), 1024)


def generator(
    data: Data, noise_dim: int, *, network: str = "mlp", units: int | None = None, layers: int = 2
) -> nn.Sequential:
    """Noise (N, noise_dim + 1) of generate_data -> samples (N, D).

    network : {"mlp", "dcgan"}
    units : int, optional
        Hidden units of the perceptron, by default `width`; channels of the DCGAN at full size, by default 32.
    layers : int
        Hidden layers of the perceptron.
    """
    last = last_layer(data)
    if network == "dcgan":
        return nn.Sequential(*_convolutional_generator(data.shape, noise_dim + 1, units or 32), last)
    h = units or width(data)
    body = perceptron(noise_dim + 1, h, layers, data)
    return nn.Sequential(*body, nn.Linear(h, data.train.shape[1]), last)


def discriminator(
    data: Data,
    *,
    network: str = "mlp",
    units: int | None = None,
    layers: int = 2,
    outputs: int = 1,
    spectral: bool = False,
) -> Discriminator:
    """Samples (N, D) -> logits (N, 1), or the `outputs` features of a kernel critic.

    spectral : bool
        Whether each layer's largest singular value is held at 1 (Miyato et al. 2018).
    """
    mean, std = data.train.mean(), data.train.std()
    units_in = Affine(1 / std, -mean / std)
    if network == "dcgan":
        body, F = _convolutional_body(data.shape, units or 32)
    else:
        F = units or width(data)
        body = perceptron(data.train.shape[1], F, layers, data)
    made = Discriminator(nn.Sequential(units_in, *body), nn.Linear(F, outputs))
    if spectral:
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                spectral_norm(layer)
    return made


def parameters(network: nn.Module) -> int:
    return sum(w.numel() for w in network.parameters())


def last_layer(data: Data) -> nn.Module:
    """From units near 1 to those of the data."""
    return nn.Sigmoid() if data.unit_range else Affine(data.train.std(), data.train.mean())


def perceptron(inputs: int, units: int, layers: int, data: Data) -> list[nn.Module]:
    """Hidden layers, each a matrix and an activation."""
    # points of few dimensions lie on smooth curves and in round clusters
    activation: nn.Module = nn.Tanh() if data.train.shape[1] <= 16 else nn.LeakyReLU(0.2)
    modules: list[nn.Module] = []
    for layer in range(layers):
        modules += [nn.Linear(inputs if layer == 0 else units, units), activation]
    return modules


def _halvings(H: int, W: int) -> int:
    """How often an image is halved: until a side is odd or would fall below 4."""
    times = 0
    while H % 2 == 0 and W % 2 == 0 and min(H, W) >= 8:
        H, W, times = H // 2, W // 2, times + 1
    return times


def _convolutional_generator(shape: tuple[int, ...], inputs: int, channels: int) -> list[nn.Module]:
    """The shape of DCGAN (Radford et al. 2016), with upsampling and convolution in place of its transpose."""
    H, W, *rest = shape
    times = _halvings(H, W)
    c, h, w = channels * 2**times, H // 2**times, W // 2**times
    modules: list[nn.Module] = [nn.Linear(inputs, c * h * w), nn.Unflatten(1, (c, h, w)), nn.LeakyReLU(0.2)]
    for _ in range(times):
        modules += [nn.Upsample(scale_factor=2), nn.Conv2d(c, c // 2, 3, padding=1), nn.LeakyReLU(0.2)]
        c //= 2
    return [*modules, nn.Conv2d(c, rest[0] if rest else 1, 3, padding=1), Channels(shape, back=True)]


def _convolutional_body(shape: tuple[int, ...], channels: int) -> tuple[list[nn.Module], int]:
    H, W, *rest = shape
    c, times = channels, _halvings(H, W)
    modules: list[nn.Module] = [
        Channels(shape),
        nn.Conv2d(rest[0] if rest else 1, c, 3, padding=1),
        nn.LeakyReLU(0.2),
    ]
    for _ in range(times):
        modules += [nn.Conv2d(c, 2 * c, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        c *= 2
    return [*modules, nn.Flatten()], c * (H // 2**times) * (W // 2**times)


@torch.no_grad()
def sample(network: nn.Module, inputs: Tensor) -> Any:
    """The outputs of a network in evaluation mode; its mode is put back."""
    mode = network.training
    network.eval()
    outputs = network(inputs)
    network.train(mode)
    return outputs


def bounds(values: Tensor) -> tuple[float, float]:
    """The least and the greatest value that is a number."""
    numbers = values.detach().float()
    numbers = numbers[~numbers.isnan()]
    return (float(numbers.min()), float(numbers.max())) if numbers.numel() else (0.0, 0.0)


@torch.no_grad()
def bounds_of_all_weights(network: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """The least and the greatest output in evaluation mode while weights are drawn at random; they are put back.

    Logits may lie in [0, 1] on a batch by chance, and leave it as the weights are trained. A sigmoid stays in it with
    any weights.
    """
    weights = [w for w in network.parameters() if w.requires_grad]
    kept = [w.clone() for w in weights]
    rng = torch.Generator().manual_seed(0)
    ranges = []
    try:
        # wide draws move a last bias out of [0, 1], and narrow ones do not overflow in a deep network
        for width in (1.0, 10.0, 1.0, 10.0, 1.0, 10.0):
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before + width * torch.randn(weight.shape, generator=rng).to(weight))
            try:
                ranges.append(bounds(sample(network, inputs)))
            # some networks cannot be run with every weight, for example one that inverts a matrix
            except (RuntimeError, ValueError, ArithmeticError):
                continue
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
    return min((low for low, _ in ranges), default=0.0), max((high for _, high in ranges), default=0.0)


def check_weights(name: str, network: nn.Module, trained: bool) -> None:
    """The network has weights, which can be trained where they are to be."""
    if not any(w.requires_grad or not trained for w in network.parameters()):
        frozen = "frozen ones" if any(True for _ in network.parameters()) else "none"
        raise ValueError(f"{name} must have weights to train, got {frozen}; give it a layer, or requires_grad_(True)")


def check_generator(network: nn.Module, noise: Tensor, real: Tensor) -> Tensor:
    """A generator's samples from a batch of noise, which must have the shape of real ones."""
    fake = _outputs("generator", network, "noise", noise, "set noise_dim, or change its first layer")
    if not isinstance(fake, Tensor) or fake.shape[1:] != real.shape[1:]:
        got = tuple(fake.shape[1:]) if isinstance(fake, Tensor) else checks.shown(fake)
        raise ValueError(
            f"generator must return rows of the shape of y's, {tuple(real.shape[1:])}, "
            f"got {got}; change its last layer"
        )
    return fake


def check_discriminator(network: nn.Module, real: Tensor, fake: Tensor, kind: str) -> None:
    """A discriminator returns "logits", "probabilities" or "features" for batches of samples."""
    for samples in (real, fake):
        d = _outputs("discriminator", network, "samples", samples, "change its first layer, or cast y")
        got = f"shape {tuple(d.shape)}" if isinstance(d, Tensor) else checks.shown(d)
        if kind == "features" and not (isinstance(d, Tensor) and d.ndim > 1 and len(d) == len(samples)):
            raise ValueError(
                f"discriminator must return features of shape (B, F) for this loss, got {got} for "
                f"{len(samples)} samples; change its last layer"
            )
        if kind != "features" and not (isinstance(d, Tensor) and d.numel() == len(samples)):
            raise ValueError(
                f"discriminator must return one number per sample, got {got} for {len(samples)}; "
                "change its last layer"
            )
        if kind == "probabilities":
            check_probabilities(*bounds(d), "for a batch")
    if kind == "probabilities":
        check_probabilities(*bounds_of_all_weights(network, real), "with other weights")


def _outputs(name: str, network: nn.Module, kind: str, inputs: Tensor, remedy: str) -> Any:
    """A network's outputs for a batch."""
    try:
        return sample(network, inputs)
    # torch raises it for another shape, dtype or device
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} must take {kind} of shape {tuple(inputs.shape)} and {inputs.dtype}, "
            f"got {type(error).__name__} ({reason}); {remedy}"
        ) from error


def check_probabilities(least: float, greatest: float, where: str) -> None:
    if least < -_ROUNDING or greatest > 1 + _ROUNDING:
        raise ValueError(
            f"discriminator must return probabilities in [0, 1], got values from {least:.4g} to {greatest:.4g} "
            f'{where}; end it with a sigmoid, or pass output="logit"'
        )


def check_same_weights(name: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """A network has the weights of a checkpoint."""
    shapes = [{key: tuple(w.shape) for key, w in s.items() if isinstance(w, Tensor)} for s in (saved, now)]
    for key in sorted({*shapes[0], *shapes[1]}):
        a, b = (shape.get(key) for shape in shapes)
        if a != b:
            raise ValueError(
                f"{name} must be the network of the checkpoint, {key} of shape {a}, got {b}; "
                "resume with the same network, or train into another folder"
            )
