"""Small networks, sized to the data: multilayer perceptrons and a DCGAN; any other torch modules do as well.

None of them looks at other rows of a batch (no batch normalisation): narrow clusters are not blurred by the noise of
batch statistics, and many processes compute what one does.
"""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

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
    last = nn.Sigmoid() if data.unit_range else Affine(data.train.std(), data.train.mean())
    if network == "dcgan":
        return nn.Sequential(*_convolutional_generator(data.shape, noise_dim + 1, units or 32), last)
    h = units or width(data)
    body = _perceptron(noise_dim + 1, h, layers, data)
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
        body = _perceptron(data.train.shape[1], F, layers, data)
    made = Discriminator(nn.Sequential(units_in, *body), nn.Linear(F, outputs))
    if spectral:
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                spectral_norm(layer)
    return made


def parameters(network: nn.Module) -> int:
    return sum(w.numel() for w in network.parameters())


def _perceptron(inputs: int, units: int, layers: int, data: Data) -> list[nn.Module]:
    # points of few dimensions lie on smooth curves and in round clusters
    activation: nn.Module = nn.Tanh() if data.train.shape[1] <= 16 else nn.LeakyReLU(0.2)
    made: list[nn.Module] = []
    for layer in range(layers):
        made += [nn.Linear(inputs if layer == 0 else units, units), activation]
    return made


def _halvings(H: int, W: int) -> int:
    """How often an image is halved: until a side is odd or would fall below 4."""
    times = 0
    while H % 2 == 0 and W % 2 == 0 and min(H, W) >= 8:
        H, W, times = H // 2, W // 2, times + 1
    return times


def _convolutional_generator(shape: tuple[int, ...], inputs: int, channels: int) -> list[nn.Module]:
    """The shape of DCGAN (Radford et al. 2016), with upsampling and convolution in place of its transpose."""
    H, W, *rest = shape
    C, times = rest[0] if rest else 1, _halvings(*shape[:2])
    now = channels * 2**times
    h, w = H // 2**times, W // 2**times
    made: list[nn.Module] = [nn.Linear(inputs, now * h * w), nn.Unflatten(1, (now, h, w)), nn.LeakyReLU(0.2)]
    for _ in range(times):
        made += [nn.Upsample(scale_factor=2), nn.Conv2d(now, now // 2, 3, padding=1), nn.LeakyReLU(0.2)]
        now //= 2
    return [*made, nn.Conv2d(now, C, 3, padding=1), Channels(shape, back=True)]


def _convolutional_body(shape: tuple[int, ...], channels: int) -> tuple[list[nn.Module], int]:
    H, W, *rest = shape
    now, times = rest[0] if rest else 1, _halvings(*shape[:2])
    made: list[nn.Module] = [Channels(shape), nn.Conv2d(now, channels, 3, padding=1), nn.LeakyReLU(0.2)]
    now = channels
    for _ in range(times):
        made += [nn.Conv2d(now, 2 * now, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        now *= 2
    return [*made, nn.Flatten()], now * (H // 2**times) * (W // 2**times)
