"""Kernels below the normal range are 0, and the caller's arithmetic on subnormal numbers stays as it was."""

import numpy as np
import pytest
import torch

import gkfast
from gkfast.kernels.cpu import threads as driver

OPERATIONS = {
    "rbf": lambda x, y, s: gkfast.rbf(x, y, s),
    "rbf_matmul": lambda x, y, s: gkfast.rbf_matmul(x, y, y, s),
    "one column": lambda x, y, s: gkfast.rbf_matmul(x, y, y[:, 0], s),
    "log_density": lambda x, y, s: gkfast.log_density(x, y, s),
    "score": lambda x, y, s: gkfast.score(x, y, s),
    "mmd2": lambda x, y, s: gkfast.mmd2(x, y, s),
}


def subnormals_live(dtype):
    """Whether this thread and torch's others multiply subnormal numbers, and do not take them for 0."""
    least = np.finfo(dtype).smallest_subnormal
    here = np.full(1000, 8 * least, dtype)
    everywhere = torch.from_numpy(np.full(1 << 18, 8 * least, dtype))
    return bool((here * dtype(0.5) == 4 * least).all()) and bool((everywhere * 0.5 == 4 * float(least)).all())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_control_register_is_put_back(name, threads, dtype, rng, monkeypatch):
    monkeypatch.setattr(driver, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, y = (rng.normal(size=(60, 3)).astype(dtype) for _ in range(2))
        assert subnormals_live(dtype)
        for sigma in (1.0, 0.05):
            OPERATIONS[name](x, y, sigma)
            assert subnormals_live(dtype)
        # a call that is refused, after one that was not
        with pytest.raises(ValueError, match="sigma must"):
            OPERATIONS[name](x, y, -1.0)
        assert subnormals_live(dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kernel_is_normal_or_zero(dtype, rng):
    x = rng.normal(size=(200, 2)).astype(dtype)
    k = gkfast.rbf(x, sigma=0.08 if dtype == np.float32 else 0.03)
    tiny = np.finfo(dtype).tiny
    assert ((k == 0) | (k >= tiny)).all()
    assert (k == 0).any()
    exact = gkfast.rbf(x.astype(np.float64), sigma=0.08 if dtype == np.float32 else 0.03, backend="reference")
    assert np.abs(k - exact).max() <= (1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormal_data_are_seen(dtype, rng):
    """Points and a bandwidth below the normal range: they are scaled before anything is taken for 0."""
    unit = float(np.finfo(dtype).tiny) / 64
    x = (rng.integers(-40, 40, size=(30, 3)) * unit).astype(dtype)
    sigma = 30 * unit
    exact = gkfast.rbf((x / unit).astype(np.float64), sigma=30.0, backend="reference")
    assert np.abs(gkfast.rbf(x, sigma=sigma) - exact).max() <= (1e-6 if dtype == np.float32 else 1e-14)
