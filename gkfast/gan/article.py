"""The article's functions, by its names; gan_loss is in losses.py, generate_data in data.py."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import gkfast
from gkfast.checks import bandwidths, same_kind
from gkfast.gan import checks, objectives
from gkfast.gan.checkpoint import Checkpoints, Signals
from gkfast.gan.config import Recipe
from gkfast.gan.objectives import Objective
from gkfast.gan.train import Result, Training
from gkfast.nn_checks import constants


def compute_distance(x: Tensor, y: Tensor | None = None, sigma: float = 1.0) -> Tensor:
    """The article's d(x, y): the matrix of Gaussian kernels between two sets.

    .. code-block:: text

        K[i, j] = exp(-|x_i - y_j|^2 / (2 sigma^2))

    In spite of its name in the article this is a similarity, 1 at equal points and 0 far away. Where a
    distance is meant, take ``1 - K`` or the squared kernel distance ``2 - 2 K``. It is gkfast.rbf under the
    article's name, and takes what gkfast.rbf takes.

    Parameters
    ----------
    x : array of shape (..., N, D)
    y : array of shape (..., M, D), optional
        By default x itself.
    sigma : float
        The bandwidth, in the units of x.

    Returns
    -------
    array of shape (..., N, M)

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import compute_distance
    >>> compute_distance(torch.zeros(2, 3), torch.zeros(1, 3), sigma=1.0)
    tensor([[1.],
            [1.]])
    """
    _check_sigma(sigma, x)
    K: Tensor = gkfast.rbf(x, y, sigma)
    return K


def similarity(x: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    """The article's s(x, y): the Gaussian kernel of each pair (x_i, y_i).

    .. code-block:: text

        s[i] = exp(-|x_i - y_i|^2 / (2 sigma^2))

    The same function K as compute_distance, for rows that belong together: row i of x with row i of y. (For
    every x_i with every y_j take compute_distance; for one number between two sets take gkfast.kernel_means
    or gkfast.mmd2.)

    Parameters
    ----------
    x, y : array of shape (..., D)
        The same shape.
    sigma : float
        The bandwidth, in the units of x.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    ValueError
        If the shapes, dtypes or devices differ.
    TypeError
        If x or y is no array of a floating-point dtype.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import similarity
    >>> similarity(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), sigma=0.5)
    tensor([1., 1.])
    """
    for name, value in (("x", x), ("y", y)):
        if not hasattr(value, "dtype") or not hasattr(value, "shape") or value.ndim == 0:
            raise TypeError(
                f"{name} must be an array or tensor of shape (..., D), got {checks.shown(value)}; "
                "convert it with numpy.asarray or torch.as_tensor"
            )
    checks.same_shape("x", x, "y", y, "for all pairs of two sets call compute_distance")
    same_kind("x", x, "x", x)
    same_kind("y", y, "x", x)
    _check_sigma(sigma, x)
    K: Tensor = gkfast.rbf(x[..., None, :], y[..., None, :], sigma)
    return K[..., 0, 0]


def _check_sigma(sigma: Any, x: Any) -> None:
    """sigma can be read where x is."""
    bandwidths(sigma, None)
    if isinstance(sigma, Tensor) and isinstance(x, Tensor) and sigma.is_meta != x.is_meta:
        raise ValueError(f"sigma must be on the device of x ({x.device}), got {sigma.device}; pass a number")


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    x: Tensor | None,
    y: Tensor,
    sigma: float | Sequence[float],
    epochs: int,
    batch_size: int,
    *,
    loss: str | Objective = "gan+mmd",
    lam: float | None = None,
    output: str = "probability",
    noise_dim: int = 16,
    learning_rate: float = 1e-3,
    critic_steps: int = 1,
    ema: float = 0.0,
    r1: float = 0.0,
    r2: float = 0.0,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Result:
    """Train a GAN with a Gaussian-kernel loss, by the article's six steps.

    .. code-block:: text

        1  the networks come initialised
        2  noise -> generator -> generated data
        3  generated and real data -> discriminator
        4  the gradients of both losses
        5  update both networks
        6  repeat 2 to 5

    Parameters
    ----------
    generator : torch.nn.Module
        From noise (B, Z) to samples of the shape of y's rows. Trained in place.
    discriminator : torch.nn.Module
        From samples to B numbers, one each; for kernel critics ("mmdgan", "repulsive", "bounded", "smmd") to (B, F)
        features. Trained in place.
    x : tensor of shape (N, Z), or None
        Noise, of which a batch of rows is drawn at each step. None draws fresh noise from
        ``generate_data(batch_size, noise_dim)``, so that Z = noise_dim + 1.
    y : tensor of shape (M, ...)
        Real data, floating point.
    sigma : float or sequence of float
        Bandwidths, in the units of y; the kernel terms average over them. ``gkfast.median_sigma(y)`` times
        1/8, 1/4, 1/2, 1, 2 is a good choice.
    epochs : int
        Passes over y; the rows that do not fill a last batch sit the pass out.
    batch_size : int
        Over all processes, each of which takes its share.
    loss : one of gkfast.gan.LOSSES, or Objective
        See gkfast.gan.objective.
    lam : float, optional
        The weight of the kernel term; by default what suits the loss.
    output : {"probability", "logit"}
        What the discriminator returns: the article's D(x), in [0, 1] whatever its weights, or its logit, which loses
        no digits. The first is checked before the first step, on a batch with the given weights and with others,
        and as training goes on. Kernel critics return features, and this is not looked at.
    noise_dim : int
        Used when x is None.
    learning_rate : float
        Adam's at the start; it falls to a twentieth along a cosine.
    critic_steps : int
        Updates of the discriminator for one of the generator.
    ema : float
        The decay of an averaged generator, Result.average; 0 for none.
    r1, r2 : float
        The discriminator's gradient penalties on real and on generated samples, up to 1e9.
    seed : int
        For noise, batches and dropout. The same seed and the same initial networks give the same numbers on a
        CPU. torch's global random state is left as it was.
    checkpoints : path, optional
        A folder that receives the state twenty times while training; the last three stay. With it SIGINT and SIGTERM
        save and raise gkfast.gan.checkpoint.Stopped.
    resume : bool
        Whether to go on from the newest checkpoint, if there is one. On a CPU the result is, bit for bit, that of a
        training which was never interrupted. Python's and NumPy's global random states are set too.
    progress : bool
        Show one progress line.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If a number or a shape does not fit, the discriminator returns no probabilities where it was said to, or a
        checkpoint is of another training.
    TypeError
        If x or y is no tensor of a floating-point dtype, or another argument is of the wrong type.
    FloatingPointError
        When a loss becomes infinite or NaN.
    ImportError
        Without the extra ``gkfast[train]``.

    Notes
    -----
    Runs where the generator's parameters are; under torchrun or accelerate launch in all processes, whose kernel
    sees the whole batch. It is the loop behind ``gkfast train``.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import train_gan
    >>> G = torch.nn.Linear(3, 2)
    >>> D = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid())
    >>> y = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> result = train_gan(G, D, None, y, sigma=1.0, epochs=2, batch_size=32, noise_dim=2)
    >>> result.steps
    4
    """
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"{name} must be a torch.nn.Module, got {checks.shown(network)}; wrap a function in a module"
            )
    sigmas = constants("sigma", sigma)
    epochs = checks.whole("epochs", epochs, 1, "pass the number of passes over y")
    batch_size = checks.whole("batch_size", batch_size, 2, "64 to 512 are usual")
    _check_rows("y", y, batch_size)
    if x is not None:
        _check_rows("x", x, batch_size)
    lam = None if lam is None else checks.weight(lam)
    r1, r2 = checks.penalty("r1", r1), checks.penalty("r2", r2)
    objective = objectives.objective(loss, sigmas, lam, real=y, r1=r1, r2=r2) if isinstance(loss, str) else loss
    if not isinstance(objective, Objective):
        raise TypeError(f"loss must be one of LOSSES or an Objective, got {checks.shown(loss)}; pass one of them")
    checks.choice("output", output, ("probability", "logit"), "say what D returns")
    if not isinstance(checkpoints, str | os.PathLike | None):
        raise TypeError(
            f"checkpoints must be the path of a folder, got {checks.shown(checkpoints)}; pass a str or a Path"
        )
    if checkpoints is not None and Path(checkpoints).exists() and not Path(checkpoints).is_dir():
        raise ValueError(
            f"checkpoints must be the path of a folder, got the file {str(checkpoints)!r}; name another one"
        )
    checks.flag("resume", resume)
    checks.flag("progress", progress)
    rate = checks.number("learning_rate", learning_rate, "1e-3 is usual", open_below=True)
    recipe = Recipe(
        steps=epochs * (len(y) // batch_size),
        batch=batch_size,
        noise_dim=checks.whole("noise_dim", noise_dim, 0, "16 is usual"),
        generator_rate=rate,
        discriminator_rate=rate,
        critic_steps=checks.whole("critic_steps", critic_steps, 1, "1 is usual"),
        ema=checks.number("ema", ema, "0.999 is usual, 0 for none", most=1, open_above=True),
        seed=checks.whole("seed", seed, 0, "0 is usual", most=checks.GREATEST_SEED),
    )
    with Signals() if checkpoints is not None else nullcontext() as signals:
        training = Training(
            generator,
            discriminator,
            y,
            objective,
            recipe,
            sigma=sigmas,
            noise=x,
            probabilities=output == "probability",
        )
        return training.run(
            checkpoints=None if checkpoints is None else Checkpoints(Path(checkpoints)),
            resume=resume,
            identity={"loss": loss if isinstance(loss, str) else "", "lam": lam, "r1": r1, "r2": r2, "sigma": sigmas},
            signals=signals,
            progress="train" if progress else None,
        )


def _check_rows(name: str, rows: Tensor, batch_size: int) -> None:
    """Finite floating-point rows, enough for one batch; an unbiased MMD needs two of each."""
    checks.tensor(name, rows)
    if rows.ndim < 2 or rows[:1].numel() == 0:
        raise ValueError(
            f"{name} must have shape (rows, ...) with a number in each row, got {tuple(rows.shape)}; "
            f"for one number per row use {name}.reshape(-1, 1)"
        )
    if rows.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device; pass one that has data")
    if not rows.isfinite().all():
        raise ValueError(f"{name} must hold finite numbers, got NaN or infinity; remove or clip them")
    if batch_size > len(rows):
        raise ValueError(
            f"batch_size must be at least 2 and at most the {len(rows)} rows of {name}, got {batch_size}; "
            "pass one in between"
        )
