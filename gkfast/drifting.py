"""The drifting field: where a step of a one-step generator's samples should go."""

from typing import Any, NamedTuple

import numpy as np

from gkfast import checks, one_step_checks
from gkfast.arguments import Call, prepare, under_autocast, without_effect
from gkfast.checks import Array, Backend, Precision, Sigma


def drift(
    fake: Array,
    real: Array,
    negative: Array | None = None,
    *,
    sigma: Sigma,
    weights: Sigma | None = None,
    real_weights: Array | None = None,
    negative_weights: Array | None = None,
    skip_self: bool | None = None,
    powers: tuple[float, float] | None = (0.5, 0.5),
    unit_rms: bool = False,
    precision: Precision | None = None,
    backend: Backend | None = None,
) -> Array:
    """The Gaussian drifting field at generated samples: towards real ones, and away from each other.

    .. code-block:: text

        V_i = sum_s weights_s V_si
        V_si = sum_jk A_ij B_ik (real_j - negative_k)
             = S-_i sum_j A_ij (real_j - fake_i) - S+_i sum_k B_ik (negative_k - fake_i)
        A_ij = a_j K_ij / (R_i^p C_j^q),  B_ik = b_k K_ik / (R_i^p C_k^q),  S+_i = sum_j A_ij,  S-_i = sum_k B_ik
        R_i = sum_j a_j K_ij + sum_k b_k K_ik,  C_j = sum_i K_ij

    where K is the kernel of sigma_s, rows are fake samples, columns real and negative ones, and (p, q) are `powers`.
    With (1/2, 1/2), A and B are geometric means of a softmax over columns and one over rows. With powers=None each
    side has its own sum to itself:

    .. code-block:: text

        V_si = sum_j a_j K_ij real_j / sum_j a_j K_ij - sum_k b_k K_ik negative_k / sum_k b_k K_ik
             = sigma_s^2 [score(fake_i; real) - score(fake_i; negative)]

    Parameters
    ----------
    fake : array of shape (..., N, D)
        Generated samples, in the space where they are compared; see `rbf` for batches (the classes of conditional
        generation, for example), dtypes and errors.
    real : array of shape (..., M, D)
        What the samples are drawn to; at least one row.
    negative : array of shape (..., Q, D), optional
        What they are pushed off; by default fake itself. For guidance pass the fake samples and, behind them,
        unconditional real ones, with skip_self=True.
    sigma : S numbers, or an array or tensor of shape (..., S)
        Bandwidths in the units of the samples, each with a field of its own.
    weights : S numbers, or an array or tensor of shape (..., S), optional
        Weights of those fields; all ones by default.
    real_weights, negative_weights : arrays of shape (..., M) and (..., Q), optional
        a and b, not negative: a row of weight 2 counts as two equal rows. All ones by default.
    skip_self : bool, optional
        Whether row i of `negative` is fake_i, which does not push itself; by default so where `negative` is left out.
    powers : two numbers (p, q), or None
        Not negative, with a sum of at most 1.
    unit_rms : bool
        Divide each bandwidth's field by its root mean square over rows and coordinates.

    Returns
    -------
    array of shape (..., N, D)
        A displacement in the units of the samples, without gradient; float32 for half-precision input. A sample
        that has nothing to be pushed off (N = 1) has the field 0, with powers=None none: two rows are then needed.

    Notes
    -----
    Public implementations differ, and these arguments say how: in what normalises the kernel (rows and columns by the
    geometric mean of two softmaxes is the default, (1, 0) is one softmax over real and negative samples together, and
    powers=None the definition by two densities, whose identity with scores is exact for the Gaussian alone), in
    whether each of several bandwidths' fields is divided by its root mean square (`unit_rms`), in the weights of
    guidance, and in the kernel: the paper's is exp(-distance / tau), with tau .02, .05 and .2 of the mean distance.
    float32 fields are right to 1e-5 of their norm: where a sample is so far from all others that float32 would not
    do, they are computed in float64, and with precision="highest" always.
    O(S N (M + Q) D) time, O((N + M + Q) D) memory: on the CPU in two sweeps, or where the N x (M + Q) kernels of a
    problem stay in the second-level cache (256 KiB), in one.

    References
    ----------
    M. Deng, H. Li, T. Li, Y. Du and K. He, "Generative modeling via drifting", 2026, arXiv 2602.04770; for the
    Gaussian field and scores arXiv 2603.07514.

    Examples
    --------
    >>> import numpy, gkfast
    >>> fake, real = numpy.array([[0.0], [1.0]]), numpy.array([[3.0]])
    >>> gkfast.drift(fake, real, sigma=1.0, powers=None)
    array([[2.],
           [3.]])
    """
    fake, real, negative, real_weights, negative_weights = (
        checks.detached(a) for a in under_autocast(fake, real, negative, real_weights, negative_weights)
    )
    sets = {"real": real, "negative": fake if negative is None else negative}
    skip_self = negative is None if skip_self is None else skip_self
    one_step_checks.drifting(fake, sets, powers, skip_self, unit_rms)
    own_weights, others = {"real": real_weights, "negative": negative_weights}, {}
    for name, own in own_weights.items():
        if own is not None:
            checks.vector(f"{name}_weights", own, sets[name].shape[-2], name, sets[name])
            sets[name], own_weights[name] = without_effect(sets[name], own)
            others[f"{name}_weights"] = tuple(own.shape[:-1])
    found = prepare({"fake": fake, **sets}, sigma, weights, precision, backend, others)
    call, (x, *targets) = found.call, found.points
    sides = [_Side(p, _weights(call, p, own)) for p, own in zip(targets, own_weights.values(), strict=True)]
    options = found.options
    if precision is None and checks.on_cpu(fake) and call.operators and call.compute == call.xp.float32:
        # float32 as far as it will do
        options["precision"] = "high"
    total: Any = 0.0
    sigmas, factors = found.bandwidths
    alone = type(factors) is tuple and factors == (1.0,)
    for s in range(len(sigmas) if type(sigmas) is tuple else sigmas.shape[-1]):
        one = sigmas[s : s + 1] if type(sigmas) is tuple else checks.detached(sigmas[..., s : s + 1])
        if powers is None:
            field = _mean_shift(call, x, sides[0], one, False, options)
            field = field - _mean_shift(call, x, sides[1], one, skip_self, options)
            field = field * _of_rows(call, sigmas, s, x) ** 2
        else:
            modes = {"in_float64": precision == "highest"} if call.xp is np else options
            (y, a), (z, b) = sides
            field = call.backend.drift(x, y, z, one, a, b, powers=powers, skip_diagonal=skip_self, **modes)
        if unit_rms:
            field = call.double(field)
            mean_square = (field * field).mean((-2, -1))
            field = field / call.xp.sqrt(call.xp.where(mean_square > 0, mean_square, 1.0))[..., None, None]
        # a single field needs no float64
        total = field if alone else total + _of_rows(call, factors, s, x) * call.double(field)
    return call.result(total, call.scalar_dtype)


class _Side(NamedTuple):
    points: Array
    # of its rows, float64
    weights: Array


def _of_rows(call: Call, numbers: Any, s: int, like: Array) -> Any:
    """One of numbers (..., S) for fields (..., N, D); Python's need no copy to the device."""
    if type(numbers) is tuple:
        return numbers[s]
    own = checks.detached(call.double(numbers[..., s, None, None]))
    return own if call.xp is np else own.to(like.device)


def _weights(call: Call, points: Array, weights: Array | None) -> Array:
    if weights is None:
        return call.xp.ones(points.shape[:-1], dtype=call.xp.float64, **call.beside(points))
    return call.double(call.operand(weights, 1))


def _mean_shift(call: Call, x: Array, side: _Side, sigma: Any, skip: bool, options: dict[str, Any]) -> Array:
    """The score of one side's density at x."""
    points = (x, side.points)
    if not call.tensors or (call.operators and checks.on_cpu(x)):
        # computed in float64 there in any case; the difference of two may be much less than either
        points = (call.double(x), call.double(side.points))
    share = side.weights / side.weights.sum(-1)[..., None]
    operands = (*points, sigma, call.numbers((0.0,)), share)
    return checks.detached(call.double(call.backend.score(*operands, leave_one_out=skip, **options)))
