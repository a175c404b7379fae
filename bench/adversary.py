"""A search for the data on which gkfast errs most, quantity by quantity, and what it finds.

    python -m bench.adversary [--seconds 120] [--seed 0]

starts from data that are hard for some reason (see POINTS) at random, climbs from the worst so far by changing their
knobs and single coordinates, and writes the worst of each quantity to bench/results/adversary.csv, with the recipe
that makes it again. It ends with status 1 where a bound is broken. The truth is computed from the same rounded inputs
by differences, one precision wider: float64 for float32, x87's long double for float64.

A row has two errors. `share` is held to a bound: the error over the sum of the magnitudes of the terms, each times
1 + its exponent, because a rounded exponent z makes exp(-z) wrong by z eps of itself. `error` is in the measure of
bench.accuracy, absolute for K, relative in norm for gradients: of terms that cancel to less than a tenth of their
magnitudes it is left out, since it has no bound there.
"""

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import gkfast

RESULTS = Path(__file__).parent / "results"
DIMS = (1, 2, 3, 5, 8, 12, 13, 16, 17, 32, 48, 64, 65, 128, 255, 256, 257, 513, 784, 1024, 2049, 3072)
DTYPES = ("float32", "float64")
# above this many multiply-adds the kernels may take distances by the product
PRODUCTS = 1 << 18

# of `share`; each is proven in kernels/cpu/bandwidths.py and below, not measured
BOUNDS = {
    # distance 8e-7, exponent and polynomial 2e-7; or, by differences, (36 + D / 256) eps / 2 of the exponent
    "rbf": {"float32": 1e-6, "float64": 1e-14},
    # distance 6e-6, 24 roundings of the sum, exponent and polynomial
    "matmul": {"float32": 1e-5, "float64": 5e-14},
    # distance 1.2e-5; 40 roundings of sums of terms up to 16 times as long as the pulls in them
    "gradient": {"float32": 5e-5, "float64": 2e-13},
    # distance 8e-6, sums of 128 terms
    "parameter": {"float32": 2e-5, "float64": 4e-14},
    # that of matmul for each of xx + yy - 2 xy, which are together at most 5 times the greater of MMD^2 and xy
    "mmd2": {"float32": 4e-5, "float64": 2.5e-13},
    "log_density": {"float32": 3e-6, "float64": 5e-14},
    # made in float64, and rounded
    "score": {"float32": 1e-7, "float64": 5e-13},
}
# which of them holds for a quantity
KINDS = {
    "rbf": "rbf",
    "rbf dx": "gradient",
    "rbf dy": "gradient",
    "rbf dsigma": "parameter",
    "rbf dweights": "parameter",
    "matmul": "matmul",
    "matmul dx": "gradient",
    "matmul dy": "gradient",
    "matmul dv": "matmul",
    "matmul dsigma": "parameter",
    "matmul dweights": "parameter",
    "mmd2": "mmd2",
    "mmd2 dx": "gradient",
    "mmd2 dy": "gradient",
    "mmd2 dsigma": "parameter",
    "mmd2 dweights": "parameter",
    "log_density": "log_density",
    "score": "score",
}


class Knobs(NamedTuple):
    """Each from 0 to 1; what points mean by theirs stands with them."""

    spread: float
    near: float
    shape: float
    anchor: float  # above 1/2 a row of x is mirrored, so that no centre is subtracted
    sigma: float  # 1/2 is the root mean square of the points' norms; the whole range is a factor of 256
    count: float  # bandwidths, 1 to 4
    ratio: float  # of one bandwidth to the next
    signs: float  # of the weights of bandwidths
    pairs: float  # of the weights of pairs


@dataclass(frozen=True)
class Recipe:
    points: str
    dims: int
    rows: int  # of x, and of y
    seed: int
    knobs: Knobs
    edits: tuple[tuple[int, int, float], ...] = ()  # row of x and y together, coordinate, factor

    def text(self) -> str:
        return json.dumps(
            [self.points, self.dims, self.rows, self.seed, list(self.knobs), list(map(list, self.edits))]
        )

    @staticmethod
    def read(text: str) -> "Recipe":
        points, dims, rows, seed, knobs, edits = json.loads(text)
        return Recipe(points, dims, rows, seed, Knobs(*knobs), tuple((int(i), int(k), f) for i, k, f in edits))


class Problem(NamedTuple):
    x: np.ndarray  # (N, D)
    y: np.ndarray  # (N, D)
    sigma: list[float]
    weights: list[float]
    g: np.ndarray  # (N, N) of K
    u: np.ndarray  # (N,) of K @ v
    v: np.ndarray  # (N,)


def normal(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """`near` takes them off the origin, by up to 1e4 times their spread."""
    return rng.normal(size=z.shape) + (10 ** (4 * k.near) if k.near > 0.3 else 0.0)


def clusters(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """Two, of which `near` is the radius and `spread` the distance."""
    centre = rng.normal(size=z.shape[1]) if k.shape < 0.5 else np.ones(z.shape[1])
    side = np.where(rng.random(len(z)) < 0.5, 1.0, -k.spread)
    return side[:, None] * centre + 10 ** (-5 * k.near) * rng.normal(size=z.shape)


def twins(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """One point over and over, the others `near` to it: about where the form of the distance changes."""
    return rng.normal(size=z.shape[1]) + 10 ** (-5 * k.near) * rng.normal(size=z.shape)


def grey(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """Rows of equal coordinates: roundings of a sum over them go the same way."""
    level = rng.random() + 10 ** (-5 * k.near) * rng.normal(size=(len(z), 1))
    return np.tile(level * (1 + k.spread), z.shape[1])


def two_values(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    one, other = (rng.random() + 10 ** (-5 * k.near) * rng.normal(size=(len(z), 1)) for _ in range(2))
    return np.where(rng.random(z.shape[1]) < k.shape, one, other)


def powers(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """Powers of two and their neighbours; all rows but for neighbours alike where `near` is large."""
    exponent = -rng.integers(0, 1 + int(12 * k.spread), size=z.shape if k.near < 0.5 else z.shape[1:])
    sign = np.where(rng.random(z.shape[1]) < k.shape, 1.0, -1.0)
    return sign * 2.0**exponent * (1 + eps * rng.integers(-2, 3, size=z.shape))


def spikes(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """One large coordinate, and others whose squares are about half a unit in the last place of the sum so far.

    So every term of a sum may be lost, or counted double; they have one sign in x and the other in y.
    """
    at = np.arange(z.shape[1])
    part = np.where(at < 16, 1.0, np.where(at < 256, 1 / 16, 1 / 256))
    tiny = np.sqrt(eps / 2 * part * 4 ** (k.near - 0.5))
    points = np.where(at == 0, np.sqrt(1 + k.spread), tiny) * np.ones((len(z), 1))
    points[len(z) // 2 :, 1:] *= -1 if k.shape < 0.7 else 0.9
    if k.shape < 0.2:
        # differences are the spikes themselves
        points[: len(z) // 2] = 0
    points[:, 1:] *= 1 + 0.02 * k.signs * rng.normal(size=(len(z), z.shape[1] - 1))
    return points


def greedy(rng: np.random.Generator, z: np.ndarray, k: Knobs, eps: float) -> np.ndarray:
    """A pair whose every coordinate is the one of 64 that rounds |x|^2 and |y|^2 one way and x.y the other."""
    narrow = np.float32 if eps > 1e-10 else np.float64
    wide = np.float64 if eps > 1e-10 else np.longdouble
    dims = z.shape[1]
    base = 1 + k.spread * rng.normal(size=dims)
    other = base * (1 - 2 * k.shape) + 10 ** (-5 * k.near) * rng.normal(size=dims)
    way = 1.0 if rng.random() < 0.5 else -1.0
    one, two = np.zeros(3, wide), np.zeros(3, wide)
    pair = np.empty((2, dims))
    for at in range(dims):
        candidates = np.stack([base[at], other[at]])[:, None] * (1 + 0.01 * rng.normal(size=(2, 64)))
        a, b = candidates.astype(narrow).astype(wide)
        exact = one[:, None] + np.stack([a * a, b * b, a * b])
        rounded = exact.astype(narrow).astype(wide)
        lost = rounded - exact
        last = at % 16 == 15
        if last:
            exact = two[:, None] + rounded
            beyond = exact.astype(narrow).astype(wide)
            lost = lost + beyond - exact
        best = int(np.argmax(way * (lost[0] + lost[1] - 2 * lost[2])))
        pair[:, at] = a[best], b[best]
        one = rounded[:, best]
        if last:
            one, two = np.zeros(3, wide), beyond[:, best]
    return np.where(np.arange(len(z))[:, None] < len(z) // 2, pair[0], pair[1])


POINTS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (normal, clusters, twins, grey, two_values, powers, spikes, greedy)
}


def problem_of(recipe: Recipe, dtype: str) -> Problem:
    rng = np.random.default_rng(recipe.seed)
    knobs, n, real = recipe.knobs, recipe.rows, np.dtype(dtype).type
    points = POINTS[recipe.points](rng, np.empty((2 * n, recipe.dims)), knobs, float(np.finfo(real).eps))
    if knobs.anchor > 0.5:
        points[n - 1] *= -1
    for row, at, factor in recipe.edits:
        points[row % (2 * n), at % recipe.dims] *= factor
    points = points.astype(real)
    norms = math.sqrt(np.square(points, dtype=np.float64).sum(1).mean())
    count = 1 + int(3.99 * knobs.count**2)
    ratio = (2.0, 2**0.5, 4.0, 1.0 + 2 * knobs.shape)[int(3.99 * knobs.ratio)]
    sigma = [norms * 2 ** (8 * knobs.sigma - 4) * ratio**s for s in range(count)]
    weights = (
        [1.0] * count,
        list(rng.random(count)),
        list(rng.normal(size=count)),
        [(-1.0) ** s for s in range(count)],
    )[int(3.99 * knobs.signs)]

    def of_rows() -> np.ndarray:
        kind = int(3.99 * knobs.pairs)
        if kind == 0 and knobs.shape < 0.3:
            # one term, and others that may be lost beside it
            return np.where(np.arange(n) == 0, 1, np.finfo(real).eps / 2).astype(real)
        if kind == 0:
            return np.ones(n, real)
        if kind == 1:
            return (-1.0) ** np.arange(n).astype(real)
        return (rng.normal(size=n) if kind == 2 else rng.random(n)).astype(real)

    g = of_rows()[:, None] * of_rows() if knobs.pairs < 0.8 else rng.normal(size=(n, n)).astype(real)
    return Problem(points[:n], points[n:], sigma, weights, g.astype(real), of_rows(), of_rows())


class Truth(NamedTuple):
    value: np.ndarray
    magnitude: np.ndarray  # what a share of is allowed: that shape, or a row's
    measure: float  # what the error is divided by in the measure of bench.accuracy


def truths_of(p: Problem) -> dict[str, Truth]:
    wide = np.float64 if p.x.dtype == np.float32 else np.longdouble
    x, y, g, u, v = (a.astype(wide) for a in (p.x, p.y, p.g, p.u, p.v))
    sigma, weights = np.array(p.sigma, wide)[:, None, None], np.array(p.weights, wide)[:, None, None]
    n = len(x)
    limits = np.finfo(p.x.dtype)
    # a kernel below the dtype's range is 0
    least = float(limits.tiny) / float(limits.eps)

    def exponents(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d2 = np.stack([np.square(row - b).sum(1) for row in a])
        return d2, d2 / (2 * sigma * sigma)

    found: dict[str, Truth] = {}

    def add(name: str, value: np.ndarray, magnitude: np.ndarray, measure: float | None = None) -> None:
        value = np.asarray(value)
        norm = float(np.sqrt(np.square(value).sum())) if measure is None else measure
        found[name] = Truth(value, np.asarray(magnitude), norm)

    def pulls(c: np.ndarray, a: np.ndarray, b: np.ndarray, z: np.ndarray, d2: np.ndarray) -> tuple[np.ndarray, ...]:
        """sum_j c_ij k_ij (b_j - a_i) / sigma^2 and the magnitudes of its terms."""
        k = np.exp(-z)
        pull = c * (weights * k / sigma**2).sum(0)
        size = np.abs(c) * (np.abs(weights) * (k * (1 + z) + least) / sigma**2).sum(0)
        value = np.stack([pull[i] @ (b - a[i]) for i in range(len(a))])
        return value, (size * np.sqrt(d2)).sum(1)

    def parameters(name: str, c: np.ndarray, z: np.ndarray, less: np.ndarray | None = None) -> None:
        k = np.exp(-z)
        terms, sizes = c * weights * k * 2 * z / sigma, np.abs(c * weights) * (k * (1 + z) + least) * 2 * z / sigma
        add(f"{name} dsigma", terms.sum((1, 2)), sizes.sum((1, 2)))
        add(
            f"{name} dweights",
            (c * (k if less is None else less)).sum((1, 2)),
            (np.abs(c) * (k * (1 + z) + least)).sum((1, 2)),
        )

    d2, z = exponents(x, y)
    k = np.exp(-z)
    total = (weights * k).sum(0)
    add("rbf", total, np.abs(weights).sum(), 1.0)
    # sums of terms, each wrong by a share of its exponent
    size = (np.abs(weights) * (k * (1 + z) + least)).sum(0)
    for name, c in (("rbf", g), ("matmul", u[:, None] * v)):
        add(f"{name} dx", *pulls(c, x, y, z, d2))
        add(f"{name} dy", *pulls(c.T, y, x, z.swapaxes(1, 2), d2.T))
        parameters(name, c, z)
    add("matmul", total @ v, (size @ np.abs(v)).max(), float(np.abs(total @ v).max()))
    add("matmul dv", u @ total, (np.abs(u) @ size).max(), float(np.abs(u @ total).max()))

    both = np.concatenate([x, y])
    a = np.where(np.arange(2 * n) < n, wide(1), wide(-1)) / n
    d2_all, z_all = exponents(both, both)
    c = a[:, None] * a
    less = np.expm1(-z_all)
    # of each bandwidth the greater of its MMD^2 and its mean kernel between the samples
    each = (c * less).sum((1, 2))
    between = (k * (1 + z) + least).mean((1, 2))
    scale = (np.abs(weights[:, 0, 0]) * np.maximum(np.abs(each), between)).sum()
    value = (weights[:, 0, 0] * each).sum()
    add("mmd2", value, scale, max(abs(float(value)), abs(float(total.mean()))))
    gradient, magnitude = pulls(2 * c, both, both, z_all, d2_all)
    add("mmd2 dx", gradient[:n], magnitude[:n])
    add("mmd2 dy", gradient[n:], magnitude[n:])
    parameters("mmd2", c, z_all, less)

    shares = np.array([abs(w) for w in p.weights], wide)
    shares = (shares / shares.sum())[:, None, None]
    logs = np.log(shares) - x.shape[1] * np.log(sigma) - z
    top = logs.max((0, 2), keepdims=True)
    parts = np.exp(logs - top)
    sums = parts.sum((0, 2))
    log_p = top[0, :, 0] + np.log(sums) - np.log(wide(n)) - x.shape[1] * np.log(2 * np.pi * wide(1)) / 2
    parts = parts / sums[:, None]
    # two roundings, in float64, of a normaliser whose parts may cancel
    normaliser = x.shape[1] * (np.abs(np.log(sigma)).max() + 1)
    normaliser *= 2 * np.finfo(np.float64).eps / BOUNDS["log_density"][p.x.dtype.name]
    size = 1 + (parts * z).sum((0, 2)) + np.abs(log_p) + normaliser
    add("log_density", log_p, size, float(np.abs(log_p).max()))
    # exponents and their greatest are rounded alike, in float64
    kept = 1 + z + np.abs(log_p)[:, None]
    pull = (parts / sigma**2).sum(0)
    size = (parts / sigma**2 * kept).sum(0) if wide is np.longdouble else pull
    value = np.stack([pull[i] @ (y - x[i]) for i in range(n)])
    add("score", value, (size * np.sqrt(d2)).sum(1))
    return found


def found_of(p: Problem) -> Iterator[tuple[str, np.ndarray]]:
    """What gkfast makes of it; gradients in the ways that differ: with K kept, and with the bandwidths'."""
    n = len(p.x)

    def fresh(*arrays: np.ndarray) -> list[torch.Tensor]:
        return [torch.from_numpy(a).requires_grad_() for a in arrays]

    def bandwidths() -> list[torch.Tensor]:
        return [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (p.sigma, p.weights)]

    def gradients(name: str, wanted: tuple[str, ...], value: torch.Tensor, of: list[torch.Tensor], g: np.ndarray):
        for what, d in zip(wanted, torch.autograd.grad(value, of, torch.from_numpy(g)), strict=True):
            yield f"{name} {what}", d.numpy()

    points, parameters = ("dx", "dy"), ("dsigma", "dweights")
    x, y = fresh(p.x, p.y)
    k = gkfast.rbf(x, y, p.sigma, weights=p.weights)
    yield "rbf", k.detach().numpy()
    yield from gradients("rbf", points, k, [x, y], p.g)
    s, w = bandwidths()
    k = gkfast.rbf(x, y, s, weights=w)
    yield from gradients("rbf", points + parameters, k, [x, y, s, w], p.g)
    x, y, v = fresh(p.x, p.y, p.v)
    yield "matmul", gkfast.rbf_matmul(p.x, p.y, p.v, p.sigma, weights=p.weights)
    value = gkfast.rbf_matmul(x, y, v, p.sigma, weights=p.weights)
    yield "matmul", value.detach().numpy()
    yield from gradients("matmul", (*points, "dv"), value, [x, y, v], p.u)
    value = gkfast.rbf_matmul(x, y, v, s, weights=w)
    yield from gradients("matmul", (*points, "dv", *parameters), value, [x, y, v, s, w], p.u)
    yield "mmd2", gkfast.mmd2(p.x, p.y, p.sigma, weights=p.weights, estimator="biased")
    one = np.ones((), p.x.dtype)
    for of, wanted in (((p.sigma, p.weights), points), ((s, w), points + parameters)):
        value = gkfast.mmd2(x, y, of[0], weights=of[1], estimator="biased")
        if not min(p.weights) < 0:
            yield "mmd2", value.detach().numpy()
        yield from gradients("mmd2", wanted, value, [x, y, *(of if of[0] is s else ())], one)
    shares = np.abs(p.weights)
    options = {"sigma": p.sigma, "weights": list(shares / shares.sum())}
    yield "log_density", gkfast.log_density(p.x, p.y, **options)
    yield "score", gkfast.score(p.x, p.y, **options)
    assert n == len(p.y)


class Errors(NamedTuple):
    share: float  # of the magnitudes
    error: float  # in the measure of bench.accuracy; 0 where much cancels


def errors_of(recipe: Recipe, dtype: str) -> dict[str, Errors]:
    """Those of each quantity; of several ways to it the worst."""
    p = problem_of(recipe, dtype)
    truths = truths_of(p)
    worst: dict[str, Errors] = {}
    for name, value in found_of(p):
        truth = truths[name]
        off = np.abs(value.astype(truth.value.dtype) - truth.value)
        if KINDS[name] in ("gradient", "score"):
            error, magnitude = (float(np.sqrt(np.square(a).sum())) for a in (off, truth.magnitude))
            share = error / max(magnitude, 1e-300)
        else:
            error, magnitude = float(off.max()), float(np.max(truth.magnitude))
            share = float((off / np.maximum(truth.magnitude, 1e-300)).max())
        seen = name == "rbf" or truth.measure > magnitude / 10
        measured = Errors(share, error / truth.measure if seen else 0.0)
        worst[name] = max(worst.get(name, measured), measured)
    return worst


def drawn(rng: np.random.Generator, dims: tuple[int, ...] = DIMS) -> Recipe:
    d = int(rng.choice(dims))
    # just enough for the product, or few
    most = min(128, math.isqrt(PRODUCTS // d) + 2)
    rows = most if rng.random() < 0.8 else max(2, most // 2)
    knobs = rng.random(len(Knobs._fields))
    # bandwidths of the data's size are the usual ones, one bandwidth as well
    knobs[4] = np.clip(0.5 + 0.15 * rng.normal(), 0, 1)
    return Recipe(str(rng.choice(list(POINTS))), d, rows, int(rng.integers(1 << 30)), Knobs(*knobs.round(4).tolist()))


def climbed(rng: np.random.Generator, recipe: Recipe) -> Recipe:
    """A neighbour."""
    step = rng.random()
    if step < 0.15 and len(recipe.edits) < 12:
        factor = rng.choice([1 + 1e-7 * rng.integers(-3, 4), -1.0, 0.0, 2.0 ** rng.integers(-6, 7), 1 + rng.normal()])
        edit = (int(rng.integers(2 * recipe.rows)), int(rng.integers(recipe.dims)), float(factor))
        return replace(recipe, edits=(*recipe.edits, edit))
    if step < 0.3:
        return replace(recipe, seed=int(rng.integers(1 << 30)))
    if step < 0.4:
        d = int(rng.choice(DIMS))
        return replace(recipe, dims=d, rows=min(128, math.isqrt(PRODUCTS // d) + 2))
    moved = np.array(recipe.knobs)
    which = rng.random(len(moved)) < 0.4
    moved[which] += rng.choice([0.3, 0.05, 0.005]) * rng.normal(size=which.sum())
    return replace(recipe, knobs=Knobs(*np.clip(moved, 0, 1).round(6).tolist()))


@dataclass(frozen=True)
class Row:
    quantity: str
    dtype: str
    D: int
    points: str
    share: float
    bound: float
    error: float  # the worst in the measure of bench.accuracy, where little cancels
    recipe: str
    recipe_of_error: str

    @property
    def holds(self) -> bool:
        return self.share <= self.bound


def search(seconds: float, seed: int, dims: tuple[int, ...] = DIMS, most: int | None = None) -> list[Row]:
    """The worst of each quantity, found in so many seconds, or tries."""
    rng = np.random.default_rng(seed)
    worst: dict[tuple[str, str, int], tuple[float, Recipe]] = {}
    stop, tries = time.perf_counter() + seconds, 0
    while time.perf_counter() < stop and (most is None or tries < most):
        # the truth of float64 takes ten times as long
        dtype = DTYPES[tries % 4 == 3]
        tries += 1
        target = (str(rng.choice(list(KINDS))), dtype, 0 if rng.random() < 0.7 else 1)
        again = target in worst and rng.random() < 0.65
        recipe = climbed(rng, worst[target][1]) if again else drawn(rng, dims)
        for name, errors in errors_of(recipe, dtype).items():
            for which, value in enumerate(errors):
                # NaN is worst
                value = math.inf if math.isnan(value) else value
                key = (name, dtype, which)
                if key not in worst or value > worst[key][0]:
                    worst[key] = value, recipe
    rows = []
    for name, kind in KINDS.items():
        for dtype in DTYPES:
            (share, recipe), (error, other) = worst[name, dtype, 0], worst[name, dtype, 1]
            row = Row(
                name,
                dtype,
                recipe.dims,
                recipe.points,
                share,
                BOUNDS[kind][dtype],
                error,
                recipe.text(),
                other.text(),
            )
            rows.append(row)
    print(f"{tries} tries, one in four of float64")
    return rows


def save(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        fields = [*Row.__dataclass_fields__, "holds"]
        writer.writerow(fields)
        for row in rows:
            values = [getattr(row, field) for field in fields]
            writer.writerow([f"{value:.2e}" if isinstance(value, float) else value for value in values])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adversary", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--recipe", help="print the errors of a recipe, as in a row, and search nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    # small problems only wait for a second thread
    torch.set_num_threads(1)
    if options.recipe:
        for dtype in DTYPES:
            for name, found in errors_of(Recipe.read(options.recipe), dtype).items():
                print(f"{name:16} {dtype}  share {found.share:.2e}  error {found.error:.2e}")
        return 0
    rows = search(options.seconds, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    save(rows, options.out / "adversary.csv")
    for row in rows:
        mark = "" if row.holds else "  BROKEN"
        print(f"{row.quantity:16} {row.dtype}  {row.share:.1e} of {row.bound:.0e}{mark}  (error {row.error:.1e})")
        print(f"    {row.recipe}")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
