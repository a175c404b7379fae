"""The objectives of a GAN, and the names of losses that stand for them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gkfast.gan import checks, own
from gkfast.gan.losses import (
    Discriminator,
    discriminator_loss,
    gan_loss,
    gather_rows,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mmd,
    of_global_batch,
    relativistic_loss,
    scaled_mmd,
)
from gkfast.nn import (
    ArticleRegularizer,
    Bandwidth,
    DriftLoss,
    KDERatioLoss,
    LandmarkMMDLoss,
    MMDLoss,
    RepulsiveLoss,
)

Judgement = Callable[[Discriminator, Tensor, Tensor], Tensor]

# the loss of the discriminator and that of the generator
_ADVERSARIAL: dict[str, tuple[Judgement, Judgement]] = {
    "gan": (
        lambda D, real, fake: discriminator_loss(D(real), D(fake)),
        lambda D, real, fake: generator_loss(D(fake)),
    ),
    "rpgan": (
        lambda D, real, fake: relativistic_loss(D(real), D(fake)),
        lambda D, real, fake: relativistic_loss(D(fake), D(real)),
    ),
    "hinge": (
        lambda D, real, fake: hinge_discriminator_loss(D(real), D(fake)),
        lambda D, real, fake: hinge_generator_loss(D(fake)),
    ),
    "article": (
        lambda D, real, fake: _article_discriminator_loss(D(real), D(fake)),
        lambda D, real, fake: _article_generator_loss(D(fake)),
    ),
}

# adversaries judge single samples, critics compare sets of features, kernels compare sets of samples
ADVERSARIES = tuple(_ADVERSARIAL)
CRITICS = ("mmdgan", "repulsive", "bounded", "smmd")
KERNELS = ("mmd", "gmmn", "logkde", "drift", "landmarks", "literal")
LOSSES = (
    *ADVERSARIES,
    *CRITICS,
    *KERNELS[:-1],
    *(f"{judge}+{kernel}" for judge in (*ADVERSARIES, *CRITICS) for kernel in KERNELS),
)

# the weight of the kernel term, alone and beside an adversary; for gan+mmd on the digits 20 to 50 do about as well
_WEIGHT_ALONE = 1.0
_WEIGHT_BESIDE = {"mmd": 30.0, "gmmn": 1.0, "logkde": 10.0, "drift": 10.0, "landmarks": 0.1, "literal": 1.0}
# of the landmark MMD, at most
_LANDMARKS = 2000

# an MMD-GAN's bandwidths, as factors of the median distance of features
_FEATURE_SCALES = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)


def split_name(loss: str) -> tuple[str | None, str | None]:
    """The adversary or critic, and the kernel term, of a name such as "gan+mmd", "rpgan" or "mmd"."""
    checks.loss(loss, (*ADVERSARIES, *CRITICS), KERNELS, own.is_name)
    first, _, second = loss.partition("+")
    return (None, first) if first in KERNELS or own.is_name(first) else (first, second or None)


def default_lam(loss: str) -> float:
    """The weight of the kernel term that suits the loss."""
    judge, kernel = split_name(loss)
    if kernel is None:
        return 0.0
    if own.is_name(kernel):
        made = _own(judge, kernel)
        return made.lam if isinstance(made, Objective) else _WEIGHT_ALONE
    return _WEIGHT_ALONE if judge is None else _WEIGHT_BESIDE[kernel]


def without_kernel(loss: str) -> str:
    """The loss of a control: the same without anything Gaussian."""
    judge, _ = split_name(loss)
    return judge if judge in ADVERSARIES else "gan"


class KernelTerm(nn.Module):
    """A loss of gkfast.nn over the rows of all processes.

    With given bandwidths and no root, each process computes the pairs of its own rows (gkfast.distributed.mmd2).
    Log ratio and drift are divided by mean_s sigma_s^2, so that their weight has no unit, as that of MMD^2.
    """

    def __init__(self, loss: MMDLoss | KDERatioLoss | DriftLoss) -> None:
        super().__init__()
        # the name in saved states
        self.whole = loss

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        bandwidth = self.whole.bandwidth
        if isinstance(self.whole, MMDLoss) and bandwidth.rule is None and not self.whole.root:
            return mmd(fake, real, bandwidth.given)
        checks.samples(fake=fake, real=real)
        fake, real = gather_rows(fake), gather_rows(real)
        value: Tensor = self.whole(fake, real)
        if isinstance(self.whole, KDERatioLoss | DriftLoss):
            value = value / self._sigma(fake, real).square().mean().to(value)
        return value

    def sigma(self, fake: Tensor, real: Tensor) -> list[float]:
        """The bandwidths of the last step."""
        sigma: list[float] = self._sigma(gather_rows(fake), gather_rows(real)).tolist()
        return sigma

    def _sigma(self, fake: Tensor, real: Tensor) -> Tensor:
        mode = self.whole.training
        # evaluation mode does not renew them
        sigma: Tensor = self.whole.eval().bandwidth(fake, real)
        self.whole.train(mode)
        return sigma


class LandmarkTerm(nn.Module):
    """The MMD^2 of all processes' generated rows against the kernel mean of a whole data set."""

    def __init__(self, loss: LandmarkMMDLoss) -> None:
        super().__init__()
        self.whole = loss

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        checks.samples(fake=fake, real=real)
        value: Tensor = self.whole(gather_rows(fake))
        return value

    def sigma(self, fake: Tensor, real: Tensor) -> list[float]:
        """Its bandwidths."""
        sigma: list[float] = self.whole.numbers.sigma.tolist()
        return sigma


class OwnTerm(nn.Module):
    """A kernel term of the user's, a function of generated and real rows."""

    def __init__(self, term: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.term = term

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.term(fake, real)


class LayersTerm(nn.Module):
    """The mean of one kernel term for each output of an encoder, each with its own bandwidths."""

    def __init__(self, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        values = [term(x, y) for term, x, y in zip(self.terms, fake, real, strict=True)]
        return torch.stack(values).mean()


@dataclass(frozen=True)
class Objective:
    """The losses of a GAN with a Gaussian term; every part may be any callable.

    .. code-block:: text

        discriminator:  discriminator(D, real, fake)
        generator:      generator(D, real, fake) + lam kernel(fake, real)

    Parts get this process's rows; the losses of gkfast.gan take their means over the rows of all processes. In a part
    of your own that is no mean over rows, call gkfast.distributed.gather on the outputs first.

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
    encoder : torch.nn.Module, optional
        The kernel term compares its outputs, a list of tensors (N, F) for samples (N, ...), and gets two such lists:
        see LayersTerm. Its weights are not trained, and its outputs for the real samples are computed once.
    feature_mmd : torch.nn.Module, optional
        The MMD of the discriminator's outputs, where they are features and no logits.
    """

    discriminator: Judgement | None = _ADVERSARIAL["gan"][0]
    generator: Judgement | None = _ADVERSARIAL["gan"][1]
    kernel: Callable[..., Tensor] | None = None
    lam: float = 0.0
    on_features: bool = False
    feature_mmd: KernelTerm | None = None
    encoder: nn.Module | None = None

    def __post_init__(self) -> None:
        for name in ("discriminator", "generator", "kernel", "feature_mmd"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(
                    f"{name} must be a callable or None, got {checks.shown(value)}; pass a function of its arguments"
                )
        if self.generator is None and self.kernel is None:
            raise ValueError(
                "generator or kernel must be given, got None for both; pass what the generator minimises"
            )
        object.__setattr__(self, "lam", checks.weight(self.lam))
        checks.flag("on_features", self.on_features)
        if self.encoder is not None and not isinstance(self.encoder, nn.Module):
            raise TypeError(
                f"encoder must be a torch.nn.Module or None, got {checks.shown(self.encoder)}; wrap it in a module"
            )

    @property
    def judges(self) -> bool:
        """Whether a discriminator is asked."""
        return self.discriminator is not None or self.generator is not None


def objective(
    loss: str,
    sigma: Bandwidth | Sequence[Sequence[float]],
    lam: float | None = None,
    *,
    scales: Sequence[float] = (1.0,),
    momentum: float = 0.0,
    on_features: bool = False,
    encoder: nn.Module | None = None,
    real: Tensor | Sequence[Tensor] | None = None,
    r1: float = 0.0,
    r2: float = 0.0,
) -> Objective:
    """The objective of a name: an adversary or a critic, a kernel term, or both with a plus between.

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
        drift        + lam DriftLoss / mean_s sigma_s^2: drifting models (Deng et al. 2026)
        landmarks    + lam LandmarkMMDLoss: the kernel mean of the whole data set (iRDM, Feng et al. 2026)
        literal      + lam mean_i log K(g_i, g_i) = 0; "article+literal" is the article's loss as printed

    Parameters
    ----------
    loss : one of LOSSES, or module:function
        In the kernel term's place, as in "gan+mine:energy", a function of generated and real rows. Alone it may also
        be a function without arguments that returns an Objective.
    sigma : float, sequence of float, "median" or "mean"
        The bandwidths of the kernel term, or the rule that finds them; the term averages over them. With an encoder
        a sequence of one such for each of its outputs. Critics have
        their own: "mmdgan" the median distance of its features times 1/4 to 4, the others 1.
    lam : float, optional
        By default default_lam(loss).
    scales, momentum
        What a rule's bandwidth is multiplied with, and how much of it is renewed at each step (gkfast.nn.MMDLoss).
    on_features : bool
        Whether the kernel term compares the discriminator's features.
    encoder : torch.nn.Module, optional
        The kernel term compares its outputs, a list of tensors; the term is the mean over them.
    real : tensor of shape (R, D), or with an encoder a sequence of its outputs for all rows
        The whole data set, for "landmarks", which needs it and given bandwidths or a rule's for it.
    r1, r2 : float
        The discriminator's gradient penalties, r / 2 times gradient_penalty, on real and on generated samples, up to
        1e9.
    """
    judge, kernel_name = split_name(loss)
    lam = default_lam(loss) if lam is None else checks.weight(lam)
    checks.flag("on_features", on_features)
    r1, r2 = checks.penalty("r1", r1), checks.penalty("r2", r2)
    made = _own(judge, kernel_name) if kernel_name is not None and own.is_name(kernel_name) else None
    if isinstance(made, Objective):
        if encoder is not None:
            raise ValueError(f'space must be "data" for an Objective, got "encoder" with {loss}; give it an encoder')
        discriminator = made.discriminator
        if discriminator is not None and (r1 or r2):
            discriminator = partial(_penalised, discriminator, r1, r2)
        return replace(made, lam=lam, discriminator=discriminator)
    kernel: Callable[..., Tensor] | None = None
    if kernel_name == "landmarks":
        _check_whole_data(real, on_features)
    if kernel_name is not None and encoder is not None:
        layers: Any = sigma
        rows: Any = [None] * len(layers) if real is None else real
        kernel = LayersTerm(
            [_kernel_term(kernel_name, layer, scales, momentum, y) for layer, y in zip(layers, rows, strict=True)]
        )
    elif kernel_name is not None:
        plain: Any = sigma
        kernel = _kernel_term(kernel_name, plain, scales, momentum, real)
    if judge is None:
        return Objective(None, None, kernel, lam, on_features, encoder=encoder)
    discriminator, generator, feature_mmd = (*_ADVERSARIAL[judge], None) if judge in _ADVERSARIAL else _critic(judge)
    if r1 or r2:
        discriminator = partial(_penalised, discriminator, r1, r2)
    return Objective(discriminator, generator, kernel, lam, on_features, feature_mmd, encoder)


def _check_whole_data(real: object, on_features: bool) -> None:
    if on_features:
        raise ValueError(
            'on_features must be False for "landmarks", whose data set does not change, got True; '
            "compare samples, or an encoder's outputs"
        )
    if real is None:
        raise ValueError('real must be given for "landmarks", got None; pass all rows of the data')


def _own(judge: str | None, name: str) -> "Callable[..., Tensor] | Objective":
    """The kernel term, or the Objective, that module:function names.

    The function is a term itself, of generated and real rows, or one without arguments that returns either.
    """
    found = own.named("loss", name)
    if callable(found) and not own.takes_arguments(found):
        found = own.made("loss", name, found)
    if isinstance(found, Objective):
        if judge is not None:
            raise ValueError(
                f"loss must be a kernel term behind {judge}+, got {name!r}, which is an Objective; name it alone"
            )
        return found
    if not callable(found):
        raise ValueError(
            f"loss must be a function of generated and real rows, or one that returns an Objective, got {name!r}, "
            f"which is {checks.shown(found)}; change it"
        )
    return found


def try_own(loss: str, real: Tensor | None) -> None:
    """Refuse a loss of the user's that does not give one number with a gradient for a few rows (N, D), if any."""
    judge, name = split_name(loss)
    if name is None or not own.is_name(name):
        return
    term = _own(judge, name)
    if isinstance(term, Objective) or real is None:
        return
    rows = real[:16]
    fake = (rows.flip(0) + 0.1 * rows.std()).requires_grad_()
    try:
        value = term(fake, rows)
    except Exception as error:
        raise ValueError(
            f"loss must take generated and real rows, here {tuple(rows.shape)} of each, got an error of {name!r} "
            f"({own.reason(error)}); mend it"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = checks.shown(value)
        raise ValueError(
            f"loss must return a scalar tensor that depends on the generated rows, got {got} of {name!r}; "
            "return a mean over rows, not detached"
        )


def _kernel_term(
    name: str, sigma: Bandwidth, scales: Sequence[float], momentum: float, real: Any = None
) -> nn.Module:
    if own.is_name(name):
        term: Any = _own(None, name)
        return term if isinstance(term, nn.Module) else OwnTerm(term)
    match name:
        case "mmd":
            return KernelTerm(MMDLoss(sigma, scales=scales, momentum=momentum))
        case "gmmn":
            return KernelTerm(MMDLoss(sigma, scales=scales, momentum=momentum, estimator="biased", root=True))
        case "logkde":
            return KernelTerm(KDERatioLoss(sigma, scales=scales, momentum=momentum))
        case "drift":
            return KernelTerm(DriftLoss(sigma, scales=scales, momentum=momentum))
        case "landmarks":
            rows = real.flatten(1)
            return LandmarkTerm(LandmarkMMDLoss(rows, sigma, scales=scales, landmarks=min(_LANDMARKS, len(rows))))
    # every bandwidth gives zero
    return ArticleRegularizer(1.0, form="literal")


def _critic(judge: str) -> tuple[Judgement, Judgement, KernelTerm]:
    """The discriminator's and the generator's part, and the MMD of features that both take."""
    # features move while the critic learns, and so must their bandwidths
    moving = MMDLoss("median", scales=_FEATURE_SCALES, momentum=0.1)
    feature_mmd = KernelTerm(moving if judge == "mmdgan" else MMDLoss(1.0))

    def distance(D: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
        value: Tensor = feature_mmd(D(fake).flatten(1), D(real).flatten(1))
        return value

    if judge == "mmdgan":
        return lambda D, real, fake: -distance(D, real, fake), distance, feature_mmd
    if judge == "smmd":
        scaled = partial(scaled_mmd, distance=feature_mmd)
        return lambda D, real, fake: -scaled(D, real, fake), scaled, feature_mmd
    repulsive = RepulsiveLoss() if judge == "bounded" else RepulsiveLoss(lower=0.0, upper=math.inf)
    critic_loss = of_global_batch(repulsive.critic)
    return lambda D, real, fake: critic_loss(D(real).flatten(1), D(fake).flatten(1)), distance, feature_mmd


def _penalised(judgement: Judgement, r1: float, r2: float, D: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
    loss = judgement(D, real, fake)
    for gamma, samples in ((r1, real), (r2, fake)):
        if gamma:
            loss = loss + gamma / 2 * gradient_penalty(D, samples)
    return loss


@of_global_batch
def _article_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    labels = torch.cat([torch.ones_like(real_logits), torch.zeros_like(fake_logits)])
    return gan_loss(labels, torch.cat([real_logits, fake_logits]).sigmoid())


@of_global_batch
def _article_generator_loss(fake_logits: Tensor) -> Tensor:
    return gan_loss(torch.ones_like(fake_logits), fake_logits.sigmoid())
