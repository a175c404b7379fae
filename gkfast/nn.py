"""torch.nn modules over gkfast's functions: they hold the bandwidth, the functions hold the mathematics.

Modules take torch tensors. Losses take one sample per row, (N, D): flatten images with ``x.flatten(1)``, and call the
functions for batches of samples. Bandwidths are float64 and stay so in ``half()``, ``bfloat16()`` and ``to_empty()``.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

import gkfast
from gkfast import checks, nn_checks
from gkfast.arguments import under_autocast
from gkfast.checks import Estimator
from gkfast.nn_bandwidth import Bandwidth as Bandwidth
from gkfast.nn_bandwidth import Move, _Bandwidth, _kept, _samples
from gkfast.one_step import DriftLoss as DriftLoss
from gkfast.one_step import FrozenMMDLoss as FrozenMMDLoss
from gkfast.one_step import LandmarkMMDLoss as LandmarkMMDLoss
from gkfast.one_step import backward_in_pieces as backward_in_pieces


class RBF(torch.nn.Module):
    """Gaussian kernel with learnable bandwidths.

    .. code-block:: text

        K[i, j] = sum_s w_s exp(-|x_i - y_j|^2 / (2 sigma_s^2))
        K[i, j] = exp(-sum_d ((x_id - y_jd) / sigma_d)^2 / 2)          with dims=D (ARD)

    Parameters
    ----------
    sigma : float or sequence of S floats
        Bandwidths to begin with, in the units of x; with dims one number, or one for each dimension. A 1-D array or
        tensor counts as a sequence, here and below.
    dims : int, optional
        The number of dimensions D, each of which gets a bandwidth of its own.
    weights : sequence of S floats, optional
        Weights of the summed kernels, all ones by default; not with dims. They are not learned.
    learnable : bool
        False keeps the bandwidths as a buffer.

    Attributes
    ----------
    log_sigma : parameter (or buffer) of shape (S,) or (D,), float64
        What is learned: the logarithm keeps bandwidths positive. It has the digits that float64 data ask for, takes
        no more time in float32 kernels, and no cast of the module rounds it.

    Raises
    ------
    TypeError, ValueError
        If a bandwidth is not positive, if their number fits neither `dims` nor `weights`, or if x or y is no tensor.

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
        values = nn_checks.constants("sigma", sigma)
        if dims is not None:
            values, dims = nn_checks.ard(values, dims, weights)
        self.dims = dims
        self.weights = nn_checks.weights_of_kernels(weights, len(values))
        self.given = [math.log(s) for s in values]
        log_sigma = torch.tensor(self.given, dtype=torch.float64)
        if nn_checks.switch("learnable", learnable):
            self.log_sigma = torch.nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    def reset_parameters(self) -> None:
        """The bandwidths to begin with."""
        with torch.no_grad():
            self.log_sigma.copy_(torch.tensor(self.given, dtype=torch.float64, device="cpu"))

    def _apply(self, fn: Move, recurse: bool = True) -> "RBF":
        was_meta = self.log_sigma.is_meta
        super()._apply(_kept(fn), recurse)
        if was_meta and not self.log_sigma.is_meta:
            self.reset_parameters()
        return self

    @property
    def sigma(self) -> Tensor:
        """The bandwidths, (S,) or (D,)."""
        return self.log_sigma.exp()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The kernel matrix (..., N, M) of x (..., N, D) and y (..., M, D), by default x itself."""
        for name, points in (("x", x), ("y", y)):
            if points is not None:
                nn_checks.module_tensor(name, points)
        nn_checks.not_on_meta("RBF", self.log_sigma.is_meta and not x.is_meta)
        if self.dims is None:
            return gkfast.rbf(x, y, self.sigma[None], weights=self.weights)
        return self._per_dimension(x, y, self.dims)

    def _per_dimension(self, x: Tensor, y: Tensor | None, dims: int) -> Tensor:
        x, y = under_autocast(x, y)
        checks.points("x", x)
        if y is not None:
            checks.two_point_sets("x", x, "y", y)
        nn_checks.coordinates("x", x, dims)
        # a quotient in half precision would move the points
        compute = torch.float32 if x.dtype.itemsize == 2 else x.dtype
        sigma = self.sigma.to(x.device, compute)
        scaled = [None if points is None else points.to(compute) / sigma for points in (x, y)]
        k: Tensor = gkfast.rbf(*scaled).to(x.dtype)
        return k

    def extra_repr(self) -> str:
        sigma = "on meta" if self.log_sigma.is_meta else [round(s, 4) for s in self.sigma.tolist()]
        return f"sigma={sigma}, dims={self.dims}, weights={self.weights}"


class MMDLoss(torch.nn.Module):
    """Squared MMD between two samples, averaged over bandwidths: the loss of a GMMN or of an MMD-GAN.

    .. code-block:: text

        mean_s MMD^2_s(x, y)        see gkfast.mmd2

    Parameters
    ----------
    sigma : float, sequence of floats, "median" or "mean"
        Bandwidths in the units of the samples; or the rule that finds one in the data of each training step
        (`gkfast.median_sigma` of 512 rows at most, `gkfast.mean_sigma`, of both samples together), detached.
    scales : sequence of floats
        What a rule's bandwidth is multiplied with, one kernel for each; of no effect on given bandwidths.
        A bandwidth that is found moves to the device of the samples.
    momentum : float in [0, 1]
        How much of a rule's bandwidth is renewed at each training step: 1 follows every batch, 0 keeps the first
        batch's. The running bandwidth is saved with the module, and left alone in evaluation mode. The state says by
        which rule it was found, and a module of another rule does not load it.
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
        self.root = nn_checks.switch("root", root)
        nn_checks.loss_estimator(estimator, self.root)
        self.bandwidth = _Bandwidth(sigma, scales, momentum)
        self.estimator = estimator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss () of x (N, D) and y (M, D): one sample per row, so flatten images with ``flatten(1)``."""
        x, y = _samples("x", x, "y", y, "gkfast.mmd2")
        checks.estimator(self.estimator, x, y, False)
        sigma = self.bandwidth(x, y)
        value: Tensor = gkfast.mmd2(x, y, sigma[None], weights="mean", estimator=self.estimator)
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
        self.sigma = nn_checks.constants("sigma", sigma)
        self.lower, self.upper = nn_checks.squared_bounds(lower, upper)

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """The critic's loss, of features of real (N, D) and generated (M, D) samples; float32 for halves."""
        real, fake = self._features(real, fake)
        # the number of pairs may leave the range of float16
        real, fake = (t.float() if t.dtype.itemsize == 2 else t for t in (real, fake))
        within_real = gkfast.rbf(real, None, self.sigma).clamp(min=self._kernel(self.upper))
        within_fake = gkfast.rbf(fake, None, self.sigma).clamp(max=self._kernel(self.lower))
        return _mean_of_pairs(within_real) - _mean_of_pairs(within_fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The generator's loss, of the same features."""
        real, fake = self._features(real, fake)
        value: Tensor = gkfast.mmd2(fake, real, self.sigma)
        return value

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's and the generator's loss."""
        return self.critic(real, fake), self.generator(real, fake)

    def _features(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        real, fake = _samples("real", real, "fake", fake, "gkfast.rbf and gkfast.mmd2")
        checks.some_rows("real", real, 2, "a mean over pairs")
        checks.some_rows("fake", fake, 2, "a mean over pairs")
        return real, fake

    def _kernel(self, squared_distance: float) -> float:
        # the square of a small bandwidth may be zero, so it is divided by s twice
        return sum(math.exp(-squared_distance / s / s / 2) for s in self.sigma)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, lower={self.lower}, upper={self.upper}"


def _mean_of_pairs(k: Tensor) -> Tensor:
    """The mean over i != j of (N, N)."""
    n = k.shape[-1]
    return (k.sum() - k.diagonal().sum()) / (n * (n - 1))


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
        """The loss () of fake (N, D), two rows at least, and real (M, D): one sample per row."""
        fake, real = _samples("fake", fake, "real", real, "gkfast.log_density")
        checks.some_rows("fake", fake, 2, "a density of the other rows")
        checks.some_rows("real", real, 1, "a density")
        sigma = self.bandwidth(fake, real)
        within = gkfast.log_density(fake, fake.detach(), sigma, leave_one_out=True, by_bandwidth=True)
        ratios = (within - gkfast.log_density(fake, real, sigma, by_bandwidth=True)).mean(-2)
        # bandwidths may be on the CPU still
        terms = [s.square() * ratios[..., k] for k, s in enumerate(sigma)]
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
        nn_checks.term_form(form)
        self.sigma = nn_checks.one_constant("sigma", sigma)
        self.form = form
        self.ratio = KDERatioLoss(self.sigma)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """The term () of fake (N, D) and real (M, D): one sample per row."""
        fake, real = _samples("fake", fake, "real", real, "gkfast.log_density")
        if self.form == "literal":
            pairs: Tensor = gkfast.rbf(fake[..., None, :], fake[..., None, :], self.sigma)
            return pairs.to(torch.promote_types(pairs.dtype, torch.float32)).log().mean()
        ratio: Tensor = self.ratio(fake, real)
        return ratio

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, form={self.form}"
