"""MMD^2 and KID as metrics of torchmetrics: update(features, real=...), compute, reset, plot, sync over processes.

``pip install "gkfast[metrics]"``. They go wherever torchmetrics' own go: a MetricCollection, Lightning, Ignite.
"""

from collections.abc import Callable, Sequence
from typing import Any

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError('gkfast.metrics must have torchmetrics, got none; run pip install "gkfast[metrics]"') from error

import torch
from torch import Tensor

import gkfast
from gkfast import checks, nn_checks, sample_checks
from gkfast.gan.metrics import kid


class _OfTwoSamples(Metric):
    """Keeps all rows of both samples; compute of a subclass compares them."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, feature: Callable[[Tensor], Tensor] | None, reset_real_features: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if feature is not None and not callable(feature):
            raise TypeError(
                f"feature must be a module or function of samples, got {type(feature).__name__}; "
                "leave it out where update gets features"
            )
        self.feature = feature
        self.reset_real_features = nn_checks.switch("reset_real_features", reset_real_features)
        # every process's rows, one after another
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, features: Tensor, real: bool) -> None:
        """Add rows (N, ...) of the real or of the generated sample."""
        checks.flag("real", real)
        nn_checks.module_tensor("features", features)
        rows = features if self.feature is None else self.feature(features)
        nn_checks.module_tensor("features", rows)
        if rows.ndim == 0:
            raise ValueError("features must have a row for each sample, got a number; pass shape (N, D)")
        rows = rows.detach().reshape(len(rows), -1)
        checks.points("features", rows)
        kept = self.real_features if real else self.fake_features
        if kept:
            checks.two_point_sets("those before", kept[0], "features", rows)
        kept.append(rows)

    def reset(self) -> None:
        """Forget all rows; without reset_real_features the real ones stay."""
        if self.reset_real_features:
            super().reset()
            return
        # the names of what is reset
        kept = self._defaults.pop("real_features")
        super().reset()
        self._defaults["real_features"] = kept

    def _samples(self) -> tuple[Tensor, Tensor]:
        for name, rows in (("real", self.real_features), ("generated", self.fake_features)):
            sample_checks.updated(name, rows)
        real, fake = dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
        checks.two_point_sets("real features", real, "generated features", fake)
        return real, fake

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure and its axes with one value of compute or forward, by default that of now, or several."""
        value = self.compute() if val is None else val
        if isinstance(value, tuple):
            # the mean, without its deviation
            value = value[0]
        elif isinstance(value, list) and value and isinstance(value[0], tuple):
            value = [one[0] for one in value]
        return self._plot(value, ax)


class MMD(_OfTwoSamples):
    """Squared MMD between real and generated samples, or their features, averaged over bandwidths.

    .. code-block:: text

        mean_s [ mean_{i != j} k_s(x_i, x_j) + mean_{i != j} k_s(y_i, y_j) - 2 mean k_s(x_i, y_j) ]

    Parameters
    ----------
    sigma : float, sequence of floats, "median" or "mean"
        Bandwidths in the units of the features; or the rule that finds one in the real ones alone, so that all models
        are measured alike.
    scales : sequence of floats
        What a rule's bandwidth is multiplied with, one kernel for each.
    estimator : {"unbiased", "biased"}
        See `gkfast.kernel_means`. The unbiased one may fall below zero.
    feature : callable, optional
        A module or function from what update gets to features (N, ...). By default update gets features.
    reset_real_features : bool
        False keeps the real rows when the metric is reset.
    **kwargs
        Those of torchmetrics.Metric, such as sync_on_compute.

    Raises
    ------
    ImportError
        Without torchmetrics.
    TypeError, ValueError
        For features of other widths, dtypes or devices; from compute where a sample has no row, or one (unbiased).

    Notes
    -----
    update(features, real): rows (N, ...), flattened to (N, D) and kept in their dtype. compute: a tensor (), float64
    for float64 features and float32 for others, over the rows of all processes (each needs a row of both samples, as
    torchmetrics gathers them); O((N + M)^2 (D + S)) time and
    O((N + M) D) memory.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. (3) and (5).

    Examples
    --------
    >>> import torch, gkfast.metrics
    >>> metric = gkfast.metrics.MMD(1.0)
    >>> metric.update(torch.zeros(2, 1), real=True)
    >>> metric.update(torch.ones(3, 1), real=False)
    >>> metric.compute()
    tensor(0.7869)
    """

    def __init__(
        self,
        sigma: float | Sequence[float] | str = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
        estimator: str = "unbiased",
        feature: Callable[[Tensor], Tensor] | None = None,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, **kwargs)
        sample_checks.rule(sigma, scales)
        checks.unbiased_or_biased("estimator", estimator)
        self.sigma, self.scales, self.estimator = sigma, tuple(scales), estimator

    def compute(self) -> Tensor:
        """The squared MMD of the rows so far, ()."""
        real, fake = self._samples()
        if isinstance(self.sigma, str):
            rule = gkfast.mean_sigma if self.sigma == "mean" else gkfast.median_sigma
            distance = float(rule(real))
            sample_checks.spread(self.sigma, distance)
            sigma = [distance * float(scale) for scale in self.scales]
        else:
            sigma = nn_checks.constants("sigma", self.sigma)
        options: dict[str, Any] = {"estimator": self.estimator, "weights": "mean"}
        value: Tensor = gkfast.mmd2(fake, real, sigma, **options)
        return value


class KID(_OfTwoSamples):
    """Kernel inception distance of features: mean and deviation of the unbiased MMD^2 over random subsets.

    .. code-block:: text

        k(x, y) = (x . y / F + 1)^3                      "polynomial" (Binkowski et al. 2018, section 4)
        k(x, y) = exp(-|x - y|^2 / (2 sigma^2))          "gaussian"

    Parameters
    ----------
    feature : torch.nn.Module or callable, optional
        From images to features (N, F), for example an Inception network. By default update gets features.
    subsets, subset_size : int
        How many subsets, and the rows of each of both samples.
    kernel : {"polynomial", "gaussian"}
    sigma : float, optional
        Of the Gaussian kernel; by default the median distance of the real features.
    seed : int
        Of the subsets: the same rows give the same value.
    reset_real_features, **kwargs
        See `MMD`.

    Raises
    ------
    ImportError
        Without torchmetrics.
    TypeError, ValueError
        As `MMD`; from compute where subset_size is above the rows of a sample.

    Notes
    -----
    As torchmetrics.image.KernelInceptionDistance, in float64. compute: tensors (mean, deviation), each (), float64;
    O(subsets subset_size^2 F) time.

    References
    ----------
    M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018.

    Examples
    --------
    >>> import torch, gkfast.metrics
    >>> metric = gkfast.metrics.KID(subsets=2, subset_size=2)
    >>> metric.update(torch.zeros(2, 1), real=True)
    >>> metric.update(torch.ones(2, 1), real=False)
    >>> [value.item() for value in metric.compute()]
    [7.0, 0.0]
    """

    def __init__(
        self,
        feature: Callable[[Tensor], Tensor] | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        *,
        kernel: str = "polynomial",
        sigma: float | None = None,
        seed: int = 0,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, **kwargs)
        for name, value, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2), ("seed", seed, 0)):
            sample_checks.whole(name, value, least)
        self.options: dict[str, Any] = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
        sample_checks.kernel_of_kid(kernel)
        self.options |= {
            "kernel": kernel,
            "sigma": None if sigma is None else nn_checks.one_constant("sigma", sigma),
        }

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation over subsets, each ()."""
        real, fake = self._samples()
        found = kid(real, fake, **self.options)
        mean, deviation = (
            torch.tensor(found[name], dtype=torch.float64, device=real.device) for name in ("kid", "kid_std")
        )
        return mean, deviation
