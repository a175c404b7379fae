"""What machine this is: its processor, its vectors, its name in bench/results/."""

import platform
import re
from functools import cache

import torch
from llvmlite import binding


@cache
def processor() -> str:
    """The brand, such as "AMD EPYC 7763 64-Core Processor"."""
    # pytest-benchmark's dependency
    import cpuinfo

    return cpuinfo.get_cpu_info().get("brand_raw") or platform.machine()


def vectors() -> tuple[str, int]:
    """The name of the widest vectors that kernels use here, and their bits."""
    features = binding.get_host_cpu_features()
    for name, feature, bits in (("avx512", "avx512f", 512), ("avx2", "avx2", 256), ("neon", "neon", 128)):
        if features.get(feature):
            return name, bits
    return "scalar", 128


def name_of(brand: str, vector: str, threads: int) -> str:
    """amd-epyc-znver5-avx512-2-threads: what decides how fast kernels are, in a name for a file."""
    # clock and core counts say nothing that the vectors and threads at hand do not
    brand = re.sub(r"\((r|tm)\)|@.*|\b\d+-core\b|\b(cpu|processor)\b", " ", brand.lower())
    words = re.findall(r"[a-z0-9]+", brand)
    return "-".join([*words, vector, str(threads), "threads" if threads > 1 else "thread"])


def name() -> str:
    # LLVM's name of it: brands may hide that one has two multiply-add units where another has one
    return name_of(f"{processor()} {binding.get_host_cpu_name()}", vectors()[0], torch.get_num_threads())
