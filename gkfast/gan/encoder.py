"""A frozen encoder, whose outputs a kernel compares in place of samples: the user's own, or a small autoencoder.

The autoencoder is trained on the data first. Its decoder behind a small network from noise to codes is the generator.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, networks, own
from gkfast.gan.checkpoint import cached, write_tensors
from gkfast.gan.config import Config, Recipe
from gkfast.gan.data import Data
from gkfast.gan.loop import Record, forked_random_state, is_logged, take_steps

# hidden units of the network from noise to codes: there are few numbers in a code
_CODE_UNITS = 256
# of a kernel density: neighbours of a code, and bandwidths that are tried, in units of their spread
_NEIGHBOURS = 10
_WIDTHS = [0.025 * 1.2**step for step in range(25)]

# of the file in the cache: weights of another network or training are not loaded
_VERSION = 1
# steps, batch, hidden units and code of the autoencoder that judges: some ten seconds for 32 x 32 colours
_JUDGE = (1500, 128, 256, 64)


class Autoencoder(nn.Module):
    """Samples (N, D) -> outputs of each hidden layer, and the code (N, code); `decode` leads back.

    Each number of a code has mean 0 and variance 1 over the data.
    """

    def __init__(self, data: Data, code: int, *, units: int | None = None, layers: int = 2) -> None:
        super().__init__()
        D, h = data.train.shape[1], units or networks.width(data)
        mean, std = data.train.mean(), data.train.std()
        self.units_in = networks.Affine(1 / std, -mean / std)
        hidden = networks.perceptron(D, h, layers, data)
        self.hidden = nn.ModuleList(nn.Sequential(*hidden[at : at + 2]) for at in range(0, len(hidden), 2))
        self.size = code
        self.code = nn.Sequential(nn.Linear(h, code), nn.BatchNorm1d(code, affine=False))
        self.decode = nn.Sequential(
            *networks.perceptron(code, h, layers, data), nn.Linear(h, D), networks.last_layer(data)
        )
        # probabilities of pixels, or normal values around the decoder's
        self.loss = F.binary_cross_entropy if data.unit_range else F.mse_loss

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs, x = [], self.units_in(x)
        for layer in self.hidden:
            x = layer(x)
            outputs.append(x)
        return [*outputs, self.code(x)]

    def reconstruction_loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """The loss of x and its reconstruction from a code with noise on it, summed over numbers, mean over rows."""
        loss: Tensor = self.loss(self.decode(self(x)[-1] + noise), x, reduction="sum")
        return loss / len(x)


class AutoencoderTraining:
    """The training of an autoencoder, on the CPU or one device; all processes train the same one, or one alone."""

    noise: Tensor | None = None

    def __init__(
        self, autoencoder: Autoencoder, real: Tensor, recipe: Recipe, code_noise: float, *, alone: bool = False
    ) -> None:
        checks.require("accelerate", "training", "accelerate")
        from accelerate import PartialState

        self.autoencoder, self.recipe, self.code_noise = autoencoder, recipe, code_noise
        self.device = next(autoencoder.parameters()).device
        processes = PartialState(cpu=self.device.type == "cpu")
        self.main: bool = alone or processes.is_main_process
        self.rank: int = 0 if alone else processes.process_index
        self.processes: int = 1 if alone else processes.num_processes
        self.real = real.to(self.device)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(autoencoder.parameters(), recipe.generator_rate, fused=fused)
        self.step, self.history = 0, list[Record]()
        # the time of the steps
        self.seconds, self._seconds_at_record, self._steps_since = 0.0, 0.0, 0

    def advance(self) -> Record | None:
        """One step; its record, if it is logged."""
        start = time.perf_counter()
        recipe = self.recipe
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.generator_rate * recipe.rate(self.step)
        picked = torch.randint(len(self.real), (recipe.batch,), generator=self.rng)
        noise = self.code_noise * torch.randn(recipe.batch, self.autoencoder.size, generator=self.rng)
        rows = self.real[picked.to(self.device)]
        try:
            loss = self.autoencoder.train().reconstruction_loss(rows, noise.to(self.device))
        except RuntimeError:
            # the cross-entropy refuses what is no number
            self._check_finite(float(self.autoencoder.decode(self.autoencoder(rows)[-1]).detach().sum()))
            raise
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._steps_since += 1
        # item() waits for the device
        value = loss.item() if is_logged(self.step, recipe.steps) else None
        self.seconds += time.perf_counter() - start
        if value is None:
            return None
        self._check_finite(value)
        speed = self._steps_since / max(self.seconds - self._seconds_at_record, 1e-9)
        self._seconds_at_record, self._steps_since = self.seconds, 0
        record = {"step": self.step, "seconds": self.seconds, "steps_per_second": speed, "reconstruction": value}
        self.history.append(record)
        return record

    def _check_finite(self, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"training must keep the autoencoder finite, got {value} at its step {self.step}; lower encoder_rate"
            )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "autoencoder": self.autoencoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.rng.get_state(),
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["random"])
        self.step, self.history = state["step"], state["history"]
        self.seconds = self._seconds_at_record = state["seconds"]

    def share(self) -> None:
        """Give every process the first one's autoencoder: machines of different kinds round differently."""
        if self.processes > 1:
            for values in self.autoencoder.state_dict().values():
                dist.broadcast(values, src=0)


class KernelDensity(nn.Module):
    """Noise (N, code + 1) of generate_data -> codes (N, code), drawn from a Gaussian kernel density of the data's.

    .. code-block:: text

        c_i + h L e        i uniform, e ~ N(0, I), L L^T the mean covariance of differences to the 10 nearest codes

    Kernels are thus as wide along the data's manifold as codes lie apart there (Vincent and Bengio 2003; one
    covariance for all), and h is the best by the log-density of each code under the others. An autoencoder with a
    density of its codes is a generative model already (Ghosh et al. 2020, section 4).
    """

    codes: Tensor
    spread: Tensor

    def __init__(self, rows: int, code: int) -> None:
        super().__init__()
        self.rows, self.code = rows, code
        self.register_buffer("codes", torch.zeros(rows, code))
        self.register_buffer("spread", torch.eye(code))

    @torch.no_grad()
    def fit(self, codes: Tensor) -> None:
        """Take these codes of the data, and find h L in float64."""
        exact = codes.double()
        size = min(_NEIGHBOURS, len(codes) - 1)
        covariance = torch.zeros(codes.shape[1], codes.shape[1], dtype=exact.dtype, device=exact.device)
        for rows in exact.split(1000):
            # the nearest one is the code itself
            nearest = torch.cdist(rows, exact).topk(size + 1, largest=False).indices[:, 1:]
            differences = (exact[nearest] - rows[:, None]).flatten(0, 1)
            covariance += differences.T @ differences / (size * len(codes))
        ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        root = torch.linalg.cholesky(covariance + ridge)
        white = torch.linalg.solve_triangular(root, exact.T, upper=False).T.contiguous()
        scores = gkfast.log_density(white, white, _WIDTHS, leave_one_out=True, by_bandwidth=True).mean(0)
        self.codes.copy_(codes)
        self.spread.copy_(_WIDTHS[int(scores.argmax())] * root)

    def forward(self, noise: Tensor) -> Tensor:
        # the uniform column picks a code
        picked = (noise[:, -1] * self.rows).long().clamp(max=self.rows - 1)
        return self.codes[picked] + noise[:, :-1] @ self.spread.T


class Encoder(nn.Module):
    """Samples (N, D) -> the compared outputs of a frozen network, each (N, F)."""

    def __init__(self, network: nn.Module, compared: Sequence[int]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.compared = list(compared)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.network(x)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        return [outputs[k].flatten(1) for k in self.compared]

    def train(self, mode: bool = True) -> "Encoder":
        """It stays in evaluation mode."""
        return super().train(False)


def outputs(encoder: nn.Module, rows: Tensor) -> list[Tensor]:
    """An Encoder's outputs for many rows, a thousand at a time."""
    parts = [networks.sample(encoder, some) for some in rows.split(1000)]
    if not all(isinstance(part, list | tuple) for part in parts):
        raise ValueError(
            f"encoder must return a list of tensors, got {checks.shown(parts[0])}; wrap it in gan.encoder.Encoder"
        )
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def load(option: str, name: str, data: Data, compared: Sequence[int]) -> Encoder:
    """The encoder that an option names, module:function; it gets images as (N, C, H, W).

    Raises
    ------
    ValueError
        If there is no such function, or what it returns is no torch module that takes the data.
    """
    network = own.network(option, name)
    if data.is_image:
        network = nn.Sequential(networks.Channels(data.shape), network)
    encoder = Encoder(network, compared)
    try:
        layers = outputs(encoder, data.train[:3])
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{option} must return, for a batch of samples, a tensor or a list of tensors that has the layers "
            f"{compared}, got {type(error).__name__} ({error}); change it, or the layers that are asked for"
        ) from error
    if not all(len(rows) == 3 and rows.is_floating_point() for rows in layers):
        raise ValueError(
            f"{option} must return a row of floating-point numbers for each sample, got "
            f"{[tuple(rows.shape) for rows in layers]} for 3 samples; change its last layers"
        )
    return encoder


def autoencoder(data: Data, config: Config) -> Autoencoder:
    """An untrained one, initialised from the seed."""
    with forked_random_state(torch.device("cpu")):
        torch.manual_seed(config.recipe.seed)
        return Autoencoder(data, config.code, units=config.units or None, layers=config.layers)


def judge(data: Data) -> Encoder:
    """The code of an autoencoder of the real images, by which generated ones are judged.

    No generator is trained by it. It is trained once for each data set, from a fixed seed, and kept in the user's
    cache.
    """
    steps, batch, units, code = _JUDGE
    with forked_random_state(torch.device("cpu")):
        torch.manual_seed(0)
        network = Autoencoder(data, code, units=units)
        path = cached(f"autoencoder-{_VERSION}", data.train)
        if path.is_file():
            # no code of the file is run
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            recipe = Recipe(steps=steps, batch=min(batch, len(data.train)), generator_rate=2e-3)
            take_steps(AutoencoderTraining(network, data.train, recipe, code_noise=0.1, alone=True))
            write_tensors(path, network.state_dict())
    return Encoder(network, [-1])


def generator(data: Data, config: Config, decoder: nn.Module) -> nn.Sequential:
    """Noise (N, noise_dim + 1) -> codes -> samples (N, D): a kernel density or a small network, and a decoder."""
    if config.code_prior == "kernel":
        return nn.Sequential(KernelDensity(len(data.train), config.code), decoder)
    body = networks.perceptron(config.recipe.noise_dim + 1, _CODE_UNITS, 2, data)
    return nn.Sequential(nn.Sequential(*body, nn.Linear(_CODE_UNITS, config.code)), decoder)
