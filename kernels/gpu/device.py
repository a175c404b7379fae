"""Where the kernels run, and what is said where they do not."""

import functools
import subprocess
import warnings

import torch


@functools.cache
def check(device: int) -> None:
    """That Triton compiles for the GPU of that number, -1 for none; AMD's are said to be untested."""
    if device < 0:
        return
    if torch.version.hip is not None:
        warnings.warn(
            "gkfast's GPU kernels compile for AMD GPUs (ROCm) but have not been tested on one; compare with "
            "backend='reference', or move the tensors to the CPU",
            stacklevel=4,
        )
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(
            f"the GPU must have compute capability 8.0 (Ampere) or more for gkfast's kernels, got {major}.{minor} "
            f"({torch.cuda.get_device_name(device)}), for which Triton does not compile; move the tensors to the "
            f"CPU, or pass backend='reference'"
        )


def explained(error: Exception) -> RuntimeError | None:
    """What to do about an error of Triton's that is no kernel's: first of all it compiles a launcher in C."""
    if isinstance(error, subprocess.CalledProcessError):
        found = f"{error.cmd[0] if isinstance(error.cmd, list) else error.cmd} failed (its message is above)"
    elif "C compiler" in str(error):
        found = "no compiler (neither CC nor gcc nor clang)"
    else:
        return None
    return RuntimeError(
        f"a C compiler and Python's headers must be installed for tensors on a GPU, since Triton builds its launcher "
        f"with them, got {found}; install gcc and the headers (Debian: apt install gcc python3-dev), or move the "
        f"tensors to the CPU"
    )
