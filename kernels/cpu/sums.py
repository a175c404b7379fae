"""One call of the sum sweep: fills in what an operation leaves out, and brings the moments to the caller's units."""

from typing import NamedTuple

import numpy as np

from .packed import LOG2_E, Packed, Points
from .sweep import sum_rows
from .threads import run_rows


class Sums(NamedTuple):
    """What one sweep returns; see sweep.sum_rows. Gradients are those of sum_ij c_ij K_ij."""

    value: np.ndarray | None  # (B, N, E) float64
    dx: np.ndarray | None  # (B, N, D) float64
    dweights: np.ndarray | None  # (B, S) float64
    dsigma: np.ndarray | None  # (B, S) float64


def sweep(
    packed: Packed,
    rows: Points,
    columns: Points,
    weights: np.ndarray,
    *,
    v: np.ndarray | None = None,
    g: np.ndarray | None = None,
    pairs: np.ndarray | None = None,
    row_shift: np.ndarray | None = None,
    col_shift: np.ndarray | None = None,
    skip_diagonal: bool = False,
    minus_one: bool = False,
    want_value: bool = False,
    want_dx: bool = False,
    want_parameters: bool = False,
) -> Sums:
    """rows (B, N, D) against columns (B, M, D); v (B, M, E), g (B, N, E), pairs (B, N, M); shifts (B, N|M, S)."""
    x, yt = rows.rows, columns.columns
    (batch, n, dims), m, dtype = x.shape, yt.shape[2], x.dtype
    count = packed.scale.shape[1]
    no_pairs = np.empty((batch, 0, 0), dtype)
    vt = np.empty((batch, 0, m), dtype) if v is None else np.ascontiguousarray(v.transpose(0, 2, 1), dtype)
    g = np.zeros((batch, n, vt.shape[1]), dtype) if g is None else np.ascontiguousarray(g, dtype)
    pairs = no_pairs if pairs is None else np.ascontiguousarray(pairs, dtype)
    row_shift = _in_base_2(row_shift, (batch, n, count), dtype)
    col_shift = np.ascontiguousarray(_in_base_2(col_shift, (batch, m, count), dtype).transpose(0, 2, 1))
    value = np.empty((batch, n, vt.shape[1] if want_value else 0))
    dx = np.empty((batch, n, dims if want_dx else 0))
    parameters = np.empty((batch, n, 2 * count if want_parameters else 0))
    # clipped well inside the range, because infinity times a difference of 0 would be NaN
    most = np.finfo(dtype).max / 2**20
    pull_weights = np.clip(weights / packed.sigma**2, -most, most).astype(dtype)
    wide_weights, weights = weights, weights.astype(dtype)

    def task(start, stop):
        sum_rows(
            x, yt, packed.scale, weights, pull_weights,
            g, vt, pairs, row_shift, col_shift, skip_diagonal, minus_one, want_value, want_dx, want_parameters,
            start, stop, value, dx, parameters,
        )  # fmt: skip

    run_rows(task, batch * n, m * (dims * (1 + want_dx) + 10 * count + vt.shape[1]))
    dweights = dsigma = None
    if want_parameters:
        moments = parameters.sum(axis=1)
        dweights = moments[:, :count]
        dsigma = wide_weights * moments[:, count:] / packed.sigma**3 / packed.unit
    return Sums(value if want_value else None, dx / packed.unit if want_dx else None, dweights, dsigma)


def _in_base_2(shift: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.zeros(shape, dtype) if shift is None else np.ascontiguousarray(shift * LOG2_E, dtype)
