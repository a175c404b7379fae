"""The log-sum-exp behind a density, and its gradient at x, the score."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkfast.ops.define import (
    Wants,
    array,
    call,
    define,
    derive,
    double,
    folded,
    forward_mode,
    numbers,
    run,
)
from gkfast.ops.rbf_matmul import matmul_change, rbf_matmul_backward


def log_density(
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    alone: bool = False,
    precision: str = "highest",
) -> Tensor:
    """The log-sum-exp behind a density, (B, N) float64. See gkfast.log_density.

    alone: no derivative will be made of it, so that with less precision float32 will do on the CPU as well.
    """
    return call("log_density", _LogDensity, x, y, sigma, log_weights, data_weights, leave_one_out, alone, precision)


def score(
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    precision: str = "highest",
) -> Tensor:
    """The gradient of log_density at x, (B, N, D), itself differentiable. See gkfast.score."""
    dtype = x.dtype
    differentiated = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if differentiated and precision == "highest" and not x.is_cuda:
        # the terms of its derivative come by two ways, cancel far from the data, and must not be rounded before
        x, y = x.double(), y.double()
    arguments = (x, y, sigma, log_weights, data_weights, leave_one_out)
    log_p = log_density(*arguments, False, precision)
    wants = (True, False, False, False, False)
    return _density_gradients(torch.ones_like(log_p), log_p, *arguments, wants, precision)[0].to(dtype)


def _density_gradients(
    g: Tensor,
    log_p: Tensor,
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    wants: Wants,
    precision: str,
) -> tuple[Tensor, ...]:
    """Gradients of sum_i g_i log_p_i to (x, y, data weights, sigma, weights), weights and their logs all at one.

    The shares p_sij = data_weights_j exp(log k_sij + log_weights_s - log_p_i) are shifted kernels. In float64,
    because the exponents that cancel here may be in the thousands, unless less will do.
    """
    wide = _wide(x, precision)
    return rbf_matmul_backward(
        g[..., None].to(wide),
        x.to(wide),
        y.to(wide),
        data_weights[..., None].to(wide),
        sigma.double(),
        torch.ones_like(log_weights),
        _less_weights(log_p, log_weights).to(wide),
        leave_one_out,
        None,
        wants,
        precision,
    )


def _less_weights(log_p: Tensor, log_weights: Tensor) -> Tensor:
    """log_p (B, N) less each of log_weights (B, S), (B, N, S)."""
    shared = log_weights.shape[0] == 1 or log_weights.stride(0) == 0
    if log_weights.device != log_p.device and shared and not log_weights.requires_grad:
        # a number goes along as an argument; a copy of numbers would wait, and no graph could capture it
        return torch.stack([log_p - weight for weight in log_weights[0]], -1)
    return log_p[..., None] - log_weights.to(log_p.device)[:, None]


def _wide(x: Tensor, precision: str) -> torch.dtype:
    """As wide as the exponents of log_p, which GPU kernels compute in the dtype of x where less precision will do."""
    return x.dtype if x.is_cuda and precision != "highest" else torch.float64


def _log_density_fake(
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    alone: bool,
    precision: str,
) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64)


def _log_density_cpu(
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    alone: bool,
    precision: str,
) -> Tensor:
    from gkfast.kernels import cpu

    arrays = (array(x), array(y), numbers(sigma), numbers(log_weights), array(data_weights))
    in_float64 = precision == "highest" or not alone
    return torch.from_numpy(cpu.log_density(*arrays, leave_one_out, in_float64))


def _log_density_gpu(
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    data_weights: Tensor,
    leave_one_out: bool,
    alone: bool,
    precision: str,
) -> Tensor:
    from gkfast.kernels import gpu

    x, y, data_weights = x.contiguous(), y.contiguous(), data_weights.contiguous()
    return gpu.log_density(x, y, sigma, log_weights, data_weights, leave_one_out, precision)


define(
    "log_density(Tensor x, Tensor y, Tensor sigma, Tensor log_weights, Tensor data_weights, bool leave_one_out,"
    " bool alone, str precision) -> Tensor",
    _log_density_fake,
    _log_density_cpu,
    _log_density_gpu,
)


class _LogDensity(torch.autograd.Function):
    vmap = staticmethod(folded(log_density))

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return run("log_density", arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5], output)
        ctx.save_for_forward(*inputs[:5], output)
        ctx.leave_one_out, _, ctx.precision = inputs[5:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 8
        x, y, sigma, log_weights, data_weights, log_p = ctx.saved_tensors
        need_x, need_y, need_sigma, need_weights, need_data = ctx.needs_input_grad[:5]
        wants = [need_x, need_y, need_data, need_sigma, need_weights]
        dx, dy, da, dsigma, dw = _density_gradients(
            g, log_p, x, y, sigma, log_weights, data_weights, ctx.leave_one_out, wants, ctx.precision
        )
        return (
            dx.to(x.dtype) if need_x else None,
            dy.to(y.dtype) if need_y else None,
            dsigma.to(sigma.dtype) if need_sigma else None,
            dw.to(log_weights.dtype) if need_weights else None,
            da[..., 0].to(data_weights.dtype) if need_data else None,
            None,
            None,
            None,
        )

    @forward_mode
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        x, y, sigma, log_weights, data_weights, log_p = saved
        tx, ty, tsigma, tlog_weights, tdata_weights = double(*tangents[:5])
        # the shares sum to one, so log p changes by the mean change of the exponents
        shift = _less_weights(log_p, log_weights)
        tv = None if tdata_weights is None else tdata_weights[..., None]
        directions = (tx, ty, tv, tsigma, tlog_weights)
        one = torch.ones_like(log_weights)
        change = matmul_change(x, y, data_weights[..., None], sigma, one, shift, directions, None, ctx.leave_one_out)
        return change[..., 0]


derive("log_density", _LogDensity)
