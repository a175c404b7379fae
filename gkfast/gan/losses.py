"""The losses of a kernel GAN: mathematics only, no loop and no state.

In every formula D(x) is a discriminator's probability that x is real, d its logit (D = 1 / (1 + exp(-d))),
`fake` holds generated samples g_i and `real` holds real samples x_j.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import gkfast
from gkfast.gan import checks
from gkfast.nn import ArticleRegularizer, KDERatioLoss, MMDLoss

LOSSES = ("gan", "gan+mmd", "mmd", "gan+logkde", "article")

# the weight of the kernel term; on the digits 20 to 50 do about as well for gan+mmd
DEFAULT_LAM = {"gan": 0.0, "gan+mmd": 30.0, "mmd": 1.0, "gan+logkde": 10.0, "article": 1.0}


def compute_distance(x: Tensor, y: Tensor | None = None, sigma: float = 1.0) -> Tensor:
    """The article's d(x, y): the matrix of Gaussian kernels between two sets.

    .. code-block:: text

        K[i, j] = exp(-|x_i - y_j|^2 / (2 sigma^2))

    In spite of its name in the article this is a similarity, 1 at equal points and 0 far away. Where a
    distance is meant, take ``1 - K`` or the squared kernel distance ``2 - 2 K``. It is gkfast.rbf under the
    article's name, and takes what gkfast.rbf takes.

    Parameters
    ----------
    x : array of shape (..., N, D)
    y : array of shape (..., M, D), optional
        By default x itself.
    sigma : float
        The bandwidth, in the units of x.

    Returns
    -------
    array of shape (..., N, M)

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import compute_distance
    >>> compute_distance(torch.zeros(2, 3), torch.zeros(1, 3), sigma=1.0)
    tensor([[1.],
            [1.]])
    """
    K: Tensor = gkfast.rbf(x, y, sigma)
    return K


def similarity(x: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    """The article's s(x, y): the Gaussian kernel of each pair (x_i, y_i).

    .. code-block:: text

        s[i] = exp(-|x_i - y_i|^2 / (2 sigma^2))

    The same function K as compute_distance, for rows that belong together: row i of x with row i of y. (For
    every x_i with every y_j take compute_distance; for one number between two sets take gkfast.kernel_means
    or gkfast.mmd2.)

    Parameters
    ----------
    x, y : array of shape (..., D)
        The same shape.
    sigma : float
        The bandwidth, in the units of x.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import similarity
    >>> similarity(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), sigma=0.5)
    tensor([1., 1.])
    """
    checks.same_shape("x", x, "y", y, "for all pairs of two sets call compute_distance")
    K: Tensor = gkfast.rbf(x[..., None, :], y[..., None, :], sigma)
    return K[..., 0, 0]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's cross-entropy from logits (Goodfellow et al. 2014, equation 1).

    .. code-block:: text

        -mean_j log D(x_j) - mean_i log(1 - D(g_i))
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating generator loss from logits (Goodfellow et al. 2014, section 3).

    .. code-block:: text

        -mean_i log D(g_i)
    """
    return F.softplus(-fake_logits).mean()


def mmd(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> Tensor:
    """The unbiased squared MMD, averaged over the bandwidths (Gretton et al. 2012, equation 3).

    Scale-free: data and bandwidths multiplied by one number leave it as it is. O(N) memory. See
    gkfast.nn.MMDLoss, which also finds the bandwidths itself.
    """
    value: Tensor = MMDLoss(sigma)(fake, real)
    return value


def log_kde_ratio(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> Tensor:
    """How much likelier generated samples are among themselves than among the real ones, scaled by sigma^2.

    See gkfast.nn.KDERatioLoss for the formula. It is the article's term with pairs in place of the sample with
    itself. Needs two generated samples or more.
    """
    value: Tensor = KDERatioLoss(sigma)(fake, real)
    return value


def literal_term(x: Tensor, sigma: float) -> Tensor:
    """The article's regulariser as printed, zero for every input; see gkfast.nn.ArticleRegularizer."""
    value: Tensor = ArticleRegularizer(sigma, form="literal")(x, x)
    return value


def gan_loss(
    y: Tensor,
    d: Tensor,
    *,
    fake: Tensor | None = None,
    real: Tensor | None = None,
    sigma: float | None = None,
    lam: float = 0.0,
    regularizer: str = "literal",
) -> Tensor:
    """The article's loss: binary cross-entropy plus lam times a Gaussian term.

    .. code-block:: text

        L = -1/m sum_i [ y_i log d_i + (1 - y_i) log(1 - d_i) ] + lam R

        R = mean_i log K(x_i, x_i)                                        "literal"
        R = sigma^2 mean_i [ log q_{-i}(x_i) - log p(x_i) ]               "log_ratio"

    x_i are the generated samples, q_{-i} the kernel density estimate of the other generated samples (held
    constant) and p that of the real ones, both of bandwidth sigma.

    The literal term is the article's. It is identically zero, because K(x, x) = 1, and changes nothing: it is
    here so that the article's loss can be run as printed. "log_ratio" is the term over pairs that does what
    the article wants (log_kde_ratio in this module).

    Parameters
    ----------
    y : tensor of shape (m,) or (m, 1)
        Labels: 1 for real, 0 for generated. To train the generator, label its samples 1.
    d : tensor of the shape of y
        The discriminator's outputs, probabilities in [0, 1]. The logarithms are clamped at -100, so that 0
        and 1 are finite. (Losses from logits: discriminator_loss and generator_loss.)
    fake : tensor of shape (N, D), needed when lam is not 0
        Generated samples.
    real : tensor of shape (M, D), needed by "log_ratio"
        Real samples.
    sigma : float, needed when lam is not 0
        The bandwidth, in the units of the samples.
    lam : float
        The article's lambda.
    regularizer : {"literal", "log_ratio"}

    Returns
    -------
    tensor of shape ()

    Raises
    ------
    ValueError
        If the shapes of y and d differ, or the Gaussian term lacks an argument.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import gan_loss
    >>> gan_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    checks.same_shape("y", y, "d", d, "reshape one of them")
    checks.regularizer(regularizer)
    loss = F.binary_cross_entropy(d, y.to(d))
    if lam == 0:
        return loss
    checks.gaussian_term(regularizer, fake, real, sigma)
    assert fake is not None
    assert sigma is not None
    if regularizer == "literal":
        return loss + lam * literal_term(fake, sigma)
    assert real is not None
    return loss + lam * log_kde_ratio(fake, real, [sigma])


@dataclass(frozen=True)
class Objective:
    """What a GAN with a Gaussian term minimises; every part may be any callable.

    .. code-block:: text

        discriminator:  discriminator(d(real), d(fake))
        generator:      generator(d(fake)) + lam kernel(fake, real)

    Attributes
    ----------
    discriminator : callable (real logits, fake logits) -> scalar, or None for no discriminator
    generator : callable (fake logits) -> scalar, or None for no discriminator
    kernel : callable (fake (N, D), real (M, D)) -> scalar, or None
    lam : float
        The weight of the kernel term.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor] | None = discriminator_loss
    generator: Callable[[Tensor], Tensor] | None = generator_loss
    kernel: Callable[[Tensor, Tensor], Tensor] | None = None
    lam: float = 0.0


def objective(loss: str, sigma: Sequence[float], lam: float | None = None) -> Objective:
    """The objective of a name on the command line.

    .. code-block:: text

        gan          non-saturating GAN, no kernel
        gan+mmd      GAN + lam MMD^2
        mmd          MMD^2 alone, no discriminator (Li et al. 2015, Dziugaite et al. 2015)
        gan+logkde   GAN + lam log_kde_ratio / mean_s sigma_s^2
        article      gan_loss with the literal term: GAN + 0

    Parameters
    ----------
    loss : one of LOSSES
    sigma : sequence of float
        The bandwidths; the kernel terms average over them.
    lam : float, optional
        By default DEFAULT_LAM[loss].
    """
    checks.loss("loss", loss, LOSSES)
    lam = DEFAULT_LAM[loss] if lam is None else lam
    match loss:
        case "gan":
            return Objective()
        case "gan+mmd":
            return Objective(kernel=lambda fake, real: mmd(fake, real, sigma), lam=lam)
        case "mmd":
            return Objective(None, None, kernel=lambda fake, real: mmd(fake, real, sigma), lam=lam)
        case "gan+logkde":
            # the division makes lam a number without units, as it is for MMD^2
            scale = sum(s**2 for s in sigma) / len(sigma)
            return Objective(kernel=lambda fake, real: log_kde_ratio(fake, real, sigma) / scale, lam=lam)
        case "article":
            return Objective(
                _article_discriminator,
                _article_generator,
                kernel=lambda fake, real: literal_term(fake, sigma[0]),
                lam=lam,
            )
    raise AssertionError(f"{loss} is in LOSSES but has no objective")


def _article_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    y = torch.cat([torch.ones_like(real_logits), torch.zeros_like(fake_logits)])
    return gan_loss(y, torch.cat([real_logits, fake_logits]).sigmoid())


def _article_generator(fake_logits: Tensor) -> Tensor:
    return gan_loss(torch.ones_like(fake_logits), fake_logits.sigmoid())
