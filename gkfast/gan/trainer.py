"""The training loop: the article's six steps, with everything that a killed run needs to go on as if nothing was."""

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, metrics
from gkfast.gan.checkpoint import Checkpoints, Signals, random_state, set_random_state
from gkfast.gan.data import generate_data
from gkfast.gan.losses import Objective, objective

Record = dict[str, float]

# how many pictures of the fixed noise are kept, from the first step to the last
_SNAPSHOTS = 8
_SNAPSHOT_ROWS = 500


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the networks and the loss.

    Attributes
    ----------
    steps : int
        Updates of the generator.
    batch_size : int
        Rows of each batch, over all processes.
    noise_dim : int
        Of generate_data, where no noise is given.
    generator_rate, discriminator_rate : float
        Adam's learning rates at the start.
    final_rate : float
        What share of them is left at the end of a cosine; 1 keeps them constant.
    beta1, beta2 : float
        Adam's.
    critic_steps : int
        Updates of the discriminator for one of the generator.
    ema : float
        The decay of the averaged generator, which is the one that is measured; 0 for none. It begins lower.
    clip : float
        The greatest norm of a network's gradient; 0 for none.
    seed : int
        For noise, batches and dropout.
    precision : {"no", "bf16"}
        Mixed precision of the networks; Gaussian kernels are computed in float32 whatever this says.
    checkpoint_every : int
        Steps between checkpoints, where there are any; 0 for twenty over the whole training.
    """

    steps: int
    batch_size: int
    noise_dim: int = 16
    generator_rate: float = 1e-3
    discriminator_rate: float = 1e-3
    final_rate: float = 0.05
    beta1: float = 0.5
    beta2: float = 0.999
    critic_steps: int = 1
    ema: float = 0.0
    clip: float = 0.0
    seed: int = 0
    precision: str = "no"
    checkpoint_every: int = 0

    def rate(self, step: int) -> float:
        """The factor of the learning rates at a step, the first of which is 1."""
        wave = (1 + math.cos(math.pi * (step - 1) / self.steps)) / 2
        return self.final_rate + (1 - self.final_rate) * wave


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
        What the discriminator returns: the article's D(x) in [0, 1], or its logit, which loses no digits. Kernel
        critics return features, and this is not looked at.
    noise_dim : int
        Used when x is None.
    learning_rate : float
        Adam's at the start; it falls to a twentieth along a cosine.
    critic_steps : int
        Updates of the discriminator for one of the generator.
    ema : float
        The decay of an averaged generator, Result.average; 0 for none.
    r1, r2 : float
        The discriminator's gradient penalties on real and on generated samples.
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
        If a number or a shape does not fit, or a checkpoint is of another training.
    TypeError
        If x or y is not of a floating-point dtype.
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
    sigmas = [float(sigma)] if isinstance(sigma, int | float) else [float(s) for s in sigma]
    checks.epochs(epochs)
    checks.output(output)
    checks.rows("y", y, batch_size)
    if x is not None:
        checks.rows("x", x, batch_size)
    recipe = Recipe(
        steps=epochs * (len(y) // batch_size),
        batch_size=batch_size,
        noise_dim=noise_dim,
        generator_rate=learning_rate,
        discriminator_rate=learning_rate,
        critic_steps=critic_steps,
        ema=ema,
        seed=seed,
    )
    with Signals() if checkpoints is not None else _no_signals() as signals:
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


class _no_signals:
    """Nothing waits for a checkpoint where there is none: a signal does what it always does."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


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
        What a checkpoint must have been made with, besides the recipe, to be resumed.
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
    device = next(generator.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        loop = _Loop(generator, discriminator, real, goal, recipe, sigma, noise, held_out, probabilities)
        # how often it is saved changes nothing
        identity = asdict(replace(recipe, checkpoint_every=0)) | (identity or {})
        saved = checkpoints.load() if checkpoints is not None and resume else None
        if saved is not None and checkpoints is not None:
            checks.same_run(checkpoints.path(saved["step"]), saved["identity"], identity)
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
        with line, signals.held() if signals is not None else _no_signals():
            while loop.step < recipe.steps:
                record = loop.advance()
                line.update()
                if record is not None:
                    line.set_postfix_str(_line(record), refresh=False)
                    if on_record is not None and loop.main:
                        on_record(loop.history)
                stopping = loop.anyone(signals is not None and signals.received is not None)
                if checkpoints is not None and (stopping or loop.step % every == 0 or loop.step in (1, recipe.steps)):
                    state = loop.state() | {"identity": identity}
                    if loop.main:
                        checkpoints.save(loop.step, state)
                if stopping and loop.step < recipe.steps:
                    assert signals is not None
                    raise signals.stop(loop.step)
    return Result(generator, discriminator, loop.average, loop.history, loop.snapshots, recipe.steps, loop.seconds)


class _Loop:
    """The state of a training, and what one step does to it."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        real: Tensor,
        goal: Objective,
        recipe: Recipe,
        sigma: Sequence[float],
        noise: Tensor | None,
        held_out: Tensor | None,
        probabilities: bool,
    ) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as error:
            raise checks.missing("training", str(error.name)) from error
        self.device = next(generator.parameters()).device
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            # two passes through one network before its gradients are needed
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.main: bool = self.accelerator.is_main_process
        self.processes: int = self.accelerator.num_processes
        self.generator, self.discriminator, self.goal, self.recipe = generator, discriminator, goal, recipe
        self.sigma, self.probabilities = list(sigma), probabilities
        self.real = real.to(self.device)
        self.held_out = self.real[:500] if held_out is None else held_out.to(self.device)
        checks.shares(recipe.batch_size, self.processes)

        # one stream of batches and noise for all processes, each of which takes its share
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.noise = noise
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.fixed_noise = self._noise(min(_SNAPSHOT_ROWS, len(real)))
        # what is random inside the networks differs from process to process
        torch.manual_seed(recipe.seed + self.accelerator.process_index)

        # both networks once, so that a wrong shape is named before the first step
        checks.generated(sample(generator, self.fixed_noise[:2]), self.real)
        if goal.discriminator is not None and goal.critic is None:
            checks.judged(sample(discriminator, self.real[:2]), probabilities)
        if goal.on_features:
            checks.has_features(discriminator)

        fused = self.device.type in ("cpu", "cuda")
        betas = (recipe.beta1, recipe.beta2)
        self.g_optimizer = torch.optim.Adam(generator.parameters(), recipe.generator_rate, betas, fused=fused)
        self.d_optimizer = torch.optim.Adam(discriminator.parameters(), recipe.discriminator_rate, betas, fused=fused)
        self.G, self.D = self.accelerator.prepare(generator), self.accelerator.prepare(discriminator)
        self.average = copy.deepcopy(generator).requires_grad_(False) if recipe.ema else generator
        self.g_weights = [w for w in generator.parameters() if w.requires_grad]
        self.d_weights = [w for w in discriminator.parameters() if w.requires_grad]

        self.step = 0
        self.history: list[Record] = []
        self.snapshots: list[tuple[int, Tensor]] = []
        self.seconds = 0.0
        # of the loop alone, without records and checkpoints
        self._seconds_at_record, self._steps_since = 0.0, 0

    def advance(self) -> Record | None:
        """One step; its record, if this is one of the hundred that are logged."""
        if self.step == 0:
            self._snapshot()
        start = time.perf_counter()
        self.step += 1
        for optimizer, rate in (
            (self.g_optimizer, self.recipe.generator_rate),
            (self.d_optimizer, self.recipe.discriminator_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.recipe.rate(self.step)

        goal = self.goal
        record: Record = {"step": self.step}
        # the discriminator first, so that the generator answers to the newest one
        for left in range(self.recipe.critic_steps if goal.discriminator else 1, 0, -1):
            # 2. noise -> generated data; the last of these samples serve both networks
            y = self._real()
            with torch.set_grad_enabled(left == 1):
                x = self._through(self.G, self._share(self._noise(self.recipe.batch_size)))
            # 3-5. what separates real from generated data
            if goal.discriminator is not None:
                d_loss = goal.discriminator(self._judged_by(self.D), y, x.detach())
                self._descend(d_loss, self.d_optimizer, self.d_weights)

        # 3-5. the generator: what the discriminator says, and what the kernel says
        g_loss = x.new_zeros(())
        if goal.generator is not None:
            # not through DistributedDataParallel: the discriminator's weights need no gradients here
            g_loss = g_loss + goal.generator(self._judged_by(self.discriminator), y, x)
        if goal.kernel is not None:
            kernel_term = goal.kernel(*self._compared(x, y))
            g_loss = g_loss + goal.lam * kernel_term
        self._descend(g_loss, self.g_optimizer, self.g_weights)
        if self.recipe.ema:
            self._update_average()
        self._steps_since += 1

        log_every = max(1, self.recipe.steps // 100)
        logged = self.step % log_every == 0 or self.step in (1, self.recipe.steps)
        if logged:
            # the only place that waits for the device
            record["g_loss"] = g_loss.item()
            if goal.discriminator is not None:
                record["d_loss"] = d_loss.item()
            if goal.kernel is not None:
                record["kernel_term"] = kernel_term.item()
        self.seconds += time.perf_counter() - start
        # snapshots in equal steps; the first is of the untrained generator
        if (
            self.step * (_SNAPSHOTS - 1) // self.recipe.steps
            > (self.step - 1) * (_SNAPSHOTS - 1) // self.recipe.steps
        ):
            self._snapshot()
        if not logged:
            return None
        record |= self._measured(x.detach(), y)
        checks.finite(record)
        self.history.append(record)
        return record

    def anyone(self, here: bool) -> bool:
        """Whether it is so on any process."""
        if self.processes == 1:
            return here
        flag = torch.tensor(int(here), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; on all processes at once."""
        from accelerate.utils import gather_object

        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict() if self.recipe.ema else {},
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "bandwidths": [module.state_dict() for module in self._stateful()],
            "batches": {"random": self.rng.get_state(), "order": self.order, "position": self.position},
            # what is random inside the networks, process by process
            "random": gather_object([random_state(self.device)]),
            "history": self.history,
            "snapshots": self.snapshots,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.recipe.ema:
            self.average.load_state_dict(state["average"])
        self.g_optimizer.load_state_dict(state["g_optimizer"])
        self.d_optimizer.load_state_dict(state["d_optimizer"])
        for module, values in zip(self._stateful(), state["bandwidths"], strict=True):
            module.load_state_dict(values)
        batches = state["batches"]
        self.rng.set_state(batches["random"])
        self.order, self.position = batches["order"], batches["position"]
        everyone = state["random"]
        # another number of processes cannot have the same streams inside its networks
        set_random_state(everyone[self.accelerator.process_index % len(everyone)], self.device)
        self.history, self.snapshots = state["history"], state["snapshots"]
        self.seconds = self._seconds_at_record = state["seconds"]

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> None:
        optimizer.zero_grad()
        # gradients pass through the other network; its own weights need none here
        self.accelerator.backward(loss, inputs=weights)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        optimizer.step()

    def _judged_by(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        def outputs(samples: Tensor) -> Tensor:
            d = self._through(network, samples)
            if not self.probabilities or self.goal.critic is not None:
                return d
            # clamped, because the logit of 0 and of 1 is infinite
            return torch.logit(d, eps=1e-6)

        return outputs

    def _through(self, network: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
        """What a network makes of samples, in mixed precision if that is wanted; losses are computed in full."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return network(samples).to(samples.dtype)

    def _compared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generated and real rows as the kernel term sees them."""
        if self.goal.on_features:
            return self._features(x), self._features(y)
        return x.flatten(1), y.flatten(1)

    def _features(self, samples: Tensor) -> Tensor:
        features: Any = self.discriminator.features
        return self._through(features, samples).flatten(1)

    @torch.no_grad()
    def _seen_by_the_kernel(self, samples: Tensor) -> Tensor:
        """Samples, or the features of them that are compared."""
        if self.goal.kernel is not None:
            return self._features(samples) if self.goal.on_features else samples.flatten(1)
        if self.goal.critic is not None:
            return sample(self.discriminator, samples).flatten(1)
        return samples.flatten(1)

    def _stateful(self) -> list[nn.Module]:
        return [part for part in (self.goal.kernel, self.goal.critic) if isinstance(part, nn.Module)]

    @torch.no_grad()
    def _update_average(self) -> None:
        # so that the first steps are soon forgotten
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        pairs = list(zip(self.average.parameters(), self.generator.parameters(), strict=True))
        torch._foreach_lerp_([a for a, _ in pairs], [w.detach() for _, w in pairs], 1 - decay)
        for kept, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(now)

    def _noise(self, rows: int) -> Tensor:
        """Rows of the given noise picked at random, or fresh noise, in the dtype and on the device of the data."""
        if self.noise is None:
            return generate_data(rows, self.recipe.noise_dim, generator=self.rng, dtype=self.real.dtype).to(
                self.device
            )
        picked = torch.randint(len(self.noise), (rows,), generator=self.rng)
        return self.noise[picked.to(self.noise.device)].to(self.device)

    def _real(self) -> Tensor:
        """This process's share of the next batch; each pass in a new order, without rows that do not fill a batch."""
        size = self.recipe.batch_size
        if self.position + size > len(self.order):
            self.order, self.position = torch.randperm(len(self.real), generator=self.rng), 0
        batch = self.order[self.position : self.position + size]
        self.position += size
        return self.real[self._share(batch).to(self.device)]

    def _share(self, rows: Tensor) -> Tensor:
        """This process's part of what all processes drew; parts differ by a row where they must."""
        rank = self.accelerator.process_index
        bounds = [len(rows) * k // self.processes for k in (rank, rank + 1)]
        return rows[bounds[0] : bounds[1]]

    def _snapshot(self) -> None:
        self.snapshots.append((self.step, sample(self.average, self.fixed_noise).flatten(1).cpu()))

    def _measured(self, x: Tensor, y: Tensor) -> Record:
        """Times, the mean kernel values of what the kernel compares, and the MMD^2 to held-out data."""
        goal = self.goal
        speed = self._steps_since / max(self.seconds - self._seconds_at_record, 1e-9)
        self._seconds_at_record, self._steps_since = self.seconds, 0
        record: Record = {"seconds": self.seconds, "steps_per_second": speed}
        samples = sample(self.average, self.fixed_noise)
        kernel: Any = goal.kernel or goal.critic
        see = self._seen_by_the_kernel
        if kernel is not None:
            record["kernel_share"] = min(1.0, speed * _kernel_seconds(kernel, see(x), see(y)))
        # the same rows on every process
        made, held_out = see(samples), see(self.held_out)
        sigma = kernel.sigma(made, held_out) if hasattr(kernel, "sigma") else self.sigma
        means = gkfast.kernel_means(made, held_out, sigma, weights=[1 / len(sigma)] * len(sigma))
        record |= {"k_xx": float(means.xx), "k_yy": float(means.yy), "k_xy": float(means.xy)}
        record["mmd2"] = metrics.held_out_mmd2(samples.flatten(1), self.held_out.flatten(1), self.sigma)
        return record


@torch.no_grad()
def sample(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network makes of its inputs in evaluation mode; its mode is put back."""
    mode = network.training
    network.eval()
    outputs: Tensor = network(inputs)
    network.train(mode)
    return outputs


def _kernel_seconds(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """What the kernel term and its gradient cost in a step: timed alone, because a step overlaps on a GPU."""
    frozen = kernel.training if isinstance(kernel, nn.Module) else False
    if isinstance(kernel, nn.Module):
        # its bandwidths follow the steps, not the clock
        kernel.eval()
    x = x.detach().requires_grad_()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (dx,) = torch.autograd.grad(kernel(x, y), x)
        # waits for the device
        dx.sum().item()
        seconds.append(time.perf_counter() - start)
    if isinstance(kernel, nn.Module):
        kernel.train(frozen)
    # the first may come out of cold caches, and any may be interrupted
    return min(seconds)


def _line(record: Record) -> str:
    parts = [f"{name} {record[key]:.3g}" for name, key in (("D", "d_loss"), ("G", "g_loss")) if key in record]
    parts.append("k {k_xx:.2f} {k_yy:.2f} {k_xy:.2f}, MMD2 {mmd2:.1e}".format(**record))
    if "kernel_share" in record:
        parts.append(f"kernel {record['kernel_share']:.0%}")
    return ", ".join(parts)
