"""The bandwidths of losses, given or found in the data, and the samples that losses take."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import gkfast
from gkfast import checks, nn_checks
from gkfast.arguments import under_autocast

Bandwidth = float | Sequence[float] | Literal["median", "mean"]

Move = Callable[[Tensor], Tensor]


def _kept(move: Move) -> Move:
    """A move of a module's tensors by torch that neither rounds bandwidths in a cast nor loses them in to_empty()."""

    def moved(tensor: Tensor) -> Tensor:
        # the device that `move` moves to
        device = move(tensor.new_empty(1, dtype=torch.float32)).device
        if device == tensor.device:
            if not tensor.is_meta:
                # share_memory_() works in place
                move(tensor)
            return tensor
        # mps has no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.empty_like(tensor, device=device, dtype=dtype) if tensor.is_meta else tensor.to(device, dtype)

    return moved


# rows that a rule looks at in each training step: the median of all pairs would take longer than the loss
_MOST_ROWS = 512
# how bandwidths were found, by their number in a saved state
_RULES = ("given", "median", "mean")


class _Bandwidth(torch.nn.Module):
    """Bandwidths that are given, or follow the data: a running average of their median or mean distance."""

    running: Tensor
    factors: Tensor
    kind: Tensor

    def __init__(self, sigma: Bandwidth, scales: Sequence[float], momentum: float) -> None:
        super().__init__()
        rule_or_numbers = nn_checks.found_or_given(sigma)
        self.rule = rule_or_numbers if isinstance(rule_or_numbers, str) else None
        self.given = [0.0] if isinstance(rule_or_numbers, str) else rule_or_numbers
        numbers = nn_checks.constants("scales", scales)
        self.scales = [1.0] if self.rule is None else numbers
        self.momentum = nn_checks.share("momentum", momentum)
        self.register_buffer("running", torch.tensor(self.given, dtype=torch.float64))
        # a buffer moves with the module: a copy from the host would wait, and no graph could capture it
        self.register_buffer("factors", torch.tensor(self.scales, dtype=torch.float64), persistent=False)
        # how the bandwidths were found, as a float: averages of weights would round an integer
        self.register_buffer("kind", torch.tensor(_RULES.index(self.rule or "given"), dtype=torch.float64))
        self.seen = self.rule is None

    def reset_parameters(self) -> None:
        """The bandwidths to begin with: the given ones, or none yet."""
        with torch.no_grad():
            self.running.copy_(torch.tensor(self.given, dtype=torch.float64, device="cpu"))
            self.factors.copy_(torch.tensor(self.scales, dtype=torch.float64, device="cpu"))
            self.kind.fill_(_RULES.index(self.rule or "given"))
        self.seen = self.rule is None

    def _apply(self, fn: Move, recurse: bool = True) -> "_Bandwidth":
        was_meta = self.running.is_meta
        super()._apply(_kept(fn), recurse)
        if was_meta and not self.running.is_meta:
            self.reset_parameters()
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The bandwidths (S,), float64; while training, after a look at x and y."""
        if x.is_meta:
            # only shapes are wanted
            return x.new_empty(len(self.given) if self.rule is None else len(self.scales), dtype=torch.float64)
        nn_checks.not_on_meta("the loss", self.running.is_meta)
        if self.rule is None:
            return self.running
        if self.running.device != x.device:
            # a running average stays on the device of the data
            self.to(x.device)
        if self.training or not self.seen:
            now = self._found(x, y)
            if self.seen:
                now = self.running + self.momentum * (now - self.running)
            if not self.training:
                return now * self.factors
            self.running.copy_(now)
            self.seen = True
        return self.running * self.factors

    def _found(self, x: Tensor, y: Tensor) -> Tensor:
        rule = partial(gkfast.median_sigma, max_points=_MOST_ROWS) if self.rule == "median" else gkfast.mean_sigma
        # under autocast one sample may be in half precision and the other not
        wide = (t.float() if t.dtype.itemsize == 2 else t for t in (x.detach(), y.detach()))
        distance = rule(*wide).double().reshape(1)
        # equal rows have distance zero, which is no bandwidth; infinite rows must not spoil the average for ever
        return torch.where((distance > 0) & (distance < math.inf), distance, self.running if self.seen else 1.0)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        _metadata, _strict, missing, _unexpected, errors = arguments
        wrong = self._wrong_state(state_dict, prefix)
        if wrong:
            errors.append(wrong)
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        # older states do not have it
        if f"{prefix}kind" in missing:
            missing.remove(f"{prefix}kind")
        if self.running.is_meta:
            return
        if self.running.dtype != torch.float64 and self.running.device.type != "mps":
            self.running = self.running.double()
        # no state has them: load_state_dict(assign=True) may have moved `running` alone
        if self.factors.device != self.running.device:
            self.factors = torch.tensor(self.scales, dtype=self.running.dtype, device=self.running.device)
        if self.rule is None:
            self.given = self.running.tolist()
        else:
            # an untrained module's running bandwidth is zero
            self.seen = bool((self.running > 0).all())

    def _wrong_state(self, state_dict: Any, prefix: str) -> str | None:
        """Why a state is not of bandwidths such as these; a state on the meta device has nothing to say."""
        kind, running = (state_dict.get(prefix + name) for name in ("kind", "running"))
        ours, module = self.rule or "given", prefix.rstrip(".") or "the module"
        again = "make the module with the sigma of the one that was saved"
        if isinstance(kind, Tensor) and not kind.is_meta:
            number = round(kind.item())
            theirs = _RULES[number] if number in range(len(_RULES)) else "unknown"
            if theirs != ours:
                ours, theirs = (f"found by the rule {r!r}" if r in _RULES[1:] else r for r in (ours, theirs))
                return (
                    f"{module} must load bandwidths that are {ours}, got a state of bandwidths that are "
                    f"{theirs}; {again}, or leave {prefix}running and {prefix}kind out of the state and "
                    f"load it with strict=False"
                )
        if self.rule is None and isinstance(running, Tensor) and not running.is_meta and not (running > 0).all():
            return (
                f"{module} must load positive bandwidths, got {running.tolist()}, as of a rule without data; {again}"
            )
        return None

    def extra_repr(self) -> str:
        if self.running.is_meta:
            return f"{self.rule or 'given'}, on meta"
        if self.rule is None:
            return f"{self.running.tolist()}"
        return f"{self.rule} times {self.scales}, momentum={self.momentum}, now {self.running.item():.4g}"


def _samples(x_name: str, x: Tensor, y_name: str, y: Tensor, function: str) -> tuple[Tensor, Tensor]:
    """Two samples (N, D) and (M, D), cast as under autocast; messages name the `function` that takes batches."""
    for name, sample in ((x_name, x), (y_name, y)):
        nn_checks.one_sample_per_row(name, sample, function)
    x, y = under_autocast(x, y)
    checks.two_point_sets(x_name, x, y_name, y)
    return x, y
