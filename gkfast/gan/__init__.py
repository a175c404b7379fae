"""The GAN side of gkfast: the article's functions, composable losses and a training loop.

Names are loaded when they are first used; matplotlib, scikit-learn, accelerate and tqdm when they are first needed
(``pip install "gkfast[train]"``).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkfast.gan.article import compute_distance as compute_distance
    from gkfast.gan.article import similarity as similarity
    from gkfast.gan.article import train_gan as train_gan
    from gkfast.gan.data import generate_data as generate_data
    from gkfast.gan.losses import discriminator_loss as discriminator_loss
    from gkfast.gan.losses import gan_loss as gan_loss
    from gkfast.gan.losses import generator_loss as generator_loss
    from gkfast.gan.losses import log_kde_ratio as log_kde_ratio
    from gkfast.gan.losses import mmd as mmd
    from gkfast.gan.objectives import LOSSES as LOSSES
    from gkfast.gan.objectives import Objective as Objective
    from gkfast.gan.objectives import objective as objective
    from gkfast.gan.sampler import Sampler as Sampler
    from gkfast.gan.sampler import load as load
    from gkfast.gan.train import Result as Result

_PUBLIC = {
    "article": "compute_distance similarity train_gan",
    "data": "generate_data",
    "losses": "discriminator_loss gan_loss generator_loss log_kde_ratio mmd",
    "objectives": "LOSSES Objective objective",
    "sampler": "Sampler load",
    "train": "Result",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
