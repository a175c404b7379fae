"""The GAN side of gkfast: the article's functions, composable losses and a training loop.

Names are loaded when they are first used; matplotlib, scikit-learn, accelerate and tqdm when they are first needed
(``pip install "gkfast[train]"``).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "LOSSES",
    "Objective",
    "Result",
    "compute_distance",
    "discriminator_loss",
    "gan_loss",
    "generate_data",
    "generator_loss",
    "log_kde_ratio",
    "mmd",
    "objective",
    "similarity",
    "train_gan",
]

if TYPE_CHECKING:
    from gkfast.gan.data import generate_data
    from gkfast.gan.losses import (
        LOSSES,
        Objective,
        compute_distance,
        discriminator_loss,
        gan_loss,
        generator_loss,
        log_kde_ratio,
        mmd,
        objective,
        similarity,
    )
    from gkfast.gan.trainer import Result, train_gan

_HOME = {"generate_data": "data", "Result": "trainer", "train_gan": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'losses')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
