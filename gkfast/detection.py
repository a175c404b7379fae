"""A two-sample test as an object: a reference is learned once, and batches or windows of a stream are tested."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gkfast import checks, sample_checks
from gkfast.bandwidth import mean_sigma, median_sigma
from gkfast.checks import Array
from gkfast.means import kernel_means
from gkfast.two_sample import mmd_test


class BatchTest(NamedTuple):
    """What `TwoSampleTest` says of a batch."""

    # unbiased MMD^2 to the reference
    statistic: float
    p_value: float
    # the statistic that the level allows: one above it is drift
    threshold: float
    # whether p_value <= level
    drift: bool
    # of relabelled samples, or of windows of the reference, (R,) float64, without the batch's own
    null_statistics: Any
    # the number of the batch's first row in its stream
    start: int = 0


class TwoSampleTest:
    """Does a batch come from the distribution of a reference? MMD^2 with a threshold, for batches and streams.

    .. code-block:: text

        statistic = MMD^2(batch, reference), unbiased, averaged over the bandwidths
        p         = (1 + number of null statistics not below it) / (1 + number of null statistics)
        drift     = p <= level

    Without a window each `test` is a permutation test of its own (`mmd_test`), which errs with a probability of at
    most `level` for any size of batch. With `fit(reference, window=W)` the null statistics are those of random
    windows of W reference rows against the other reference rows, found once; each test then costs W rows against the
    reference and nothing more. Such windows are compared with N - W rows, a batch with N: the threshold is a little
    too high where W is no small share of N. It holds on the average over references: one reference that happens to
    lie off its distribution shifts all windows alike, so take a reference of several windows.

    Parameters
    ----------
    sigma : "median", "mean", or numbers
        The bandwidths, in the units of the rows; or the rule that finds one in the reference (`gkfast.median_sigma`,
        `gkfast.mean_sigma`).
    scales : sequence of float
        What a rule's bandwidth is multiplied with, one kernel for each.
    level : float
        The share of false alarms, of a single test: divide it by the number of windows that a false alarm may not
        come in. 1 / level windows pass between false alarms on the average.
    permutations : int
        How many null statistics; p cannot fall below 1 / (1 + permutations).
    seed : int or None
        Of relabellings; the same seed gives the same results.

    Attributes
    ----------
    reference_ : array of shape (N, D)
    sigma_ : list of float
    window_ : int or None
    null_statistics_ : array of shape (R,), float64; None without a window
    threshold_ : float; None without a window

    Raises
    ------
    TypeError, ValueError
        As `mmd_test`; if a window is longer than half of the reference, or a batch is not of the window's length.

    Notes
    -----
    `fit` with a window and `test` without one: O(N^2 (D + S + permutations)) time; `test` with a window:
    O((W^2 + W N) (D + S)). O((N + M) (D + 512)) memory. NumPy arrays and torch tensors, float64, float32 and halves.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 2012; S. Rabanser et al., "Failing loudly", NeurIPS 2019, for
    its use on drift.

    Examples
    --------
    >>> import numpy, gkfast
    >>> rng = numpy.random.default_rng(0)
    >>> test = gkfast.TwoSampleTest(seed=0).fit(rng.normal(size=(300, 3)), window=50)
    >>> [bool(test.test(scale * rng.normal(size=(50, 3))).drift) for scale in (1.0, 2.0)]
    [False, True]
    """

    def __init__(
        self,
        sigma: Any = "median",
        *,
        scales: Sequence[float] = (0.5, 1.0, 2.0),
        level: float = 0.05,
        permutations: int = 1000,
        seed: int | None = None,
    ) -> None:
        # as they are given, which scikit-learn's clone looks at
        self.sigma = sigma
        self.scales = scales
        self.level = level
        self.permutations = permutations
        self.seed = seed

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {name: getattr(self, name) for name in ("sigma", "scales", "level", "permutations", "seed")}

    def set_params(self, **params: Any) -> "TwoSampleTest":
        """Change arguments; fit again afterwards."""
        for name, value in params.items():
            sample_checks.parameter(name, tuple(self.get_params()))
            setattr(self, name, value)
        return self

    def fit(self, reference: Array, y: None = None, *, window: int | None = None) -> "TwoSampleTest":
        """Learn a reference (N, D): its bandwidths, and with a window of W rows the threshold of such batches."""
        sample_checks.rule(self.sigma, self.scales)
        sample_checks.share("level", self.level)
        sample_checks.reference(reference)
        sample_checks.window(window, reference)
        reference = checks.detached(reference)
        if isinstance(self.sigma, str):
            found = float((mean_sigma if self.sigma == "mean" else median_sigma)(reference))
            sample_checks.spread(self.sigma, found)
            sigmas = [found * float(scale) for scale in self.scales]
        else:
            sigmas = [float(s) for s in np.atleast_1d(np.asarray(self.sigma, float))]
        self.reference_, self.sigma_ = reference, sigmas
        self.window_ = None if window is None else int(window)
        self.null_statistics_: Any = None
        self.threshold_: Any = None
        if self.window_ is not None:
            first, rest = reference[: self.window_], reference[self.window_ :]
            self.null_statistics_ = self._permuted(first, rest).null_statistics
            self.threshold_ = self._threshold(self.null_statistics_)
            # float64, since its digits are those of a difference of means
            self._within = self._means(reference, reference, "yy").yy
        return self

    def test(self, batch: Array) -> BatchTest:
        """The test of a batch (M, D); with a fitted window M = W."""
        sample_checks.fitted(self)
        sample_checks.batch(batch, self.reference_, self.window_)
        batch = checks.detached(batch)
        if self.window_ is None:
            found = self._permuted(batch, self.reference_)
            null = found.null_statistics[1:]
            statistic, p = float(found.statistic), float(found.p_value)
            threshold = self._threshold(null)
        else:
            means = self._means(batch, self.reference_, "xx xy")
            statistic = float(means.xx + self._within - 2 * means.xy)
            null, threshold = self.null_statistics_, self.threshold_
            p = (1 + int((null >= statistic).sum())) / (1 + len(null))
        return BatchTest(statistic, p, threshold, p <= self.level, null)

    def windows(self, stream: Array | Iterable[Array], step: int | None = None) -> Iterator[BatchTest]:
        """The tests of a stream's windows as soon as each is full, with a fitted window.

        Parameters
        ----------
        stream : array of shape (T, D), or an iterable of arrays (n, D)
        step : int, optional
            Rows from the start of one window to that of the next; by default W, windows that do not overlap.
        """
        sample_checks.fitted(self)
        window, step = sample_checks.step(step, self.window_)
        chunks = [stream] if hasattr(stream, "shape") else stream
        kept: Any = None
        start = 0
        for chunk in chunks:
            sample_checks.batch(chunk, self.reference_, None, least=0)
            xp: Any = sys.modules["torch"] if checks.is_tensor(chunk) else np
            kept = chunk if kept is None else xp.concatenate([kept, chunk], 0)
            while len(kept) >= window:
                yield self.test(kept[:window])._replace(start=start)
                kept, start = kept[step:], start + step

    def _permuted(self, x: Array, y: Array) -> Any:
        options: dict[str, Any] = {"permutations": self.permutations, "seed": self.seed, "null_statistics": True}
        return mmd_test(x, y, self.sigma_, weights="mean", **options)

    def _means(self, x: Array, y: Array, parts: str) -> Any:
        x, y = (a.astype(np.float64) if isinstance(a, np.ndarray) else a.double() for a in (x, y))
        return kernel_means(x, y, self.sigma_, parts=parts.split(), weights="mean")

    def _threshold(self, null: Array) -> float:
        """The greatest statistic that is no drift: p <= level is a statistic above it."""
        allowed = int(self.level * (len(null) + 1) + 1e-9)
        values = np.sort(np.asarray(null.tolist()))
        return float(values[len(values) - allowed]) if allowed else float("inf")
