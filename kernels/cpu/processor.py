"""The processor that code is compiled for: this one, or any that has a level of x86-64."""

from llvmlite import binding
from numba.core import config

# https://gitlab.com/x86-psABIs/x86-64-ABI, section 3.1.1; by LLVM's names, the highest level first
_V3 = ["sse4.2", "popcnt", "cx16", "sahf", "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"]
_V4 = [*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
LEVELS = {"x86-64-v4": _V4, "x86-64-v3": _V3}


def environment(level: str) -> dict[str, str]:
    """What makes Numba, in a new process, compile for a level, on whatever processor."""
    return {
        "NUMBA_CPU_NAME": level,
        "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in LEVELS[level]),
    }


def _features() -> dict[str, bool]:
    if config.CPU_FEATURES is not None:
        return {name[1:]: name[0] == "+" for name in config.CPU_FEATURES.split(",") if name}
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:  # not known for this processor
        return {}


FEATURES = _features()
# the highest level that all code for this processor may be of, or none
LEVEL = next((level for level, names in LEVELS.items() if all(map(FEATURES.get, names))), "")
