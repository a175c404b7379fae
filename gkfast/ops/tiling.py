"""Derivatives of sums over K by tiles of K, so that memory stays that of the data."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# rows and columns of a tile of K
_TILE = 8192
# right-hand sides that a tile of K meets at a time
_COLUMNS = 128

# the letters of a tensor's axes behind the batch: N for rows of K, M for its columns, others for neither
Axes = Sequence[str]


class Tile(NamedTuple):
    """Some rows and columns of K, and some of the coordinates of its points."""

    rows: slice
    columns: slice
    coordinates: slice

    @property
    def on_diagonal(self) -> bool:
        return self.rows.start == self.columns.start

    def of(self, tensor: Tensor | None, axes: Axes) -> Tensor | None:
        """The rows or columns of a tensor that this tile meets."""
        place = {"N": self.rows, "M": self.columns}.get(axes[0])
        if tensor is None or place is None:
            return tensor
        return tensor.narrow(tensor.ndim - len(axes), place.start, place.stop - place.start)


def tiles(n: int, m: int, dims: int, columns: int) -> Iterator[Tile]:
    """Squares, row by row, so that the diagonal of K is that of the tiles on it; `columns` right-hand sides.

    The coordinates come in blocks of about `_COLUMNS` right-hand sides in all, one block if D = 0.
    """
    most = max(1, _COLUMNS // max(1, columns) - 1)
    # equal blocks, since each computes all distances
    size = max(1, -(-dims // -(-max(1, dims) // most)))
    for i in range(0, max(1, n), _TILE):
        for j in range(0, max(1, m), _TILE):
            for d in range(0, max(1, dims), size):
                yield Tile(
                    *(slice(k, min(k + s, end)) for k, s, end in ((i, _TILE, n), (j, _TILE, m), (d, size, dims)))
                )


def vjp_by_tiles(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    axes: Sequence[Axes],
    needed: Sequence[bool],
    parts: Iterator[Tile],
) -> list[Tensor | None]:
    """The gradient of the sum over tiles of function(tile, *inputs of the tile), see `vjp`."""
    found: list[dict[int, Tensor]] = [{} for _ in inputs]
    for tile in parts:
        starts = {"N": tile.rows.start, "M": tile.columns.start}
        own = [tile.of(tensor, letters) for tensor, letters in zip(inputs, axes, strict=True)]
        gradients = vjp(lambda *own, tile=tile: function(tile, *own), own, needed)
        for total, letters, gradient in zip(found, axes, gradients, strict=True):
            if gradient is not None:
                start = starts.get(letters[0], 0)
                total[start] = total[start] + gradient if start in total else gradient
    return [
        torch.cat(list(total.values()), -len(letters)) if len(total) > 1 else total.get(0)
        for total, letters in zip(found, axes, strict=True)
    ]


def add(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of two lists of gradients, where None stands for zero."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


def vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of a scalar function to those inputs that need one."""
    places = [k for k, need in enumerate(needed) if need]

    def of_needed(*values: Tensor) -> Tensor:
        arguments = list(inputs)
        for place, value in zip(places, values, strict=True):
            arguments[place] = value
        return function(*arguments)

    value, pull = torch.func.vjp(of_needed, *(inputs[k] for k in places))[:2]
    gradients: list[Tensor | None] = [None] * len(inputs)
    for place, gradient in zip(places, pull(torch.ones_like(value)), strict=True):
        gradients[place] = gradient
    return gradients
