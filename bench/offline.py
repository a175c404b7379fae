"""Compiles the GPU kernels without a GPU, says what came out, and how fast it would be.

    python bench/offline.py                    every case for every target; rows go to bench/results/offline.csv
    python bench/offline.py --targets 90,120   these alone: 80, 86, 89, 90, 100, 120, gfx942, gfx90a
    python bench/offline.py --bars             the speeds that are wanted of an H200, and those predicted
    python bench/offline.py --brief --json     what tests/test_gpu_launches.py asks for

The launchers themselves are called, on a GPU that is only pretended; their launches are recorded instead of run, and
each is compiled with the constants and types that it had. `make offline` does it by every version of Triton that is
supported; rows of other versions stay in the file. Exit status 1 if a kernel spills more than a few registers in its
hot loop, or much beside it, needs more registers or shared memory than there are, lacks the tensor-core instructions
that it should have, or has those that round float32, computes float32 exponentials the slow way, reads a product that
may still run, or if a row of the table of tiles was never compiled. Speeds: gpu_model.py, kernels/gpu/MODEL.md.
"""

import argparse
import csv
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import triton

# `python bench/offline.py` has the folder bench/ on the path, and not the checkout
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench import bars, gpu_model, hazards, sass
from bench.bars import HOPPER
from bench.launches import ROOT, TARGETS, Target, compile_for, empty, in_parallel, kernels, key_of, recorded

# of a block, and of a multiprocessor. A thread may have 255, all that eight warps can have: at any count above 128
# a multiprocessor holds one such block
REGISTERS = 65536
# instructions of a hot loop that may load or store spilled registers: of about a thousand
FEW_SPILLED = 12
# bytes of a thread that it may leave in memory outside of its hot loop, which runs once for many pairs
MOST_SPILLS = 512
# what tensor-core instructions are called in machine code: Ampere, Hopper, Blackwell, CDNA
TENSOR_CORE = r"\b(HMMA|HGMMA|UTC[A-Z]*MMA|DMMA|v_mfma_\w+)\b"
# of a pair of points, as columns
PER_PAIR = (
    *("instructions", "fp32", "special", "integer", "global_loads", "copies_4", "copies_8", "copies_16"),
    *("shared_loads", "shared_stores", "stores", "barriers", "shuffles", "tensor", "multiply_adds"),
)


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    d: int
    columns: int = 1
    precision: str = "highest"


@dataclass
class Row:
    """One compiled kernel."""

    triton: str
    # 10 times the compute capability, or AMD's name
    sm: int | str
    kernel: str
    op: str
    dtype: str
    d: int
    columns: int
    products: int
    tile: str
    warps: int
    registers: int = 0
    spills: int = 0
    # loads and stores of spilled registers in the hot loop
    spilled_in_loop: int = 0
    shared: int = 0
    tensor_core: int = 0
    # those that round float32
    rounded: int = 0
    ex2: int = 0
    slow_ex2: int = 0
    expects_tensor_core: bool = False
    # of the products of a tile, with M, N and K
    shapes: str = ""
    hazards: str = ""
    # remarkable, but not wrong
    notes: str = ""
    error: str = ""
    # how distances are found: products or differences
    form: str = ""
    # of a multiprocessor
    programs: int = 0
    per_pair: dict = field(default_factory=dict)
    # 10^12 pairs a second on an H200
    overlapped: float | None = None
    serial: float | None = None
    predicted: float | None = None
    bound: str = ""

    @property
    def wrong(self):
        target = TARGETS[str(self.sm)]
        # they are given out eight at a time
        block = -(-self.registers // 8) * 8 * 32 * self.warps
        faults = {
            self.error: bool(self.error),
            # kernels for AMD are untested, and their spills are only told
            "spills in the loop": self.spilled_in_loop > FEW_SPILLED,
            "spills": not target.amd and self.spills > MOST_SPILLS,
            "registers": not target.amd and block > REGISTERS,
            "shared memory": self.shared > target.shared,
            "no tensor core": not self.error and self.expects_tensor_core and not self.tensor_core,
            # tl.dot of float32 rounds to TensorFloat32 unless it is told otherwise
            "TensorFloat32": self.rounded > 0,
            "slow ex2": self.dtype != "float64" and self.slow_ex2 > 0,
            self.hazards: bool(self.hazards),
        }
        return ", ".join(name for name, fault in faults.items() if fault)

    def columns_of_file(self):
        found = asdict(self) | {"wrong": self.wrong}
        each = found.pop("per_pair")
        found |= {f"{name} a pair": round(each.get(name, 0), 3) if each else "" for name in PER_PAIR}
        return found


def call(case):
    """The public launchers of one case, on small tensors."""
    of = kernels()
    by = {"precision": case.precision}
    dtype = getattr(torch, case.dtype)
    n = 256
    x, y = empty(1, n, case.d, dtype=dtype), empty(1, n, case.d, dtype=dtype)
    v, a = empty(1, n, case.columns, dtype=dtype), empty(1, n, dtype=dtype)
    one = torch.ones(1, 1, dtype=torch.float64)
    shift = empty(1, n, 1, dtype=dtype)
    ladder = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]], dtype=torch.float64)
    # of a size that asks for the unit
    scaled = ladder * 2.0**40 if dtype != torch.float64 else ladder * 2.0**300
    if case.op.endswith("of_many"):
        # so many that programs do not make their rows of the table themselves; and ladders whose steps are not known
        x, y, v = (t.expand(96, *t.shape[1:]) for t in (x, y, v))
        g = empty(1, n, n, dtype=dtype).expand(96, n, n)
        one = one.expand(96, 1)
        ladder = ladder * torch.arange(1.0, 97.0, dtype=torch.float64)[:, None]

    def mmd2(sigma, weights, baseline, *wants):
        arguments = (one.expand(1, 1, 3), x, y, a, a, sigma, weights, baseline)
        of.baselines(x, y, sigma)
        of.kernel_sums_with_gradients(*arguments, drop=1, wants=wants, **by)

    if case.op == "rbf" or case.op == "rbf_of_many":
        of.rbf(x, y, one, one, **by)
    elif case.op == "rbf_of_x":
        of.rbf(x, None, one, one, **by)
    elif case.op == "rbf_matmul_of_many":
        of.rbf_matmul(x, y, v, ladder, ladder, **by)
    elif case.op == "rbf_backward_of_x":
        of.rbf_backward(empty(1, n, n, dtype=dtype), x, None, one, one, wants=(True, False, True, True), **by)
    elif case.op == "rbf_backward_of_many":
        of.rbf_backward(g, x, y, one, one, wants=(True,) * 4, **by)
    elif case.op == "rbf_backward":
        of.rbf_backward(empty(1, n, n, dtype=dtype), x, y, one, one, wants=(True,) * 4, **by)
    elif case.op == "rbf_matmul":
        of.rbf_matmul(x, y, v, one, one, **by)
    elif case.op == "rbf_matmul_backward":
        of.rbf_matmul_backward(v, x, y, v, one, one, wants=(True,) * 5, **by)
    elif case.op == "density_backward":
        of.rbf_matmul_backward(v, x, y, v, one, one, shift, skip_diagonal=True, wants=(True,) * 5, **by)
    elif case.op == "rbf_of_bandwidths":
        of.rbf(x, y, scaled, ladder, **by)
    elif case.op == "kernel_sums_of_bandwidths":
        mmd2(scaled, ladder, ladder, *(False,) * 6)
    elif case.op == "mmd2_of_everything":
        mmd2(scaled, ladder, ladder, *(True,) * 6)
    elif case.op == "signs":
        of.rbf_matmul(x, x, v, one, one, None, one, skip_diagonal=True, **by)
    elif case.op == "mmd2":
        mmd2(ladder, ladder, ladder, True, True, *(False,) * 4)
    elif case.op == "mmd2_of_x":
        mmd2(one, one, one, True, *(False,) * 5)
    elif case.op == "kernel_sums":
        of.kernel_sums_with_gradients(None, x, y, a, a, one, one, drop=1, wants=(False,) * 6, **by)
    elif case.op == "mmd2_of_parameters":
        mmd2(one, one, one, *(False,) * 4, True, True)
    elif case.op == "log_density":
        # few rows and many columns, so that these are swept in parts
        y, a = empty(1, 2 * n, case.d, dtype=dtype), empty(1, 2 * n, dtype=dtype)
        of.log_density(x[:, :32], y, one, one, a, leave_one_out=True, **by)
    elif case.op == "log_density_by_bandwidth":
        of.log_density_by_bandwidth(x, y, ladder, a, leave_one_out=True, **by)
    elif case.op == "score":
        of.log_density(x, y, one, one, a, leave_one_out=True, **by)
        of_x = (True, False, False, False, False)
        # in float64 at highest, as are few coordinates then
        wide = torch.float64 if case.precision == "highest" else dtype
        if case.precision == "highest" and case.d <= 4:
            x, y, v = (empty(*t.shape, dtype=wide) for t in (x, y, v))
        shift = empty(1, n, 1, dtype=wide)
        of.rbf_matmul_backward(v, x, y, v, one, one, shift, skip_diagonal=True, wants=of_x, **by)
    else:
        raise ValueError(case.op)


OPS = ["rbf", "rbf_backward", "rbf_matmul", "rbf_matmul_backward", "mmd2"]
SUMS = ["kernel_sums", "mmd2_of_x", "rbf_of_bandwidths", "kernel_sums_of_bandwidths", "mmd2_of_everything"]
# numbers of coordinates that products take whole, and one of which they take blocks
WHOLE, STREAMED = (16, 64, 128), 784


def cases():
    """The cases of one architecture: all of them."""
    found = [Case(op, "float32", d) for op in OPS for d in (3, 64, STREAMED)]
    found += [Case(op, "float32", d) for op in ("rbf", "rbf_matmul", "mmd2") for d in WHOLE]
    found += [Case(op, "float32", 64) for op in SUMS]
    found += [Case("mmd2_of_everything", "float32", d) for d in (3, STREAMED)]
    found += [Case(op, "float64", 3) for op in OPS]
    found += [Case(op, "float64", 64) for op in ("rbf", "mmd2_of_everything")]
    found += [Case(op, "float32", 64, 1, p) for op in ("rbf", "rbf_matmul", "mmd2") for p in ("high", "medium")]
    found += [Case("log_density", "float32", d) for d in (3, 16, 128, STREAMED)]
    found += [Case("log_density_by_bandwidth", "float32", d) for d in (3, 64)]
    found += [Case("log_density_by_bandwidth", "float32", 3, 1, "high")]
    found += [Case("score", "float32", d) for d in (3, 16, STREAMED)]
    found += [Case("log_density", "float32", d, 1, "high") for d in (3, 16)]
    found += [Case("score", "float32", 64, 1, "high"), Case("log_density", "float64", 16)]
    found += [Case("density_backward", "float64", 16)]
    found += [Case(op, "float32", 16, 10) for op in OPS[2:4]] + [Case("rbf_matmul_backward", "float64", 16, 10)]
    found += [Case("rbf_matmul", "float32", 3, 64), Case("rbf_matmul_backward", "float32", STREAMED, 64)]
    # relabellings of a permutation test
    found += [Case("signs", "float32", d, 512) for d in (3, 64)]
    found += [Case("rbf", "bfloat16", 3), Case("rbf_matmul", "bfloat16", 64)]
    found += [Case("mmd2_of_parameters", "float32", 64)]
    found += [Case(op, "float32", 64) for op in ("rbf_of_x", "rbf_backward_of_x")]
    found += [Case("rbf_of_x", "float32", d) for d in (3, STREAMED)] + [Case("rbf_of_x", "float64", 64)]
    found += [Case(op, "float32", 64) for op in ("rbf_of_many", "rbf_backward_of_many", "rbf_matmul_of_many")]
    return found


def some_cases():
    """Those that take each row of the table of tiles once, and each kernel."""
    found = [Case(op, "float32", d) for op in OPS for d in (3, 64)]
    found += [Case("mmd2", "float32", STREAMED), Case("mmd2_of_everything", "float32", STREAMED)]
    found += [Case("rbf_matmul_backward", "float32", 64, 10), Case("signs", "float32", 3, 512)]
    found.append(Case("rbf_matmul_of_many", "float32", 64))
    found += [Case(op, "float32", 64) for op in ("rbf_of_x", "rbf_backward_of_x", "log_density")]
    found.append(Case("log_density_by_bandwidth", "float32", 64))
    found += [Case(op, "float64", 3) for op in ("rbf", "mmd2")]
    return found


def work_of(brief):
    """(target, case); brief: what differs between kernels or architectures, each on one."""
    if not brief:
        return [
            (target, case) for target in TARGETS.values() for case in (cases() if target is HOPPER else some_cases())
        ]
    few = [c for c in cases() if (c.d in (16, 64) or c.op == "mmd2") and c.d != STREAMED]
    few = [c for c in few if c.dtype != "bfloat16" and c.precision != "medium" and c.columns < 64]
    few = [c for c in few if c.op not in SUMS and (c.d != 16 or c.op in ("log_density", "score"))]
    few += [Case("mmd2", "float32", STREAMED)]
    some = [Case(op, "float32", 64) for op in ("rbf", "mmd2")]
    others = [TARGETS[name] for name in ("80", "100", "120", "gfx942")]
    return [(HOPPER, c) for c in few] + [(target, c) for target in others for c in some]


@dataclass
class Work:
    """A kernel to compile, and the first case that launches it."""

    target: Target
    case: Case
    launch: object


def compiled_row(work):
    target, case, launch = work.target, work.case, work.launch
    variant = launch.variant
    products = variant.DOT if variant else launch.options.get("DOT", 0)
    row = Row(
        triton.__version__,
        target.arch,
        launch.kernel.__name__,
        case.op,
        case.dtype,
        case.d,
        case.columns,
        products,
        "x".join(map(str, variant[:3])) if variant else "",
        launch.warps,
        expects_tensor_core=variant is not None and variant.DOT > 0,
    )
    try:
        compiled = compile_for(target, launch)
    except Exception as error:
        row.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        return row
    row.registers, row.spills, row.shared = compiled.registers, compiled.spills, compiled.shared
    row.tensor_core = len(re.findall(TENSOR_CORE, compiled.code))
    row.hazards, row.notes = ("; ".join(found) for found in hazards.hazards(compiled.ttgir, compiled.code))
    if target.amd:
        row.ex2 = compiled.assembly.count("v_exp_f32")
        return row
    row.ex2, row.slow_ex2 = (compiled.assembly.count(name) for name in ("ex2.approx.ftz.f32", "ex2.approx.f32"))
    program = sass.Program(compiled.code)
    row.rounded = sum(i.base in sass.TENSOR and "TF32" in i.name for i in program.instructions)
    shapes = Counter(sass.shape_of(i) for i in program.instructions if i.base in sass.TENSOR)
    row.shapes = " ".join(f"{n}x{shape}" for shape, n in sorted(shapes.items()))
    # the model knows the loops of float32
    by_model = case.dtype != "float64" and variant is not None and variant.ACC.primitive_bitwidth == 32
    shape, work = gpu_model.read(launch, compiled) if by_model else (None, None)
    row.spilled_in_loop = gpu_model.spilled(program, shape)
    if shape is None:
        return row
    row.form, row.programs, row.per_pair = work.form, shape.resident, dict(gpu_model.per_pair(work, shape))
    row.notes = "; ".join([*filter(None, [row.notes]), *work.notes])
    if target is HOPPER:
        bound = gpu_model.bounds(work, shape)
        row.overlapped, row.serial, row.predicted = (
            round(x, 4) for x in (bound.overlapped, bound.serial, bound.predicted)
        )
        row.bound = bound.binding
    return row


def every_kernel(brief, only="", targets=()):
    """Every kernel once."""
    found = {}
    for target, case in work_of(brief):
        if only not in case.op or (targets and target.name not in targets):
            continue
        for launch in recorded(target, lambda case=case: call(case)):
            # launches of several cases may be one kernel
            found.setdefault(key_of(target, launch), Work(target, case, launch))
    return list(found.values())


def never_taken():
    """Rows of the table of tiles that no case takes on the architectures that they are for."""
    kernels()
    table = sys.modules["gkfast.kernels.gpu.tiles"]
    find, taken = table.row, set()

    def recorded_row(*arguments):
        found = find(*arguments)
        taken.add(found)
        return found

    table.row = recorded_row
    for target, case in work_of(False):
        recorded(target, lambda case=case: call(case))
    table.row = find
    return [row for row in table.TILES if row not in taken]


def write(rows, path):
    """Rows of these targets by this version of Triton take the place of those before; all others stay."""
    kept, made = [], {(row["triton"], str(row["sm"])) for row in rows}
    if path.exists():
        with open(path, newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row.get("triton"), row.get("sm")) not in made]
    kept = [row for row in kept if set(row) == set(rows[0])]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept + rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brief", action="store_true", help="fewer cases, and no file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", default="", metavar="OP", help="operations, or bars, whose name holds this")
    parser.add_argument("--targets", default="", metavar="NAMES", help="these alone, with commas")
    parser.add_argument("--bars", action="store_true", help="speeds wanted and predicted at real sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/offline.csv")
    options = parser.parse_args()
    if options.bars:
        if options.json:
            print(
                json.dumps([{"triton": triton.__version__} | row for row in bars.table(options.only, lambda _: None)])
            )
        else:
            print(f"triton {triton.__version__}, sm_90, predicted for an H200")
            bars.table(options.only, lambda line: print(line, flush=True))
        return 0
    targets = [name for name in options.targets.split(",") if name]
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    start, found = time.monotonic(), []

    def say(done, row):
        found.append(row.columns_of_file())
        if not options.json:
            print(line_of(row), flush=True)
            if done % 20 == 0:
                took = time.monotonic() - start
                print(f"{done} of {len(work)} kernels in {took:.0f} s", file=sys.stderr, flush=True)

    work = every_kernel(options.brief, options.only, targets)
    in_parallel(compiled_row, work, say)
    if options.json:
        print(json.dumps(found))
    elif found and not options.brief and not options.only:
        write(found, options.out)
    forgotten = [] if options.only or targets else never_taken()
    for row in forgotten:
        print("never compiled:", *row[:4], file=sys.stderr)
    return int(bool(forgotten) or any(row["wrong"] for row in found))


def line_of(row):
    each, speed = row.per_pair, ""
    if each:
        speed = f"{each['instructions']:7.1f} instructions {each.get('global_loads', 0):6.2f} loads a pair"
    if row.predicted is not None:
        speed += f" {row.predicted:7.3f} Tp/s ({row.overlapped:.3f} to {row.serial:.3f}), {row.bound}"
    return (
        f"{row.sm!s:>6} {row.kernel:20} {row.op:24} {row.dtype:8} D={row.d:<4} E={row.columns:<4} P={row.products} "
        f"{row.tile:>10} {row.warps} warps {row.registers:3} registers {row.spills:3} spilled "
        f"({row.spilled_in_loop} in the loop) {row.shared:6} shared "
        f"{row.form:11} {speed} {row.wrong}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
