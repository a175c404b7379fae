"""Memory of gkfast's reductions at 50 000 x 50 000 points, beside plain torch's where that fits.

    python -m bench.peak_memory

writes bench/results/peak_memory.csv. Each row is a process of its own: the operation runs once at a small size, so
that compiled code and threads are there, then at full size; the row's figure is the greatest resident set during the
second call less the resident set before it (Linux tells both). Plain torch stores N x N matrices, so it is measured
at N = 4000, and what these would need at the full size is worked out from the number of them that it held there.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

# what a row's process runs
PROGRAM = """
import math, time
import torch
import gkfast
from bench.peak_memory import plain_log_density, plain_matmul, plain_mmd2, resident

def run(n):
    rng = torch.Generator().manual_seed(20)
    x, y = torch.randn(2, n, {dims}, generator=rng)
    y, v = y + 0.5, torch.ones(n)
    x.requires_grad_()
    v.requires_grad_()
    sigma = math.sqrt({dims})
    ladder = [sigma / 2, sigma, 2 * sigma]
    {call}

run(64)
# forgets the peak of the first call, which compiles
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
start = time.perf_counter()
run({rows})
seconds = time.perf_counter() - start
print(resident("VmHWM") - before, seconds)
"""

SECOND = """
    (dx,) = torch.autograd.grad({value}, x, create_graph=True)
    torch.autograd.grad((dx * x.detach()).sum(), x)"""
# each operation: gkfast's call, and the same of plain torch
OPERATIONS = {
    "mmd2, value and gradient, 3 bandwidths": (
        "torch.autograd.grad(gkfast.mmd2(x, y, ladder), x)",
        "torch.autograd.grad(plain_mmd2(x, y, ladder), x)",
    ),
    "mmd2, Hessian-vector product, 3 bandwidths": (
        SECOND.format(value="gkfast.mmd2(x, y, ladder)"),
        SECOND.format(value="plain_mmd2(x, y, ladder)"),
    ),
    "rbf_matmul, forward": (
        "gkfast.rbf_matmul(x.detach(), y, v.detach(), sigma)",
        "plain_matmul(x.detach(), y, v.detach(), sigma)",
    ),
    "rbf_matmul, forward and backward": (
        "torch.autograd.grad(gkfast.rbf_matmul(x, y, v, sigma).sum(), (x, v))",
        "torch.autograd.grad(plain_matmul(x, y, v, sigma).sum(), (x, v))",
    ),
    "rbf_matmul, double backward": (
        SECOND.format(value="gkfast.rbf_matmul(x, y, v, sigma).sum()"),
        SECOND.format(value="plain_matmul(x, y, v, sigma).sum()"),
    ),
    "log_density, value and gradient": (
        "torch.autograd.grad(gkfast.log_density(x, y, sigma).sum(), x)",
        "torch.autograd.grad(plain_log_density(x, y, sigma).sum(), x)",
    ),
}


def resident(field):
    """KiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _squared_distance(x, y):
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)


def plain_matmul(x, y, v, sigma):
    return (_squared_distance(x, y) / (-2 * sigma**2)).exp() @ v


def plain_log_density(x, y, sigma):
    """Up to a constant."""
    return (_squared_distance(x, y) / (-2 * sigma**2)).logsumexp(1)


def plain_mmd2(x, y, ladder):
    n = len(x)

    def total(p, q):
        d = _squared_distance(p, q)
        return sum((d / (-2 * s**2)).exp() for s in ladder)

    xx, yy, xy = total(x, x), total(y, y), total(x, y)
    within = (xx.sum() - xx.diagonal().sum()) + (yy.sum() - yy.diagonal().sum())
    return within / (n * (n - 1)) - 2 * xy.mean()


def measured(call, rows, dims):
    """MiB by which the resident set grew at most, and seconds of the call."""
    program = PROGRAM.format(call=call.strip(), rows=rows, dims=dims)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown, seconds = done.stdout.split()
    return int(grown) / 1024, float(seconds)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.peak_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000, help="N = M of gkfast's rows")
    parser.add_argument("--plain-rows", type=int, default=4000, help="N = M of plain torch's rows")
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    n, small = options.rows, options.plain_rows
    print(
        f"float32, D = {options.dims}; one matrix is {_matrix(n):.0f} MiB at N = {n}, {_matrix(small):.0f} at {small}"
    )
    columns = f"{'gkfast MiB':>10} {'s':>7}  {'torch MiB':>9} {'s':>5} {'matrices':>8} {'torch at N, MiB':>15}"
    print(f"{'operation':44} {columns}")
    table = []
    for name, (ours, theirs) in OPERATIONS.items():
        grown, seconds = measured(ours, n, options.dims)
        plain, plain_seconds = measured(theirs, small, options.dims)
        matrices = plain / _matrix(small)
        line = {
            "operation": name,
            "D": options.dims,
            "gkfast_N": n,
            "gkfast_MiB": round(grown, 1),
            "gkfast_s": round(seconds, 2),
            "inputs_MiB": round(2 * n * options.dims * 4 / 2**20, 1),
            "torch_N": small,
            "torch_MiB": round(plain, 1),
            "torch_s": round(plain_seconds, 2),
            "torch_matrices": round(matrices, 1),
            "torch_MiB_at_gkfast_N": round(matrices * _matrix(n)),
        }
        table.append(line)
        print(
            f"{name:44} {grown:10.1f} {seconds:7.1f}  {plain:9.1f} {plain_seconds:5.1f} {matrices:8.1f} "
            f"{matrices * _matrix(n):15.0f}",
            flush=True,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "peak_memory.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    print(f"rows in {path}")


def _matrix(n):
    """MiB of N x N in float32."""
    return n * n * 4 / 2**20


if __name__ == "__main__":
    main()
