"""Bad input: one sentence that names the argument, the rule, the value and what to do."""

import numpy as np
import pytest
import torch

import gkfast

x = np.zeros((4, 3))
y = np.zeros((5, 3))
t = torch.zeros(4, 3)

# every public function of two point sets, called as it is meant to be
FUNCTIONS = {
    "rbf": lambda x, y, s=1.0, **k: gkfast.rbf(x, y, s, **k),
    "rbf_matmul": lambda x, y, s=1.0, **k: gkfast.rbf_matmul(x, y, y[..., 0], s, **k),
    "log_density": lambda x, y, s=1.0, **k: gkfast.log_density(x, y, s, **k),
    "score": lambda x, y, s=1.0, **k: gkfast.score(x, y, s, **k),
    "kernel_means": lambda x, y, s=1.0, **k: gkfast.kernel_means(x, y, s, **k),
    "mmd2": lambda x, y, s=1.0, **k: gkfast.mmd2(x, y, s, **k),
}


@pytest.fixture(params=FUNCTIONS)
def call(request):
    return FUNCTIONS[request.param]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.0]], y), TypeError, r"x must be a NumPy array or a torch tensor, got list; convert it"),
        ((x.astype(int), y), TypeError, r"x must have a floating dtype .*, got int64; cast it, for example x.astype"),
        ((t.int(), t), TypeError, r"x must have a floating dtype .*, got int32; cast it, for example x.float\(\)"),
        ((x > 0, y), TypeError, r"x must have a floating dtype .*, got bool; cast it"),
        # not in this machine's order of bytes
        ((x.astype(x.dtype.newbyteorder()), y), TypeError, r"x must have a floating dtype .*, got .f\d; cast it"),
        ((x.astype(complex), y), TypeError, r"x must have a floating dtype .*, got complex128"),
        ((x, t), TypeError, r"must be of the same library as x, got Tensor and ndarray; convert one"),
        ((x[0], y), ValueError, r"x must have shape \(..., N, D\), got \(3,\); for N points on a line use x.reshape"),
        ((x, y[:, :2]), ValueError, r"must have as many coordinates as x \(3\), got 2"),
        ((x, y.astype(np.float32)), ValueError, r"must have the dtype of x \(float64\), got float32; cast one"),
        ((t, t.to("meta")), ValueError, r"must be on the device of x \(cpu\), got meta; move one"),
        (
            (np.zeros((2, 4, 3)), np.zeros((3, 5, 3))),
            ValueError,
            r"batch dimensions must broadcast, got x \(2,\) and",
        ),
    ],
)
def test_points(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(*arguments)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (0.0, ValueError, r"sigma must be positive and finite, got 0.0; it is a length"),
        (-1, ValueError, r"sigma must be positive and finite, got -1"),
        (float("nan"), ValueError, r"sigma must be positive and finite, got nan"),
        ([1.0, float("inf")], ValueError, r"sigma must be positive and finite, got \[1.0, inf\]"),
        ([], ValueError, r"sigma must be a number or a non-empty 1-D sequence, got shape \(0,\)"),
        (
            np.ones((2, 2)),
            ValueError,
            r"sigma must be .* 1-D sequence, got shape \(2, 2\); for one bandwidth per dim",
        ),
        ("wide", TypeError, r"sigma must be a number or a sequence of numbers, got 'wide'"),
        (None, TypeError, r"sigma must be a number or a sequence of numbers, got None"),
        (True, TypeError, r"sigma must be a number or a sequence of numbers, got True"),
        (torch.ones(2, 2), ValueError, r"sigma must be a number or a non-empty 1-D tensor, got shape \(2, 2\)"),
        (torch.tensor(1), TypeError, r"sigma must have a floating dtype, got int64; cast it"),
    ],
)
def test_sigma(call, sigma, error, message):
    with pytest.raises(error, match=message):
        call(x, y, sigma)


def test_weights(call):
    with pytest.raises(ValueError, match=r"weights must have one entry per bandwidth \(1\), got 2"):
        call(x, y, 1.0, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"weights must be finite, got \[nan\]"):
        call(x, y, 1.0, weights=[float("nan")])


def test_density_weights_are_positive():
    with pytest.raises(ValueError, match=r"weights must be positive for a density, got \[1.0, -1.0\]"):
        gkfast.log_density(x, y, [1.0, 2.0], weights=[1.0, -1.0])


def test_backend_and_precision(call):
    with pytest.raises(ValueError, match=r"backend must be reference, cpu, gpu or None, got 'tpu'"):
        call(x, y, backend="tpu")
    with pytest.raises(ValueError, match=r"backend='gpu' must get tensors on a CUDA device, got a NumPy array"):
        call(x, y, backend="gpu")
    with pytest.raises(ValueError, match=r"backend='gpu' must get tensors on a CUDA device, got cpu; move them"):
        call(t, t, backend="gpu")
    with pytest.raises(ValueError, match=r"backend='cpu' must get data on the CPU, got meta; move it"):
        call(t.to("meta"), t.to("meta"), backend="cpu")
    with pytest.raises(ValueError, match=r"precision must be highest, high, medium or None, got 'low'"):
        call(x, y, precision="low")


def test_right_hand_side():
    with pytest.raises(ValueError, match=r"v must have shape \(..., M\) or \(..., M, E\) with M = 5, .*, got \(4,\)"):
        gkfast.rbf_matmul(x, y, np.zeros(4))
    with pytest.raises(ValueError, match=r"v must have the dtype of y \(float64\), got float32"):
        gkfast.rbf_matmul(x, y, np.zeros(5, np.float32))


@pytest.mark.parametrize("function", [gkfast.kernel_means, gkfast.mmd2])
def test_estimators(function):
    with pytest.raises(ValueError, match=r"estimator must be one of biased, .*, got 'best'"):
        function(x, y, 1.0, estimator="best")
    with pytest.raises(ValueError, match=r"x must have at least 1 row for the biased estimator, got 0"):
        function(x[:0], y, 1.0, estimator="biased")
    with pytest.raises(ValueError, match=r"y must have at least 2 rows for the unbiased estimator, got 1"):
        function(x, y[:1], 1.0)
    for estimator in ("u_statistic", "linear"):
        with pytest.raises(ValueError, match=rf"same number of rows for the {estimator} estimator, got 4 and 5"):
            function(x, y, 1.0, estimator=estimator)
    with pytest.raises(ValueError, match="x_weights and y_weights must be left out for the linear estimator"):
        function(x, x, 1.0, estimator="linear", x_weights=np.ones(4))


def test_sample_weights():
    with pytest.raises(ValueError, match=r"x_weights must have one entry per row of x \(..., 4\), got shape \(5,\)"):
        gkfast.mmd2(x, y, 1.0, x_weights=np.ones(5))
    with pytest.raises(ValueError, match="y_weights must be finite and not negative"):
        gkfast.mmd2(x, y, 1.0, y_weights=-np.ones(5))
    with pytest.raises(ValueError, match="y_weights must have a positive entry, got only zeros"):
        gkfast.mmd2(x, y, 1.0, y_weights=np.zeros(5))
    with pytest.raises(ValueError, match=r"data_weights must have one entry per row of data \(..., 5\)"):
        gkfast.log_density(x, y, 1.0, data_weights=np.ones(4))


@pytest.mark.parametrize("function", [gkfast.log_density, gkfast.score])
def test_density_data(function):
    with pytest.raises(ValueError, match="data must have at least 1 row for a density, got 0"):
        function(x, y[:0], 1.0)
    with pytest.raises(ValueError, match="x must have the rows of data with leave_one_out, got 4 and 5"):
        function(x, y, 1.0, leave_one_out=True)
    with pytest.raises(ValueError, match="data must have at least 2 rows for leave_one_out, got 1"):
        function(x[:1], x[:1], 1.0, leave_one_out=True)


def test_out():
    with pytest.raises(
        ValueError, match=r"out must be a writable contiguous array of shape \(4, 5\), got shape \(5, 4"
    ):
        gkfast.rbf(x, y, out=np.empty((5, 4)))
    with pytest.raises(ValueError, match=r"not contiguous or read-only; allocate it with empty"):
        gkfast.rbf(x, y, out=np.empty((5, 4)).T)
    with pytest.raises(ValueError, match="out must have the dtype of x"):
        gkfast.rbf(x, y, out=np.empty((4, 5), np.float32))
    with pytest.raises(ValueError, match="out must be left out where a gradient is wanted"):
        gkfast.rbf(t.clone().requires_grad_(), t, out=torch.empty(4, 4))


def test_nothing_is_written_on_refusal():
    out = np.full((4, 5), 7.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        gkfast.rbf(x, y, -1.0, out=out)
    assert (out == 7).all()
