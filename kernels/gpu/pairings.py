"""Which rows meet which columns: the pairings of two sets of points."""

from typing import NamedTuple

import triton
import triton.language as tl

# the set of the rows, and the set of the columns
PAIRINGS = (
    ("x", "x"),
    ("y", "y"),
    ("x", "y"),
    ("y", "x"),
)
# how many a launch has: the first three or all four are those of MMD^2. One is x with y: a product, or its gradients
# to x; two are x with y and y with x: a product's gradients to both.
_ROWS_OF_Y = tl.constexpr(sum((rows == "y") << k for k, (rows, _) in enumerate(PAIRINGS)))
_COLUMNS_OF_Y = tl.constexpr(sum((columns == "y") << k for k, (_, columns) in enumerate(PAIRINGS)))


class Set(NamedTuple):
    """Pointers to a set's numbers, and how many points it has."""

    points: object
    columns: object
    pieces: object
    norms: object
    coefficients: object
    size: object


@triton.jit
def sets_of(pairing, points, coefficients, N, M, COUNT: tl.constexpr):
    """The sets of the rows and of the columns for the pairing-th of COUNT pairings."""
    if COUNT == 1:
        return _set(False, points, coefficients, N, M), _set(True, points, coefficients, N, M)
    else:
        pairing += 0 if COUNT > 2 else 2
        rows = _set(((_ROWS_OF_Y >> pairing) & 1) == 1, points, coefficients, N, M)
        return rows, _set(((_COLUMNS_OF_Y >> pairing) & 1) == 1, points, coefficients, N, M)


@triton.jit
def _set(of_y, points, coefficients, N, M):
    found, columns, pieces, norms = points.x, points.x_columns, points.x_pieces, points.x_norms
    own, size = coefficients.a, N
    if of_y:
        found, columns, pieces, norms = points.y, points.y_columns, points.y_pieces, points.y_norms
        own, size = coefficients.b, M
    return Set(found, columns, pieces, norms, own, size)


@triton.jit
def height_of(N, M, COUNT: tl.constexpr):
    """The rows of the outputs, which are of one height for all pairings."""
    return tl.maximum(N, M) if COUNT > 1 else N


@triton.jit
def modes_of(pairing, COUNT: tl.constexpr, DROP: tl.constexpr, PULL: tl.constexpr, HALF: tl.constexpr):
    """Whether a pairing leaves its diagonal out, pulls its rows, has a value and moments, and meets half its columns.

    Of two the first alone has moments, and the second a value. Bit 0 of PULL says that x is pulled, bit 1 that y is;
    pairings alternate between rows of x and rows of y.
    """
    skip, pulls, half = DROP == 2, PULL > 0, False
    valued, measured = True, True
    if COUNT > 1:
        skip = (DROP > 0) & ((pairing < 2) | (DROP == 2))
        half = ((HALF >> pairing) & 1) == 1
        if PULL < 3:
            pulls = pairing % 2 == PULL - 1
    if COUNT == 2:
        valued, measured = pairing == 1, pairing == 0
    return skip, pulls, valued, measured, half


@triton.jit
def place_among_pulling(pairing, PULL: tl.constexpr):
    """Counts only the pairings whose rows are pulled."""
    return pairing // (1 if PULL == 3 else 2)


@triton.jit
def pulling(place, COUNT: tl.constexpr, PULL: tl.constexpr):
    """The pairing that is the place-th among those whose rows are pulled."""
    if COUNT > 1 and PULL < 3:
        return 2 * place + PULL - 1
    else:
        return place
