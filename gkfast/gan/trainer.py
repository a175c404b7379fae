"""The training loop: the article's six steps, and a run that goes on from checkpoints."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkfast.gan import checks
from gkfast.gan.checkpoint import Checkpoints, Signals, outline
from gkfast.gan.losses import LOSSES, Objective, objective
from gkfast.gan.train import Loop, Recipe, Record


@dataclass
class Result:
    """What training leaves behind.

    Attributes
    ----------
    generator, discriminator : torch.nn.Module
        The modules that were given, trained in place.
    average : torch.nn.Module
        The averaged generator; the generator itself without averaging.
    history : list of dict
        One record per logged step: step, seconds, d_loss, g_loss, kernel_term, k_xx, k_yy, k_xy, mmd2,
        steps_per_second, kernel_share; what an objective does not have is left out. x is generated and y
        real.
    snapshots : list of (int, tensor)
        The step, and what the averaged generator made of the same noise then.
    steps : int
    seconds : float
        Wall-clock time of the loop, over all sessions of a resumed training.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module
    history: list[Record]
    snapshots: list[tuple[int, Tensor]]
    steps: int
    seconds: float


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
    checks.network("generator", generator)
    checks.network("discriminator", discriminator)
    sigmas = checks.bandwidths(sigma)
    epochs = checks.whole("epochs", epochs, 1, "pass the number of passes over y")
    batch_size = checks.whole("batch_size", batch_size, 2, "64 to 512 are usual")
    checks.rows("y", y, batch_size)
    if x is not None:
        checks.rows("x", x, batch_size)
    checks.objective_or_name(loss, LOSSES, Objective)
    lam = None if lam is None else checks.weight(lam)
    r1, r2 = checks.penalty("r1", r1), checks.penalty("r2", r2)
    checks.output(output)
    checks.folder("checkpoints", checkpoints)
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
        seed=checks.seed(seed),
    )
    with Signals() if checkpoints is not None else nullcontext() as signals:
        return fit(
            generator,
            discriminator,
            y,
            objective(loss, sigmas, lam, r1=r1, r2=r2) if isinstance(loss, str) else loss,
            recipe,
            sigma=sigmas,
            noise=x,
            probabilities=output == "probability",
            checkpoints=None if checkpoints is None else Checkpoints(Path(checkpoints)),
            resume=resume,
            identity={"loss": loss if isinstance(loss, str) else "", "lam": lam, "r1": r1, "r2": r2, "sigma": sigmas},
            signals=signals,
            progress="train" if progress else None,
        )


def fit(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    goal: Objective,
    recipe: Recipe,
    *,
    sigma: Sequence[float],
    noise: Tensor | None = None,
    held_out: Tensor | None = None,
    probabilities: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    signals: Signals | None = None,
    progress: str | None = None,
    on_record: Callable[[list[Record]], None] | None = None,
) -> Result:
    """The loop of train_gan, in steps instead of epochs.

    Parameters that train_gan does not have:

    sigma : sequence of float
        The fixed bandwidths of the logged MMD^2.
    held_out : tensor of shape (M, ...), optional
        What the logged MMD^2 and kernel means compare generated samples with; by default up to 500 rows of
        `real`.
    identity : dict, optional
        What a checkpoint must have been made with, besides recipe.identity(), to be resumed.
    signals : Signals, optional
        Already entered; the loop holds it, so that a signal leads to a checkpoint.
    progress : str, optional
        The label of the progress line; None shows none.
    on_record : callable, optional
        Called by the main process with the history as soon as it has grown, and once when it was resumed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise checks.missing("training", str(error.name)) from error
    checks.weights("generator", generator, trained=True)
    checks.weights("discriminator", discriminator, trained=goal.discriminator is not None)
    device = next(generator.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        loop = Loop(generator, discriminator, real, goal, recipe, sigma, noise, held_out, probabilities)
        identity = recipe.identity() | (identity or {})
        data = outline(real, noise) if checkpoints is not None else []
        saved = checkpoints.load() if checkpoints is not None and resume else None
        if saved is not None and checkpoints is not None:
            path = checkpoints.path(saved["step"])
            checks.same_data(path, saved.get("data"), data)
            checks.same_run(path, saved["identity"], identity)
            loop.restore(saved)
        if on_record is not None and loop.main:
            on_record(loop.history)
        every = recipe.checkpoint_every or max(1, recipe.steps // 20)
        line = tqdm(
            total=recipe.steps,
            initial=loop.step,
            desc=progress,
            disable=progress is None or not loop.main,
            unit=" steps",
            dynamic_ncols=True,
            # a terminal shows it live; a log file gets a line now and then
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]",
        )
        with line, signals.held() if signals is not None else nullcontext():
            while loop.step < recipe.steps:
                record = loop.advance()
                line.update()
                if record is not None:
                    line.set_postfix_str(_line(record), refresh=False)
                    if on_record is not None and loop.main:
                        on_record(loop.history)
                stopping = loop.anyone(signals is not None and signals.received is not None)
                if checkpoints is not None and (stopping or loop.step % every == 0 or loop.step in (1, recipe.steps)):
                    state = loop.state() | {"identity": identity, "data": data}
                    if loop.main:
                        checkpoints.save(loop.step, state)
                if stopping and loop.step < recipe.steps:
                    assert signals is not None
                    raise signals.stop(loop.step)
    return Result(generator, discriminator, loop.average, loop.history, loop.snapshots, recipe.steps, loop.seconds)


def _line(record: Record) -> str:
    parts = [f"{name} {record[key]:.3g}" for name, key in (("D", "d_loss"), ("G", "g_loss")) if key in record]
    parts.append("k {k_xx:.2f} {k_yy:.2f} {k_xy:.2f}, MMD2 {mmd2:.1e}".format(**record))
    if "kernel_share" in record:
        parts.append(f"kernel {record['kernel_share']:.0%}")
    return ", ".join(parts)
