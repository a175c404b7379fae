"""What one step of training does, and everything that the next one depends on."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gkfast
from gkfast.gan import checks, metrics
from gkfast.gan.checkpoint import random_state, set_random_state
from gkfast.gan.data import generate_data
from gkfast.gan.losses import Objective
from gkfast.ops.torch_private import foreach_lerp_

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
    batch : int
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

    # what no number depends on: it may change when a run is resumed
    FREE: ClassVar[tuple[str, ...]] = ("checkpoint_every",)

    steps: int
    batch: int
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

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on: a run is resumed with the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in self.FREE}


class Loop:
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
        self.sigma = list(sigma)
        self.real = real.to(self.device)
        self.held_out = self.real[:500] if held_out is None else held_out.to(self.device)
        checks.shares(recipe.batch, self.processes)

        # one stream of batches and noise for all processes, each of which takes its share
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.noise = noise
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.fixed_noise = self._noise(min(_SNAPSHOT_ROWS, len(real)))
        # what is random inside the networks differs from process to process
        torch.manual_seed(recipe.seed + self.accelerator.process_index)

        # both networks on a batch, so that what they return is known to fit before the first step
        judges = goal.discriminator is not None or goal.generator is not None
        self.probabilities = probabilities and judges and goal.critic is None
        rows = min(-(-recipe.batch // self.processes), len(self.fixed_noise))
        self._check_networks(self.fixed_noise[:rows], self.real[:rows])
        # the least and the greatest that the discriminator has returned
        self.range = torch.tensor([math.inf, -math.inf], device=self.device)

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
                x = self._through(self.G, self._share(self._noise(self.recipe.batch)))
            # 3-5. what separates real from generated data
            if goal.discriminator is not None:
                d_loss = goal.discriminator(self._judged_by(self.D), y, x.detach())
                checks.minimised("loss.discriminator", d_loss)
                self._descend(d_loss, self.d_optimizer, self.d_weights)

        # 3-5. the generator: what the discriminator says, and what the kernel says
        g_loss = x.new_zeros(())
        if goal.generator is not None:
            # not through DistributedDataParallel: the discriminator's weights need no gradients here
            judged = goal.generator(self._judged_by(self.discriminator), y, x)
            checks.minimised("loss.generator", judged)
            g_loss = g_loss + judged
        if goal.kernel is not None:
            kernel_term = goal.kernel(*self._compared(x, y))
            checks.minimised("loss.kernel", kernel_term)
            g_loss = g_loss + goal.lam * kernel_term
        self._descend(g_loss, self.g_optimizer, self.g_weights)
        if self.recipe.ema:
            self._update_average()
        self._steps_since += 1

        log_every = max(1, self.recipe.steps // 100)
        logged = self.step % log_every == 0 or self.step in (1, self.recipe.steps)
        if logged:
            # the only place that waits for the device
            self._check_range()
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
        return bool(self._greatest(torch.tensor(int(here), device=self.device)))

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
        for name, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            checks.same_network(name, state[name], network.state_dict())
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

    def _greatest(self, values: Tensor) -> Tensor:
        """The greatest of all processes."""
        if self.processes > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def _check_networks(self, noise: Tensor, real: Tensor) -> None:
        """Both networks take a batch and return what is wanted of them."""
        goal = self.goal
        try:
            fake = sample(self.generator, noise)
        # what torch raises for another shape, dtype or device
        except RuntimeError as error:
            wanted = f"take noise of shape {tuple(noise.shape)} and {noise.dtype}"
            raise checks.runs("generator", wanted, error, "set noise_dim, or change its first layer") from error
        checks.generated(fake, self.real)
        if goal.on_features:
            checks.has_features(self.discriminator)
        if goal.discriminator is None and goal.generator is None:
            return
        for samples in (real, fake.to(real.dtype)):
            try:
                d = sample(self.discriminator, samples)
            except RuntimeError as error:
                wanted = f"take samples of shape {tuple(samples.shape)} and {samples.dtype}"
                raise checks.runs("discriminator", wanted, error, "change its first layer, or cast y") from error
            checks.judged(d, len(samples), features=goal.critic is not None)
            if self.probabilities:
                checks.announced(*bounds(d), "for a batch")
        if self.probabilities:
            checks.announced(*bounds_of_all_weights(self.discriminator, real), "with other weights")

    def _check_range(self) -> None:
        """What the discriminator has returned since the last look lay in [0, 1], if it was to."""
        if self.probabilities:
            least, greatest = self._greatest(self.range * self.range.new_tensor([-1, 1])).tolist()
            checks.announced(-least, greatest, f"by step {self.step}")

    def _judged_by(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        def outputs(samples: Tensor) -> Tensor:
            d = self._through(network, samples)
            if not self.probabilities:
                return d
            low, high = d.detach().to(self.range.dtype).aminmax()
            self.range = torch.stack([self.range[0].minimum(low), self.range[1].maximum(high)])
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
        foreach_lerp_([a for a, _ in pairs], [w.detach() for _, w in pairs], 1 - decay)
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
        size = self.recipe.batch
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
            record["kernel_share"] = min(1.0, speed * kernel_seconds(kernel, see(x), see(y)))
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


def bounds(values: Tensor) -> tuple[float, float]:
    """The least and the greatest value that is a number."""
    numbers = values.detach().float()
    numbers = numbers[~numbers.isnan()]
    return (float(numbers.min()), float(numbers.max())) if numbers.numel() else (0.0, 0.0)


@torch.no_grad()
def bounds_of_all_weights(network: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """The least and the greatest output in evaluation mode while weights are drawn at random; they are put back.

    Logits may lie in [0, 1] on a batch by chance, and leave it as the weights are trained. A sigmoid stays there
    whatever they are.
    """
    weights = [w for w in network.parameters() if w.requires_grad]
    kept = [w.clone() for w in weights]
    rng = torch.Generator().manual_seed(0)
    found = []
    try:
        # wide draws move a last bias out of [0, 1], and narrow ones do not overflow in a deep network
        for width in (1.0, 10.0, 1.0, 10.0, 1.0, 10.0):
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before + width * torch.randn(weight.shape, generator=rng).to(weight))
            try:
                found.append(bounds(sample(network, inputs)))
            # some networks cannot be run with every weight, for example one that inverts a matrix
            except (RuntimeError, ValueError, ArithmeticError):
                continue
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
    return min((low for low, _ in found), default=0.0), max((high for _, high in found), default=0.0)


def kernel_seconds(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
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
