"""What will run on this machine, and from where: `gkfast info`."""

import importlib
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def lines() -> list[str]:
    """One line for each part: versions, processor, CPU kernels, their cache, GPU kernels, precision."""
    from llvmlite import binding

    from gkfast.ops import torch_precision

    packages = ", ".join(f"{name} {_version(name)}" for name in ("numpy", "numba", "torch", "triton"))
    return [
        f"gkfast     {version('gkfast')}, Python {platform.python_version()}, {platform.system()}",
        f"packages   {packages}",
        f"processor  {_processor()} ({binding.get_host_cpu_name()})",
        *_cpu(),
        f"GPU        {_gpu()}",
        f"precision  highest unless named, and 'torch' is {torch_precision()}; on the CPU all are float32-grade",
    ]


def _cpu() -> list[str]:
    try:
        from gkfast.kernels.cpu import disk, threads, vector
    # NUMBA_DISABLE_JIT is set
    except RuntimeError as error:
        return [f"CPU        none: {error}"]
    first, *others = disk.places()
    return [
        f"CPU        Numba kernels, vectors of {8 * vector.BYTES} bits, {vector.REGISTERS} vector registers",
        f"threads    {threads.thread_count()}, as torch.get_num_threads() says; {threads.kind()}",
        f"cache      {first}",
        *(f"           {other}" for other in others),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in about.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        others = [name for name in ("xpu", "mps") if getattr(torch, name).is_available()]
        return (
            f"none: torch finds no CUDA device{''.join(f', but {name}, where the reference runs' for name in others)}"
        )
    devices = (torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count()))
    names = sorted({f"{device.name} (sm_{device.major}{device.minor})" for device in devices})
    try:
        importlib.import_module("gkfast.kernels.gpu")
        check = importlib.import_module("gkfast.kernels.gpu.device").check
        with warnings.catch_warnings(record=True) as untested:
            warnings.simplefilter("always")
            for k in range(torch.cuda.device_count()):
                check(k)
    except (ImportError, RuntimeError) as error:
        return f"{', '.join(names)}, no kernels: {error}"
    return f"{', '.join(names)}, Triton kernels{', untested on AMD GPUs (ROCm)' if untested else ''}"
