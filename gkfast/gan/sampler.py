"""A trained generator as one file: its layers as a list, its weights, and what its samples are.

The file holds numbers, texts and lists alone, and loading it runs no code: the layers are built from a short table of
classes, by the arguments that the file names.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks
from gkfast.gan.checkpoint import write_tensors
from gkfast.gan.columns import Columns
from gkfast.gan.data import Data, generate_data
from gkfast.gan.encoder import KernelDensity
from gkfast.gan.networks import Affine, Channels, sample

# the arguments of each layer that a generator may have, which are its attributes too
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "Conv2d": (nn.Conv2d, ("in_channels", "out_channels", "kernel_size", "stride", "padding")),
    "Upsample": (nn.Upsample, ("scale_factor",)),
    "Unflatten": (nn.Unflatten, ("dim", "unflattened_size")),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "Tanh": (nn.Tanh, ()),
    "Sigmoid": (nn.Sigmoid, ()),
    "KernelDensity": (KernelDensity, ("rows", "code")),
}
# rows that go through the network at a time
_ROWS = 2000


class Sampler(nn.Module):
    """A trained generator, without its data and its run: `gkfast.gan.load` makes one.

    Calling it maps noise (N, noise_dim + 1) of `generate_data` to samples (N, ...).

    Attributes
    ----------
    network : torch.nn.Module
    noise_dim : int
    shape : tuple of int
        That of a sample; images are (H, W) or (H, W, C).
    range : tuple of two floats
        The least and the greatest value of the training data; (0, 1) where all values lie in it by their nature.
    image : bool
    columns : list of str
        Their names, where the data were a table; else empty.
    table : Columns or None
        The scales and kinds of a table's columns: the network's numbers are scaled, and `sample` gives the table's.
    """

    def __init__(
        self,
        network: nn.Module,
        noise_dim: int,
        shape: Sequence[int],
        range: Sequence[float] = (0.0, 1.0),
        image: bool = False,
        columns: Sequence[str] = (),
        table: Columns | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {checks.shown(network)}; pass a generator")
        self.network = network
        self.noise_dim = checks.whole("noise_dim", noise_dim, 0, "pass that of the training")
        if not isinstance(shape, Sequence) or not isinstance(range, Sequence) or len(range) != 2:
            raise TypeError(
                f"shape and range must be sequences of numbers, got {shape!r} and {range!r}; "
                "for example (28, 28) and (0, 1)"
            )
        self.shape = tuple(checks.whole("shape", size, 1, "pass that of a sample") for size in shape)
        self.range = float(range[0]), float(range[1])
        self.image, self.columns, self.table = image, list(columns), table

    def forward(self, noise: Tensor) -> Tensor:
        rows: Tensor = self.network(noise)
        return rows.reshape(len(rows), *self.shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples, (n, *shape) float32, in the units of the training data; the same seed gives the same ones.

        They are on the device of the network, and without a gradient.
        """
        n = checks.whole("n", n, 0, "pass the number of samples")
        seed = checks.whole("seed", seed, 0, "0 is usual", most=checks.GREATEST_SEED)
        noise = generate_data(n, self.noise_dim, generator=torch.Generator().manual_seed(seed))
        device = next(iter(self.network.state_dict().values()), noise).device
        parts = [sample(self, rows.to(device)) for rows in noise.split(_ROWS)]
        rows = torch.cat(parts) if n else noise.new_empty(0, *self.shape, device=device)
        return rows if self.table is None else torch.from_numpy(self.table.restore(rows)).to(rows)

    def extra_repr(self) -> str:
        return f"noise_dim={self.noise_dim}, shape={self.shape}, range={self.range}"


def of_training(network: nn.Module, data: Data, noise_dim: int) -> Sampler:
    """The sampler of a generator that was trained on the data."""
    low, high = (0.0, 1.0) if data.unit_range else (float(data.train.min()), float(data.train.max()))
    names = () if data.columns is None else data.columns.names
    return Sampler(network, noise_dim, data.shape, (low, high), data.is_image, names, data.columns)


def save(path: Path, sampler: Sampler) -> None:
    """Write the one file, whole or not at all."""
    write_tensors(
        path,
        {
            "gkfast": gkfast.__version__,
            "format": 1,
            "layers": _described(sampler.network),
            "weights": sampler.network.state_dict(),
            "noise_dim": sampler.noise_dim,
            "shape": list(sampler.shape),
            "range": list(sampler.range),
            "image": sampler.image,
            "columns": sampler.columns,
            "table": None if sampler.table is None else sampler.table.as_dict(),
        },
    )


def load(run: str | Path) -> Sampler:
    """The generator of a run, ready to draw samples: it needs neither the training data nor the run's other files.

    Parameters
    ----------
    run : path
        A run folder of `gkfast train`, whose generator.pt is taken, or such a file by itself (control.pt is the GAN
        without the kernel).

    Returns
    -------
    Sampler
        A torch.nn.Module on the CPU in evaluation mode, with `sample(n, seed)`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no generator of gkfast, is damaged, or would have to run code.

    Notes
    -----
    Loading runs no code (torch.load with weights_only, and layers of a fixed table).

    Examples
    --------
    >>> import gkfast.gan
    >>> generator = gkfast.gan.load("runs/digits-001")  # doctest: +SKIP
    >>> generator.sample(16, seed=1).shape  # doctest: +SKIP
    torch.Size([16, 8, 8])
    """
    if not isinstance(run, str | os.PathLike):
        raise TypeError(f"run must be the path of a run folder or file, got {checks.shown(run)}; pass a Path")
    path = Path(run)
    path = path / "generator.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"run must be the folder of a run that has ended, or its generator.pt, got {str(run)!r}; check the path, "
            "or let the run end"
        )
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        # without memory, until the weights are there: a file cannot ask for more than it holds
        with torch.device("meta"):
            network = _built(held["layers"])
        network.load_state_dict(held["weights"], assign=True)
        options = {name: held[name] for name in ("noise_dim", "shape", "range", "image", "columns")}
        table = None if held["table"] is None else Columns(**held["table"])
        sampler = Sampler(network, **options, table=table).eval().requires_grad_(False)
        sampler.sample(2)
    # torch raises anything for foreign bytes, truncated archives, and pickles that would run code
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"run must have a generator.pt of gkfast, whole and of this format, got {str(path)!r} "
            f"({type(error).__name__}: {reason}); train anew, or name another one"
        ) from error
    return sampler


def _described(network: nn.Module) -> list[Any]:
    """A layer as its name and arguments, a chain of layers as a list of them."""
    if type(network) is nn.Sequential:
        return ["Sequential", [_described(layer) for layer in network]]
    if isinstance(network, Affine):
        return ["Affine", {"size": list(network.scale.shape)}]
    if isinstance(network, Channels):
        image = [network.H, network.W, network.C]
        return ["Channels", {"shape": image, "back": network.back}]
    name = type(network).__name__
    if type(network) is not _LAYERS.get(name, (None,))[0]:
        known = ", ".join(("Sequential", "Affine", "Channels", *_LAYERS))
        raise ValueError(f"network must have layers among {known} to be saved, got {name}; build it of these")
    arguments = {key: getattr(network, key) for key in _LAYERS[name][1]}
    return [name, {key: list(v) if isinstance(v, tuple) else v for key, v in arguments.items()}]


def _built(layer: Any) -> nn.Module:
    name, arguments = layer
    if name == "Sequential":
        return nn.Sequential(*map(_built, arguments))
    if name == "Affine":
        return Affine(torch.ones(arguments["size"]), torch.zeros(arguments["size"]))
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    if name == "Channels":
        return Channels(**values)
    kind, names = _LAYERS[name]
    return kind(**{key: values[key] for key in names})
