"""The losses of a kernel GAN: mathematics only, no loop and no state but bandwidths.

In every formula D(x) is a discriminator's probability that x is real, d its logit (D = 1 / (1 + exp(-d))),
phi a critic's features, `fake` holds generated samples g_i and `real` holds real samples x_j. Every function takes
this process's rows; its means are over the rows of all processes (gkfast.distributed), with the gradients of
one process that has them all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gkfast
import gkfast.distributed
from gkfast.gan import checks
from gkfast.nn import ArticleRegularizer, Bandwidth, KDERatioLoss, MMDLoss, RepulsiveLoss
from gkfast.ops.operator import plain

# what judges single samples, what compares sets of a critic's features, and what compares sets of samples
ADVERSARIES = ("gan", "rpgan", "hinge", "article")
CRITICS = ("mmdgan", "repulsive", "bounded", "smmd")
KERNELS = ("mmd", "gmmn", "logkde", "literal")
LOSSES = (
    *ADVERSARIES,
    *CRITICS,
    *KERNELS[:-1],
    *(f"{first}+{second}" for first in (*ADVERSARIES, *CRITICS) for second in KERNELS),
)

# the weight of the kernel term, alone and beside an adversary; on the digits 20 to 50 do about as well for gan+mmd
_WEIGHT_ALONE = 1.0
_WEIGHT_BESIDE = {"mmd": 30.0, "gmmn": 1.0, "logkde": 10.0, "literal": 1.0}

# of an MMD-GAN's bandwidths, times the median distance of features
_FEATURE_SCALES = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)


def parts(loss: str) -> tuple[str | None, str | None]:
    """What judges and which kernel term, of a name such as "gan+mmd", "rpgan" or "mmd"."""
    checks.loss("loss", loss, LOSSES)
    first, _, second = loss.partition("+")
    return (None, first) if first in KERNELS else (first, second or None)


def default_lam(loss: str) -> float:
    judge, kernel = parts(loss)
    if kernel is None:
        return 0.0
    return _WEIGHT_ALONE if judge is None else _WEIGHT_BESIDE[kernel]


def without_kernel(loss: str) -> str:
    """The same loss without anything Gaussian: what a control minimises."""
    judge, _ = parts(loss)
    return judge if judge in ADVERSARIES else "gan"


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
    checks.beside(sigma, x)
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
        If the shapes, dtypes or devices differ.
    TypeError
        If x or y is no array of a floating-point dtype.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import similarity
    >>> similarity(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), sigma=0.5)
    tensor([1., 1.])
    """
    checks.pairs(x, y)
    checks.beside(sigma, x)
    K: Tensor = gkfast.rbf(x[..., None, :], y[..., None, :], sigma)
    return K[..., 0, 0]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's cross-entropy from logits (Goodfellow et al. 2014, equation 1).

    .. code-block:: text

        -mean_j log D(x_j) - mean_i log(1 - D(g_i))
    """
    checks.outputs(real_logits=real_logits, fake_logits=fake_logits)
    return _mean(F.softplus(-real_logits)) + _mean(F.softplus(fake_logits))


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating generator loss from logits (Goodfellow et al. 2014, section 3).

    .. code-block:: text

        -mean_i log D(g_i)
    """
    checks.outputs(fake_logits=fake_logits)
    return _mean(F.softplus(-fake_logits))


def relativistic_loss(winner_logits: Tensor, loser_logits: Tensor) -> Tensor:
    """The relativistic pairing loss of RpGAN (Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2).

    .. code-block:: text

        mean_i log(1 + exp(-(d(winner_i) - d(loser_i))))

    The discriminator wants real samples to win, the generator its own.
    """
    checks.outputs(winner_logits=winner_logits, loser_logits=loser_logits)
    checks.same_shape("winner_logits", winner_logits, "loser_logits", loser_logits, "give as many of each")
    return _mean(F.softplus(loser_logits - winner_logits))


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye 2017; Miyato et al. 2018, equation 16).

    .. code-block:: text

        mean_j max(0, 1 - d(x_j)) + mean_i max(0, 1 + d(g_i))
    """
    checks.outputs(real_logits=real_logits, fake_logits=fake_logits)
    return _mean(F.relu(1 - real_logits)) + _mean(F.relu(1 + fake_logits))


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """The generator's side of the hinge loss (Miyato et al. 2018, equation 17).

    .. code-block:: text

        -mean_i d(g_i)
    """
    checks.outputs(fake_logits=fake_logits)
    return -_mean(fake_logits)


def gradient_penalty(critic: "Critic", samples: Tensor) -> Tensor:
    """The mean squared norm of the critic's gradient, summed over its outputs.

    .. code-block:: text

        mean_i sum_f |grad d_f(x_i)|^2

    Times gamma / 2 it is R1 on real and R2 on generated samples (Mescheder et al. 2018, equations 9 and 10).
    """
    checks.function("critic", critic)
    checks.outputs(samples=samples)
    samples = samples.detach().requires_grad_()
    squares = torch.zeros(len(samples), dtype=samples.dtype, device=samples.device)
    # a row's output depends on that row alone, so the gradient of the sum holds each row's own
    for output in critic(samples).reshape(len(samples), -1).unbind(1):
        (gradient,) = torch.autograd.grad(output.sum(), samples, create_graph=True)
        squares = squares + gradient.flatten(1).square().sum(1)
    return _mean(squares)


class MMD(nn.Module):
    """The squared MMD of all processes' rows, averaged over bandwidths (Gretton et al. 2012, equation 3).

    .. code-block:: text

        mean_s MMD^2_s(fake, real)                  unbiased
        sqrt(mean_s MMD^2_s(fake, real) + 1e-8)     root: biased (GMMN; Li, Swersky and Zemel 2015, equation 5)

    See gkfast.nn.MMDLoss, which has the mathematics and the bandwidths. Given bandwidths let each process take the
    pairs of its own rows (gkfast.distributed.mmd2).
    """

    def __init__(
        self, sigma: Bandwidth, scales: Sequence[float] = (1.0,), momentum: float = 0.0, root: bool = False
    ) -> None:
        super().__init__()
        sigma, ladder, momentum = checks.bandwidth_rule(sigma, scales, momentum)
        checks.flag("root", root)
        estimator: Literal["biased", "unbiased"] = "biased" if root else "unbiased"
        self.whole = MMDLoss(sigma, scales=ladder, momentum=momentum, estimator=estimator, root=root)
        self.given = None if isinstance(sigma, str) or root else list(self.whole.bandwidth.running.tolist())

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        checks.two_samples(fake, real)
        if self.given is None:
            value: Tensor = self.whole(_everybody(fake), _everybody(real))
            return value
        weights = [1 / len(self.given)] * len(self.given)
        return gkfast.distributed.mmd2(fake, real, self.given, weights=weights)

    def sigma(self, fake: Tensor, real: Tensor) -> list[float]:
        """The bandwidths of the last step."""
        found: list[float] = _last_bandwidths(self.whole, _everybody(fake), _everybody(real)).tolist()
        return found


class LogKDERatio(nn.Module):
    """How much likelier generated samples are among themselves than among the real ones, over the mean sigma^2.

    .. code-block:: text

        mean_s sigma_s^2 mean_i [ log q_s,-i(g_i) - log p_s(g_i) ] / mean_s sigma_s^2

    The drifting field of a Gaussian kernel, and the article's term with pairs in place of the sample with itself; see
    gkfast.nn.KDERatioLoss. The division makes its weight a number without units, as it is for MMD^2.
    """

    def __init__(self, sigma: Bandwidth, scales: Sequence[float] = (1.0,), momentum: float = 0.0) -> None:
        super().__init__()
        sigma, ladder, momentum = checks.bandwidth_rule(sigma, scales, momentum)
        self.whole = KDERatioLoss(sigma, scales=ladder, momentum=momentum)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        checks.two_samples(fake, real)
        everybody = _everybody(fake), _everybody(real)
        checks.enough_samples(2, fake=everybody[0])
        value: Tensor = self.whole(*everybody)
        return value / _last_bandwidths(self.whole, *everybody).square().mean().to(value)

    def sigma(self, fake: Tensor, real: Tensor) -> list[float]:
        """The bandwidths of the last step."""
        found: list[float] = _last_bandwidths(self.whole, _everybody(fake), _everybody(real)).tolist()
        return found


def _last_bandwidths(whole: MMDLoss | KDERatioLoss, fake: Tensor, real: Tensor) -> Tensor:
    """The bandwidths (S,) of the last step: in evaluation mode a look at them does not renew them."""
    mode = whole.training
    sigma: Tensor = whole.eval().bandwidth(fake, real)
    whole.train(mode)
    return sigma


def mmd(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> Tensor:
    """The unbiased squared MMD, averaged over the bandwidths (Gretton et al. 2012, equation 3).

    Scale-free: data and bandwidths multiplied by one number leave it as it is. O(N) memory. See the module MMD, which
    also finds the bandwidths itself.
    """
    value: Tensor = MMD(checks.bandwidths(sigma))(fake, real)
    return value


def log_kde_ratio(fake: Tensor, real: Tensor, sigma: Sequence[float]) -> Tensor:
    """How much likelier generated samples are among themselves than among the real ones, scaled by sigma^2.

    See gkfast.nn.KDERatioLoss for the formula. It is the article's term with pairs in place of the sample with
    itself. Needs two generated samples or more.
    """
    whole = KDERatioLoss(checks.bandwidths(sigma))
    checks.two_samples(fake, real)
    everybody = _everybody(fake), _everybody(real)
    checks.enough_samples(2, fake=everybody[0])
    value: Tensor = whole(*everybody)
    return value


def literal_term(x: Tensor, sigma: float) -> Tensor:
    """The article's regulariser as printed, zero for every input; see gkfast.nn.ArticleRegularizer."""
    checks.samples("x", x)
    value: Tensor = ArticleRegularizer(checks.one_bandwidth(sigma), form="literal")(x, x)
    return value


def scaled_mmd(critic: "Critic", real: Tensor, fake: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The squared MMD of features over what their gradient can do to it (Arbel et al. 2018, equations 5 and 6).

    .. code-block:: text

        MMD^2(phi(fake), phi(real)) / (1 + mean_j |J phi(x_j)|^2 / sigma^2)

    The Gaussian kernel has k(x, x) = 1, and the trace of its second derivative is |J phi|^2 / sigma^2; sigma is 1.
    """
    checks.function("critic", critic)
    checks.function("distance", distance)
    checks.outputs(real=real, fake=fake)
    value = distance(critic(fake).flatten(1), critic(real).flatten(1))
    return value / (1 + gradient_penalty(critic, real))


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
        Labels, floating point: 1 for real, 0 for generated, or smoothed ones between. To train the generator, label
        its samples 1.
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
        If the shapes of y and d differ, one of them leaves [0, 1] (looked at on the CPU), or the Gaussian term lacks
        an argument.
    TypeError
        If y, d, fake or real is no tensor of a floating-point dtype.

    Examples
    --------
    >>> import torch
    >>> from gkfast.gan import gan_loss
    >>> gan_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    checks.labels_and_outputs(y, d)
    checks.regularizer(regularizer)
    lam = checks.weight(lam)
    # a look at the values waits for no device and breaks no graph
    if not torch.compiler.is_compiling() and plain((y, d)):
        checks.probabilities("y", y, "label real samples 1 and generated ones 0")
        checks.probabilities("d", d, "end D with a sigmoid, or take discriminator_loss of its logits")
    for name, given in (("fake", fake), ("real", real)):
        if given is not None:
            checks.samples(name, given)
    if sigma is not None:
        sigma = checks.one_bandwidth(sigma)
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


Critic = Callable[[Tensor], Tensor]
Judgement = Callable[[Critic, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What a GAN with a Gaussian term minimises; every part may be any callable.

    .. code-block:: text

        discriminator:  discriminator(D, real, fake)
        generator:      generator(D, real, fake) + lam kernel(fake, real)

    Parts get this process's rows. A part that is no mean over rows sees everybody's by gkfast.distributed.gather.

    Attributes
    ----------
    discriminator : callable (D, real samples, generated samples) -> scalar, or None for no discriminator
    generator : callable (D, real samples, generated samples) -> scalar, or None for no discriminator
    kernel : callable (fake (N, F), real (M, F)) -> scalar, or None
        A torch.nn.Module, if it has a state that checkpoints shall keep.
    lam : float
        The weight of the kernel term.
    on_features : bool
        Whether the kernel term compares D.features(samples) and not the samples themselves.
    critic : MMD, optional
        What compares the discriminator's outputs, where they are features and no logits.
    """

    discriminator: Judgement | None = lambda D, x, g: discriminator_loss(D(x), D(g))
    generator: Judgement | None = lambda D, x, g: generator_loss(D(g))
    kernel: Callable[[Tensor, Tensor], Tensor] | None = None
    lam: float = 0.0
    on_features: bool = False
    critic: MMD | None = None

    def __post_init__(self) -> None:
        for name in ("discriminator", "generator", "kernel", "critic"):
            checks.part(name, getattr(self, name))
        checks.trains_something(self.generator, self.kernel)
        object.__setattr__(self, "lam", checks.weight(self.lam))
        checks.flag("on_features", self.on_features)


def objective(
    loss: str,
    sigma: Bandwidth,
    lam: float | None = None,
    *,
    scales: Sequence[float] = (1.0,),
    momentum: float = 0.0,
    on_features: bool = False,
    r1: float = 0.0,
    r2: float = 0.0,
) -> Objective:
    """The objective of a name on the command line: what judges, a kernel term, or both with a plus between.

    .. code-block:: text

        gan          non-saturating GAN (Goodfellow et al. 2014)
        rpgan        relativistic pairing GAN; with r1 and r2 it is R3GAN's loss (Huang et al. 2024)
        hinge        hinge loss (Lim and Ye 2017)
        article      gan_loss, the article's
        mmdgan       the critic maximises the MMD^2 of its features (Li et al. 2017, Binkowski et al. 2018)
        repulsive    the critic's repulsive loss, sigma 1 (Wang et al. 2019, equation 4)
        bounded      the same with the bounded kernel (equation 6)
        smmd         scaled MMD, sigma 1 (Arbel et al. 2018)

        mmd          + lam MMD^2; alone a moment matching network (Li et al. 2015, Dziugaite et al. 2015)
        gmmn         + lam sqrt(MMD^2)
        logkde       + lam log_kde_ratio / mean_s sigma_s^2: Gaussian drifting; "article+logkde" is the article's
                     loss with the term over pairs
        literal      + lam mean_i log K(g_i, g_i) = 0; "article+literal" is the article's loss as printed

    Parameters
    ----------
    loss : one of LOSSES
    sigma : float, sequence of float, "median" or "mean"
        The bandwidths of the kernel term, or the rule that finds them; the term averages over them. Critics have
        their own: "mmdgan" the median distance of its features times 1/4 to 4, the others 1.
    lam : float, optional
        By default default_lam(loss).
    scales, momentum
        What a rule's bandwidth is multiplied with, and how much of it is renewed at each step (gkfast.nn.MMDLoss).
    on_features : bool
        Whether the kernel term compares the discriminator's features.
    r1, r2 : float
        The discriminator's gradient penalties, r / 2 times gradient_penalty, on real and on generated samples, up to
        1e9.
    """
    judge, term = parts(loss)
    lam = default_lam(loss) if lam is None else checks.weight(lam)
    sigma, scales, momentum = checks.bandwidth_rule(sigma, scales, momentum)
    checks.flag("on_features", on_features)
    r1, r2 = checks.penalty("r1", r1), checks.penalty("r2", r2)
    kernel = None if term is None else _kernel_term(term, sigma, scales, momentum)
    if judge is None:
        return Objective(None, None, kernel, lam, on_features)
    # features move while the critic learns, and so must their bandwidths
    critic = MMD("median", _FEATURE_SCALES, 0.1) if judge == "mmdgan" else MMD(1.0) if judge in CRITICS else None
    discriminator, generator = _judgements(judge, critic)
    if r1 or r2:
        discriminator = partial(_penalised, discriminator, r1, r2)
    return Objective(discriminator, generator, kernel, lam, on_features, critic)


def _kernel_term(
    term: str, sigma: Bandwidth, scales: Sequence[float], momentum: float
) -> Callable[[Tensor, Tensor], Tensor]:
    match term:
        case "mmd" | "gmmn":
            return MMD(sigma, scales, momentum, root=term == "gmmn")
        case "logkde":
            return LogKDERatio(sigma, scales, momentum)
    # every bandwidth gives zero
    return lambda fake, real: literal_term(fake, 1.0)


def _judgements(judge: str, critic: MMD | None) -> tuple[Judgement, Judgement]:
    """The discriminator's and the generator's part."""
    match judge:
        case "gan":
            return lambda D, x, g: discriminator_loss(D(x), D(g)), lambda D, x, g: generator_loss(D(g))
        case "rpgan":
            return lambda D, x, g: relativistic_loss(D(x), D(g)), lambda D, x, g: relativistic_loss(D(g), D(x))
        case "hinge":
            return lambda D, x, g: hinge_discriminator_loss(D(x), D(g)), lambda D, x, g: hinge_generator_loss(D(g))
        case "article":
            return _article_discriminator, _article_generator
    assert critic is not None

    def distance(D: Critic, x: Tensor, g: Tensor) -> Tensor:
        value: Tensor = critic(D(g).flatten(1), D(x).flatten(1))
        return value

    if judge == "mmdgan":
        return lambda D, x, g: -distance(D, x, g), distance
    if judge == "smmd":
        scaled = partial(scaled_mmd, distance=critic)
        return lambda D, x, g: -scaled(D, x, g), scaled
    pairs = RepulsiveLoss() if judge == "bounded" else RepulsiveLoss(lower=0.0, upper=math.inf)
    return lambda D, x, g: pairs.critic(_everybody(D(x)), _everybody(D(g))), distance


def _penalised(judgement: Judgement, r1: float, r2: float, D: Critic, real: Tensor, fake: Tensor) -> Tensor:
    loss = judgement(D, real, fake)
    for gamma, samples in ((r1, real), (r2, fake)):
        if gamma:
            loss = loss + gamma / 2 * gradient_penalty(D, samples)
    return loss


def _article_discriminator(D: Critic, real: Tensor, fake: Tensor) -> Tensor:
    d_real, d_fake = _everybody(D(real)), _everybody(D(fake))
    y = torch.cat([torch.ones_like(d_real), torch.zeros_like(d_fake)])
    return gan_loss(y, torch.cat([d_real, d_fake]).sigmoid())


def _article_generator(D: Critic, real: Tensor, fake: Tensor) -> Tensor:
    d = _everybody(D(fake))
    return gan_loss(torch.ones_like(d), d.sigmoid())


def _everybody(rows: Tensor) -> Tensor:
    """All processes' rows, (N, F); of numbers (N,) they are (N, 1)."""
    return gkfast.distributed.gather(rows.flatten(1) if rows.ndim > 1 else rows[:, None])


def _mean(values: Tensor) -> Tensor:
    """The mean over the rows of all processes."""
    return _everybody(values.reshape(len(values), -1)).mean()
