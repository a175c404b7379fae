"""How good generated samples are, by numbers that training did not minimise and on data that it did not see."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gkfast
from gkfast.gan import checks, classifier, encoder
from gkfast.gan.classifier import Classifier
from gkfast.gan.data import Data, spiral_curve

# samples drawn to evaluate: 10 000 for the Parzen window (Goodfellow et al. 2014), 26 000 for stacked digits and 2500
# for the rest (Srivastava et al. 2017)
SAMPLES = 10_000
STACKED = 26_000
COUNTED = 2_500
# factors of the median distance between real samples
_LADDER = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
# rows for the permutation test, whose time is their square times the permutations
_TESTED = 1_000
_PERMUTATIONS = 500
_NEIGHBOURS_OF = 1_000
# of a bootstrap
_RESAMPLES = 20
# with more dimensions a density of pixels says nothing
_PARZEN_DIMENSIONS = 1_000


def samples_of(data: Data) -> int:
    """How many samples `evaluate` wants."""
    return SAMPLES if data.glyphs is None else STACKED


def followed(data: Data) -> int:
    """How many samples `quality` wants."""
    return 2_000 if data.glyphs is None else 5_000


def fixed_sigma(data: Data) -> list[float]:
    """The bandwidths of the logged and the final MMD^2: of the data alone, so that all runs are measured alike."""
    return sigma_by_rule(data.train, "median", _LADDER)


def sigma_by_rule(rows: Tensor, rule: str, ladder: Sequence[float]) -> list[float]:
    """The median or mean distance of rows, times the steps of a ladder."""
    distance = float((gkfast.mean_sigma if rule == "mean" else gkfast.median_sigma)(rows))
    if distance == 0:
        raise ValueError(
            f"sigma must be positive numbers for data of which half are equal, got {rule!r}; its distance is 0"
        )
    return [distance * step for step in ladder]


class Judge(NamedTuple):
    """What images are compared by: features (N, F) of samples (N, D), and their classes, if it knows any."""

    # in words, for the report
    name: str
    features: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor] | None = None


def judge(data: Data, own: encoder.Encoder | None = None, name: str = "") -> Judge | None:
    """What judges images of this data: the user's encoder, a classifier of their labels, or an autoencoder's code.

    Data that are no images have none, and labelled images too small for the classifier only the user's; training
    takes half a minute, once.
    """
    classified = classifier.load(data) if classifier.applies(data) else None
    if own is not None:
        return Judge(name, partial(_features, own), None if classified is None else classified.classes)
    if classified is not None:
        right = accuracy(classified, data)
        return Judge(
            f"a classifier of the real labels ({right:.1%} of held-out images are right)",
            classified.features,
            classified.classes,
        )
    if data.is_image and data.train_labels is None and data.glyphs is None:
        return Judge("the code of an autoencoder of the real images", partial(_features, encoder.judge(data)))
    return None


def _features(network: encoder.Encoder, rows: Tensor) -> Tensor:
    return torch.cat(encoder.outputs(network, rows), dim=1).float()


def evaluate(
    fake: Tensor, data: Data, sigma: Sequence[float], seed: int = 0, judge: Judge | None = None
) -> dict[str, Any]:
    """The metrics of the data that `fake` imitates: MMD^2 with its p-value, PRDC, and those of each kind of data.

    `sigma` are the bandwidths of fixed_sigma(data), `seed` is of the permutations, and `judge` is that of the data.
    "errors" are standard errors of the metrics for which there is an estimate: of MMD^2 by its variance, of shares by
    the binomial one, of the rest by the bootstrap, over samples or, for the Parzen density, over real rows.
    """
    counted = fake[:COUNTED]
    result: dict[str, Any] = two_sample(counted, data.test, sigma, seed)
    errors: dict[str, float] = {}
    rng = torch.Generator().manual_seed(seed)
    # functions of rows that were generated
    by_rows: list[tuple[Callable[[Tensor], dict[str, float]], Tensor]] = []
    if data.centres is not None:
        modes = partial(mode_metrics, centres=data.centres, std=data.std)
        by_rows += [(modes, counted), (lambda rows: {"reverse_kl_of_all": modes(rows)["reverse_kl"]}, fake)]
    if data.plane is not None:
        by_rows.append((spiral_metrics, counted @ data.plane))
    known = None if judge is None else judge.classes
    if data.glyphs is not None:
        classify = known or _machine(*data.glyphs)
        by_rows.append((partial(_stacked_figures, labels=data.glyphs[1]), _stacked_numbers(fake, classify)))
    if data.train_labels is not None:
        classify = known or _machine(data.train, data.train_labels)
        by_rows.append((partial(class_metrics, labels=data.train_labels), classify(counted)))
    for figures, rows in by_rows:
        result |= figures(rows)
        errors |= _bootstrap(figures, rows, rng)
    raw = data.test[:_NEIGHBOURS_OF], counted[:_NEIGHBOURS_OF]
    # a few rows have fewer neighbours
    k = min(5, *(len(rows) - 1 for rows in raw))
    if judge is not None and data.glyphs is None:
        real, drawn = judge.features(data.test), judge.features(fake[:SAMPLES])
        # halves, so that their spread says how sure the mean is
        size = min(1000, len(real) // 2, len(drawn) // 2)
        result |= {"fid": fid(real, drawn)} | kid(real, drawn, subset_size=size)
        errors |= {"fid": _fid_error(real, drawn, rng), "kid": result["kid_std"]}
        near, near_errors = _prdc(real[:_NEIGHBOURS_OF], drawn[:_NEIGHBOURS_OF], k)
        values, raw_errors = _prdc(*raw, k)
        for key in ("precision", "recall"):
            result[f"raw_{key}"] = values[f"manifold_{key}"]
            errors[f"raw_{key}"] = raw_errors[f"manifold_{key}"]
        result["nearest_pixels"] = nearest(raw[1], data.train, raw[0])
        result["nearest_features"] = nearest(
            drawn[:_NEIGHBOURS_OF], judge.features(data.train), real[:_NEIGHBOURS_OF]
        )
    else:
        near, near_errors = _prdc(*raw, k)
    result |= near
    errors |= near_errors
    if data.unit_range and data.train.shape[1] <= _PARZEN_DIMENSIONS:
        result |= parzen(fake[:SAMPLES], data.validation, data.test)
    errors |= {name.removesuffix("_error"): result.pop(name) for name in [*result] if name.endswith("_error")}
    return {**result, "errors": errors}


def _bootstrap(figures: Callable[[Tensor], dict[str, float]], rows: Tensor, rng: torch.Generator) -> dict[str, float]:
    """Standard errors of figures of rows, from samples of them with replacement."""
    drawn = [figures(rows[torch.randint(len(rows), (len(rows),), generator=rng)]) for _ in range(_RESAMPLES)]
    return {name: float(np.std([each[name] for each in drawn], ddof=1)) for name in drawn[0]}


def _fid_error(real: Tensor, fake: Tensor, rng: torch.Generator) -> float:
    """The bootstrap's, over both sets."""
    values = []
    # the time of a root goes with the third power of the features
    for _ in range(_RESAMPLES if real.shape[1] <= 256 else 5):
        picked = (rows[torch.randint(len(rows), (len(rows),), generator=rng)] for rows in (real, fake))
        values.append(fid(*picked))
    return float(np.std(values, ddof=1))


def quality(fake: Tensor, data: Data, judge: Judge) -> dict[str, float]:
    """The figures that are followed while training: FID, or modes and KL of stacked images."""
    if data.glyphs is not None:
        assert judge.classes is not None
        return stacked_metrics(fake, judge.classes, data.glyphs[1])
    return {"fid": fid(judge.features(data.test), judge.features(fake))}


def accuracy(judge: Classifier, data: Data) -> float:
    """The classifier's on held-out images."""
    held_out = (data.test, data.test_labels) if data.test_glyphs is None else data.test_glyphs
    assert held_out[1] is not None
    return float((judge.classes(held_out[0]) == held_out[1]).double().mean())


def two_sample(fake: Tensor, real: Tensor, sigma: Sequence[float], seed: int = 0) -> dict[str, float]:
    """MMD^2 to held-out data with its standard error (gkfast.mmd2_and_variance), and a p-value (gkfast.mmd_test)."""
    test = gkfast.mmd_test(
        fake[:_TESTED],
        real[:_TESTED],
        list(sigma),
        weights="mean",
        permutations=_PERMUTATIONS,
        seed=seed,
    )
    found: dict[str, float] = {"mmd2": held_out_mmd2(fake, real, sigma), "p_value": float(test.p_value)}
    # the estimate of a variance needs four rows, and may fall below 0
    if min(len(fake), len(real)) >= 4:
        spread = gkfast.mmd2_and_variance(fake.double(), real.double(), list(sigma), weights="mean")
        found["mmd2_error"] = math.sqrt(max(float(spread.variance), 0.0))
    return found


def held_out_mmd2(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> float:
    """The unbiased squared MMD to held-out data, averaged over fixed bandwidths; near 0 (also below) when equal."""
    return float(gkfast.mmd2(fake.double(), real.double(), list(sigma), weights="mean"))


def mean_kernels(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> dict[str, float]:
    """Mean kernel values, averaged over bandwidths: x is generated and y real (gkfast.kernel_means)."""
    means = gkfast.kernel_means(fake, real, list(sigma), weights="mean")
    return {"k_xx": float(means.xx), "k_yy": float(means.yy), "k_xy": float(means.xy)}


def mode_metrics(fake: Tensor, centres: Tensor, std: float) -> dict[str, float]:
    """Mode coverage of a mixture of Gaussians.

    A sample is of high quality if it lies within 3 standard deviations of a centre (Srivastava et al. 2017).
    `modes` are the centres with one such sample or more; with thousands of samples nearly every GAN has them
    all, so `strict_modes` asks for a fifth of a fair share, N / K, of them. `high_quality` is their fraction,
    and `reverse_kl` is KL(generated || uniform) over the nearest centres (Lin et al. 2018), in nats. Perfect samples
    score (K - 1) / 2N on average: 0.0048 for 2500 samples of 25 modes.
    """
    centres = centres.to(fake)
    distance, nearest = (fake[:, None] - centres).norm(dim=2).min(dim=1)
    good = distance <= 3 * std
    K, N = len(centres), len(fake)
    good_counts = torch.bincount(nearest[good], minlength=K)
    return {
        "modes": int((good_counts > 0).sum()),
        "strict_modes": int((good_counts >= 0.2 * N / K).sum()),
        "high_quality": float(good.double().mean()),
        "reverse_kl": _kl(torch.bincount(nearest, minlength=K), torch.ones(K)),
    }


def spiral_metrics(fake: Tensor) -> dict[str, float]:
    """How much of the spiral is covered, and how near samples are to it, in its plane (Feng et al. 2026, figure 3).

    `recall` is the share of 60 points along the curve with a sample within 0.15, `median_distance` the median
    distance of samples to the curve: 0.033 for the real data, with their noise.
    """
    anchors, curve = (spiral_curve(torch.linspace(0, 1, n)).to(fake) for n in (60, 1500))
    return {
        "recall": float((torch.cdist(anchors, fake).min(dim=1).values < 0.15).double().mean()),
        "median_distance": float(torch.cdist(fake, curve).min(dim=1).values.median()),
    }


def stacked_metrics(fake: Tensor, classify: Callable[[Tensor], Tensor], labels: Tensor) -> dict[str, float]:
    """Modes of stacked digits: a classifier reads each of the three channels (Metz et al. 2017).

    `modes` are the different numbers from 000 to 999 that were drawn, and `reverse_kl` is KL(generated || real) over
    them, in nats; `labels` are those of the single digits. With 26 000 samples even perfect ones score 0.02.
    """
    return _stacked_figures(_stacked_numbers(fake, classify), labels)


def _stacked_numbers(fake: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """The numbers from 0 to 999 that stacks show."""
    channels = fake.reshape(len(fake), -1, 3).movedim(2, 1).reshape(3 * len(fake), -1)
    return (classify(channels).reshape(-1, 3) * torch.tensor([100, 10, 1])).sum(1)


def _stacked_figures(numbers: Tensor, labels: Tensor) -> dict[str, float]:
    share = torch.bincount(labels, minlength=10).double() / len(labels)
    counts = torch.bincount(numbers, minlength=1000)
    return {
        "modes": int((counts > 0).sum()),
        "reverse_kl": _kl(counts, torch.einsum("a,b,c->abc", share, share, share).flatten()),
    }


def parzen(fake: Tensor, validation: Tensor, test: Tensor) -> dict[str, float]:
    """The mean log-density of the test data under a Gaussian kernel density estimate on the samples, in nats.

    The bandwidth is the best on the validation data of ten between 0.1 and 0.5, which suits pixels in [0, 1]
    (Goodfellow et al. 2014 take ten between 0.1 and 1). The estimate has a high variance and says little above a
    hundred dimensions or so.
    """
    # float64: the tails of a narrow Gaussian decide the mean
    fake, validation, test = fake.double(), validation.double(), test.double()
    sigmas = np.geomspace(0.1, 0.5, 10).tolist()
    scores = gkfast.log_density(validation, fake, sigmas, by_bandwidth=True).mean(0)
    sigma = sigmas[int(scores.argmax())]
    densities = gkfast.log_density(test, fake, sigma)
    error = float(densities.std()) / math.sqrt(len(test))
    return {"parzen": float(densities.mean()), "parzen_sigma": sigma, "parzen_error": error}


def class_metrics(drawn: Tensor, labels: Tensor) -> dict[str, float]:
    """Which classes are generated: `drawn` are those of the samples, `labels` those of the training data.

    `classes` counts those with more than 2 % of the samples; `class_kl` is KL(generated || real) over the
    classes, in nats.
    """
    K = int(labels.max()) + 1
    counts = torch.bincount(drawn, minlength=K)
    return {
        "classes": int((counts > 0.02 * len(drawn)).sum()),
        "class_kl": _kl(counts, torch.bincount(labels, minlength=K)),
    }


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of Gaussians with the moments of given features (Heusel et al. 2017, equation 6).

    .. code-block:: text

        |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2))

    m and C are the mean and covariance of `real` (N, F), m' and C' those of `fake` (M, F), in float64. It is biased
    by the number of rows, so that only distances of equally many can be compared.
    """
    real, fake = real.double(), fake.double()
    first, second = torch.cov(real.T), torch.cov(fake.T)
    # C C' has the eigenvalues of C^(1/2) C' C^(1/2), which is symmetric; rounding may take them below 0
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((real.mean(0) - fake.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020, equations 1 to 4).

    Balls reach from each sample to its k-th neighbour among its own kind. `manifold_precision` is the share of
    generated samples in a real ball, `manifold_recall` that of real ones in a generated ball, `density` counts how
    many real balls hold a generated sample, over k, and `coverage` is the share of real balls that hold one.
    """
    rows = min(len(real), len(fake))
    if not 1 <= k < rows:
        raise ValueError(
            f"k must be at least 1 and below the number of rows, {rows}, got {k}; 5 is usual, with more rows"
        )
    return _prdc(real, fake, k)[0]


def _prdc(real: Tensor, fake: Tensor, k: int = 5) -> tuple[dict[str, float], dict[str, float]]:
    """Those, and their standard errors, as if samples were counted one by one."""
    # the first neighbour of a sample is itself
    real_radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    fake_radius = torch.cdist(fake, fake).kthvalue(k + 1, dim=1).values
    distance = torch.cdist(real, fake)
    in_real_ball = distance < real_radius[:, None]
    counts = {
        "manifold_precision": in_real_ball.any(dim=0).double(),
        "manifold_recall": (distance < fake_radius).any(dim=1).double(),
        "density": in_real_ball.double().sum(dim=0) / k,
        "coverage": (distance.min(dim=1).values < real_radius).double(),
    }
    values = {name: float(each.mean()) for name, each in counts.items()}
    return values, {name: float(each.std()) / math.sqrt(len(each)) for name, each in counts.items()}


def nearest(fake: Tensor, train: Tensor, held_out: Tensor) -> float:
    """The median distance of samples to the nearest training row, over that of held-out rows; 0 for copies."""
    distances = [torch.cdist(rows, train).min(dim=1).values.median() for rows in (fake, held_out)]
    return float(distances[0] / distances[1])


def kid(
    real: Tensor,
    fake: Tensor,
    *,
    kernel: str = "polynomial",
    sigma: float | None = None,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Kernel inception distance of given features: the mean unbiased MMD^2 over random subsets, and its deviation.

    .. code-block:: text

        k(x, y) = (x . y / F + 1)^3                      "polynomial" (Binkowski et al. 2018, section 4)
        k(x, y) = exp(-|x - y|^2 / (2 sigma^2))          "gaussian"

    `real` (N, F) and `fake` (M, F) are features of a network that training did not use; the value goes with the
    sixth power of their scale. By default sigma is the
    median distance of the real ones.
    """
    if kernel not in ("polynomial", "gaussian"):
        raise ValueError(f'kernel must be "polynomial" or "gaussian", got {kernel!r}; pass one of them')
    least = min(len(real), len(fake))
    if not 2 <= subset_size <= least:
        raise ValueError(
            f"subset_size must be at least 2 and at most the number of rows, {least}, got {subset_size}; "
            "pass one in between"
        )
    rng = torch.Generator().manual_seed(seed)
    real, fake = real.double(), fake.double()
    width = float(gkfast.median_sigma(real)) if sigma is None else sigma
    values = []
    for _ in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=rng)[:subset_size]] for rows in (real, fake))
        values.append(_cubic_mmd2(x, y) if kernel == "polynomial" else gkfast.mmd2(x, y, width))
    estimates = torch.stack(values)
    return {"kid": float(estimates.mean()), "kid_std": float(estimates.std(correction=0))}


def _cubic_mmd2(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased MMD^2 of the kernel (x . y / F + 1)^3."""
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * xy.mean()


def _machine(images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A support vector machine (Gaussian kernel, C = 10) trained on real images: the classes of samples."""
    checks.require("sklearn.svm", "the class KL", "scikit-learn")
    from sklearn.svm import SVC

    machine = SVC(C=10).fit(images.numpy(), labels.numpy())
    return lambda samples: torch.from_numpy(machine.predict(samples.numpy()))


def _kl(counts: Tensor, fair: Tensor) -> float:
    """KL(counts || fair) of two histograms, in nats; bins without counts add nothing."""
    p = counts.double() / counts.sum()
    q = fair.double() / fair.sum()
    # xlogy is 0 where p is
    return float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum())
