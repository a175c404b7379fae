"""Data made to break kernels: each function draws points (rows, D) in float64 and says which sigma to use on them."""

import math

import numpy as np

Drawn = tuple[np.ndarray, float]


def plain(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return rng.normal(size=(rows, dims)), math.sqrt(dims)


def offset(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return rng.normal(size=(rows, dims)) + 1000 * math.sqrt(dims), math.sqrt(dims)


def far_clusters(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    x = rng.normal(size=(rows, dims))
    x[::2] += 100
    return x, math.sqrt(dims)


def duplicates(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return np.repeat(rng.normal(size=(rows // 5, dims)), 5, axis=0), 0.3 * math.sqrt(dims)


def neighbours(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    # few near pairs among many that are not, within a set and between the sets
    x = rng.normal(size=(rows, dims))
    x[1::2] = x[::2] + 0.01 * rng.normal(size=x[::2].shape)
    return x, math.sqrt(dims)


def narrow(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    x = rng.normal(size=(rows, dims))
    x[1::3] = x[::3] + 1e-3 * rng.normal(size=x[::3].shape)
    return x, 1e-3 * math.sqrt(dims)


def sigma_200(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return rng.normal(size=(rows, dims)), 200 * math.sqrt(dims)


def sigma_1000(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return rng.normal(size=(rows, dims)), 1000 * math.sqrt(dims)


def tiny(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return 1e-20 * rng.normal(size=(rows, dims)), 1e-20 * math.sqrt(dims)


def huge(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    return 1e20 * rng.normal(size=(rows, dims)), 1e20 * math.sqrt(dims)


def grey(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    # rows of equal coordinates, like plain pictures: roundings of a sum over them go the same way
    return np.tile(rng.random((rows, 1)), dims), 0.9 * math.sqrt(dims)


def two_greys(rng: np.random.Generator, rows: int, dims: int) -> Drawn:
    x, sigma = grey(rng, rows, dims)
    return x * np.where(rng.random(dims) < 0.5, -1.0, 0.37), 0.6 * sigma
