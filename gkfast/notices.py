"""Every warning of a call, once in a process: what was asked for is done, though not as may have been thought."""

import warnings
from typing import Any

from gkfast import checks

_said: set[str] = set()


def _once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=3)


def lower_setting(setting: str) -> None:
    """Who has lowered the precision of torch's products hears that kernels do not follow without being told."""
    if setting != "highest":
        _once(
            "precision is None, which means 'highest' on a GPU, but torch.get_float32_matmul_precision() is lower; "
            "pass precision='torch' to follow torch, or precision='highest' to keep what you have"
        )


def no_kernels(device: Any) -> None:
    """Who has tensors on a device without kernels hears what runs there instead."""
    if device.type not in ("cpu", "cuda", "meta") and not checks.compiling():
        _once(
            f"tensors must be on the CPU or a CUDA device for gkfast's kernels, got {device.type}, where torch runs "
            f"the reference with O(N M) memory; move them with .cpu(), or pass backend='reference' for no warning"
        )
