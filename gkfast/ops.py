"""The torch operators `gkfast::*`: schema, device kernels, fake kernels, derivatives.

Each operator has one `torch.autograd.Function`; the function of the operator's name calls it. The same formulas are
registered with the operator itself, which is what a compiled graph holds.

One algebra gives all derivatives. With S = sum_ij K_ij g_i . v_j, every first derivative of an operator here is a
first derivative of S, with fused kernels (`*_backward`, and `mmd2`, which computes its gradients in the forward
sweep). A derivative of those is a derivative of the change of S along a direction, and that change is again a product
with the kernel matrix (`_matmul_change`): so second and higher orders need no kernels of their own and O(N) memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# the operations that have a GPU kernel; the others run the reference there
ON_GPU = frozenset({"rbf"})

_library = torch.library.Library("gkfast", "DEF")
_Wants = Sequence[bool]


def _define(
    schema: str, fake: Callable[..., Any], cpu: Callable[..., Any], gpu: Callable[..., Any] | None = None
) -> None:
    name = schema[: schema.index("(")]
    _library.define(schema)
    torch.library.register_fake(f"gkfast::{name}", fake, lib=_library)
    _library.impl(name, cpu, "CPU")
    if gpu is not None:
        _library.impl(name, gpu, "CUDA")


def _derive(name: str, function: type[torch.autograd.Function]) -> None:
    torch.library.register_autograd(
        f"gkfast::{name}", function.backward, setup_context=function.setup_context, lib=_library
    )


def _call(name: str, function: Any, *arguments: Any) -> Any:
    # in a graph that is being traced the operator stands for itself
    if torch.compiler.is_dynamo_compiling():
        return getattr(torch.ops.gkfast, name)(*arguments)
    return function.apply(*arguments)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _tensor(array: np.ndarray | None, like: Tensor) -> Tensor:
    """A result as a tensor; what was not wanted is an empty one, since operators return no None."""
    if array is None:
        return like.new_empty(0)
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype)


def _fake(like: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if wanted else like.new_empty(0)


def _wanted(gradients: Sequence[Tensor | None], wants: _Wants) -> list[Tensor | None]:
    return [gradient if want else None for gradient, want in zip(gradients, wants, strict=True)]


def _vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of a scalar function to those inputs that need one."""
    places = [k for k, need in enumerate(needed) if need]

    def of_needed(*values: Tensor) -> Tensor:
        arguments = list(inputs)
        for place, value in zip(places, values, strict=True):
            arguments[place] = value
        return function(*arguments)

    value, pull = torch.func.vjp(of_needed, *(inputs[k] for k in places))[:2]
    gradients: list[Tensor | None] = [None] * len(inputs)
    for place, gradient in zip(places, pull(torch.ones_like(value)), strict=True):
        gradients[place] = gradient
    return gradients


# rbf ---------------------------------------------------------------------------------------------------------------


def rbf(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    """The kernel matrix, (B, N, M). See gkfast.rbf."""
    return _call("rbf", _Rbf, x, y, sigma, weights)


def rbf_out(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    """The kernel matrix into out (B, N, M). See gkfast.rbf."""
    torch.ops.gkfast.rbf_out(x, y, sigma, weights, out)


def rbf_backward(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: _Wants
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ij g_ij K_ij to (x, y, sigma, weights); those not wanted are empty."""
    return _call("rbf_backward", _RbfBackward, g, x, y, sigma, weights, list(wants))


def _rbf_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], (x if y is None else y).shape[1])


def _rbf_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    from gkfast.kernels import cpu

    return _tensor(cpu.rbf(_array(x), None if y is None else _array(y), _numbers(sigma), _numbers(weights)), x)


def _rbf_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
    from gkfast.kernels import gpu

    return gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights)


def _rbf_out_fake(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    return None


def _rbf_out_cpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    from gkfast.kernels import cpu

    cpu.rbf(_array(x), None if y is None else _array(y), _numbers(sigma), _numbers(weights), out.detach().numpy())


def _rbf_out_gpu(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, out: Tensor) -> None:
    from gkfast.kernels import gpu

    gpu.rbf(x.contiguous(), None if y is None else y.contiguous(), sigma, weights, out)


def _rbf_backward_fake(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: _Wants
) -> tuple[Tensor, ...]:
    arguments = (x, x if y is None else y, sigma, weights)
    return tuple(_fake(a, want) for a, want in zip(arguments, wants, strict=True))


def _rbf_backward_cpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: _Wants
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    y_array = None if y is None else _array(y)
    gradients = cpu.rbf_backward(_array(g), _array(x), y_array, _numbers(sigma), _numbers(weights), wants)
    return tuple(_tensor(d, like) for d, like in zip(gradients, (x, x, sigma, weights), strict=True))


def _rbf_backward_gpu(
    g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: _Wants
) -> tuple[Tensor, ...]:
    from gkfast.kernels import gpu

    y = None if y is None else y.contiguous()
    gradients = gpu.rbf_backward(g.contiguous(), x.contiguous(), y, sigma, weights, tuple(wants))
    likes = (x, x, sigma, weights)
    return tuple(like.new_empty(0) if d is None else d.to(like) for d, like in zip(gradients, likes, strict=True))


_define("rbf(Tensor x, Tensor? y, Tensor sigma, Tensor weights) -> Tensor", _rbf_fake, _rbf_cpu, _rbf_gpu)
_define(
    "rbf_out(Tensor x, Tensor? y, Tensor sigma, Tensor weights, Tensor(a!) out) -> ()",
    _rbf_out_fake,
    _rbf_out_cpu,
    _rbf_out_gpu,
)
_define(
    "rbf_backward(Tensor g, Tensor x, Tensor? y, Tensor sigma, Tensor weights, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _rbf_backward_fake,
    _rbf_backward_cpu,
    _rbf_backward_gpu,
)


class _Rbf(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
        return torch.ops.gkfast.rbf(x, y, sigma, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, sigma, weights = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:4])
        return tuple(_wanted(rbf_backward(g, x, y, sigma, weights, wants), wants))


class _RbfBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor, wants: _Wants
    ) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.rbf_backward(g, x, y, sigma, weights, wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.wants = inputs[5]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        tx, ty, tsigma, tweights = _wanted(directions, ctx.wants)

        def change(g: Tensor, x: Tensor, y: Tensor | None, sigma: Tensor, weights: Tensor) -> Tensor:
            return (g * _rbf_change(x, y, sigma, weights, tx, ty, tsigma, tweights)).sum()

        return *_vjp(change, ctx.saved_tensors, ctx.needs_input_grad[:5]), None


def _rbf_change(
    x: Tensor,
    y: Tensor | None,
    sigma: Tensor,
    weights: Tensor,
    tx: Tensor | None,
    ty: Tensor | None,
    tsigma: Tensor | None,
    tweights: Tensor | None,
) -> Tensor:
    """How K (B, N, M) changes when x, y, sigma, weights move along tx, ty, tsigma, tweights.

        dK_ij = K'_ij (tx_i - ty_j) . (y_j - x_i) + sum_s (tsigma_s w_s |x_i - y_j|^2 / sigma_s^3 + tweights_s) k_sij

    with K' = sum_s w_s / sigma_s^2 k_s. With y None, y is x and ty is tx.
    """
    first, second = _about_their_mean(x, x if y is None else y)
    if y is None:
        ty = tx
    total: Any = 0.0
    if tx is not None or ty is not None:
        motion: Any = 0.0
        if tx is not None:
            motion = tx @ second.mT - (tx * first).sum(-1)[..., :, None]
        if ty is not None:
            motion = motion + first @ ty.mT - (ty * second).sum(-1)[..., None, :]
        total = rbf(x, y, sigma, weights / sigma.square()) * motion
    if tsigma is not None:
        squares = (
            first.square().sum(-1)[..., :, None] + second.square().sum(-1)[..., None, :]
        ) - 2 * first @ second.mT
        total = total + rbf(x, y, sigma, tsigma * weights / sigma**3) * squares
    if tweights is not None:
        total = total + rbf(x, y, sigma, tweights)
    return total


def _about_their_mean(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y less a common constant, which no difference sees: products of coordinates then cancel less."""
    if x.shape[1] == 0 or y.shape[1] == 0:
        return x, y
    centre = ((x.mean(1, keepdim=True) + y.mean(1, keepdim=True)) / 2).detach()
    return x - centre, y - centre


_derive("rbf", _Rbf)
_derive("rbf_backward", _RbfBackward)


# rbf_matmul --------------------------------------------------------------------------------------------------------


def rbf_matmul(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
) -> Tensor:
    """K @ v, (B, N, E), kernels times exp(-shift_is) where shift (B, N, S) is given.

    See gkfast.rbf_matmul.
    """
    return _call("rbf_matmul", _RbfMatmul, x, y, v, sigma, weights, shift, skip_diagonal)


def rbf_matmul_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: _Wants,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_ie g_ie (K v)_ie to (x, y, v, sigma, weights); those not wanted are empty."""
    return _call(
        "rbf_matmul_backward",
        _RbfMatmulBackward,
        g,
        x,
        y,
        v,
        sigma,
        weights,
        shift,
        skip_diagonal,
        list(wants),
    )


def _rbf_matmul_fake(
    x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None, skip_diagonal: bool
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], v.shape[2])


def _rbf_matmul_cpu(
    x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None, skip_diagonal: bool
) -> Tensor:
    from gkfast.kernels import cpu

    shifts = None if shift is None else _array(shift)
    arrays = (_array(x), _array(y), _array(v), _numbers(sigma), _numbers(weights))
    return _tensor(cpu.rbf_matmul(*arrays, shifts, skip_diagonal), x)


def _rbf_matmul_backward_fake(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    return tuple(_fake(a, want) for a, want in zip((x, y, v, sigma, weights), wants, strict=True))


def _rbf_matmul_backward_cpu(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor | None,
    skip_diagonal: bool,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    shifts = None if shift is None else _array(shift)
    arrays = (_array(g), _array(x), _array(y), _array(v), _numbers(sigma), _numbers(weights))
    gradients = cpu.rbf_matmul_backward(*arrays, wants, shifts, skip_diagonal)
    return tuple(_tensor(d, like) for d, like in zip(gradients, (x, y, v, sigma, weights), strict=True))


_define(
    "rbf_matmul(Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift, bool skip_diagonal)"
    " -> Tensor",
    _rbf_matmul_fake,
    _rbf_matmul_cpu,
)
_define(
    "rbf_matmul_backward(Tensor g, Tensor x, Tensor y, Tensor v, Tensor sigma, Tensor weights, Tensor? shift,"
    " bool skip_diagonal, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _rbf_matmul_backward_fake,
    _rbf_matmul_backward_cpu,
)


class _RbfMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        v: Tensor,
        sigma: Tensor,
        weights: Tensor,
        shift: Tensor | None,
        skip_diagonal: bool,
    ) -> Tensor:
        return torch.ops.gkfast.rbf_matmul(x, y, v, sigma, weights, shift, skip_diagonal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.skip_diagonal = inputs[6]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, v, sigma, weights, shift = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:5])
        gradients = rbf_matmul_backward(g, x, y, v, sigma, weights, shift, ctx.skip_diagonal, wants)
        dshift = None
        if ctx.needs_input_grad[5]:
            dshift = -_by_bandwidth(g, x, y, v, sigma, weights, shift, ctx.skip_diagonal)
        return *_wanted(gradients, wants), dshift, None


def _by_bandwidth(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    shift: Tensor,
    skip_diagonal: bool,
) -> Tensor:
    """g_i . (w_s K_s v)_i for each bandwidth, (B, N, S)."""
    parts = [
        rbf_matmul(x, y, v, sigma[s : s + 1], weights[s : s + 1], shift[..., s : s + 1], skip_diagonal)
        for s in range(sigma.shape[0])
    ]
    return torch.stack([(g * part).sum(-1) for part in parts], dim=-1)


class _RbfMatmulBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        g: Tensor,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        sigma: Tensor,
        weights: Tensor,
        shift: Tensor | None,
        skip_diagonal: bool,
        wants: _Wants,
    ) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.rbf_matmul_backward(g, x, y, v, sigma, weights, shift, skip_diagonal, wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.skip_diagonal, ctx.wants = inputs[7], inputs[8]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        tx, ty, tv, tsigma, tweights = _wanted(directions, ctx.wants)
        skip_diagonal = ctx.skip_diagonal

        def change(
            g: Tensor, x: Tensor, y: Tensor, v: Tensor, sigma: Tensor, weights: Tensor, shift: Tensor | None
        ) -> Tensor:
            total = _matmul_change(x, y, v, sigma, weights, tx, ty, tsigma, tweights, shift, skip_diagonal)
            if tv is not None:
                total = total + rbf_matmul(x, y, tv, sigma, weights, shift, skip_diagonal)
            return (g * total).sum()

        return *_vjp(change, ctx.saved_tensors, ctx.needs_input_grad[:7]), None, None


def _matmul_change(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    sigma: Tensor,
    weights: Tensor,
    tx: Tensor | None,
    ty: Tensor | None,
    tsigma: Tensor | None,
    tweights: Tensor | None,
    shift: Tensor | None = None,
    skip_diagonal: bool = False,
) -> Tensor:
    """How K v (B, N, E) changes when x, y, sigma, weights move along tx, ty, tsigma, tweights.

    The change of K (see `_rbf_change`) is K' times products of something of i with something of j, so each part is a
    product of K' with a few more columns, and K stays unstored.
    """
    first, second = _about_their_mean(x, y)
    total: Any = x.new_zeros(x.shape[0], x.shape[1], v.shape[2])
    if tx is not None or ty is not None:
        pull = weights / sigma.square()
        columns = [v]
        if tx is not None:
            columns.append(_outer(v, second))
        if ty is not None:
            columns += [v * (ty * second).sum(-1, keepdim=True), _outer(v, ty)]
        sizes = [c.shape[2] for c in columns]
        parts = rbf_matmul(x, y, torch.cat(columns, -1), sigma, pull, shift, skip_diagonal).split(sizes, -1)
        if tx is not None:
            total = _inner(parts[1], tx) - parts[0] * (tx * first).sum(-1, keepdim=True)
        if ty is not None:
            total = total + _inner(parts[-1], first) - parts[-2]
    if tsigma is not None:
        columns = [v, v * second.square().sum(-1, keepdim=True), _outer(v, second)]
        sizes = [c.shape[2] for c in columns]
        spread = tsigma * weights / sigma**3
        parts = rbf_matmul(x, y, torch.cat(columns, -1), sigma, spread, shift, skip_diagonal).split(sizes, -1)
        total = total + parts[0] * first.square().sum(-1, keepdim=True) + parts[1] - 2 * _inner(parts[2], first)
    if tweights is not None:
        total = total + rbf_matmul(x, y, v, sigma, tweights, shift, skip_diagonal)
    return total


def _outer(v: Tensor, y: Tensor) -> Tensor:
    """v (B, M, E) and y (B, M, D) as (B, M, E D)"""
    return (v[..., :, None] * y[..., None, :]).flatten(2)


def _inner(product: Tensor, x: Tensor) -> Tensor:
    """(B, N, E D) with x (B, N, D) as (B, N, E)"""
    return (product.unflatten(2, (-1, x.shape[2])) * x[..., None, :]).sum(-1)


_derive("rbf_matmul", _RbfMatmul)
_derive("rbf_matmul_backward", _RbfMatmulBackward)


# log_density and score ---------------------------------------------------------------------------------------------


def log_density(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, log_data_weights: Tensor, leave_one_out: bool
) -> Tensor:
    """The log-sum-exp behind a density, (B, N) float64. See gkfast.log_density."""
    return _call("log_density", _LogDensity, x, y, sigma, log_weights, log_data_weights, leave_one_out)


def score(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, log_data_weights: Tensor, leave_one_out: bool
) -> Tensor:
    """The gradient of log_density at x, (B, N, D), itself differentiable. See gkfast.score."""
    log_p = log_density(x, y, sigma, log_weights, log_data_weights, leave_one_out)
    wants = (True, False, False, False, False)
    one = torch.ones_like(log_p)
    return _density_gradients(one, log_p, x, y, sigma, log_weights, log_data_weights, leave_one_out, wants)[0].to(
        x.dtype
    )


def _density_gradients(
    g: Tensor,
    log_p: Tensor,
    x: Tensor,
    y: Tensor,
    sigma: Tensor,
    log_weights: Tensor,
    log_data_weights: Tensor,
    leave_one_out: bool,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    """Gradients of sum_i g_i log_p_i to (x, y, data weights, sigma, weights), weights and their logs all at one.

    The shares p_sij = exp(log k_sij + log_weights_s + log_data_weights_j - log_p_i) are shifted kernels. In float64,
    because the exponents that cancel here may be in the thousands.
    """
    return rbf_matmul_backward(
        g[..., None],
        x.double(),
        y.double(),
        log_data_weights.exp()[..., None],
        sigma.double(),
        torch.ones_like(log_weights),
        log_p[..., None] - log_weights,
        leave_one_out,
        wants,
    )


def _log_density_fake(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, log_data_weights: Tensor, leave_one_out: bool
) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64)


def _log_density_cpu(
    x: Tensor, y: Tensor, sigma: Tensor, log_weights: Tensor, log_data_weights: Tensor, leave_one_out: bool
) -> Tensor:
    from gkfast.kernels import cpu

    arrays = (_array(x), _array(y), _numbers(sigma), _numbers(log_weights), _array(log_data_weights))
    return torch.from_numpy(cpu.log_density(*arrays, leave_one_out))


_define(
    "log_density(Tensor x, Tensor y, Tensor sigma, Tensor log_weights, Tensor log_data_weights, bool leave_one_out)"
    " -> Tensor",
    _log_density_fake,
    _log_density_cpu,
)


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        sigma: Tensor,
        log_weights: Tensor,
        log_data_weights: Tensor,
        leave_one_out: bool,
    ) -> Tensor:
        return torch.ops.gkfast.log_density(x, y, sigma, log_weights, log_data_weights, leave_one_out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5], output)
        ctx.leave_one_out = inputs[5]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, sigma, log_weights, log_data_weights, log_p = ctx.saved_tensors
        need_x, need_y, need_sigma, need_weights, need_data = ctx.needs_input_grad[:5]
        wants = [need_x, need_y, need_data, need_sigma, need_weights]
        dx, dy, da, dsigma, dw = _density_gradients(
            g, log_p, x, y, sigma, log_weights, log_data_weights, ctx.leave_one_out, wants
        )
        return (
            dx.to(x.dtype) if need_x else None,
            dy.to(y.dtype) if need_y else None,
            dsigma.to(sigma.dtype) if need_sigma else None,
            dw.to(log_weights.dtype) if need_weights else None,
            da[..., 0] * log_data_weights.exp() if need_data else None,
            None,
        )


_derive("log_density", _LogDensity)


# kernel_sums and mmd2 ----------------------------------------------------------------------------------------------


def kernel_sums(x: Tensor, y: Tensor, a: Tensor, b: Tensor, sigma: Tensor, weights: Tensor, drop: int) -> Tensor:
    """The sums over xx, yy and xy pairs, (B, 3) float64. See gkfast.kernel_means."""
    scale = torch.zeros(x.shape[0], 3, dtype=torch.float64, device=x.device)
    return kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, False, [False] * 6)[0]


def mmd2(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: Tensor, sigma: Tensor, weights: Tensor, drop: int
) -> Tensor:
    """scale . kernel_sums of K - sum_s weights_s, (B,) float64. See gkfast.mmd2.

    The sweep that computes the value computes the gradients that will be asked for; backward scales them.
    """
    differentiable = torch.is_grad_enabled()
    wants = [differentiable and t.requires_grad for t in (x, y, a, b, sigma, weights)]
    return _call("mmd2", _Mmd2, scale, x, y, a, b, sigma, weights, drop, wants)[0]


def kernel_sums_with_gradients(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: _Wants,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The three sums (B, 3) and the gradients of scale . sums to (x, y, a, b, sigma, weights), differentiable."""
    arguments = (scale, x, y, a, b, sigma, weights, drop, minus_one, list(wants))
    return _call("kernel_sums_with_gradients", _KernelSumsWithGradients, *arguments)


def _kernel_sums_fake(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    gradients = (_fake(t, want) for t, want in zip((x, y, a, b, sigma, weights), wants, strict=True))
    return scale.new_empty(x.shape[0], 3), *gradients


def _kernel_sums_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    minus_one: bool,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    arrays = (_array(scale), _array(x), _array(y), _array(a), _array(b), _numbers(sigma), _numbers(weights))
    sums, *gradients = cpu.kernel_sums_with_gradients(*arrays, drop, minus_one, wants)
    gradients[4:] = [None if d is None else d.sum(0) for d in gradients[4:]]
    likes = (x, y, a, b, sigma, weights)
    return torch.from_numpy(sums), *(_tensor(d, like) for d, like in zip(gradients, likes, strict=True))


def _mmd2_fake(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    sums, dx, dy, da, db, _, _ = _kernel_sums_fake(scale, x, y, a, b, sigma, weights, drop, True, wants)
    # one row of bandwidth gradients for each of the batch, whose values may have different cotangents
    by_bandwidth = (
        t.new_empty(x.shape[0], t.shape[0]) if want else t.new_empty(0)
        for t, want in zip((sigma, weights), wants[4:], strict=True)
    )
    return scale.new_empty(x.shape[0]), sums, dx, dy, da, db, *by_bandwidth


def _mmd2_cpu(
    scale: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    drop: int,
    wants: _Wants,
) -> tuple[Tensor, ...]:
    from gkfast.kernels import cpu

    arrays = (_array(scale), _array(x), _array(y), _array(a), _array(b), _numbers(sigma), _numbers(weights))
    sums, *gradients = cpu.kernel_sums_with_gradients(*arrays, drop, True, wants)
    value = torch.from_numpy((arrays[0] * sums).sum(-1))
    likes = (x, y, a, b, sigma, weights)
    return (
        value,
        torch.from_numpy(sums),
        *(_tensor(d, like) for d, like in zip(gradients, likes, strict=True)),
    )


_define(
    "kernel_sums_with_gradients(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights,"
    " int drop, bool minus_one, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel_sums_fake,
    _kernel_sums_cpu,
)
_define(
    "mmd2(Tensor scale, Tensor x, Tensor y, Tensor a, Tensor b, Tensor sigma, Tensor weights, int drop, bool[] wants)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _mmd2_fake,
    _mmd2_cpu,
)


class _Mmd2(torch.autograd.Function):
    """Returns the value, and beside it what backward needs: the sums and the gradients of the value."""

    @staticmethod
    def forward(
        scale: Tensor,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        sigma: Tensor,
        weights: Tensor,
        drop: int,
        wants: _Wants,
    ) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.mmd2(scale, x, y, a, b, sigma, weights, drop, wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:7], *output[1:])
        ctx.drop, ctx.wants = inputs[7], inputs[8]

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        scale, x, y, a, b, sigma, weights, sums, *gradients = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[1:7])
        lacking = any(need and not want for need, want in zip(needed, ctx.wants, strict=True))
        if torch.is_grad_enabled() or lacking:
            # gradients must themselves be differentiable, or a transform asks for what was not foreseen
            scale = scale * g[:, None]
            sums, *gradients = kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, ctx.drop, True, needed)
        else:
            gradients = [d if not need else d * _along_batch(g, d) for d, need in zip(gradients, needed, strict=True)]
            # the batch shares its bandwidths
            gradients[4:] = [d.sum(0) for d in gradients[4:]]
        return g[:, None] * sums if ctx.needs_input_grad[0] else None, *_wanted(gradients, needed), None, None


def _along_batch(g: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to multiply (B, ...)"""
    return g.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class _KernelSumsWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        scale: Tensor,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        sigma: Tensor,
        weights: Tensor,
        drop: int,
        minus_one: bool,
        wants: _Wants,
    ) -> tuple[Tensor, ...]:
        return torch.ops.gkfast.kernel_sums_with_gradients(scale, x, y, a, b, sigma, weights, drop, minus_one, wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.drop, ctx.minus_one, ctx.wants = inputs[7:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *directions: Tensor | None) -> Any:
        drop, minus_one = ctx.drop, ctx.minus_one
        _, x, y, a, b, sigma, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:7]
        total: list[Tensor | None] = [None] * 7
        if g is not None:
            # the sums themselves: one fused sweep
            gradients = kernel_sums_with_gradients(g, x, y, a, b, sigma, weights, drop, minus_one, needed[1:])[1:]
            total[1:] = _wanted(gradients, needed[1:])
        moved = _wanted(directions, ctx.wants)
        if any(t is not None for t in moved):

            def change(
                scale: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor, sigma: Tensor, weights: Tensor
            ) -> Tensor:
                return (scale * _sums_change(x, y, a, b, sigma, weights, moved, drop, minus_one)).sum()

            second = _vjp(change, ctx.saved_tensors, needed)
            total = [s if t is None else t if s is None else s + t for s, t in zip(second, total, strict=True)]
        return *total, None, None, None


def _sums_change(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    sigma: Tensor,
    weights: Tensor,
    directions: Sequence[Tensor | None],
    drop: int,
    minus_one: bool,
) -> Tensor:
    """How the three sums (B, 3) change when x, y, a, b, sigma, weights move along the directions."""
    tx, ty, ta, tb, tsigma, tweights = directions

    def one(p: Tensor, q: Tensor, u: Tensor, v: Tensor, tp: Any, tq: Any, tu: Any, tv: Any, skip: bool) -> Tensor:
        rows = _matmul_change(p, q, v[..., None], sigma, weights, tp, tq, tsigma, tweights, None, skip)
        if tv is not None:
            rows = rows + rbf_matmul(p, q, tv[..., None], sigma, weights, None, skip)
        total = (u * rows[..., 0]).double().sum(-1)
        if tu is not None:
            total = total + (tu * rbf_matmul(p, q, v[..., None], sigma, weights, None, skip)[..., 0]).double().sum(-1)
        if minus_one:
            total = total - weights.sum() * _pair_weight_change(u, v, tu, tv, skip)
            if tweights is not None:
                total = total - tweights.sum() * _pair_weight(u, v, skip)
        return total

    return torch.stack(
        [
            one(x, x, a, a, tx, tx, ta, ta, drop >= 1),
            one(y, y, b, b, ty, ty, tb, tb, drop >= 1),
            one(x, y, a, b, tx, ty, ta, tb, drop >= 2),
        ],
        dim=-1,
    )


def _pair_weight(u: Tensor, v: Tensor, skip: bool) -> Tensor:
    """sum_ij u_i v_j, without i = j where skipped, (B,) float64"""
    u, v = u.double(), v.double()
    total = u.sum(-1) * v.sum(-1)
    return total - (u * v).sum(-1) if skip else total


def _pair_weight_change(u: Tensor, v: Tensor, tu: Tensor | None, tv: Tensor | None, skip: bool) -> Any:
    total: Any = 0.0
    if tu is not None:
        total = total + _pair_weight(tu, v, skip)
    if tv is not None:
        total = total + _pair_weight(u, tv, skip)
    return total


_derive("mmd2", _Mmd2)
_derive("kernel_sums_with_gradients", _KernelSumsWithGradients)
