"""Launches of the GPU kernels, recorded instead of run, on a GPU that is only pretended; and compiled for any target.

    for launch in recorded(TARGETS["90"], lambda: kernels.rbf(x, y, one, one)):
        compiled = compile_for(TARGETS["90"], launch)

Tensors are made by `empty`, and by the launchers: their memory is the host's and is never touched, so that sizes may
be real ones.
"""

import contextlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from bench.gpu_cases import load

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    name: str
    # bytes of shared memory that a block may have
    shared: int
    multiprocessors: int
    amd: bool = False
    # what torch calls the capability
    capability: tuple[int, int] = (0, 0)

    @property
    def arch(self):
        """As rows name it: an integer of NVIDIA, a name of AMD."""
        return self.name if self.amd else int(self.name)

    @property
    def triton(self):
        return GPUTarget("hip", self.name, 64) if self.amd else GPUTarget("cuda", self.arch, 32)


TARGETS = {
    target.name: target
    for target in (
        Target("80", 163 << 10, 108, capability=(8, 0)),
        Target("86", 99 << 10, 84, capability=(8, 6)),
        Target("89", 99 << 10, 142, capability=(8, 9)),
        Target("90", 227 << 10, 132, capability=(9, 0)),
        Target("100", 227 << 10, 148, capability=(10, 0)),
        Target("120", 99 << 10, 170, capability=(12, 0)),
        Target("gfx942", 64 << 10, 304, amd=True, capability=(9, 4)),
        Target("gfx90a", 64 << 10, 104, amd=True, capability=(9, 0)),
    )
}


@dataclass
class Launch:
    kernel: JITFunction
    arguments: tuple
    # constants and compiler's options by name
    options: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def variant(self):
        return self.options.get("VARIANT")

    @property
    def programs(self):
        return max(1, int(torch.Size(self.grid).numel()))

    @property
    def warps(self):
        return self.options.get("num_warps", 4)

    def tensors(self):
        found = []

        def walk(value):
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, tuple | list):
                for part in value:
                    walk(part)

        walk(self.arguments)
        walk(tuple(self.options.values()))
        return found


@dataclass
class Compiled:
    """One kernel for one target."""

    registers: int
    # bytes of a thread
    spills: int
    shared: int
    # machine code, as text
    code: str
    # PTX or AMD's assembly
    assembly: str
    ttir: str = field(repr=False)
    ttgir: str = field(repr=False)


# ---- a GPU that is only pretended


@cache
def kernels():
    """gkfast.kernels.gpu, from an installation or from this checkout."""
    load()
    from gkfast.kernels import gpu

    return gpu


class Pretended(torch.Tensor):
    """A tensor of the host that says that it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


class _OnHost(TorchFunctionMode):
    """What would be made or moved on a GPU is made on the host, and pretended."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        of_gpu = any(isinstance(a, Pretended) for a in arguments)
        if options.get("device") is not None:
            of_gpu = torch.device(options["device"]).type == "cuda"
            options["device"] = "cpu"
        devices = [torch.device(a) for a in arguments if isinstance(a, torch.device)]
        if devices:
            of_gpu = devices[0].type == "cuda"
            arguments = tuple("cpu" if isinstance(a, torch.device) else a for a in arguments)
        found = function(*arguments, **options)
        if of_gpu and isinstance(found, torch.Tensor) and not isinstance(found, Pretended):
            found = found.as_subclass(Pretended)
        return found


def empty(*shape, dtype=torch.float32):
    """A tensor on the pretended GPU."""
    return torch.empty(*shape, dtype=dtype).as_subclass(Pretended)


@contextlib.contextmanager
def pretending(target):
    """A machine with that GPU, as torch describes it."""
    properties = SimpleNamespace(
        multi_processor_count=target.multiprocessors,
        major=target.capability[0],
        minor=target.capability[1],
        gcnArchName=target.name if target.amd else "",
        name="pretended",
        shared_memory_per_block_optin=target.shared,
    )
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "get_device_properties", lambda *_: properties),
            (torch.cuda, "get_device_capability", lambda *_: target.capability),
            (torch.cuda, "current_device", lambda: 0),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_OnHost())
        yield


def recorded(target, call):
    """Every launch that the call makes on that GPU."""
    found = []

    def record(self, *arguments, grid, warmup, **options):
        found.append(Launch(self, arguments, options, tuple(grid) if not callable(grid) else (0,)))

    with pretending(target), mock.patch.object(JITFunction, "run", record):
        call()
    return found


# ---- compiling


def source(target, launch):
    """The kernel and its options, as a launch with these arguments compiles them for that target."""
    kernel, backend = launch.kernel, make_backend(target.triton)
    known = {*backend.parse_options({}).__dict__, *(parameter.name for parameter in kernel.params)}
    # AMD's compiler knows no maxnreg
    options = {name: value for name, value in launch.options.items() if name in known or not target.amd}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*launch.arguments, **options)
    rest, signature, constants, attributes = kernel._pack_args(backend, rest, bound, specialization, rest)
    return ASTSource(kernel, signature, constants, attributes), rest.__dict__


def key_of(target, launch):
    """The same for launches of one compiled kernel."""
    made, settings = source(target, launch)
    return target.name, made.hash(), str(settings)


def compile_for(target, launch):
    made, settings = source(target, launch)
    compiled = triton.compile(made, target=target.triton, options=settings)
    texts = compiled.asm
    if target.amd:
        assembly = texts["amdgcn"]

        def number(name):
            return max((int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

        spills = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
        registers = number("vgpr_count")
        return Compiled(
            registers, spills, compiled.metadata.shared, assembly, assembly, texts["ttir"], texts["ttgir"]
        )
    usage, code = disassembled(texts["cubin"])
    return Compiled(
        int(re.search(r"REG:(\d+)", usage).group(1)),
        int(re.search(r"STACK:(\d+)", usage).group(1)),
        compiled.metadata.shared,
        code,
        texts["ptx"],
        texts["ttir"],
        texts["ttgir"],
    )


def disassembled(cubin):
    """Resource usage and SASS of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run(
                [str(BIN / "cuobjdump"), option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )


def in_parallel(function, items, say=None):
    """function of each item, in their order, by as many processes as there are cores; they inherit the items.

    say(done, result) is called for each that is done.
    """
    global _work
    _work = (function, items)
    found = []
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for result in pool.imap(_done, range(len(items))):
            found.append(result)
            if say is not None:
                say(len(found), result)
    return found


_work = None


def _done(place):
    function, items = _work
    torch.set_num_threads(1)
    return function(items[place])
