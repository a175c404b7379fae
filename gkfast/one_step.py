"""Losses of one-step generators, as torch.nn modules: the names are those of gkfast.nn."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

import gkfast
from gkfast import checks, nn_checks, one_step_checks
from gkfast.arguments import prepare
from gkfast.nn_bandwidth import Bandwidth, Move, _Bandwidth, _kept, _samples


class DriftLoss(torch.nn.Module):
    """Draws generated samples along the drifting field: the loss of a one-step generator.

    .. code-block:: text

        mean over rows and coordinates of (g_i - sg(g_i + V_i))^2          V = gkfast.drift(fake, real, ...)

    sg is stop-gradient: the target is where the field leads, and the value is the mean square of the field. The
    gradient at g_i is -2 V_i / (N D).

    Parameters
    ----------
    sigma, scales, momentum
        Bandwidths, or the rule that finds them; see `MMDLoss`. Each has a field of its own; fields are added.
    powers, unit_rms
        See `gkfast.drift`.

    References
    ----------
    M. Deng, H. Li, T. Li, Y. Du and K. He, "Generative modeling via drifting", 2026, arXiv 2602.04770.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> loss = gkfast.nn.DriftLoss(1.0, powers=None)
    >>> loss(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])).item()  # the field is 2 and 3
    6.5
    """

    def __init__(
        self,
        sigma: Bandwidth = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        momentum: float = 0.1,
        powers: tuple[float, float] | None = (0.5, 0.5),
        unit_rms: bool = False,
    ) -> None:
        super().__init__()
        self.bandwidth = _Bandwidth(sigma, scales, momentum)
        one_step_checks.powers_of_sums(powers)
        self.powers = powers
        self.unit_rms = nn_checks.switch("unit_rms", unit_rms)

    def forward(
        self, fake: Tensor, real: Tensor, negative: Tensor | None = None, skip_self: bool | None = None
    ) -> Tensor:
        """The loss () of fake (N, D), real (M, D) and negative (Q, D), by default fake: one sample per row."""
        fake, real = _samples("fake", fake, "real", real, "gkfast.drift")
        if negative is not None:
            _, negative = _samples("fake", fake, "negative", negative, "gkfast.drift")
        field = gkfast.drift(
            fake,
            real,
            negative,
            sigma=self.bandwidth(fake, real)[None],
            skip_self=skip_self,
            powers=self.powers,
            unit_rms=self.unit_rms,
        )
        wide = fake.to(field.dtype)
        loss: Tensor = (wide - (wide.detach() + field)).square().mean()
        return loss

    def extra_repr(self) -> str:
        return f"powers={self.powers}, unit_rms={self.unit_rms}"


class _Numbers(torch.nn.Module):
    """What a frozen side is worth, in float64 whatever the module is cast to."""

    coefficients: Tensor
    square: Tensor
    sigma: Tensor

    def __init__(self, coefficients: Tensor, square: float, sigma: Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", coefficients.double())
        self.register_buffer("square", torch.tensor(square, dtype=torch.float64, device=coefficients.device))
        self.register_buffer("sigma", sigma.double())

    def _apply(self, fn: Move, recurse: bool = True) -> "_Numbers":
        super()._apply(_kept(fn), recurse)
        return self


class _FrozenSide(torch.nn.Module):
    """MMD^2 of samples against a weighted set of points that does not change: within it nothing is summed again."""

    points: Tensor

    def __init__(self, points: Tensor, numbers: _Numbers, drop: int) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.numbers = numbers
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """The loss () of x (N, D)."""
        points = self.points.to(x.dtype) if isinstance(x, Tensor) else self.points
        x, points = _samples("x", x, "the reference", points, "gkfast.mmd2")
        n = x.shape[0]
        checks.some_rows("x", x, 1 + self.drop, "MMD^2")
        call, (x, z), bandwidths, options = prepare({"x": x, "y": points}, self.numbers.sigma, "mean", None, None)
        b = call.operand(self.numbers.coefficients.to(x), 1)
        scale = (1 / (n * n - n * self.drop), 0.0, -2 / n)
        operands = (x, z, x.new_ones(x.shape[:-1]), b, *bandwidths)
        value = call.backend.mmd2(call.numbers(scale), *operands, drop=self.drop, **options)
        # the weights of these pairs do not sum to zero: the baselines that were subtracted come back
        subtracted = call.backend.baselines(x, z, bandwidths[0]).mean(-1) * (1 - 2 * b.double().sum(-1))
        found: Tensor = call.result(value.double() + subtracted + self.numbers.square, call.scalar_dtype)
        return found


class FrozenMMDLoss(_FrozenSide):
    """Squared MMD against samples that do not change, such as the features of a whole data set.

    .. code-block:: text

        mean_s [ mean k_s(x_i, x_j) + mean k_s(y_i, y_j) - 2 mean k_s(x_i, y_j) ]

    The middle term is computed once, when the module is made, and no step visits the pairs within y.

    Parameters
    ----------
    y : tensor of shape (M, D)
        The samples, which the module keeps; they move and are saved with it.
    sigma : float, sequence of floats, "median" or "mean"
        Bandwidths in the units of the samples, or the rule that finds one in y.
    scales : sequence of floats
        What a rule's bandwidth is multiplied with; of no effect on given bandwidths.
    estimator : {"unbiased", "biased"}
        See `gkfast.kernel_means`.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> y = torch.linspace(0, 1, 64)[:, None]
    >>> loss = gkfast.nn.FrozenMMDLoss(y, [0.2, 0.5])
    >>> torch.allclose(loss(y + 1), gkfast.nn.MMDLoss([0.2, 0.5])(y + 1, y))
    True
    """

    def __init__(
        self,
        y: Tensor,
        sigma: Bandwidth = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        estimator: Literal["unbiased", "biased"] = "unbiased",
    ) -> None:
        y, widths = _reference("y", y, sigma, scales)
        checks.unbiased_or_biased("estimator", estimator)
        checks.some_rows("y", y, 2 if estimator == "unbiased" else 1, f"the {estimator} estimator")
        square = gkfast.kernel_means(y.double(), y[:1].double(), widths, estimator="biased", weights="mean").xx
        m, drop = len(y), int(estimator == "unbiased")
        share = torch.full_like(y[:, 0], 1 / m, dtype=torch.float64)
        if drop:
            square = (square * m - 1) / (m - 1)
        super().__init__(
            y, _Numbers(share, float(square), torch.tensor(widths, dtype=torch.float64, device=y.device)), drop
        )


class LandmarkMMDLoss(_FrozenSide):
    """Squared MMD against the kernel mean of a WHOLE data set, in few landmarks: the loss of iRDM.

    .. code-block:: text

        L = mean_ij k(x_i, x_j) - 2 mean_i sum_k alpha_k k(x_i, z_k) + alpha' K_zz alpha
        L / (|sg L| + 1e-7)                                                        with self_normalized

    with k the mean over bandwidths, landmarks z and coefficients alpha as in `gkfast.mean_embedding`: exact repulsion
    within the batch, all pairs and the diagonal, and attraction to every row of the data at the cost of the
    landmarks. sg is stop-gradient: the steps of a self-normalised loss do not shrink with it.

    Parameters
    ----------
    data : tensor of shape (R, D)
        The whole data set, in the space where samples are compared. It is not kept.
    sigma, scales
        As in `FrozenMMDLoss`: a rule's bandwidth is that of the data.
    landmarks, method, seed
        See `gkfast.mean_embedding`.
    self_normalized : bool
        False gives L itself; `mmd2` does so in any case.

    Attributes
    ----------
    error, ridge : float
        Of the embedding, see `gkfast.mean_embedding`: look at the error before training.

    Notes
    -----
    Implementations differ in whether the constant last term is part of the L that is divided by: here it is, so that
    L is not negative. A step takes O(N (N + L) D) time and O((N + L) D) memory.

    References
    ----------
    Feng et al., iRDM, 2026, arXiv 2607.02375.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> loss = gkfast.nn.LandmarkMMDLoss(data, 1.0, landmarks=50)
    >>> loss.error < 1e-2, loss(data[:100] + 3).item() > 0.99
    (True, True)
    """

    def __init__(
        self,
        data: Tensor,
        sigma: Bandwidth = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        landmarks: int | Tensor = 4096,
        method: Literal["sample", "kmeans"] = "sample",
        seed: int = 0,
        self_normalized: bool = True,
    ) -> None:
        data, widths = _reference("data", data, sigma, scales)
        found = gkfast.mean_embedding(data, widths, weights="mean", landmarks=landmarks, method=method, seed=seed)
        sigmas = torch.tensor(widths, dtype=torch.float64, device=data.device)
        super().__init__(found.landmarks, _Numbers(found.coefficients, found.square, sigmas), 0)
        self.error, self.ridge = found.error, found.ridge
        self.self_normalized = nn_checks.switch("self_normalized", self_normalized)

    def mmd2(self, x: Tensor) -> Tensor:
        """L, () of x (N, D)."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """The loss () of x (N, D)."""
        value = self.mmd2(x)
        return value / (value.detach().abs() + 1e-7) if self.self_normalized else value

    def extra_repr(self) -> str:
        return f"landmarks={len(self.points)}, error={self.error:.2g}, ridge={self.ridge:.0e}"


def _reference(name: str, y: Tensor, sigma: Bandwidth, scales: Sequence[float]) -> tuple[Tensor, list[float]]:
    """Samples that do not change, and the bandwidths of a loss against them."""
    nn_checks.one_sample_per_row(name, y, "gkfast.mmd2")
    y = y.detach()
    numbers = nn_checks.found_or_given(sigma)
    if not isinstance(numbers, str):
        return y, numbers
    checks.some_rows(name, y, 2, "a bandwidth that is found")
    rule = gkfast.median_sigma if numbers == "median" else gkfast.mean_sigma
    width = float(rule(y.float() if y.dtype.itemsize == 2 else y)) or 1.0
    return y, [width * scale for scale in nn_checks.constants("scales", scales)]


def backward_in_pieces(module: torch.nn.Module, pieces: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradients of a loss over a large batch, with the memory of one piece: gradient caching.

    .. code-block:: text

        y = [module(p) for p in pieces]       without a graph
        dL/dy of L = loss(y)                  all pairs of the whole batch
        dL/dtheta = sum over pieces of dy/dtheta' dL/dy, each piece computed again

    Exact but for the order of sums: a loss over pairs is no sum of losses of pieces, so accumulating gradients of
    pieces would be another loss. Random numbers are drawn alike both times (dropout).

    Parameters
    ----------
    module : torch.nn.Module
        Maps a piece to its samples, (n, D). What depends on a piece's other rows, such as batch normalisation, sees
        the piece, and its running statistics both times.
    pieces : sequence of tensors
        The inputs.
    loss : callable
        Of all samples, (N, D), a number; for example ``lambda y: mmd_loss(y, real)``.

    Returns
    -------
    Tensor
        The loss, without a graph; gradients are added to `.grad` of the module's parameters, and of those that the
        loss has.

    References
    ----------
    L. Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> net, real = torch.nn.Linear(2, 2), torch.randn(64, 2)
    >>> loss = gkfast.nn.MMDLoss(1.0)
    >>> value = gkfast.nn.backward_in_pieces(net, torch.randn(64, 2).split(16), lambda y: loss(y, real))
    >>> net.weight.grad.shape
    torch.Size([2, 2])
    """
    one_step_checks.pieces(pieces)
    devices = sorted({p.get_device() for p in pieces if p.is_cuda})
    states, parts = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append((torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]))
            parts.append(module(piece))
    whole = torch.cat(parts).requires_grad_()
    value = loss(whole)
    value.backward()
    gradients = torch.zeros_like(whole) if whole.grad is None else whole.grad
    for piece, g, (of_cpu, of_devices) in zip(pieces, gradients.split([len(p) for p in parts]), states, strict=True):
        with torch.random.fork_rng(devices):
            torch.set_rng_state(of_cpu)
            for device, state in zip(devices, of_devices, strict=True):
                torch.cuda.set_rng_state(state, device)
            module(piece).backward(g)
    return value.detach()
