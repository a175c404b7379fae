"""Losses of one-step generators on the CPU against dense torch, each row checked against float64 before it is timed.

    python -m bench.one_step [--repeats 9]

drift: 128 problems of 64 generated samples against 96 real ones and themselves in 64 dimensions, and one of 4096
against 4096 and themselves in 256; sigma is a quarter of the median distance. landmarks: value and gradient of
LandmarkMMDLoss for a batch of 5120, 4096 landmarks, 768 dimensions, against one torch.mm of 5120 x 9216 x 768.
The two of a row take turns; times are the least, wall-clock and of all cores together: on a machine with other work
the latter says more. With one thread, then with all. Writes bench/results/one_step.csv.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import gkfast
import gkfast.nn

RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    case: str
    rival: str
    gkfast_ms: float
    rival_ms: float
    ratio: float
    gkfast_cpu_ms: float
    rival_cpu_ms: float
    cpu_ratio: float
    error: float  # of the norm, against float64
    rival_error: float
    threads: int


def by_softmax(fake: torch.Tensor, real: torch.Tensor, sigma: float) -> torch.Tensor:
    """The published algorithm, with a Gaussian."""
    logs = _logs(fake, real, sigma)
    to_real, to_fake = (logs.softmax(-1) * logs.softmax(-2)).sqrt_().split([real.shape[-2], fake.shape[-2]], -1)
    return _field(to_real, to_fake, fake, real)


def by_logsumexp(fake: torch.Tensor, real: torch.Tensor, sigma: float) -> torch.Tensor:
    """The same with fewer passes over the matrix."""
    logs = _logs(fake, real, sigma)
    rows, columns = logs.logsumexp(-1, keepdim=True), logs.logsumexp(-2, keepdim=True)
    shares = logs.sub_(rows / 2).sub_(columns / 2).exp_()
    return _field(*shares.split([real.shape[-2], fake.shape[-2]], -1), fake, real)


def _logs(fake: torch.Tensor, real: torch.Tensor, sigma: float) -> torch.Tensor:
    targets = torch.cat([real, fake], -2)
    squares = fake.square().sum(-1)[..., :, None] + targets.square().sum(-1)[..., None, :]
    logs = torch.baddbmm(squares, fake, targets.mT, beta=-1 / (2 * sigma**2), alpha=1 / sigma**2)
    logs[..., real.shape[-2] :].diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return logs


def _field(to_real: torch.Tensor, to_fake: torch.Tensor, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    pull, push = to_real * to_fake.sum(-1, keepdim=True), to_fake * to_real.sum(-1, keepdim=True)
    return pull @ real - push @ fake


def timed(ours: Callable[[], object], rival: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Least (wall-clock, CPU) milliseconds of each, taken in turns."""
    found: list[list[tuple[float, float]]] = [[], []]
    for call in (ours, rival):
        call()
    for _ in range(repeats):
        for k, call in enumerate((ours, rival)):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            found[k].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return [(min(w for w, _ in times), min(c for _, c in times)) for times in found]


def row(case: str, rival: str, times: list[tuple[float, float]], error: float, rival_error: float) -> Row:
    (wall, cpu), (rival_wall, rival_cpu) = times
    # a torch.mm is a bound: how many of it we take; else how many times faster we are
    over = (wall / rival_wall, cpu / rival_cpu) if rival == "torch.mm" else (rival_wall / wall, rival_cpu / cpu)
    threads = torch.get_num_threads()
    return Row(case, rival, wall, rival_wall, over[0], cpu, rival_cpu, over[1], error, rival_error, threads)


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def drift_rows(repeats: int) -> list[Row]:
    found = []
    for batch, n, m, dims in ((128, 64, 96, 64), (1, 4096, 4096, 256)):
        generator = torch.Generator().manual_seed(0)
        fake = torch.randn(batch, n, dims, generator=generator)
        real = 1.1 * torch.randn(batch, m, dims, generator=generator) + 0.2
        sigma = float(gkfast.median_sigma(fake[0], real[0])) / 4
        truth = by_softmax(fake.double(), real.double(), sigma)
        ours = gkfast.drift(fake, real, sigma=sigma)
        assert off(ours, truth) < 1e-5
        for rival in (by_softmax, by_logsumexp):
            times = timed(
                lambda f=fake, r=real, s=sigma: gkfast.drift(f, r, sigma=s),
                lambda f=fake, r=real, s=sigma, g=rival: g(f, r, s),
                repeats * (5 if batch > 1 else 1),
            )
            case = f"drift {batch} x {n} x {m + n} D={dims}"
            found.append(row(case, rival.__name__, times, off(ours, truth), off(rival(fake, real, sigma), truth)))
    return found


def landmark_rows(repeats: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8192, 768, generator=generator)
    x = (1.05 * torch.randn(5120, 768, generator=generator) + 0.02).requires_grad_()
    loss = gkfast.nn.LandmarkMMDLoss(data, "median", scales=(1.0,), landmarks=4096)
    print(loss)
    mm = torch.randn(9216, 768, generator=generator)

    def ours() -> torch.Tensor:
        return torch.autograd.grad(loss.mmd2(x), x)[0]

    z, alpha, sigma = loss.points.double(), loss.numbers.coefficients, float(loss.numbers.sigma)
    wide = x.detach().double().requires_grad_()
    k = [(-torch.cdist(wide, p).square() / (2 * sigma**2)).exp() for p in (wide.detach(), z)]
    # each of two equal points pulls the other
    (truth,) = torch.autograd.grad(2 * k[0].mean() - 2 * (k[1] @ alpha).mean(), wide)
    error = off(ours(), truth)
    assert error < 1e-5, error
    times = timed(ours, lambda: torch.mm(x.detach(), mm.T), repeats)
    return [row("landmarks 5120 x 4096 D=768", "torch.mm", times, error, 0.0)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.one_step", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    found = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        found += [*drift_rows(arguments.repeats), *landmark_rows(arguments.repeats)]
    with open(arguments.out / "one_step.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in r] for r in found)
    for r in found:
        print(
            f"{r.threads} {r.case:34} {r.rival:13} {r.gkfast_ms:7.1f} {r.rival_ms:7.1f} ms  x{r.ratio:.2f}   "
            f"CPU {r.gkfast_cpu_ms:7.1f} {r.rival_cpu_ms:7.1f} ms  x{r.cpu_ratio:.2f}   error {r.error:.1e}"
        )


if __name__ == "__main__":
    main()
