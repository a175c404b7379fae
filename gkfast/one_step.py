"""Losses of one-step generators, as torch.nn modules: the names are those of gkfast.nn."""

from collections.abc import Sequence

import torch
from torch import Tensor

import gkfast
from gkfast import nn_checks, one_step_checks
from gkfast.nn_bandwidth import Bandwidth, _Bandwidth, _samples


class DriftLoss(torch.nn.Module):
    """Draws generated samples along the drifting field: the loss of a one-step generator.

    .. code-block:: text

        mean over rows and coordinates of (g_i - sg(g_i + V_i))^2          V = gkfast.drift(fake, real, ...)

    sg is stop-gradient: the target is where the field leads, and the value is the mean square of the field. The
    gradient at g_i is -2 V_i / (N D).

    Parameters
    ----------
    sigma, scales, momentum
        Bandwidths, or the rule that finds them; see `MMDLoss`. Each has a field of its own; fields are added.
    powers, unit_rms
        See `gkfast.drift`.

    References
    ----------
    M. Deng, H. Li, T. Li, Y. Du and K. He, "Generative modeling via drifting", 2026, arXiv 2602.04770.

    Examples
    --------
    >>> import torch, gkfast.nn
    >>> loss = gkfast.nn.DriftLoss(1.0, powers=None)
    >>> loss(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])).item()  # the field is 2 and 3
    6.5
    """

    def __init__(
        self,
        sigma: Bandwidth = "median",
        *,
        scales: Sequence[float] = (0.25, 0.5, 1.0),
        momentum: float = 0.1,
        powers: tuple[float, float] | None = (0.5, 0.5),
        unit_rms: bool = False,
    ) -> None:
        super().__init__()
        self.bandwidth = _Bandwidth(sigma, scales, momentum)
        one_step_checks.powers_of_sums(powers)
        self.powers = powers
        self.unit_rms = nn_checks.switch("unit_rms", unit_rms)

    def forward(
        self, fake: Tensor, real: Tensor, negative: Tensor | None = None, skip_self: bool | None = None
    ) -> Tensor:
        """The loss () of fake (N, D), real (M, D) and negative (Q, D), by default fake: one sample per row."""
        fake, real = _samples("fake", fake, "real", real, "gkfast.drift")
        if negative is not None:
            _, negative = _samples("fake", fake, "negative", negative, "gkfast.drift")
        field = gkfast.drift(
            fake,
            real,
            negative,
            sigma=self.bandwidth(fake, real)[None],
            skip_self=skip_self,
            powers=self.powers,
            unit_rms=self.unit_rms,
        )
        wide = fake.to(field.dtype)
        loss: Tensor = (wide - (wide.detach() + field)).square().mean()
        return loss

    def extra_repr(self) -> str:
        return f"powers={self.powers}, unit_rms={self.unit_rms}"
