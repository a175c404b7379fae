"""Compiles the GPU kernels for three architectures without a GPU, and says what came out.

    python bench/offline.py                 every case; prints a table, writes bench/results/offline.csv
    python bench/offline.py --brief --json  what tests/test_gpu_launches.py asks for

The launchers themselves are called, with tensors on the CPU; their launches are recorded instead of run, and each is
compiled with the constants and types that it had: with the tiles of its architecture, and with those that an unknown
one takes. Exit status 1 if a kernel spills, needs more registers or shared memory than leave room, lacks the
tensor-core instructions that it should have, or has those that round float32, computes float32 exponentials the slow
way, or if a row of the table of tiles was never compiled.
"""

import argparse
import csv
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

ROOT = Path(__file__).parent.parent
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
# of a thread, where a block has eight warps: a multiprocessor has 65536, and one block must leave room
MOST_REGISTERS = 200
# bytes of shared memory that a block may have: Ampere, Hopper, Blackwell; any, for tiles that an unknown GPU takes
MOST_SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 0: 99 << 10}
# what tensor-core instructions are called in machine code: Ampere, Hopper, Blackwell
TENSOR_CORE = r"\b(HMMA|HGMMA|UTC[A-Z]*MMA|DMMA)\b"


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    d: int
    columns: int = 1
    # of products of bfloat16 pieces; None: small, by differences
    precision: str | None = None


@dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    sm: int
    # whose tiles: 0 of any
    tiles: int
    kernel: str
    op: str
    dtype: str
    d: int
    columns: int
    products: int
    tile: str
    warps: int
    registers: int
    spills: int
    shared: int
    tensor_core: int
    ex2: int
    slow_ex2: int
    expects_tensor_core: bool

    @property
    def wrong(self):
        most = MOST_REGISTERS if self.warps >= 8 else 255
        faults = {
            "spills": self.spills > 0,
            "registers": self.registers > most,
            "shared memory": self.shared > MOST_SHARED[self.tiles],
            "no tensor core": self.expects_tensor_core and not self.tensor_core,
            # tl.dot of float32 rounds to TensorFloat32 unless it is told otherwise
            "TensorFloat32": self.dtype != "float64" and self.tensor_core > 0 and not self.expects_tensor_core,
            "slow ex2": self.dtype != "float64" and self.slow_ex2 > 0,
        }
        return ", ".join(name for name, fault in faults.items() if fault)


def gpu():
    """gkfast.kernels.gpu, from an installation or from this checkout."""
    sys.path.insert(0, str(ROOT))
    from gkfast.kernels import gpu

    return gpu


def call(case):
    """The public launchers of one case, on small tensors."""
    kernels = gpu()
    by = {} if case.precision is None else {"precision": case.precision}
    # small tensors stand for large ones
    sys.modules["gkfast.kernels.gpu.bf16_pieces"].SMALL = 0 if by else math.inf
    dtype = getattr(torch, case.dtype)
    n = 256
    x, y = torch.zeros(1, n, case.d, dtype=dtype), torch.zeros(1, n, case.d, dtype=dtype)
    v, a = torch.zeros(1, n, case.columns, dtype=dtype), torch.zeros(1, n, dtype=dtype)
    one = torch.ones(1, 1, dtype=torch.float64)
    shift = torch.zeros(1, n, 1, dtype=dtype)
    ladder = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]], dtype=torch.float64)
    # of a size that asks for the unit
    scaled = ladder * 2.0**40 if dtype != torch.float64 else ladder * 2.0**300
    if case.op.endswith("of_many"):
        # so many that programs do not make their rows of the table themselves
        x, y = x.expand(64, n, case.d), y.expand(64, n, case.d)
        g = torch.zeros(1, n, n, dtype=dtype).expand(64, n, n)
        one = one.expand(64, 1)

    def mmd2(sigma, weights, baseline, *wants):
        arguments = (one.expand(1, 1, 3), x, y, a, a, sigma, weights, baseline)
        kernels.baselines(x, y, sigma)
        kernels.kernel_sums_with_gradients(*arguments, drop=1, wants=wants, **by)

    if case.op == "rbf" or case.op == "rbf_of_many":
        kernels.rbf(x, y, one, one, **by)
    elif case.op == "rbf_backward_of_x":
        kernels.rbf_backward(
            torch.zeros(1, n, n, dtype=dtype), x, None, one, one, wants=(True, False, True, True), **by
        )
    elif case.op == "rbf_backward_of_many":
        kernels.rbf_backward(g, x, y, one, one, wants=(True,) * 4, **by)
    elif case.op == "rbf_backward":
        kernels.rbf_backward(torch.zeros(1, n, n, dtype=dtype), x, y, one, one, wants=(True,) * 4, **by)
    elif case.op == "rbf_matmul":
        kernels.rbf_matmul(x, y, v, one, one, **by)
    elif case.op == "rbf_matmul_backward":
        kernels.rbf_matmul_backward(v, x, y, v, one, one, wants=(True,) * 5, **by)
    elif case.op == "density_backward":
        kernels.rbf_matmul_backward(v, x, y, v, one, one, shift, skip_diagonal=True, wants=(True,) * 5)
    elif case.op == "rbf_of_bandwidths":
        kernels.rbf(x, y, scaled, ladder, **by)
    elif case.op == "kernel_sums_of_bandwidths":
        mmd2(scaled, ladder, ladder, *(False,) * 6)
    elif case.op == "mmd2_of_everything":
        mmd2(scaled, ladder, ladder, *(True,) * 6)
    elif case.op == "signs":
        kernels.rbf_matmul(x, x, v, one, one, None, one, skip_diagonal=True, **by)
    elif case.op == "mmd2":
        mmd2(ladder, ladder, ladder, True, True, *(False,) * 4)
    elif case.op == "mmd2_of_x":
        mmd2(one, one, one, True, *(False,) * 5)
    elif case.op == "kernel_sums":
        kernels.kernel_sums_with_gradients(None, x, y, a, a, one, one, drop=1, wants=(False,) * 6, **by)
    elif case.op == "mmd2_of_parameters":
        mmd2(one, one, one, *(False,) * 4, True, True)
    elif case.op == "log_density":
        # few rows and many columns, so that these are swept in parts
        y, a = torch.zeros(1, 2 * n, case.d, dtype=dtype), torch.zeros(1, 2 * n, dtype=dtype)
        kernels.log_density(x[:, :32], y, one, one, a, leave_one_out=True, **by)
    elif case.op == "score":
        kernels.log_density(x, y, one, one, a, leave_one_out=True, **by)
        of_x = (True, False, False, False, False)
        kernels.rbf_matmul_backward(v, x, y, v, one, one, shift, skip_diagonal=True, wants=of_x, **by)
    else:
        raise ValueError(case.op)


def launches(case, tiles):
    """(kernel, arguments, options) of every launch of one case, with the tiles of that architecture."""
    gpu()
    sys.modules["gkfast.kernels.gpu.tiles"].architecture = lambda _: tiles
    found = []

    def record(self, *args, grid, warmup, **kwargs):
        found.append((self, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        call(case)
    finally:
        JITFunction.run = run
    return found


def source(kernel, arguments, options, sm):
    """The kernel and its options, as a launch with these arguments compiles them for that architecture."""
    backend = make_backend(GPUTarget("cuda", sm, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*arguments, **options)
    rest, signature, constants, attributes = kernel._pack_args(backend, rest, bound, specialization, rest)
    return ASTSource(kernel, signature, constants, attributes), rest.__dict__


def compile_row(case, kernel, arguments, options, sm, tiles):
    warps = options.get("num_warps", 4)
    made, settings = source(kernel, arguments, options, sm)
    compiled = triton.compile(made, target=GPUTarget("cuda", sm, 32), options=settings)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(BIN / "cuobjdump", "--dump-resource-usage", file.name)
        code = _run(BIN / "cuobjdump", "--dump-sass", file.name)
    variant = options.get("VARIANT")
    tile = "x".join(map(str, variant[:3])) if variant else ""
    products = variant.DOT if variant else options.get("DOT", 0)
    return Row(
        sm,
        tiles,
        kernel.__name__,
        case.op,
        case.dtype,
        case.d,
        case.columns,
        products,
        tile,
        warps,
        int(re.search(r"REG:(\d+)", usage).group(1)),
        int(re.search(r"STACK:(\d+)", usage).group(1)),
        compiled.metadata.shared,
        len(re.findall(TENSOR_CORE, code)),
        ptx.count("ex2.approx.ftz.f32"),
        ptx.count("ex2.approx.f32"),
        variant is not None and variant.DOT > 0,
    )


def _run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


OPS = ["rbf", "rbf_backward", "rbf_matmul", "rbf_matmul_backward", "mmd2", "mmd2_of_x", "kernel_sums"]
OPS += ["rbf_of_bandwidths", "kernel_sums_of_bandwidths", "mmd2_of_everything"]
BY_PRODUCTS = [op for op in OPS if op != "mmd2_of_x"]


def cases(brief):
    """(architecture, whose tiles, case); brief: what differs between dtypes or architectures, each on one."""
    full = [Case(op, dtype, d) for op in OPS for dtype in ("float32", "float64") for d in (3, 64)]
    full += [Case("log_density", dtype, 16) for dtype in ("float32", "float64")]
    full += [
        Case(op, dtype, 16, 10) for op in ("rbf_matmul", "rbf_matmul_backward") for dtype in ("float32", "float64")
    ]
    full += [Case("rbf_matmul", "float32", 16, 200), Case("density_backward", "float64", 16)]
    # relabellings of a permutation test
    full += [Case("signs", "float32", 16, 512), Case("signs", "float32", 64, 512, "highest")]
    full += [Case(op, dtype, 64) for op in ("rbf", "rbf_matmul") for dtype in ("bfloat16", "float16")]
    full.append(Case("mmd2_of_parameters", "float32", 64, 1, "highest"))
    full += [Case("rbf_backward_of_x", dtype, 64) for dtype in ("float32", "float64")]
    full += [Case("rbf_backward_of_x", "float32", d, 1, "highest") for d in (16, 64)]
    full.append(Case("rbf_backward_of_x", "float32", 64, 1, "high"))
    full += [Case(op, "float32", 64) for op in ("rbf_of_many", "rbf_backward_of_many")]
    full += [Case("rbf_of_many", "float64", 64), Case("rbf_of_many", "float32", 64, 1, "highest")]
    full += [
        Case(op, "float32", d, 1, precision)
        for op in BY_PRODUCTS
        for precision, d in (("highest", 16), ("highest", 64), ("highest", 784), ("high", 64), ("medium", 64))
    ]
    # the most coordinates that a sweep pulls on Hopper
    full += [Case(op, "float32", 32, 1, "highest") for op in ("rbf_matmul_backward", "mmd2")]
    full += [
        Case(op, "float32", d, 10 if d == 64 else 64, "highest")
        for op in ("rbf_matmul", "rbf_matmul_backward")
        for d in (3, 64)
    ]
    full += [Case("rbf_matmul_backward", "float32", 784, 10, "high"), Case("score", "float32", 64, 1, "high")]
    if not brief:
        return [(sm, tiles, case) for sm in (80, 90, 100) for tiles in (sm, 0) for case in full]
    few = [c for c in full if c.precision is None or (c.precision, c.d) == ("highest", 64)]
    few += [c for c in full if c.op == "score"]
    some = [c for c in few if c.op in ("rbf", "mmd2") and c.dtype == "float32" and c.d == 64]
    skipped = ("mmd2_of_x", "mmd2_of_parameters")
    of_hopper = [c for c in few if (c.d != 3 or c.op == "mmd2") and c.dtype != "float16" and c.op not in skipped]
    return [(90, 90, c) for c in of_hopper] + [(sm, sm, c) for sm in (80, 100) for c in some]


def rows(brief, only=""):
    seen = set()
    for sm, tiles, case in cases(brief):
        if only not in case.op:
            continue
        for kernel, arguments, options in launches(case, tiles):
            # launches of several cases may be one kernel
            made, settings = source(kernel, arguments, options, sm)
            key = (sm, made.hash(), str(settings))
            if key not in seen:
                seen.add(key)
                yield compile_row(case, kernel, arguments, options, sm, tiles)


def never_taken():
    """Rows of the table of tiles that no case takes on the architectures that they are for."""
    table = sys.modules["gkfast.kernels.gpu.tiles"]
    find, taken = table.row, set()

    def recorded(*arguments):
        found = find(*arguments)
        taken.add(found)
        return found

    table.row = recorded
    for _, tiles, case in cases(False):
        launches(case, tiles)
    table.row = find
    return [row for row in table.TILES if row not in taken]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brief", action="store_true", help="fewer cases, and no file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", default="", metavar="OP", help="operations whose name holds this")
    options = parser.parse_args()
    found = []
    for row in rows(options.brief, options.only):
        found.append(asdict(row) | {"wrong": row.wrong})
        if not options.json:
            if len(found) == 1:
                print(" ".join(f"{name:>10.10}" for name in found[0]))
            print(" ".join(f"{value!s:>10.22}" for value in found[-1].values()), flush=True)
    if options.json:
        print(json.dumps(found))
    elif not options.brief and not options.only:
        with open(ROOT / "bench/results/offline.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, found[0])
            writer.writeheader()
            writer.writerows(found)
    forgotten = [] if options.only else never_taken()
    for row in forgotten:
        print("never compiled:", *row[:4], file=sys.stderr)
    return int(bool(forgotten) or any(row["wrong"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
