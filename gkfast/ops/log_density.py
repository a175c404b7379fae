"""The log-sum-exp behind a density, and its gradient at x, the score."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.operator import Argument, Operator, Options, visible
from gkfast.ops.rbf_matmul import rbf_matmul, rbf_matmul_backward
from gkfast.ops.tiling import add


class LogDensity(Operator):
    """The log-sum-exp behind a density. See gkfast.log_density.

    value_only: no derivative will be made of it, so that with less precision float32 will do on the CPU as well.
    """

    name = "log_density"
    tensors = "x: N D, y: M D, sigma: S, log_weights: S, data_weights: M"
    result = "N"
    result_float64 = True
    options = "bool leave_one_out, bool value_only"

    def kernel_options(self, device: str, options: Options) -> Options:
        leave_one_out, precision = options["leave_one_out"], options["precision"]
        if device == "cuda":
            return {"leave_one_out": leave_one_out, "precision": precision}
        return {"leave_one_out": leave_one_out, "in_float64": precision == "highest" or not options["value_only"]}

    def save(self, ctx: Any, arguments: Sequence[Argument], options: Options, result: Any) -> list[Any]:
        return [*super().save(ctx, arguments, options, result), result]

    def gradients_of(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        *given, log_p = arguments
        return _of_shares(g, given, _less_weights(log_p, given[3]), options, needed)

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        """The shares sum to one, so log p changes by the mean change of the exponents."""
        x, y, sigma, log_weights, data_weights, log_p = tensors
        tx, ty, tsigma, tlog_weights, tdata_weights = tangents
        one = torch.ones_like(log_weights)
        tv = None if tdata_weights is None else tdata_weights[..., None]
        operands = (x, y, data_weights[..., None], sigma, one, _less_weights(log_p, log_weights), None)
        moved = (tx, ty, tv, tsigma, tlog_weights, None, None)
        return rbf_matmul.change(operands, moved, {"skip_diagonal": options["leave_one_out"]})[..., 0]


class LogDensityByBandwidth(LogDensity):
    """The log-sum-exp of each bandwidth by itself, without its normaliser. See gkfast.log_density."""

    name = "log_density_by_bandwidth"
    tensors = "x: N D, y: M D, sigma: S, data_weights: M"
    result = "N S"

    def gradients_of(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Each share is multiplied with its own g_is: that is added to its logarithm, first where it is positive."""
        if torch.is_grad_enabled():
            # the logarithm of a g of 0 has no derivative
            return self._gradients_of_each(g, arguments, options, needed)
        x, y, sigma, data_weights, log_p = arguments
        signs = [1.0, -1.0]
        if visible(g):
            signs = [sign for sign in signs if bool((sign * g > 0).any())] or [1.0]
        found: list[Tensor | None] = [None] * 4
        for sign in signs:
            size = (sign * g).clamp(min=0)
            # no kernel is left of that; of infinity kernels would take differences
            shift = (log_p - size.log()).masked_fill(size == 0, 1e30)
            factor, given = torch.full_like(g[..., 0], sign), (x, y, sigma, None, data_weights)
            wants = [*needed[:3], False, needed[3]]
            dx, dy, dsigma, _, da = _of_shares(factor, given, shift, options, wants)
            found = add(found, [dx, dy, dsigma, da])
        return found

    def _gradients_of_each(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * 4
        of_sigma: list[Any] = []
        for s in range(g.shape[-1]):
            wants = [*needed[:3], False, needed[3]]
            # not g[..., s], see `by_bandwidth` of rbf_matmul
            gradients = log_density.gradients_of(g.select(-1, s), _alone(arguments, (0.0,), s), options, wants)
            of_sigma.append(gradients[2])
            found = add(found, [*gradients[:2], None, gradients[4]])
        return [*found[:2], torch.cat(of_sigma, -1) if needed[2] else None, found[3]]

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        found = []
        for s in range(tensors[2].shape[-1]):
            own = _alone(tensors, torch.zeros_like(tensors[2][..., :1]), s)
            found.append(log_density.change(own, _alone((*tangents, None), None, s)[:5], options))
        return torch.stack(found, -1)


def _alone(arguments: Sequence[Argument], log_weight: Argument, s: int) -> tuple[Argument, ...]:
    """(x, y, sigma, data_weights, log_p), or tangents, as those of `log_density` with bandwidth s."""
    x, y, sigma, data_weights, log_p = arguments
    if sigma is not None:
        sigma = sigma[s : s + 1] if type(sigma) is tuple else sigma.narrow(-1, s, 1)
    return x, y, sigma, log_weight, data_weights, None if log_p is None else log_p.select(-1, s)


def score(
    x: Tensor, y: Tensor, sigma: Argument, log_weights: Argument, data_weights: Tensor, **options: Any
) -> Tensor:
    """The gradient of log_density at x, itself differentiable. See gkfast.score."""
    dtype = x.dtype
    differentiated = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if differentiated and options["precision"] == "highest" and not x.is_cuda:
        # the terms of its derivative come by two ways, cancel far from the data, and must not be rounded before
        x, y = x.double(), y.double()
    arguments = (x, y, sigma, log_weights, data_weights)
    log_p = log_density(*arguments, **options, value_only=False)
    one, needed = torch.ones_like(log_p), (True, False, False, False, False)
    found: Any = log_density.gradients_of(one, (*arguments, log_p), options, needed)[0]
    return found.to(dtype)


def _of_shares(
    g: Tensor, arguments: Sequence[Argument], shift: Tensor, options: Options, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients to (x, y, sigma, log_weights, data_weights), where the shares move by g_i for every log p_i.

    The shares p_sij = data_weights_j exp(log k_sij - shift_is) are shifted kernels: `rbf_matmul_backward`, weights at
    one. The exponents that cancel here may be in the thousands: points, or on a GPU the shifts alone, are in float64.
    """
    x, y, sigma, _, data_weights = arguments
    precision = options["precision"]
    of_points, of_shift = _wide(x, precision)
    points = [t.to(of_points) for t in (g[..., None], x, y, data_weights[..., None])]
    sigma = sigma if type(sigma) is tuple else sigma.double()
    wants = [needed[k] for k in (0, 1, 4, 2, 3)]
    options = {"skip_diagonal": options["leave_one_out"], "wants": wants, "precision": precision}
    ones = (1.0,) * shift.shape[-1]
    dx, dy, da, dsigma, dw = rbf_matmul_backward(*points, sigma, ones, shift.to(of_shift), **options)
    found = [dx, dy, dsigma, dw, da[..., 0] if needed[4] else None]
    return [d.to(a) if need else None for d, a, need in zip(found, arguments, needed[:5], strict=True)]


def _wide(x: Tensor, precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of the points and of the shifts.

    On a GPU products of float32 points have what float64 shifts need; of few coordinates no products are made.
    """
    if not x.is_cuda:
        return torch.float64, torch.float64
    if precision != "highest":
        return x.dtype, x.dtype
    return (x.dtype if x.shape[-1] > 4 else torch.float64), torch.float64


def _less_weights(log_p: Tensor, log_weights: Argument) -> Tensor:
    """log_p (..., N) less each of log_weights, (..., N, S); numbers need no copy to the device."""
    if type(log_weights) is tuple:
        return torch.stack([log_p - weight for weight in log_weights], -1)
    return log_p[..., None] - log_weights.to(log_p.device)[..., None, :]


log_density = LogDensity()
log_density.define()
log_density.differentiate()
log_density_by_bandwidth = LogDensityByBandwidth()
log_density_by_bandwidth.define()
log_density_by_bandwidth.differentiate()
