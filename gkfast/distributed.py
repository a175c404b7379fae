"""Losses of the global batch, whose rows are spread over the processes of torch.distributed.

A mean of kernels over pairs is no mean over processes: each process sees only the pairs of its own rows. Either
gather the rows and call any function of gkfast on all of them, or let each process take its rows against everybody's.

Every process gets the same value. Gradients are those of the sum of what all processes compute, as with torch's own
collectives: DistributedDataParallel divides by the number of processes, which leaves the gradient of the loss itself.
Call every function on all processes of the group, in the same order.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the process group of that moment as default argument. Imported by the first use of
# DistributedDataParallel they would keep a group that is there by then, past destroy_process_group, and its threads
# would abort the process when they meet an interpreter that ends.
import torch.distributed.nn
from torch import Tensor

import gkfast
from gkfast import checks, nn_checks
from gkfast.arguments import prepare, weighted_sum
from gkfast.checks import Estimator, Sigma
from gkfast.squared_norm import squared_norm


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """All processes' rows, one process after another; differentiable.

    Parameters
    ----------
    x : tensor of shape (..., N, D)
        This process's rows; N may differ from process to process, the rest may not.
    group : torch.distributed.ProcessGroup, optional
        By default all processes.

    Returns
    -------
    tensor of shape (..., sum of N, D)
        The same on every process. Without an initialised process group, x itself.

    Notes
    -----
    Two collectives forward (sizes, rows), one backward. The gradient of a row is the sum of its gradients on all
    processes. Of every order: backward is itself differentiable.

    Examples
    --------
    >>> import torch, gkfast.distributed
    >>> gkfast.distributed.gather(torch.ones(2, 3)).shape  # one process: nothing to gather
    torch.Size([2, 3])
    """
    nn_checks.module_tensor("x", x)
    checks.points("x", x)
    if not _many(group):
        return x
    sizes = _sizes(x, group)
    gathered: Tensor = _Gather.apply(x, sizes, group)
    return gathered


def mmd2(
    x: Tensor,
    y: Tensor,
    sigma: Sigma,
    *,
    estimator: Estimator = "unbiased",
    weights: Sigma | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Squared MMD of the global samples, each process computing the pairs of its own rows.

    .. code-block:: text

        gkfast.mmd2(gather(x), gather(y), sigma)

    in value and first gradients, at a share of the work: every process takes its N_r + M_r rows against all N + M, in
    O(N + M) memory.

    Parameters
    ----------
    x, y : tensors of shape (N_r, D) and (M_r, D)
        This process's rows of the two samples; sizes may differ from process to process.
    sigma, weights
        See `gkfast.rbf`; numbers, or tensors equal on all processes. No gradient reaches them.
    estimator : {"unbiased", "biased"}
        See `gkfast.kernel_means`.
    group : torch.distributed.ProcessGroup, optional

    Returns
    -------
    tensor of shape ()
        The same on every process; float32 for half-precision input. Differentiable once, to x and y; for second
        derivatives call `gkfast.mmd2` on gathered rows.

    Examples
    --------
    >>> import torch, gkfast.distributed
    >>> x, y = torch.zeros(2, 1), torch.ones(3, 1)
    >>> round(gkfast.distributed.mmd2(x, y, 1.0).item(), 4)  # one process: gkfast.mmd2
    0.7869
    """
    nn_checks.module_tensor("x", x)
    checks.two_point_sets("x", x, "y", y)
    _separable(estimator, x)
    nn_checks.one_sample_per_row("y", y, "gkfast.mmd2")
    if not _many(group):
        return gkfast.mmd2(x, y, sigma, estimator=estimator, weights=weights)
    sizes = _sizes(x, group), _sizes(y, group)
    all_x, all_y = (_Gather.apply(t.detach(), size, group) for t, size in zip((x, y), sizes, strict=True))
    checks.estimator(estimator, all_x, all_y, False)
    first = tuple(sum(size[: dist.get_rank(group)]) for size in sizes)
    call, (x, y), (bandwidths, kernel_weights), options = prepare({"x": x, "y": y}, sigma, weights, None, None)
    all_x, all_y = map(call.operand, (all_x, all_y))
    # the same on every process
    baseline = call.backend.baselines(all_x, all_y, bandwidths)
    biased = estimator == "biased"

    def sums(rows: Tensor, columns: Tensor, within: bool = False) -> Tensor:
        """Over all pairs of K - sum_s w_s baseline_s; within: rows are the first columns, and meet themselves."""
        operands = (rows, columns, columns.new_ones(len(columns), 1), bandwidths, kernel_weights, None, baseline)
        total: Tensor = call.backend.rbf_matmul(*operands, skip_diagonal=within, **options).double().sum()
        if within and biased:
            total = total + len(rows) * weighted_sum(kernel_weights, 1 - baseline)
        return total

    own = _own_share(sums, (x, y, all_x, all_y), first, 0 if biased else 1).to(call.scalar_dtype)
    value = own.detach()
    dist.all_reduce(value, group=group)
    if biased:
        value = squared_norm(value, all_x, all_y, kernel_weights)
    # the value of all; the gradient of this process's share, as often as there are losses to be summed
    return value + dist.get_world_size(group) * (own - own.detach())


def _separable(estimator: object, x: Tensor) -> None:
    """What can be summed row by row on several processes."""
    if not isinstance(estimator, str) or estimator not in ("unbiased", "biased"):
        raise ValueError(
            f"estimator must be unbiased or biased on several processes, got {estimator!r}; the others pair rows by "
            f"their order: call gkfast.mmd2 on gathered rows"
        )
    if x.ndim != 2:
        raise ValueError(
            f"x must have shape (N, D) on several processes, got {tuple(x.shape)}; gather batches instead"
            f"{checks.flattened('x', x.shape, 'x', ())}"
        )


def _own_share(
    sums: Callable[..., Tensor], samples: tuple[Tensor, ...], first: tuple[int, ...], diagonal: int
) -> Tensor:
    """This process's terms of MMD^2, with the whole gradient of its rows: they stand in pairs at both ends.

    Its rows of x and y begin at `first` among those of all.
    """
    x, y, all_x, all_y = samples
    n, m = len(all_x), len(all_y)
    within_x = sums(x, all_x.roll(-first[0], 0), True) / (n * (n - diagonal))
    within_y = sums(y, all_y.roll(-first[1], 0), True) / (m * (m - diagonal))
    x_to_y = sums(x, all_y) / (n * m)
    y_to_x = sums(y, all_x) / (n * m)
    value = within_x + within_y - 2 * x_to_y
    gradient = 2 * within_x + 2 * within_y - 2 * x_to_y - 2 * y_to_x
    return value.detach() + gradient - gradient.detach()


def _many(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _sizes(x: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each process has."""
    mine = torch.tensor([x.shape[-2]], device=x.device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    return [int(size) for size in every]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        # collectives want equal shapes, and rows first
        padded = x.new_zeros(max(sizes), *x.shape[:-2], x.shape[-1])
        padded[: x.shape[-2]] = x.movedim(-2, 0)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).movedim(0, -2).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Share.apply(g, ctx.sizes, ctx.group), None, None


class _Share(torch.autograd.Function):
    """This process's rows of the sum over all processes: the transpose of gathering."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        total = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        rank = dist.get_rank(group)
        return total.narrow(-2, sum(sizes[:rank]), sizes[rank])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Gather.apply(g, ctx.sizes, ctx.group), None, None
