"""Whose rows meet whose columns: x with x, y with y, x with y, y with x, pairs 0 to 3.

Three parts or all four are those of MMD^2. One is x with y: a product, or its gradients to x; two are x with y and y
with x: a product's gradients to both.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms, y_norms, N, M):
    """Points, coefficients, norms and number of the rows: of x, y, x, y for pairs 0 to 3."""
    p_ptr, f_ptr, p_norms, n = x_ptr, a_ptr, x_norms, N
    if pair % 2 == 1:
        p_ptr, f_ptr, p_norms, n = y_ptr, b_ptr, y_norms, M
    return p_ptr, f_ptr, p_norms, n


@triton.jit
def columns_of(pair, x_ptr, y_ptr, a_ptr, b_ptr, x_norms, y_norms, N, M):
    """Those of the columns: of x, y, y, x for pairs 0 to 3."""
    q_ptr, h_ptr, q_norms, m = y_ptr, b_ptr, y_norms, M
    if pair % 3 == 0:
        q_ptr, h_ptr, q_norms, m = x_ptr, a_ptr, x_norms, N
    return q_ptr, h_ptr, q_norms, m


@triton.jit
def modes_of(part, PARTS: tl.constexpr, DROP: tl.constexpr, PULL: tl.constexpr, HALF: tl.constexpr):
    """Whether a part leaves its diagonal out, pulls its rows, has a value and moments, and meets half of its columns.

    Of two parts the first alone has moments, and the second a value.
    """
    skip, pulls, half = DROP == 2, PULL > 0, False
    valued, measured = True, True
    if PARTS > 1:
        skip = (DROP > 0) & ((part < 2) | (DROP == 2))
        half = ((HALF >> part) & 1) == 1
        # bit 0 of PULL: x is pulled; bit 1: y is
        if PULL < 3:
            pulls = part % 2 == PULL - 1
    if PARTS == 2:
        valued, measured = part == 1, part == 0
    return skip, pulls, valued, measured, half
