"""Bad input: one sentence that names the argument, the rule, the value and what to do."""

import numpy as np
import pytest
import torch
from functions import BASIC, selected

import gkfast

x = np.zeros((4, 3))
y = np.zeros((5, 3))
t = torch.zeros(4, 3)

FUNCTIONS = {name: lambda x, y, s=1.0, f=f, **k: f(x, y, s, **k) for name, f in selected(*BASIC).items()}


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
def test_bad_points_are_refused(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(*arguments)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (0.0, ValueError, r"sigma must be positive and finite, got 0.0; it is a length"),
        (-1, ValueError, r"sigma must be positive and finite, got -1"),
        (float("nan"), ValueError, r"sigma must be positive and finite, got nan"),
        ([1.0, float("inf")], ValueError, r"sigma must be positive and finite, got \[1.0, inf\]"),
        ([], ValueError, r"sigma must be a number or a non-empty sequence, got \[\]"),
        (np.ones(0), ValueError, r"sigma must be a number or a non-empty 1-D sequence, got shape \(0,\)"),
        (
            np.ones((2, 2)),
            ValueError,
            r"sigma must have leading dimensions that broadcast to \(\), .*, got \(2,\); .* for one per dim",
        ),
        ([np.ones(2), 1.0], ValueError, r"sigma must have leading dimensions that broadcast to \(\), .*, got \(2,\)"),
        ([[1.0, 2.0]], TypeError, r"sigma must be a number or a sequence of numbers, got \[\[1.0, 2.0\]\]"),
        ("wide", TypeError, r"sigma must be a number or a sequence of numbers, got 'wide'"),
        (None, TypeError, r"sigma must be a number or a sequence of numbers, got None"),
        (True, TypeError, r"sigma must be a number or a sequence of numbers, got True"),
        (np.bool_(True), TypeError, r"sigma must be a number or a sequence of numbers, got (np.)?True_?"),
        ([1.0, True], TypeError, r"sigma must be a number or a sequence of numbers, got \[1.0, True\]"),
        (1j, TypeError, r"sigma must be a number or a sequence of numbers, got 1j"),
        ({1.0}, TypeError, r"sigma must be a number or a sequence of numbers, got \{1.0\}"),
        (np.array([True]), TypeError, r"sigma must have a dtype of real numbers, got bool; for example"),
        (np.array([1.0, None]), TypeError, r"sigma must have a dtype of real numbers, got object; for example"),
        (np.array(["1"]), TypeError, r"sigma must have a dtype of real numbers, got <U1; for example"),
        (np.ma.masked_array([1.0], [True]), TypeError, r"sigma must be an array without a mask, .*sigma.filled\(\)"),
        (10**400, ValueError, r"sigma must be finite, got a whole number beyond float64"),
        ([1.0, 10**400], ValueError, r"sigma must be finite, got a whole number beyond float64"),
        (np.array([1.0, -2.0]), ValueError, r"sigma must be positive and finite, got \[1.0, -2.0\]"),
        ([1.0] * 9 + [-2.0], ValueError, r"sigma must be positive and finite, got -2.0"),
        (torch.ones(2, 2), ValueError, r"sigma must have leading dimensions that broadcast to \(\), .*, got \(2,\)"),
        (torch.ones(0), ValueError, r"sigma must be a number or a non-empty 1-D sequence, got shape \(0,\)"),
        (
            torch.tensor(1),
            TypeError,
            r"sigma must have a floating dtype, got int64; cast it, for example sigma.float",
        ),
        (torch.ones(1) * 1j, TypeError, r"sigma must have a floating dtype, got complex64; take its real part"),
        (torch.ones(1).to_sparse(), TypeError, r"sigma must be a dense tensor, got layout sparse_coo; .*to_dense"),
        (torch.ones(1, device="meta"), ValueError, r"sigma must hold values, got a tensor on meta; move the data"),
        ([1.0, torch.ones(2).to(torch.float8_e5m2)[0]], TypeError, r"sigma must have a floating dtype, got float8"),
    ],
)
def test_bad_bandwidths_are_refused(call, sigma, error, message):
    for points in ((x, y), (t, t)):
        with pytest.raises(error, match=message.replace(r"got \[", r"got [\[(]").replace(r"\]", r"[\])]")):
            call(*points, sigma)
    if "finite" not in message and sigma is not None:
        with pytest.raises(error, match=message.replace("sigma", "weights")):
            call(x, y, 1.0, weights=sigma)


@pytest.mark.parametrize(
    "numbers",
    [
        range(1, 3),
        (1, 2.0),
        [np.int64(1), np.float16(2)],
        np.array([1, 2]),
        np.array([1, 2], np.float16),
        torch.tensor([1, 2], dtype=torch.bfloat16),
        torch.tensor([[1.0, 2.0]]),
        [torch.tensor(1.0), np.array(2)],
        [torch.tensor([1.0]), torch.tensor(2.0, dtype=torch.float64)],
    ],
    ids=repr,
)
def test_numbers_of_every_kind(call, numbers):
    x = np.random.default_rng(0).normal(size=(4, 3))
    for library in (np.asarray, torch.from_numpy):
        points = library(x), library(x[::-1] + 1)
        truth = call(*points, [1.0, 2.0], weights=[1.0, 2.0])
        for backend in (None, "reference"):
            ours = call(*points, numbers, weights=numbers, backend=backend)
            np.testing.assert_allclose(np.asarray(ours), np.asarray(truth), rtol=1e-12)
        for one in (2, np.int32(2), np.array(2), np.array(2.0), np.float32(2), torch.tensor([[2.0]])):
            assert np.array_equal(call(*points, one, weights=one), call(*points, 2.0, weights=2.0))


UNUSUAL = {
    "masked": (lambda: np.ma.masked_array(x, x == 0), r"an array without a mask, .*; fill .* with {}.filled\(\)"),
    "matrix": (lambda: np.matrix(x), r"an array, got matrix, .*; convert it with numpy.asarray\({}\)"),
    "sparse": (lambda: t.to_sparse(), r"a dense tensor, got layout sparse_coo; convert it with {}.to_dense\(\)"),
    "sparse rows": (lambda: t.to_sparse_csr(), r"a dense tensor, got layout sparse_csr; convert it"),
    "nested": (lambda: torch.nested.nested_tensor([t, t]), r"a dense tensor, got a nested one; call once for each"),
    "jagged": (lambda: torch.nested.nested_tensor([t, t], layout=torch.jagged), r"a dense tensor, got a nested one"),
    "quantized": (
        lambda: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
        r"a floating dtype, got the quantized quint8; convert it with {}.dequantize\(\)",
    ),
    "complex": (lambda: t * 1j, r"a floating dtype .*, got complex64; take its real part, {}.real"),
    "complex array": (lambda: x * 1j, r"a floating dtype .*, got complex128; take its real part, {}.real"),
}


# torch says of some of these that they are new, of others that they are old
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_arrays_are_refused(call, kind):
    make, message = UNUSUAL[kind]
    value = make()
    usual = t if isinstance(value, torch.Tensor) else x
    with pytest.raises(TypeError, match="^x must (be|have) " + message.format("x")):
        call(value, usual)
    with pytest.raises(TypeError, match="^(y|data) must (be|have) " + message.format("(y|data)")):
        call(usual, value) if call is not FUNCTIONS["rbf_matmul"] else gkfast.rbf(usual, value)
    with pytest.raises(TypeError, match="^v must (be|have) " + message.format("v")):
        gkfast.rbf_matmul(usual, None, value)
    for rule in (gkfast.median_sigma, gkfast.mean_sigma):
        with pytest.raises(TypeError, match="^x must (be|have) " + message.format("x")):
            rule(value)


def test_messages_about_images_say_flatten():
    images = torch.zeros(16, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"as many coordinates.*; for images .* use x.flatten\(1\) and y.flatten\(1\)"
    ):
        gkfast.mmd2(images, torch.zeros(16, 3, 9, 9), 1.0)
    with pytest.raises(ValueError, match=r"as many coordinates.*; for images .* use x.flatten\(1\)$"):
        gkfast.mmd2(images, torch.zeros(16, 192), 1.0)
    with pytest.raises(
        ValueError, match=r"batch dimensions must broadcast, .*; for images .* call .flatten\(1\) first"
    ):
        gkfast.rbf(images, torch.zeros(15, 3, 8, 8))
    with pytest.raises(ValueError, match=r"both are \(..., rows, D\)$"):
        gkfast.mmd2(x, y[:, :2], 1.0)


def test_bad_kernel_weights_are_refused(call):
    with pytest.raises(ValueError, match=r"weights must have one entry per bandwidth \(1\), got 2"):
        call(x, y, 1.0, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"weights must be finite, got \[nan\]"):
        call(x, y, 1.0, weights=[float("nan")])


def test_weights_by_name_are_shares(call):
    sigmas = np.array([[1.0, 2.0, 3.0]])
    for sigma in ([1.0, 2.0, 3.0], (1, 2, 3), sigmas[0], torch.tensor([1.0, 2.0, 3.0])):
        assert np.array_equal(call(x, y, sigma, weights="mean"), call(x, y, sigma, weights=[1 / 3] * 3))
    assert np.array_equal(call(x, y, sigmas, weights="mean"), call(x, y, sigmas, weights=[1 / 3] * 3))
    assert np.array_equal(call(x, y, 1.5, weights="mean"), call(x, y, 1.5))
    with pytest.raises(TypeError, match=r"weights must be .* numbers, got 'median'; .* or \"mean\" for the average"):
        call(x, y, 1.0, weights="median")
    with pytest.raises(ValueError, match="sigma must be a number or a non-empty sequence"):
        call(x, y, [], weights="mean")


def test_names_of_rules_lead_to_what_takes_them():
    with pytest.raises(
        TypeError, match=r"got 'median'; pass gkfast.median_sigma\(x, y\), or use a module of gkfast.nn"
    ):
        gkfast.mmd2(x, y, "median")


def test_density_weights_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match=r"weights must be positive for a density, got \[1.0, -1.0\]"):
        gkfast.log_density(x, y, [1.0, 2.0], weights=[1.0, -1.0])


def test_bad_backend_and_precision_are_refused(call):
    with pytest.raises(ValueError, match=r"backend must be reference, cpu, gpu or None, got 'tpu'"):
        call(x, y, backend="tpu")
    with pytest.raises(ValueError, match=r"backend='gpu' must get tensors on a CUDA device, got a NumPy array"):
        call(x, y, backend="gpu")
    with pytest.raises(ValueError, match=r"backend='gpu' must get tensors on a CUDA device, got cpu; move them"):
        call(t, t, backend="gpu")
    with pytest.raises(ValueError, match=r"backend='cpu' must get data on the CPU, got meta; move it"):
        call(t.to("meta"), t.to("meta"), backend="cpu")
    with pytest.raises(ValueError, match=r"precision must be highest, high, medium, torch or None, got 'low'"):
        call(x, y, precision="low")


def test_bad_right_hand_side_is_refused():
    with pytest.raises(ValueError, match=r"v must have shape \(..., M\) or \(..., M, E\) with M = 5, .*, got \(4,\)"):
        gkfast.rbf_matmul(x, y, np.zeros(4))
    with pytest.raises(ValueError, match=r"v must have the dtype of y \(float64\), got float32"):
        gkfast.rbf_matmul(x, y, np.zeros(5, np.float32))


@pytest.mark.parametrize("function", [gkfast.kernel_means, gkfast.mmd2])
def test_bad_estimators_are_refused(function):
    with pytest.raises(ValueError, match=r"estimator must be one of biased, .*, got 'best'"):
        function(x, y, 1.0, estimator="best")
    with pytest.raises(ValueError, match=r"x must have at least 1 row for the biased estimator, got 0"):
        function(x[:0], y, 1.0, estimator="biased")
    if function is gkfast.mmd2:
        message = (
            r"y must have at least 2 rows for the unbiased .*, got 1; .* biased estimator, or xx and xy of kernel_m"
        )
        with pytest.raises(ValueError, match=message):
            function(x, y[:1], 1.0)
        with pytest.raises(ValueError, match="use the biased estimator, or yy and xy of kernel_means"):
            function(x[:1], y, 1.0)
    with pytest.raises(
        ValueError, match=r"y must have at least 2 rows for the unbiased estimator, got 0; a mean over"
    ):
        function(x, y[:0], 1.0)
    with pytest.raises(
        ValueError, match=r"x_weights must have two positive entries for the unbiased estimator, got one"
    ):
        function(x, y, 1.0, x_weights=np.eye(4)[0])
    for estimator in ("u_statistic", "linear"):
        with pytest.raises(ValueError, match=rf"same number of rows for the {estimator} estimator, got 4 and 5"):
            function(x, y, 1.0, estimator=estimator)
    with pytest.raises(ValueError, match="x_weights and y_weights must be left out for the linear estimator"):
        function(x, x, 1.0, estimator="linear", x_weights=np.ones(4))


def test_bad_sample_weights_are_refused():
    with pytest.raises(ValueError, match=r"x_weights must have one entry per row of x \(..., 4\), got shape \(5,\)"):
        gkfast.mmd2(x, y, 1.0, x_weights=np.ones(5))
    with pytest.raises(ValueError, match="y_weights must be finite and not negative"):
        gkfast.mmd2(x, y, 1.0, y_weights=-np.ones(5))
    with pytest.raises(ValueError, match="y_weights must have a positive entry, got only zeros"):
        gkfast.mmd2(x, y, 1.0, y_weights=np.zeros(5))
    with pytest.raises(ValueError, match=r"data_weights must have one entry per row of data \(..., 5\)"):
        gkfast.log_density(x, y, 1.0, data_weights=np.ones(4))


@pytest.mark.parametrize("function", [gkfast.log_density, gkfast.score])
def test_bad_density_data_are_refused(function):
    with pytest.raises(ValueError, match="data must have at least 1 row for a density, got 0"):
        function(x, y[:0], 1.0)
    with pytest.raises(ValueError, match="x must have the rows of data with leave_one_out, got 4 and 5"):
        function(x, y, 1.0, leave_one_out=True)
    with pytest.raises(ValueError, match="data must have at least 2 rows for leave_one_out, got 1"):
        function(x[:1], x[:1], 1.0, leave_one_out=True)


def test_bad_out_is_refused():
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
    for sigma, weights in ((torch.ones(1, requires_grad=True), None), (1.0, torch.ones(1, requires_grad=True))):
        with pytest.raises(ValueError, match="out must be left out where a gradient is wanted"):
            gkfast.rbf(t, t, sigma, weights=weights, out=torch.empty(4, 4))
    with pytest.raises(ValueError, match="out must not require a gradient"):
        gkfast.rbf(t, t, out=torch.empty(4, 4, requires_grad=True))
    with torch.no_grad():
        out = torch.empty(4, 4, requires_grad=True)
        assert gkfast.rbf(t.clone().requires_grad_(), out=out) is out


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_out_that_overlaps_an_input_is_refused(library):
    memory = library(np.random.default_rng(0).uniform(1, 2, size=60))
    before = np.asarray(memory).copy()
    square, other = memory[:16].reshape(4, 4), memory[20:36].reshape(4, 4)
    overlapping = {
        "x": lambda: gkfast.rbf(square, other, out=square),
        "y": lambda: gkfast.rbf(other, square, out=square),
        "a view": lambda: gkfast.rbf(square[::2], out=memory[4:8].reshape(2, 2)),
        "some rows": lambda: gkfast.rbf(square, other, out=memory[12:28].reshape(4, 4)),
        "sigma": lambda: gkfast.rbf(square[:1], sigma=memory[20:21], out=memory[20:21].reshape(1, 1)),
        "weights": lambda: gkfast.rbf(square[:1], weights=memory[40:41], out=memory[40:41].reshape(1, 1)),
    }
    for call in overlapping.values():
        with pytest.raises(ValueError, match="out must have memory of its own, got what overlaps the inputs"):
            call()
    assert np.array_equal(np.asarray(memory), before)
    # side by side
    out = gkfast.rbf(square, other, out=memory[36:52].reshape(4, 4))
    assert np.array_equal(np.asarray(out), np.asarray(gkfast.rbf(square, other)))


def test_a_refused_call_writes_nothing_to_out():
    out = np.full((4, 5), 7.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        gkfast.rbf(x, y, -1.0, out=out)
    assert (out == 7).all()
