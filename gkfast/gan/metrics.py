"""How good generated samples are, by numbers that training did not minimise and on data that it did not see."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import gkfast
from gkfast.gan import checks
from gkfast.gan.data import RING_STD, Data, ring_centres

# samples drawn to evaluate: 10 000 for the Parzen window (Goodfellow et al. 2014), 2500 for the rest
# (Srivastava et al. 2017)
SAMPLES = 10_000
COUNTED = 2_500


def evaluate(samples: Tensor, data: Data, sigma: Sequence[float]) -> dict[str, float]:
    """The metrics of the data that `samples` imitate: mmd2 for all, and those of ring and digits.

    Parameters
    ----------
    samples : tensor of shape (N, D)
    data : Data
    sigma : sequence of float
        The fixed bandwidths of the MMD.
    """
    counted = samples[:COUNTED]
    result = {"mmd2": held_out_mmd2(counted, data.test, sigma)}
    if data.name == "ring":
        result |= mode_metrics(counted)
    if data.train_labels is not None:
        result |= parzen(samples, data.validation, data.test)
        result |= class_metrics(counted, data.train, data.train_labels)
    return result


def held_out_mmd2(samples: Tensor, real: Tensor, sigma: Sequence[float]) -> float:
    """The unbiased squared MMD to held-out data, averaged over fixed bandwidths; near 0 (also below) when equal."""
    weights = [1 / len(sigma)] * len(sigma)
    return float(gkfast.mmd2(samples.double(), real.double(), list(sigma), weights=weights))


def mode_metrics(samples: Tensor) -> dict[str, float]:
    """Mode coverage on the ring of eight Gaussians.

    A sample is of high quality if it lies within 3 standard deviations of a centre (Srivastava et al. 2017).
    `modes` are the centres with one such sample or more; with thousands of samples nearly every GAN has them
    all, so `strict_modes` asks for a fifth of a fair share, N / 8, of them. `high_quality` is their fraction,
    and `reverse_kl` is KL(generated || uniform) over the nearest centres (Lin et al. 2018), in nats.
    """
    centres = ring_centres().to(samples)
    distance, nearest = (samples[:, None] - centres).norm(dim=2).min(dim=1)
    good = distance <= 3 * RING_STD
    K, N = len(centres), len(samples)
    good_counts = torch.bincount(nearest[good], minlength=K)
    return {
        "modes": int((good_counts > 0).sum()),
        "strict_modes": int((good_counts >= 0.2 * N / K).sum()),
        "high_quality": float(good.double().mean()),
        "reverse_kl": _kl(torch.bincount(nearest, minlength=K), torch.ones(K)),
    }


def parzen(samples: Tensor, validation: Tensor, test: Tensor) -> dict[str, float]:
    """The mean log-density of the test data under a Gaussian kernel density estimate on the samples, in nats.

    The bandwidth is the best on the validation data of ten between 0.1 and 0.5, which suits pixels in [0, 1]
    (Goodfellow et al. 2014 take ten between 0.1 and 1). The estimate has a high variance and says little above a
    hundred dimensions or so.
    """
    # float64: the tails of a narrow Gaussian decide the mean
    samples, validation, test = samples.double(), validation.double(), test.double()
    scored = [
        (float(gkfast.log_density(validation, samples, sigma).mean()), sigma)
        for sigma in np.geomspace(0.1, 0.5, 10).tolist()
    ]
    sigma = max(scored)[1]
    return {"parzen": float(gkfast.log_density(test, samples, sigma).mean()), "parzen_sigma": sigma}


def class_metrics(samples: Tensor, train: Tensor, labels: Tensor) -> dict[str, float]:
    """Which classes are generated, by a support vector machine (Gaussian kernel, C = 10) trained on the real data.

    `classes` counts those with more than 2 % of the samples; `class_kl` is KL(generated || real) over the
    classes, in nats.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise checks.missing("the class KL", "scikit-learn") from error
    classifier = SVC(C=10).fit(train.numpy(), labels.numpy())
    K = int(labels.max()) + 1
    counts = torch.bincount(torch.from_numpy(classifier.predict(samples.numpy())), minlength=K)
    return {
        "classes": int((counts > 0.02 * len(samples)).sum()),
        "class_kl": _kl(counts, torch.bincount(labels, minlength=K)),
    }


def _kl(counts: Tensor, fair: Tensor) -> float:
    """KL(counts || fair) of two histograms, in nats; bins without counts add nothing."""
    p = counts.double() / counts.sum()
    q = fair.double() / fair.sum()
    # xlogy is 0 where p is
    return float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum())
