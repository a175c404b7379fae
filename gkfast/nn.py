"""torch.nn modules over gkfast's functions: they hold the bandwidth, the functions hold the mathematics."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

import gkfast
from gkfast import checks
from gkfast.checks import Estimator

Bandwidth = float | Sequence[float] | Literal["median", "mean"]


class RBF(torch.nn.Module):
    """Gaussian kernel with learnable bandwidths.

    .. code-block:: text

        K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))
        K[i, j] = exp(-sum_d ((x_id - y_jd) / sigma_d)^2 / 2)          with dims=D (ARD)

    Parameters
    ----------
    sigma : float or sequence of S floats
        Bandwidths to begin with, in the units of x; with dims one number, or one for each dimension.
    dims : int, optional
        The number of dimensions D, each of which gets a bandwidth of its own.
    weights : sequence of S floats, optional
        Weights of the summed kernels, all ones by default; not with dims. They are not learned.
    learnable : bool
        False keeps the bandwidths as a buffer.

    Attributes
    ----------
    log_sigma : parameter (or buffer) of shape (S,) or (D,)
        What is learned: the logarithm keeps bandwidths positive.

    Raises
    ------
    ValueError
        For bandwidths that are not positive, or as many as there are neither dimensions nor weights.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> kernel = gkfast.nn.RBF(sigma=2.0, dims=3)
    >>> kernel(torch.zeros(2, 3)).shape
    torch.Size([2, 2])
    """

    log_sigma: Tensor

    def __init__(
        self,
        sigma: float | Sequence[float] = 1.0,
        *,
        dims: int | None = None,
        weights: Sequence[float] | None = None,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        checks.bandwidths(sigma, weights)
        values = [float(s) for s in sigma] if isinstance(sigma, Sequence) else [float(sigma)]
        if dims is not None:
            values = checks.per_dimension(values, dims, weights)
        self.dims = dims
        self.weights = None if weights is None else [float(w) for w in weights]
        log_sigma = torch.tensor(values).log()
        if learnable:
            self.log_sigma = torch.nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    @property
    def sigma(self) -> Tensor:
        """The bandwidths, (S,) or (D,)."""
        return self.log_sigma.exp()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The kernel matrix (..., N, M) of x (..., N, D) and y (..., M, D), by default x itself."""
        if self.dims is None:
            return gkfast.rbf(x, y, self.sigma, weights=self.weights)
        checks.coordinates("x", x, self.dims)
        sigma = self.sigma.to(x.dtype)
        return gkfast.rbf(x / sigma, None if y is None else y / sigma)

    def extra_repr(self) -> str:
        return f"sigma={[round(s, 4) for s in self.sigma.tolist()]}, dims={self.dims}, weights={self.weights}"


class _Bandwidth(torch.nn.Module):
    """Bandwidths that are given, or follow the data: a running average of their median or mean distance."""

    running: Tensor
    factors: Tensor

    def __init__(self, sigma: Bandwidth, scales: Sequence[float], momentum: float) -> None:
        super().__init__()
        checks.bandwidth_rule(sigma, scales, momentum)
        self.rule = sigma if isinstance(sigma, str) else None
        self.scales = [1.0] if self.rule is None else [float(s) for s in scales]
        self.momentum = momentum
        if isinstance(sigma, str):
            given: list[float] = [0.0]
        else:
            given = [float(s) for s in sigma] if isinstance(sigma, Sequence) else [float(sigma)]
        self.register_buffer("running", torch.tensor(given, dtype=torch.float64))
        # beside it wherever the module goes: a copy from the host would wait, and no graph could capture it
        self.register_buffer("factors", torch.tensor(self.scales, dtype=torch.float64), persistent=False)
        self.seen = self.rule is None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The bandwidths (S,), float64; while training, after a look at x and y."""
        if self.rule is None:
            return self.running
        if self.training or not self.seen:
            now = self._found(x, y)
            if self.seen:
                now = self.running + self.momentum * (now - self.running)
            if not self.training:
                return self._scaled(now)
            self.running.copy_(now)
            self.seen = True
        return self._scaled(self.running)

    def _found(self, x: Tensor, y: Tensor) -> Tensor:
        rule = gkfast.median_sigma if self.rule == "median" else gkfast.mean_sigma
        found = rule(*(t.detach().float().reshape(-1, t.shape[-1]) for t in (x, y))).double().reshape(1)
        # where all rows are equal every bandwidth will do, but zero
        return torch.where(found > 0, found, self.running if self.seen else 1.0)

    def _scaled(self, sigma: Tensor) -> Tensor:
        return sigma * self.factors.to(sigma.device, torch.float64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        # an untrained module's running bandwidth is zero
        self.seen = bool((self.running > 0).all())

    def extra_repr(self) -> str:
        if self.rule is None:
            return f"{self.running.tolist()}"
        return f"{self.rule} times {self.scales}, momentum={self.momentum}, now {self.running.item():.4g}"


class MMDLoss(torch.nn.Module):
    """Squared MMD between two samples, averaged over bandwidths: the loss of a GMMN or of an MMD-GAN.

    .. code-block:: text

        mean_s MMD^2_s(x, y)        see gkfast.mmd2

    Parameters
    ----------
    sigma : float, sequence of floats, "median" or "mean"
        Bandwidths in the units of the samples; or the rule that finds one in the data of each training step
        (`gkfast.median_sigma`, `gkfast.mean_sigma` of both samples together), detached.
    scales : sequence of floats
        What a rule's bandwidth is multiplied with, one kernel for each; of no effect on given bandwidths.
    momentum : float in [0, 1]
        How much of a rule's bandwidth is renewed at each training step: 1 follows every batch, 0 keeps the first
        batch's. The running bandwidth is saved with the module, and left alone in evaluation mode.
    estimator : {"unbiased", "biased", "u_statistic", "linear"}
        See `gkfast.kernel_means`. The unbiased estimate may fall below zero.
    root : bool
        True gives the root, with an epsilon of 1e-8 under it ("biased" only), whose gradient does not fade as the
        samples come together (Li, Swersky and Zemel 2015).

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> loss, x = gkfast.nn.MMDLoss("median"), torch.linspace(0, 1, 64)[:, None]
    >>> bool(loss(x + 3, x) > 0.5)
    True
    """

    def __init__(
        self,
        sigma: Bandwidth = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        momentum: float = 0.1,
        estimator: Estimator = "unbiased",
        root: bool = False,
    ) -> None:
        super().__init__()
        checks.rooted(root, estimator)
        self.bandwidth = _Bandwidth(sigma, scales, momentum)
        self.estimator = estimator
        self.root = root

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss (...,) of x (..., N, D) and y (..., M, D)."""
        sigma = self.bandwidth(x, y)
        weights = [1 / len(sigma)] * len(sigma)
        value: Tensor = gkfast.mmd2(x, y, sigma, weights=weights, estimator=self.estimator)
        return (value.clamp(min=0) + 1e-8).sqrt() if self.root else value

    def extra_repr(self) -> str:
        return f"estimator={self.estimator}, root={self.root}"


class RepulsiveLoss(torch.nn.Module):
    """The repulsive loss of an MMD-GAN's critic, with the bounded kernel.

    .. code-block:: text

        critic     mean over real pairs of k(min(d_ij^2, upper)) - mean over fake pairs of k(max(d_ij^2, lower))
        generator  MMD^2(fake, real)

    over i != j, with k(d^2) = sum_s exp(-d^2 / (2 sigma_s^2)) on the critic's features. Unlike the attractive loss
    (minus MMD^2) the critic pushes real samples apart, so that it learns their fine differences, and pulls generated
    ones together; the bounds take the gradient from pairs that are there already.

    Parameters
    ----------
    sigma : float or sequence of floats
        Bandwidths in the units of the features.
    lower, upper : float
        Bounds of squared distances; 0 and infinity give the unbounded loss.

    Notes
    -----
    Bounds act on single pairs, so the critic's loss stores the kernel matrices: O(N^2 + M^2) memory, as is cheap at
    a GAN's batch sizes. The generator's loss takes O(N + M).

    References
    ----------
    W. Wang, Y. Sun and S. Halgamuge, "Improving MMD-GAN training with repulsive loss function", ICLR 2019, eq. (4)
    and (6); their defaults, with spectral normalisation and 16 features.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> loss = gkfast.nn.RepulsiveLoss()
    >>> features = torch.zeros(4, 16)  # a critic that sees no difference
    >>> loss.critic(features, features).item() == 1 - torch.tensor(-0.125).exp().item()
    True
    """

    def __init__(self, sigma: float | Sequence[float] = 1.0, *, lower: float = 0.25, upper: float = 4.0) -> None:
        super().__init__()
        checks.bandwidths(sigma, None)
        checks.bounds(lower, upper)
        self.sigma = [float(s) for s in sigma] if isinstance(sigma, Sequence) else [float(sigma)]
        self.lower = lower
        self.upper = upper

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises: features of real (..., N, D) and generated (..., M, D) samples."""
        within_real = gkfast.rbf(real, None, self.sigma).clamp(min=self._kernel(self.upper))
        within_fake = gkfast.rbf(fake, None, self.sigma).clamp(max=self._kernel(self.lower))
        return _mean_of_pairs(within_real) - _mean_of_pairs(within_fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the generator minimises."""
        value: Tensor = gkfast.mmd2(fake, real, self.sigma)
        return value

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's and the generator's loss."""
        return self.critic(real, fake), self.generator(real, fake)

    def _kernel(self, squared_distance: float) -> float:
        return float(sum(torch.tensor(-squared_distance / (2 * s * s)).exp() for s in self.sigma))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, lower={self.lower}, upper={self.upper}"


def _mean_of_pairs(k: Tensor) -> Tensor:
    """The mean over i != j of (..., N, N)."""
    n = k.shape[-1]
    return (k.sum((-2, -1)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


class KDERatioLoss(torch.nn.Module):
    """How much likelier generated samples are among themselves than among the real ones.

    .. code-block:: text

        mean_s sigma_s^2 mean_i [ log mean_{j != i} k_s(g_i, sg g_j) - log mean_j k_s(g_i, x_j) ]

    sg is stop-gradient. The Gaussians' normaliser is the same in both densities and cancels. The gradient at g_i is
    the mean shift of the data less the mean shift of the generated samples, with opposite sign:

    .. code-block:: text

        dL/dg_i = mean_s sigma_s^2 / N [ grad log q_s(g_i) - grad log p_s(g_i) ]

    so a descent step draws samples to the data and pushes them apart: the drifting field of a Gaussian kernel.

    Parameters
    ----------
    sigma, scales, momentum
        Bandwidths, or the rule that finds them; see `MMDLoss`.

    References
    ----------
    M. Deng, H. Li, T. Li, Y. Du and K. He, "Generative modeling via drifting", 2026, arXiv 2602.04770; arXiv
    2603.07514 for the identity with the scores.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> loss = gkfast.nn.KDERatioLoss(1.0)
    >>> bool(loss(torch.randn(64, 2) + 3, torch.randn(64, 2)) > 1)
    True
    """

    def __init__(
        self, sigma: Bandwidth = "median", *, scales: Sequence[float] = (0.25, 0.5, 1.0), momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.bandwidth = _Bandwidth(sigma, scales, momentum)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """The loss () of fake (N, D), two rows at least, and real (M, D)."""
        terms = []
        for s in self.bandwidth(fake, real):
            within = gkfast.log_density(fake, fake.detach(), s, leave_one_out=True)
            terms.append(s.square() * (within - gkfast.log_density(fake, real, s)).mean(-1))
        return torch.stack(terms).mean(0).to(within.dtype)


class ArticleRegularizer(torch.nn.Module):
    """The article's term over the generated samples, as printed or as it works.

    .. code-block:: text

        mean_i log K(g_i, g_i)                                            "literal"
        sigma^2 mean_i [ log q_{-i}(g_i) - log p(g_i) ]                   "log_ratio"

    K(g, g) = 1, so the literal term and its gradient are zero for every input: it is here so that the article's loss
    can be run as printed. "log_ratio" is a term over pairs that does what the article wants: `KDERatioLoss`.

    Parameters
    ----------
    sigma : float
        The bandwidth in the units of the samples.
    form : {"log_ratio", "literal"}

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> gkfast.nn.ArticleRegularizer(0.5, form="literal")(torch.randn(8, 2), torch.randn(8, 2)).item()
    0.0
    """

    def __init__(self, sigma: float = 1.0, *, form: Literal["log_ratio", "literal"] = "log_ratio") -> None:
        super().__init__()
        checks.bandwidths(sigma, None)
        checks.regularizer_form(form)
        self.sigma = float(sigma)
        self.form = form
        self.ratio = KDERatioLoss(self.sigma)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """The term () of fake (N, D) and real (M, D)."""
        if self.form == "literal":
            pairs: Tensor = gkfast.rbf(fake[..., None, :], fake[..., None, :], self.sigma)
            return pairs.log().mean()
        ratio: Tensor = self.ratio(fake, real)
        return ratio

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, form={self.form}"
