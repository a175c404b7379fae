"""Where sums on a GPU take k - 1."""

import pytest
import torch

from gkfast.kernels import reference

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize(
    ("batch", "n", "m", "dims", "dtype"),
    [
        (2, 9, 7, 3, torch.float32),
        (1, 64, 64, 33, torch.float64),
        (3, 40, 1, 5, torch.bfloat16),
        (1, 0, 5, 2, torch.float32),
        (1, 5, 4, 0, torch.float32),
        (0, 5, 4, 2, torch.float32),
    ],
)
def test_baselines_of_few_rows_are_the_reference(batch, n, m, dims, dtype):
    from gkfast.kernels import gpu

    torch.manual_seed(n)
    x, y = torch.randn(batch, n, dims).to(dtype), torch.randn(batch, m, dims).to(dtype) + 1
    root = reference.mean_square_distance(x, y).sqrt()
    sigma = torch.stack([0.9 * root, 1.1 * root, 1e-3 * root + 1e-9], 1).double()
    expected = reference.baselines(x, y, sigma)
    assert torch.equal(gpu.baselines(x, y, sigma), expected)
    if batch and n:
        assert expected[:, 1].all() or dims == 0
        # the same for all of the batch, as numbers
        numbers = sigma[0].tolist()
        found = gpu.baselines(x, y, tuple(numbers))
        assert torch.equal(found, reference.baselines(x, y, sigma[:1].expand(batch, 3)))


def test_baselines_of_many_rows_rest_on_rows_throughout():
    from gkfast.kernels import gpu

    # sorted: the first rows alone would say that all are near each other
    x = torch.linspace(0, 100, 1000)[None, :, None]
    root = reference.mean_square_distance(x, x).sqrt()
    sigma = torch.stack([0.8 * root, 1.2 * root], 1).double()
    assert gpu.baselines(x, x, sigma).tolist() == [[0.0, 1.0]]


def test_a_nan_has_no_baseline():
    from gkfast.kernels import gpu

    x = torch.tensor([[[1.0], [float("nan")]]])
    assert gpu.baselines(x, x[:, :1], (1e30,)).tolist() == [[0.0]]
