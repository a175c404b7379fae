"""Data to train on: scikit-learn's digits, a ring of eight Gaussians, or an array of one's own; and noise."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkfast.gan import checks

RING_MODES = 8
RING_STD = 0.01

# times the median distance between real samples: wide ones guide from afar, narrow ones sharpen
LADDER = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)

# the split is the same for every training seed, so that runs with different seeds can be compared
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Real data in three separate parts: one to train on, two held out.

    Attributes
    ----------
    name : str
        "digits", "ring", or the stem of the file's name.
    train, validation, test : tensor of shape (N, D)
        float32. Training sees `train` only; `validation` draws the curves and sets the metrics' bandwidth;
        `test` gives the final metrics.
    shape : tuple of int
        The shape of one sample before it was flattened to D numbers.
    unit_range : bool
        Whether every value lies in [0, 1] by its nature, so that a sigmoid may end the generator.
    train_labels : tensor of shape (N,), optional
        Class labels of `train`: used by metrics, never by training.
    ladder : tuple of float
        The bandwidths that suit the data, times the median distance between samples.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    shape: tuple[int, ...]
    unit_range: bool = False
    train_labels: Tensor | None = None
    ladder: tuple[float, ...] = LADDER


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
        As for torch.randn.

    Returns
    -------
    tensor of shape (num_samples, noise_dim + 1)
        Columns 0 to noise_dim - 1 are N(0, 1), the last is uniform on [0, 1).

    Raises
    ------
    ValueError
        If a size is negative.

    Examples
    --------
    >>> from gkfast.gan import generate_data
    >>> generate_data(5, 3).shape
    torch.Size([5, 4])
    """
    for name, size in (("num_samples", num_samples), ("noise_dim", noise_dim)):
        checks.not_negative(name, size)
    normal = torch.randn(num_samples, noise_dim, generator=generator, device=device, dtype=dtype)
    uniform = torch.rand(num_samples, 1, generator=generator, device=device, dtype=dtype)
    return torch.cat([normal, uniform], dim=1)


def digits() -> Data:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels in [0, 1]: 1000 to train, 297 and 500 held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise checks.missing("the digits", "scikit-learn") from error
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
    )


def ring_centres() -> Tensor:
    """The eight distinct centres (cos, sin)(2 pi i / 8), (8, 2)."""
    # not linspace(0, 2 pi, 8): its last point is its first, which leaves seven (gan benchmarks often do this)
    angle = torch.arange(RING_MODES) * (2 * math.pi / RING_MODES)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def ring(seed: int = 0) -> Data:
    """Eight Gaussians of standard deviation 0.01 on the unit circle: 8000 points to train, 1000 and 2500 held out."""
    rng = torch.Generator().manual_seed(seed)
    n = 11500
    mode = torch.randint(RING_MODES, (n,), generator=rng)
    x = ring_centres()[mode] + RING_STD * torch.randn(n, 2, generator=rng)
    # one narrower bandwidth: the modes are a hundred times narrower than the ring
    return Data("ring", train=x[:8000], validation=x[8000:9000], test=x[9000:], shape=(2,), ladder=(1 / 32, *LADDER))


def from_file(path: Path) -> Data:
    """An array of shape (N, ...) of finite real numbers in a .npy file; its rows are flattened.

    A tenth of the rows (picked at random, the same ones each time) is held out for the curves and a fifth for
    the metrics. Pickled objects are never loaded.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds anything else.
    """
    checks.existing(path)
    array = _read(path)
    # the check comes after the cast: a float64 above 3e38 is infinite in float32
    with np.errstate(over="ignore"):
        rows = array.reshape(len(array), -1).astype(np.float32)
    checks.float32_rows(path, rows)
    x = torch.from_numpy(rows[np.random.default_rng(_SPLIT_SEED).permutation(len(rows))])
    tenth = len(x) // 10
    return Data(
        path.stem,
        train=x[3 * tenth :],
        validation=x[:tenth],
        test=x[tenth : 3 * tenth],
        shape=array.shape[1:],
    )


def load(source: str) -> Data:
    """The data named on the command line: "digits", "ring" or the path of a .npy file."""
    if source == "digits":
        return digits()
    if source == "ring":
        return ring()
    return from_file(Path(source))


def _read(path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.load(path, allow_pickle=False)
    # what NumPy raises for pickles and foreign bytes, for an empty file, and for what may not be read
    except (ValueError, EOFError, OSError) as error:
        raise checks.plain_numbers(path) from error
    try:
        checks.array(path, array)
    finally:
        if not isinstance(array, np.ndarray):
            # an archive keeps its file open
            array.close()
    return array
