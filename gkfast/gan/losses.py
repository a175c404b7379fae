"""The formulas of a kernel GAN's losses.

In every formula D(x) is a discriminator's probability that x is real, d its logit (D = 1 / (1 + exp(-d))),
phi a discriminator's features, `fake` holds generated samples g_i and `real` holds real samples x_j. Losses of a
discriminator take real before fake, distances fake before real. Every function takes this process's rows; its means
are over the rows of all processes (`of_global_batch`).
"""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

import gkfast
import gkfast.checks
import gkfast.distributed
import gkfast.nn_checks
from gkfast.gan import checks
from gkfast.nn import ArticleRegularizer, KDERatioLoss
from gkfast.ops.torch_private import dispatch_modes, tracing_state, transforms

Discriminator = Callable[[Tensor], Tensor]
Loss = Callable[..., Tensor]


def gather_rows(rows: Tensor) -> Tensor:
    """All processes' rows; differentiable, see gkfast.distributed.gather."""
    if rows.ndim == 2:
        return gkfast.distributed.gather(rows)
    return gkfast.distributed.gather(rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])


def of_global_batch(loss: Loss) -> Loss:
    """The loss of all processes' rows, with the gradients of one process that has them all.

    Its tensors are a network's outputs or samples, a row each.
    """
    names = tuple(signature(loss).parameters)

    @wraps(loss)
    def global_loss(*rows: Tensor, **named: Tensor) -> Tensor:
        checks.outputs(**dict(zip(names, rows, strict=False)), **named)
        return loss(*map(gather_rows, rows), **{name: gather_rows(value) for name, value in named.items()})

    return global_loss


@of_global_batch
def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's cross-entropy from logits (Goodfellow et al. 2014, equation 1).

    .. code-block:: text

        -mean_j log D(x_j) - mean_i log(1 - D(g_i))
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


@of_global_batch
def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating generator loss from logits (Goodfellow et al. 2014, section 3).

    .. code-block:: text

        -mean_i log D(g_i)
    """
    return F.softplus(-fake_logits).mean()


@of_global_batch
def relativistic_loss(winner_logits: Tensor, loser_logits: Tensor) -> Tensor:
    """The relativistic pairing loss of RpGAN (Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2).

    .. code-block:: text

        mean_i log(1 + exp(-(d(winner_i) - d(loser_i))))

    The discriminator wants real samples to win, the generator its own.
    """
    checks.same_shape("winner_logits", winner_logits, "loser_logits", loser_logits, "give as many of each")
    return F.softplus(loser_logits - winner_logits).mean()


@of_global_batch
def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye 2017; Miyato et al. 2018, equation 16).

    .. code-block:: text

        mean_j max(0, 1 - d(x_j)) + mean_i max(0, 1 + d(g_i))
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


@of_global_batch
def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """The generator's side of the hinge loss (Miyato et al. 2018, equation 17).

    .. code-block:: text

        -mean_i d(g_i)
    """
    return -fake_logits.mean()


def gradient_penalty(discriminator: Discriminator, samples: Tensor) -> Tensor:
    """The mean squared norm of the discriminator's gradient, summed over its outputs.

    .. code-block:: text

        mean_i sum_f |grad d_f(x_i)|^2

    Times gamma / 2 it is R1 on real and R2 on generated samples (Mescheder et al. 2018, equations 9 and 10).
    """
    checks.function("discriminator", discriminator)
    checks.outputs(samples=samples)
    samples = samples.detach().requires_grad_()
    squares = torch.zeros(len(samples), dtype=samples.dtype, device=samples.device)
    # a row's output depends on that row alone, so the gradient of the sum holds each row's own
    for output in discriminator(samples).reshape(len(samples), -1).unbind(1):
        (gradient,) = torch.autograd.grad(output.sum(), samples, create_graph=True)
        squares = squares + gradient.flatten(1).square().sum(1)
    return gather_rows(squares).mean()


def mmd(fake: Tensor, real: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """The unbiased squared MMD, averaged over the bandwidths (Gretton et al. 2012, equation 3).

    Scale-free: data and bandwidths multiplied by one number leave it as it is. O(N) memory. gkfast.nn.MMDLoss also
    finds the bandwidths itself.
    """
    sigmas = gkfast.nn_checks.constants("sigma", sigma)
    checks.samples(fake=fake, real=real)
    return gkfast.distributed.mmd2(fake, real, sigmas, weights="mean")


def log_kde_ratio(fake: Tensor, real: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """How much likelier generated samples are among themselves than among the real ones, scaled by sigma^2.

    See gkfast.nn.KDERatioLoss for the formula. It is the article's term with pairs in place of the sample with
    itself. Needs two generated samples or more.
    """
    return of_global_batch(KDERatioLoss(sigma).forward)(fake, real)


def scaled_mmd(
    discriminator: Discriminator, real: Tensor, fake: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The squared MMD of features over what their gradient can do to it (Arbel et al. 2018, equations 5 and 6).

    .. code-block:: text

        MMD^2(phi(fake), phi(real)) / (1 + mean_j |J phi(x_j)|^2 / sigma^2)

    The Gaussian kernel has k(x, x) = 1, and the trace of its second derivative is |J phi|^2 / sigma^2; sigma is 1.
    """
    checks.function("discriminator", discriminator)
    checks.function("distance", distance)
    checks.outputs(real=real, fake=fake)
    value = distance(discriminator(fake).flatten(1), discriminator(real).flatten(1))
    return value / (1 + gradient_penalty(discriminator, real))


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
    constant) and p that of the real ones, both of bandwidth sigma. The first mean is over this process's rows.

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
    checks.tensor("y", y)
    checks.tensor("d", d)
    checks.same_shape("y", y, "d", d, "reshape one of them")
    checks.outputs(y=y, d=d)
    checks.choice("regularizer", regularizer, ("literal", "log_ratio"), "pass one of them")
    lam = checks.weight(lam)
    if _values_are_at_hand(y, d):
        for name, value, remedy in (
            ("y", y, "label real samples 1 and generated ones 0"),
            ("d", d, "end D with a sigmoid, or take discriminator_loss of its logits"),
        ):
            if not ((value >= 0) & (value <= 1)).all():
                low, high = (float(v) for v in value.detach().aminmax())
                raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {remedy}")
    checks.samples(**{name: value for name, value in (("fake", fake), ("real", real)) if value is not None})
    if sigma is not None:
        sigma = gkfast.nn_checks.one_constant("sigma", sigma)
    loss = F.binary_cross_entropy(d, y.to(d))
    if lam == 0:
        return loss
    if fake is None or sigma is None:
        raise ValueError("fake and sigma must be given when lam is not 0, got None; pass the generated samples")
    if real is None:
        if regularizer == "log_ratio":
            raise ValueError('real must be given for regularizer="log_ratio", got None; pass the real samples')
        # the literal term needs the generated samples alone
        real = fake
    term = ArticleRegularizer(sigma, form="literal" if regularizer == "literal" else "log_ratio")
    return loss + lam * of_global_batch(term.forward)(fake, real)


def _values_are_at_hand(*tensors: Tensor) -> bool:
    """Whether a look at values waits for no device and breaks no graph."""
    if torch.compiler.is_compiling() or transforms() or dispatch_modes() or tracing_state():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)
