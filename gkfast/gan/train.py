"""A training of a generator: its state and one step."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gkfast.gan import checks, metrics, networks
from gkfast.gan.checkpoint import random_state, set_random_state
from gkfast.gan.config import Recipe
from gkfast.gan.data import generate_data
from gkfast.gan.encoder import outputs
from gkfast.gan.loop import Record, forked_random_state, is_logged, take_steps
from gkfast.gan.networks import sample
from gkfast.gan.objectives import KernelTerm, LandmarkTerm, LayersTerm, Objective
from gkfast.ops.torch_private import foreach_lerp_

# snapshots of samples from the fixed noise, from the first step to the last
_SNAPSHOTS = 8
_SNAPSHOT_ROWS = 500


@dataclass(repr=False)
class Result:
    """Trained networks, and the records of their training.

    Attributes
    ----------
    generator, discriminator : torch.nn.Module
        The modules that were given, trained in place.
    average : torch.nn.Module
        The averaged generator; the generator itself without averaging.
    history : list of dict
        One record per logged step: step, seconds, d_loss, g_loss, kernel_term, k_xx, k_yy, k_xy, mmd2,
        steps_per_second, kernel_share, as far as the objective has them. x is generated and y real.
    snapshots : list of (int, tensor)
        The step, and samples of the averaged generator from the same noise.
    quality : list of dict
        One record per snapshot: step, seconds and what the training's `quality` gave.
    steps : int
    seconds : float
        Wall-clock time of the loop, over all sessions of a resumed training.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module
    history: list[Record]
    snapshots: list[tuple[int, Tensor]]
    quality: list[Record]
    steps: int
    seconds: float

    def __repr__(self) -> str:
        """One line: what was trained, and the last record."""
        last = self.history[-1] if self.history else {}
        known = [f"{name} {last[name]:.3g}" for name in ("d_loss", "g_loss", "mmd2") if name in last]
        made = f"{self.steps} steps in {self.seconds:.1f} s", f"{networks.parameters(self.generator)} weights"
        return f"Result({', '.join([*made, *known])})"


class Training:
    """The state of a training, with one step (`advance`) and the loop over all of them (`run`).

    Parameters
    ----------
    generator, discriminator : torch.nn.Module
        Trained in place, where the generator's parameters are.
    real : tensor of shape (N, ...)
    objective : Objective
    recipe : Recipe
    sigma : sequence of float
        The fixed bandwidths of the logged MMD^2.
    noise : tensor of shape (M, Z), optional
        Rows to draw from; by default fresh noise of generate_data.
    held_out : tensor of shape (M, ...), optional
        Real rows for the logged MMD^2 and kernel means; by default up to 500 of `real`.
    probabilities : bool
        Whether the discriminator returns probabilities and not logits.
    quality : callable, optional
        Figures of the averaged generator, asked at each snapshot; its time is not counted.
    seconds : float
        What earlier stages took.
    on_snapshot : callable, optional
        Called by the main process with the snapshots as soon as there is one more; its time is not counted.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        real: Tensor,
        objective: Objective,
        recipe: Recipe,
        *,
        sigma: Sequence[float],
        noise: Tensor | None = None,
        held_out: Tensor | None = None,
        probabilities: bool = False,
        quality: Callable[[nn.Module], Record] | None = None,
        seconds: float = 0.0,
        on_snapshot: Callable[[list[tuple[int, Tensor]]], None] | None = None,
    ) -> None:
        checks.require("accelerate", "training", "accelerate")
        from accelerate import Accelerator, DistributedDataParallelKwargs

        networks.check_weights("generator", generator, trained=True)
        networks.check_weights("discriminator", discriminator, trained=objective.discriminator is not None)
        self.device = next(generator.parameters()).device
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            # two passes through one network before its gradients are needed
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.main: bool = self.accelerator.is_main_process
        self.rank: int = self.accelerator.process_index
        self.processes: int = self.accelerator.num_processes
        check_processes(recipe.batch, self.processes)
        self.generator, self.discriminator, self.objective, self.recipe = generator, discriminator, objective, recipe
        self.sigma = list(sigma)
        self.real = real.to(self.device)
        self.held_out = self.real[:500] if held_out is None else held_out.to(self.device)

        # one stream of batches and noise for all processes, each of which takes its rows
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.noise = noise
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.fixed_noise = self._draw_noise(min(_SNAPSHOT_ROWS, len(real)))

        self.probabilities = probabilities and objective.judges and objective.feature_mmd is None
        # the least and the greatest output of the discriminator so far
        self.range = torch.tensor([math.inf, -math.inf], device=self.device)
        rows = min(-(-recipe.batch // self.processes), len(self.fixed_noise))
        with forked_random_state(self.device):
            fake = networks.check_generator(generator, self.fixed_noise[:rows], self.real)
            if objective.on_features and not callable(getattr(discriminator, "features", None)):
                raise ValueError(
                    "discriminator must have a method features where the kernel compares features, "
                    f"got {type(discriminator).__name__} without one; return its last hidden layer there"
                )
            if objective.judges:
                kind = "features" if objective.feature_mmd else "probabilities" if probabilities else "logits"
                networks.check_discriminator(discriminator, self.real[:rows], fake.to(real.dtype), kind)

        fused = self.device.type in ("cpu", "cuda")
        betas = (recipe.beta1, recipe.beta2)
        self.g_optimizer = torch.optim.Adam(generator.parameters(), recipe.generator_rate, betas, fused=fused)
        self.d_optimizer = torch.optim.Adam(discriminator.parameters(), recipe.discriminator_rate, betas, fused=fused)
        self.G, self.D = self.accelerator.prepare(generator), self.accelerator.prepare(discriminator)
        self.average = copy.deepcopy(generator).requires_grad_(False) if recipe.ema else generator
        self.g_weights = [w for w in generator.parameters() if w.requires_grad]
        self.d_weights = [w for w in discriminator.parameters() if w.requires_grad]

        # the encoder does not change, nor do its outputs for the real rows
        self.real_outputs = outputs(objective.encoder, self.real) if objective.encoder is not None else []

        self.step = 0
        self.history: list[Record] = []
        self.snapshots: list[tuple[int, Tensor]] = []
        self.measure_quality, self.on_snapshot = quality, on_snapshot
        self.quality: list[Record] = []
        # the time of the steps, without records and checkpoints
        self.seconds = self._seconds_at_record = seconds
        self._steps_since = 0

    def run(self, **options: Any) -> Result:
        """All steps: take_steps with its options."""
        take_steps(self, **options)
        return Result(
            self.generator,
            self.discriminator,
            self.average,
            self.history,
            self.snapshots,
            self.quality,
            self.recipe.steps,
            self.seconds,
        )

    def advance(self) -> Record | None:
        """One step; its record, if this is one of the hundred that are logged."""
        objective, recipe = self.objective, self.recipe
        if self.step == 0:
            self._snapshot()
        start = time.perf_counter()
        self.step += 1
        for optimizer, rate in (
            (self.g_optimizer, recipe.generator_rate),
            (self.d_optimizer, recipe.discriminator_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.rate(self.step)

        # the discriminator first, so that the generator answers to the newest one
        losses: dict[str, Tensor] = {}
        for left in range(recipe.critic_steps if objective.discriminator else 1, 0, -1):
            # 2. noise -> generated data; the last of these samples serve both networks
            rows = self._next_rows()
            real = self.real[rows]
            with torch.set_grad_enabled(left == 1):
                fake = self._in_pieces(self.G, self._rows_of_process(self._draw_noise(recipe.batch)))
            # 3-5. the discriminator
            if objective.discriminator is not None:
                d_loss = objective.discriminator(self._judged_by(self.D), real, fake.detach())
                _check_loss("loss.discriminator", d_loss)
                self._descend(d_loss, self.d_optimizer, self.d_weights)
                losses["d_loss"] = d_loss

        # 3-5. the generator, by the discriminator's judgement and the kernel term
        g_loss = fake.new_zeros(())
        if objective.generator is not None:
            # not through DistributedDataParallel: the discriminator's weights need no gradients here
            judged = objective.generator(self._judged_by(self.discriminator), real, fake)
            _check_loss("loss.generator", judged)
            g_loss = g_loss + judged
        if objective.kernel is not None:
            if objective.encoder is not None:
                layers = self._in_pieces(objective.encoder, fake)
                if recipe.kernel_rows:
                    drawn = torch.randint(len(self.real), (recipe.kernel_rows,), generator=self.rng)
                    rows = self._rows_of_process(drawn).to(self.device)
                kernel_term = objective.kernel(layers, [layer[rows] for layer in self.real_outputs])
            elif objective.on_features:
                kernel_term = objective.kernel(self._features(fake), self._features(real))
            else:
                kernel_term = objective.kernel(fake.flatten(1), real.flatten(1))
            _check_loss("loss.kernel", kernel_term)
            g_loss = g_loss + objective.lam * kernel_term
            losses["kernel_term"] = kernel_term
        self._descend(g_loss, self.g_optimizer, self.g_weights)
        if recipe.ema:
            self._update_average()
        self._steps_since += 1

        record: Record | None = None
        if is_logged(self.step, recipe.steps):
            # the only place that waits for the device
            self._check_range()
            record = {"step": self.step} | {name: loss.item() for name, loss in ({"g_loss": g_loss} | losses).items()}
        self.seconds += time.perf_counter() - start
        # snapshots in equal steps; the first is of the untrained generator
        before, now = ((self.step - back) * (_SNAPSHOTS - 1) // recipe.steps for back in (1, 0))
        if now > before:
            self._snapshot()
        if record is not None:
            record |= self._measured(fake.detach(), real)
            for name, value in record.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"training must keep {name} finite, got {value} at step {self.step}; "
                        "lower the learning rate, lam, r1 or r2"
                    )
            self.history.append(record)
        return record

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
            "bandwidths": [module.state_dict() for module in self._modules_of_objective()],
            "batches": {"random": self.rng.get_state(), "order": self.order, "position": self.position},
            # for random numbers inside the networks, process by process
            "random": gather_object([random_state(self.device)]),
            "history": self.history,
            "snapshots": self.snapshots,
            "quality": self.quality,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            networks.check_same_weights(name, state[name], network.state_dict())
        for name in ("generator", "discriminator", "g_optimizer", "d_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        if self.recipe.ema:
            self.average.load_state_dict(state["average"])
        for module, values in zip(self._modules_of_objective(), state["bandwidths"], strict=True):
            module.load_state_dict(values)
        batches = state["batches"]
        self.rng.set_state(batches["random"])
        self.order, self.position = batches["order"], batches["position"]
        everyone = state["random"]
        # another number of processes cannot have the same streams inside its networks
        set_random_state(everyone[self.rank % len(everyone)], self.device)
        self.step, self.history, self.snapshots = state["step"], state["history"], state["snapshots"]
        self.quality = state["quality"]
        self.seconds = self._seconds_at_record = state["seconds"]

    def _draw_noise(self, rows: int) -> Tensor:
        """Rows of the given noise picked at random, or fresh noise, in the dtype and on the device of the data."""
        if self.noise is None:
            fresh = generate_data(rows, self.recipe.noise_dim, generator=self.rng, dtype=self.real.dtype)
            return fresh.to(self.device)
        picked = torch.randint(len(self.noise), (rows,), generator=self.rng)
        return self.noise[picked.to(self.noise.device)].to(self.device)

    def _next_rows(self) -> Tensor:
        """Numbers of this process's rows of the next batch; each pass in a new order, without rows that fill none."""
        size = self.recipe.batch
        if self.position + size > len(self.order):
            self.order, self.position = torch.randperm(len(self.real), generator=self.rng), 0
        batch = self.order[self.position : self.position + size]
        self.position += size
        return self._rows_of_process(batch).to(self.device)

    def _rows_of_process(self, rows: Tensor) -> Tensor:
        """This process's share of rows that all processes drew; shares differ by a row at most."""
        first, end = (len(rows) * k // self.processes for k in (self.rank, self.rank + 1))
        return rows[first:end]

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> None:
        optimizer.zero_grad()
        # gradients pass through the other network; its own weights need none here
        self.accelerator.backward(loss, inputs=weights)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        # a smaller decay at first forgets the first steps soon
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        pairs = list(zip(self.average.parameters(), self.generator.parameters(), strict=True))
        foreach_lerp_([a for a, _ in pairs], [w.detach() for _, w in pairs], 1 - decay)
        for kept, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(now)

    def _in_precision(self, network: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        """A network's outputs, in mixed precision if that is wanted; losses are computed in full."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            found = network(inputs)
        return found.to(inputs.dtype) if isinstance(found, Tensor) else [layer.to(inputs.dtype) for layer in found]

    def _in_pieces(self, network: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        """`_in_precision` of micro_batch rows at a time, each of which backward computes again."""
        run = partial(self._in_precision, network)
        pieces = inputs.split(self.recipe.micro_batch) if self.recipe.micro_batch else (inputs,)
        if len(pieces) == 1:
            return run(inputs)
        parts = [checkpoint(run, piece, use_reentrant=False) for piece in pieces]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _features(self, samples: Tensor) -> Tensor:
        method: Any = self.discriminator.features
        features: Tensor = self._in_precision(method, samples)
        return features.flatten(1)

    def _judged_by(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        def logits(samples: Tensor) -> Tensor:
            d: Tensor = self._in_precision(network, samples)
            if not self.probabilities:
                return d
            low, high = d.detach().to(self.range.dtype).aminmax()
            self.range = torch.stack([self.range[0].minimum(low), self.range[1].maximum(high)])
            # the logits of 0 and 1 are infinite, so they are clamped
            return torch.logit(d, eps=1e-6)

        return logits

    def _greatest(self, values: Tensor) -> Tensor:
        """The greatest of all processes."""
        if self.processes > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def _modules_of_objective(self) -> list[nn.Module]:
        return [m for m in (self.objective.kernel, self.objective.feature_mmd) if isinstance(m, nn.Module)]

    def _snapshot(self) -> None:
        self.snapshots.append((self.step, sample(self.average, self.fixed_noise).flatten(1).cpu()))
        if self.measure_quality is not None and self.main:
            figures = self.measure_quality(self.average)
            self.quality.append({"step": self.step, "seconds": self.seconds} | figures)
        if self.on_snapshot is not None and self.main:
            self.on_snapshot(self.snapshots)

    @torch.no_grad()
    def _seen_by_the_kernel(self, samples: Tensor) -> Tensor | list[Tensor]:
        """The samples, their features or the encoder's outputs, as the kernel compares them."""
        objective = self.objective
        if objective.kernel is not None and objective.encoder is not None:
            layers: list[Tensor] = self._in_precision(objective.encoder, samples)
            return layers
        if objective.kernel is not None and objective.on_features:
            return self._features(samples)
        if objective.kernel is None and objective.feature_mmd is not None:
            return sample(self.discriminator, samples).flatten(1)
        return samples.flatten(1)

    def _measured(self, fake: Tensor, real: Tensor) -> Record:
        """Times, the mean kernel values of the compared samples or features, and the MMD^2 to held-out data."""
        speed = self._steps_since / max(self.seconds - self._seconds_at_record, 1e-9)
        self._seconds_at_record, self._steps_since = self.seconds, 0
        record: Record = {"seconds": self.seconds, "steps_per_second": speed}
        samples = sample(self.average, self.fixed_noise)
        kernel = self.objective.kernel or self.objective.feature_mmd
        see = self._seen_by_the_kernel
        if kernel is not None:
            record["kernel_share"] = min(1.0, speed * kernel_seconds(kernel, see(fake), see(real)))
        # the same rows on every process; of several layers the last one, the code
        x, y = (seen if isinstance(seen, Tensor) else seen[-1] for seen in map(see, (samples, self.held_out)))
        term = kernel.terms[-1] if isinstance(kernel, LayersTerm) else kernel
        sigma = term.sigma(x, y) if isinstance(term, KernelTerm | LandmarkTerm) else self.sigma
        record |= metrics.mean_kernels(x, y, sigma)
        record["mmd2"] = metrics.held_out_mmd2(samples.flatten(1), self.held_out.flatten(1), self.sigma)
        return record

    def _check_range(self) -> None:
        """The discriminator's outputs since the last look lay in [0, 1], if they are probabilities."""
        if self.probabilities:
            least, greatest = self._greatest(self.range * self.range.new_tensor([-1, 1])).tolist()
            networks.check_probabilities(-least, greatest, f"by step {self.step}")


def check_processes(batch: int, processes: int) -> None:
    """Every process gets a row at least."""
    if batch < processes:
        raise ValueError(
            f"batch_size must be at least the {processes} processes, got {batch}; pass more, or start fewer"
        )


def _check_loss(name: str, value: Any) -> None:
    """The value of a part of the objective is one number with a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        scalar = isinstance(value, Tensor) and value.numel() == 1
        got = "one without a gradient" if scalar else checks.shown(value)
        raise ValueError(
            f"{name} must return a scalar tensor that depends on the weights, got {got}; "
            "return a mean over rows, not detached"
        )


def kernel_seconds(kernel: Callable[..., Tensor], x: Tensor | list[Tensor], y: Tensor | list[Tensor]) -> float:
    """The time of the kernel term and its gradient in a step, timed alone, because a step overlaps on a GPU."""
    frozen = kernel.training if isinstance(kernel, nn.Module) else False
    if isinstance(kernel, nn.Module):
        # its bandwidths follow the steps, not the clock
        kernel.eval()
    x = x.detach().requires_grad_() if isinstance(x, Tensor) else [layer.detach().requires_grad_() for layer in x]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        gradients = torch.autograd.grad(kernel(x, y), x)
        # item() waits for the device
        gradients[0].sum().item()
        seconds.append(time.perf_counter() - start)
    if isinstance(kernel, nn.Module):
        kernel.train(frozen)
    # the first run has cold caches, and any may be interrupted
    return min(seconds)
