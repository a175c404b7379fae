"""The drifting field, which has no derivative: on the CPU by a kernel of its own, elsewhere by other operators."""

import math

import torch
from torch import Tensor

from gkfast.ops.log_density import log_density
from gkfast.ops.operator import Argument, array_of, kernels
from gkfast.ops.rbf_matmul import rbf_matmul_backward
from gkfast.ops.torch_private import eager_place

# up to here GPU kernels take no products, and float32 points would not have the bits that shares need
_FEW_COORDINATES = 4


@torch.no_grad()
def drift(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    sigma: Argument,
    y_weights: Tensor,
    z_weights: Tensor,
    *,
    powers: tuple[float, float],
    skip_diagonal: bool,
    precision: str,
) -> Tensor:
    """The drifting field of one bandwidth, (..., N, D). See gkfast.drift."""
    arguments = (x, y, z, sigma, y_weights, z_weights)
    if eager_place(arguments) == "cpu":
        options = {"powers": powers, "skip_diagonal": skip_diagonal, "in_float64": precision == "highest"}
        count, axes = x.shape[:-2].numel(), x.ndim - 2
        sigma = sigma if type(sigma) is tuple else sigma.double()
        arrays = [
            array_of(a, count) if type(a) is tuple else a.detach().numpy().reshape(count, *a.shape[axes:])
            for a in (x, y, z, sigma, y_weights, z_weights)
        ]
        return torch.from_numpy(kernels("cpu").drift(*arrays, **options).reshape(x.shape))
    return by_operators(*arguments, powers=powers, skip_diagonal=skip_diagonal, precision=precision)


def by_operators(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    sigma: Argument,
    y_weights: Tensor,
    z_weights: Tensor,
    *,
    powers: tuple[float, float],
    skip_diagonal: bool,
    precision: str,
) -> Tensor:
    """`drift` in two sweeps of log-sums and one of pulls.

    The share of a pair is exp(-|x_i - z_j|^2 / (2 sigma^2) - shift_i - shift_j). shift_i is a shift of
    `rbf_matmul`; shift_j is the square of one more coordinate, in which all x are 0. One more, in which x is 0 and z
    is sigma, has for its pull sigma times the sum of a row's shares.
    """
    dims, unit = x.shape[-1], (1.0,)
    if not x.is_cuda or dims <= _FEW_COORDINATES:
        x, y, z = x.double(), y.double(), z.double()
    # a number needs no copy to the device; (..., 1) for rows, and one axis more for their coordinates
    width: float | Tensor = sigma[0] if type(sigma) is tuple else sigma.double().to(x.device)
    wide = width if isinstance(width, float) else width[..., None]
    options = {"value_only": True, "precision": precision}

    def log_sums(p: Tensor, q: Tensor, weights: Tensor, skip: bool) -> Tensor:
        return log_density(p, q, sigma, (0.0,), weights, leave_one_out=skip, **options)

    # z first, so that a row and its own column have the same place
    both, both_weights = torch.cat([z, y], -2), torch.cat([z_weights, y_weights], -1)
    rows = log_sums(x, both, both_weights, skip_diagonal)
    ones = torch.ones_like(x[..., 0], dtype=torch.float64)
    of_z, of_y = log_sums(both, x, ones, skip_diagonal).split([z.shape[-2], y.shape[-2]], -1)
    found = []
    for points, weights, columns, skip in ((y, y_weights, of_y, False), (z, z_weights, of_z, skip_diagonal)):
        # a row without weight has no share, nor has one that meets none
        alive = (weights > 0) & (columns != -math.inf)
        shift = torch.where(alive, powers[1] * columns - weights.log(), math.inf)
        least = shift.amin(-1, keepdim=True)
        least = torch.where(least < math.inf, least, 0.0)
        more = torch.where(alive, shift - least, 0.0)
        extra = (width * (2 * more).sqrt()).to(x.dtype)
        # what rounding of the coordinate loses
        factor = torch.where(alive, ((extra.double() / width).square() / 2 - more).exp(), 0.0).to(x.dtype)
        there = torch.cat([points, extra[..., None], (width * torch.ones_like(more)).to(x.dtype)[..., None]], -1)
        here = torch.cat([x, x.new_zeros(*x.shape[:-1], 2)], -1)
        row_shift = (powers[0] * rows + least - 0.5)[..., None]
        one = torch.ones_like(x[..., :1])
        operands = (one, here, there, factor[..., None], sigma, unit, row_shift)
        wants = [True, False, False, False, False]
        pull = rbf_matmul_backward(*operands, skip_diagonal=skip, wants=wants, precision=precision)[0]
        # a pull is over sigma^2
        pull = pull.double() * wide
        found.append((pull[..., -1:], pull[..., :dims] * wide))
    (y_sums, pull), (z_sums, push) = found
    return z_sums * pull - y_sums * push
