"""The training loop, and a run: a GAN and its control without the kernel, measured and written to a folder."""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, metrics, networks, report
from gkfast.gan.data import Data, generate_data
from gkfast.gan.losses import DEFAULT_LAM, Objective, objective

Record = dict[str, float]


@dataclass
class Result:
    """What training leaves behind.

    Attributes
    ----------
    generator, discriminator : torch.nn.Module
        The modules that were given, trained in place.
    history : list of dict
        One record per logged step: step, seconds, d_loss, g_loss, kernel_term, k_xx, k_yy, k_xy, mmd2,
        steps_per_second, kernel_share; what an objective does not have is left out. x is generated and y
        real.
    steps : int
    seconds : float
        Wall-clock time of the loop.
    """

    generator: nn.Module
    discriminator: nn.Module
    history: list[Record]
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
    seed: int = 0,
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
        From samples to B numbers, one each. Trained in place.
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
    loss : {"gan+mmd", "gan", "mmd", "gan+logkde", "article"} or Objective
        See gkfast.gan.objective.
    lam : float, optional
        The weight of the kernel term; by default what suits the loss.
    output : {"probability", "logit"}
        What the discriminator returns: the article's D(x) in [0, 1], or its logit, which loses no digits.
    noise_dim : int
        Used when x is None.
    learning_rate : float
        Adam's at the start; it falls to a twentieth along a cosine.
    seed : int
        For noise, batches and dropout. The same seed and the same initial networks give the same numbers on a
        CPU. torch's global random state is left as it was.
    progress : bool
        Show one progress line.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If a number or a shape does not fit.
    TypeError
        If x or y is not of a floating-point dtype.
    FloatingPointError
        When a loss becomes infinite or NaN.
    ImportError
        Without the extra ``gkfast[train]``.

    Notes
    -----
    Runs where the generator's parameters are. It is the loop behind ``gkfast train``.

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
    sigmas = [float(sigma)] if isinstance(sigma, int | float) else [float(s) for s in sigma]
    checks.epochs(epochs)
    checks.output(output)
    checks.rows("y", y, batch_size)
    if x is not None:
        checks.rows("x", x, batch_size)
    return fit(
        generator,
        discriminator,
        y,
        objective(loss, sigmas, lam) if isinstance(loss, str) else loss,
        sigma=sigmas,
        steps=epochs * (len(y) // batch_size),
        batch_size=batch_size,
        noise=x,
        noise_dim=noise_dim,
        probabilities=output == "probability",
        learning_rate=learning_rate,
        seed=seed,
        progress="train" if progress else None,
    )


def fit(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    goal: Objective,
    *,
    sigma: Sequence[float],
    steps: int,
    batch_size: int,
    noise: Tensor | None = None,
    noise_dim: int = 16,
    held_out: Tensor | None = None,
    probabilities: bool = False,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: str | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Result:
    """The loop of train_gan, in steps instead of epochs.

    Parameters that train_gan does not have:

    held_out : tensor of shape (M, ...), optional
        What the logged MMD^2 and kernel means compare generated samples with; by default up to 500 rows of
        `real`.
    progress : str, optional
        The label of the progress line; None shows none.
    on_record : callable, optional
        Called with each record of the history as soon as it is there.
    """
    try:
        from accelerate import Accelerator
        from tqdm import tqdm
    except ImportError as error:
        raise checks.missing("training", str(error.name)) from error

    device = next(generator.parameters()).device
    accelerator = Accelerator(cpu=device.type == "cpu")
    checks.one_process(accelerator.num_processes)
    real = real.to(device)
    held_out = real[:500] if held_out is None else held_out.to(device)
    rng = torch.Generator().manual_seed(seed)
    noise_batches = _noise_batches(noise, noise_dim, batch_size, rng, real)
    real_batches = _batches(real, batch_size, rng)
    fixed_noise = next(_noise_batches(noise, noise_dim, min(500, len(real)), rng, real))
    # both networks once, so that a wrong shape is named before the first step
    checks.generated(sample(generator, fixed_noise[:2]), real)
    checks.judged(sample(discriminator, real[:2]), probabilities)

    g_optimizer = torch.optim.Adam(generator.parameters(), betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), betas=(0.5, 0.999))
    G, g_optimizer = accelerator.prepare(generator), accelerator.prepare(g_optimizer)
    D, d_optimizer = accelerator.prepare(discriminator), accelerator.prepare(d_optimizer)

    weights = [w for w in generator.parameters() if w.requires_grad]

    def logits(samples: Tensor) -> Tensor:
        d: Tensor = D(samples)
        # clamped, because the logit of 0 and of 1 is infinite
        return torch.logit(d, eps=1e-6) if probabilities else d

    history: list[Record] = []
    log_every = max(1, steps // 100)
    start = since = time.perf_counter()
    paused = 0.0
    with (
        torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]),
        tqdm(
            total=steps,
            desc=progress,
            disable=progress is None,
            unit=" steps",
            dynamic_ncols=True,
            # a terminal shows it live; a log file gets a line now and then
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]",
        ) as line,
    ):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            # a cosine to a twentieth: it does what averaging the weights would do, without a second generator
            rate = learning_rate * (0.525 + 0.475 * math.cos(math.pi * (step - 1) / steps))
            for group in (*g_optimizer.param_groups, *d_optimizer.param_groups):
                group["lr"] = rate

            # 2. noise -> generated data; both updates below use these samples
            y = next(real_batches)
            x = G(next(noise_batches))

            # 3-5. the discriminator first, so that the generator answers to the newest one
            record: Record = {"step": step}
            if goal.discriminator is not None:
                d_loss = goal.discriminator(logits(y), logits(x.detach()))
                d_optimizer.zero_grad()
                accelerator.backward(d_loss)
                d_optimizer.step()

            # 3-5. the generator: what the discriminator says, and what the kernel says
            g_loss = x.new_zeros(())
            if goal.generator is not None:
                g_loss = g_loss + goal.generator(logits(x))
            if goal.kernel is not None:
                kernel_term = goal.kernel(x.flatten(1), y.flatten(1))
                g_loss = g_loss + goal.lam * kernel_term
            g_optimizer.zero_grad()
            # gradients pass through the discriminator; its own weights need none here
            accelerator.backward(g_loss, inputs=weights)
            g_optimizer.step()
            line.update()

            if step % log_every and step not in (1, steps):
                continue
            # the only place that waits for the device
            now = time.perf_counter()
            speed = (step - (history[-1]["step"] if history else 0)) / (now - since)
            record |= {"seconds": now - start - paused, "g_loss": g_loss.item()}
            if goal.discriminator is not None:
                record["d_loss"] = d_loss.item()
            if goal.kernel is not None:
                record["kernel_term"] = kernel_term.item()
                record["kernel_share"] = min(1.0, speed * _kernel_seconds(goal.kernel, x, y))
            record["steps_per_second"] = speed
            record |= _kernel_means(sample(generator, fixed_noise), held_out, sigma)
            checks.finite(record)
            history.append(record)
            line.set_postfix_str(_line(record), refresh=False)
            if on_record is not None:
                on_record(record)
            since = time.perf_counter()
            paused += since - now
    return Result(generator, discriminator, history, steps, time.perf_counter() - start - paused)


@torch.no_grad()
def sample(generator: nn.Module, noise: Tensor) -> Tensor:
    """The generator's samples in evaluation mode; its mode is put back."""
    mode = generator.training
    generator.eval()
    samples: Tensor = generator(noise)
    generator.train(mode)
    return samples


def bandwidths(data: Data, rule: str) -> list[float]:
    """The frozen bandwidths of a run: the "median" or "mean" distance times data.ladder, or "0.5,1,2"."""
    if rule in ("median", "mean"):
        base = float((gkfast.median_sigma if rule == "median" else gkfast.mean_sigma)(data.train))
        return [base * step for step in data.ladder]
    try:
        sigma = [float(part) for part in rule.split(",")]
    except ValueError:
        sigma = []
    checks.sigma_rule(rule, sigma)
    return sigma


def run(
    data: Data,
    folder: Path,
    *,
    loss: str,
    sigma: Sequence[float],
    steps: int,
    batch_size: int,
    lam: float | None = None,
    noise_dim: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    control: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, measure and report into `folder`, which exists and is empty; returns what metrics.json holds.

    The folder holds config.json, metrics.jsonl (a record per logged step, as it goes), generator.pt,
    metrics.json, samples.png, curves.png and report.html. After an interruption, and after a loss that is not
    finite, what is there is complete, and metrics.json says "interrupted".
    """
    lam = DEFAULT_LAM[loss] if lam is None else lam
    config = {
        "gkfast": gkfast.__version__,
        "data": data.name,
        "loss": loss,
        "lam": lam,
        "sigma": list(sigma),
        "steps": steps,
        "batch_size": batch_size,
        "noise_dim": noise_dim,
        "learning_rate": learning_rate,
        "seed": seed,
        "device": device,
    }
    _write_json(folder / "config.json", config)
    summary: dict[str, Any] = {"seconds": 0.0, **config}
    # the control is the same GAN without the kernel: the same networks, noise, batches and number of steps
    losses = [loss, "gan"] if control and loss != "gan" else [loss]
    samples: dict[str, Tensor] = {}
    histories: dict[str, list[Record]] = {}
    noise = generate_data(metrics.SAMPLES, noise_dim, generator=torch.Generator().manual_seed(seed + 1))
    with open(folder / "metrics.jsonl", "w", buffering=1) as log:
        for name in losses:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                generator = networks.generator(data, noise_dim).to(device)
                discriminator = networks.discriminator(data).to(device)
            histories[name] = []

            def keep(record: Record, name: str = name) -> None:
                histories[name].append(record)
                log.write(json.dumps({"run": name, **record}) + "\n")

            try:
                result = fit(
                    generator,
                    discriminator,
                    data.train,
                    objective(name, sigma, lam),
                    sigma=sigma,
                    steps=steps,
                    batch_size=batch_size,
                    noise_dim=noise_dim,
                    held_out=data.validation,
                    learning_rate=learning_rate,
                    seed=seed,
                    progress=name.ljust(len(loss)) if progress else None,
                    on_record=keep,
                )
                samples[name] = sample(generator, noise.to(device)).cpu()
                measured = {"seconds": result.seconds, **metrics.evaluate(samples[name], data, sigma)}
            except (KeyboardInterrupt, FloatingPointError) as stop:
                last = histories[name][-1] if histories[name] else {"step": 0, "seconds": 0.0}
                done = {"seconds": last["seconds"], "steps": last["step"]}
                summary |= {"interrupted": f"{name}: {str(stop) or 'by the user'}"}
                summary |= done if name == loss else {"control": done}
                _write_json(folder / "metrics.json", summary)
                raise
            if name == loss:
                summary |= measured
                weights = generator.state_dict()
                _write(folder / "generator.pt", partial(torch.save, weights))
            else:
                summary["control"] = {"loss": name, "steps": steps, **measured}
    # what the same metrics give for the real training data: the best that can be hoped for
    summary["real"] = metrics.evaluate(data.train, data, sigma)
    _write_json(folder / "metrics.json", summary)
    report.write(folder, data, samples, histories, summary)
    return summary


def require_extra() -> None:
    """ImportError if anything that a run needs at its end is missing, so that it is known at its start."""
    for module in ("accelerate", "tqdm", "matplotlib", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise checks.missing("training", module)


def _batches(rows: Tensor, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Batches without end: each pass in a new order, without the rows that do not fill a batch."""
    while True:
        order = torch.randperm(len(rows), generator=rng).to(rows.device)
        for first in range(0, len(rows) - size + 1, size):
            yield rows[order[first : first + size]]


def _noise_batches(
    noise: Tensor | None, noise_dim: int, size: int, rng: torch.Generator, like: Tensor
) -> Iterator[Tensor]:
    """Rows of `noise` picked at random, or fresh noise of generate_data, in the dtype and on the device of `like`."""
    while True:
        if noise is None:
            yield generate_data(size, noise_dim, generator=rng, dtype=like.dtype).to(like.device)
        else:
            yield noise[torch.randint(len(noise), (size,), generator=rng).to(noise.device)].to(like.device)


def _kernel_seconds(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """What the kernel term and its gradient cost in a step: timed alone, because a step overlaps on a GPU."""
    x = x.detach().requires_grad_()
    start = time.perf_counter()
    (dx,) = torch.autograd.grad(kernel(x.flatten(1), y.flatten(1)), x)
    # waits for the device
    dx.sum().item()
    return time.perf_counter() - start


def _kernel_means(x: Tensor, y: Tensor, sigma: Sequence[float]) -> Record:
    """The mean kernel values of generated x and held-out y, and MMD^2, averaged over the bandwidths."""
    weights = [1 / len(sigma)] * len(sigma)
    x, y = x.flatten(1), y.flatten(1)
    means = gkfast.kernel_means(x, y, list(sigma), weights=weights)
    return {
        "k_xx": float(means.xx),
        "k_yy": float(means.yy),
        "k_xy": float(means.xy),
        "mmd2": metrics.held_out_mmd2(x, y, sigma),
    }


def _line(record: Record) -> str:
    parts = [f"{name} {record[key]:.3g}" for name, key in (("D", "d_loss"), ("G", "g_loss")) if key in record]
    parts.append("k {k_xx:.2f} {k_yy:.2f} {k_xy:.2f}, MMD2 {mmd2:.1e}".format(**record))
    if "kernel_share" in record:
        parts.append(f"kernel {record['kernel_share']:.0%}")
    return ", ".join(parts)


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename, so that the file is complete whenever it is there."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))
