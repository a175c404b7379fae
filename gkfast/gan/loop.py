"""The loop over the steps of a training, which shows its progress, saves its state and goes on from it."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gkfast.gan import checks
from gkfast.gan.checkpoint import Checkpoints, Signals, check_resumable, outline
from gkfast.gan.config import Recipe

Record = dict[str, float]


class Steps(Protocol):
    """What the loop needs of a training."""

    recipe: Recipe
    real: Tensor
    noise: Tensor | None
    device: torch.device
    main: bool
    rank: int
    processes: int
    step: int
    history: list[Record]

    def advance(self) -> Record | None:
        """One step; its record, if it is logged."""

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def restore(self, state: dict[str, Any]) -> None: ...


def take_steps(
    training: Steps,
    *,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    signals: Signals | None = None,
    progress: str | None = None,
    on_record: Callable[[list[Record]], None] | None = None,
) -> None:
    """All steps, from the newest checkpoint on if there is one and `resume` is set.

    identity : dict, optional
        The settings, besides recipe.identity(), that a checkpoint must have to be resumed.
    signals : Signals, optional
        Already entered; the loop holds it, so that a signal leads to a checkpoint.
    progress : str, optional
        The label of the progress line; None shows none.
    on_record : callable, optional
        Called by the main process with the history as soon as it has grown, and once when it was resumed.
    """
    checks.require("tqdm", "training", "tqdm")
    from tqdm import tqdm

    recipe, steps = training.recipe, training.recipe.steps
    with forked_random_state(training.device):
        # random numbers inside the networks differ from process to process
        torch.manual_seed(recipe.seed + training.rank)
        fixed: dict[str, Any] = {"identity": recipe.identity() | (identity or {})}
        if checkpoints is not None:
            fixed["data"] = outline(training.real, training.noise)
            state = checkpoints.load() if resume else None
            if state is not None:
                check_resumable(checkpoints.path(state["step"]), state, **fixed)
                training.restore(state)
        if on_record is not None and training.main:
            on_record(training.history)
        every = recipe.checkpoint_every or max(1, steps // 20)
        line = tqdm(
            total=steps,
            initial=training.step,
            desc=progress,
            disable=progress is None or not training.main,
            unit=" steps",
            dynamic_ncols=True,
            # a terminal shows it live; a log file gets a line now and then
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]",
        )
        with line, signals.held() if signals is not None else nullcontext():
            while training.step < steps:
                record = training.advance()
                line.update()
                if record is not None:
                    line.set_postfix_str(_progress(record), refresh=False)
                    if on_record is not None and training.main:
                        on_record(training.history)
                stopping = _on_any_process(training, signals is not None and signals.received is not None)
                if checkpoints is not None and (
                    stopping or training.step % every == 0 or training.step in (1, steps)
                ):
                    state = training.state() | fixed
                    if training.main:
                        checkpoints.save(training.step, state)
                if stopping and training.step < steps:
                    assert signals is not None
                    raise signals.stop(training.step)


def is_logged(step: int, steps: int) -> bool:
    """A hundred steps of a training are logged, its first and its last among them."""
    return step % max(1, steps // 100) == 0 or step in (1, steps)


def forked_random_state(device: torch.device) -> Any:
    """A context that puts torch's global random state back."""
    return torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])


def _on_any_process(training: Steps, flag: bool) -> bool:
    if training.processes == 1:
        return flag
    told = torch.tensor(int(flag), device=training.device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told)


def _progress(record: Record) -> str:
    names = (("D", "d_loss"), ("G", "g_loss"), ("reconstruction", "reconstruction"))
    parts = [f"{name} {record[key]:.3g}" for name, key in names if key in record]
    if "mmd2" in record:
        parts.append("k {k_xx:.2f} {k_yy:.2f} {k_xy:.2f}, MMD2 {mmd2:.1e}".format(**record))
    if "kernel_share" in record:
        parts.append(f"kernel {record['kernel_share']:.0%}")
    return ", ".join(parts)
