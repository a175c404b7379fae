"""Every argument of every module with values that it may not have: one sentence, or a documented value."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import gkfast.nn

NAN, INF = math.nan, math.inf
HUGE, LONG = 10**400, 10**5000
ONES = np.ones(2)


class Subclass(np.ndarray):
    pass


# no numbers at all, or none that a module can keep
NO_NUMBERS = {
    "a string": "0.5",
    "bytes": b"12",
    "None": None,
    "True": True,
    "NumPy's True": np.True_,
    "a complex number": 1j,
    "a decimal": Decimal("1.5"),
    "a fraction": Fraction(1, 2),
    "a set": {1.0},
    "a dictionary": {1.0: 2.0},
    "a generator": (s for s in (1.0, 2.0)),
    "a function": len,
    "a list of strings": ["1.0"],
    "a list of booleans": [True, False],
    "a list of lists": [[1.0], [2.0]],
    "an array of strings": np.array(["1.0"]),
    "an array of booleans": np.array([True]),
    "an array of complex numbers": np.array([1j]),
    "an array of objects": np.array([None, 1.0]),
    "a masked array": np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "a boolean tensor": torch.tensor([True]),
    "a complex tensor": torch.tensor([1j]),
}
NO_CONSTANTS = NO_NUMBERS | {
    "NaN": NAN,
    "infinity": INF,
    "minus infinity": -INF,
    "NumPy's NaN": np.float32("nan"),
    "an integer beyond float64": HUGE,
    "an integer beyond printing": LONG,
    "one beyond printing in a list": [1.0, LONG],
    "NaN in a list": [1.0, NAN],
    "NaN in an array": np.array([1.0, NAN]),
    "infinity in a tensor": torch.tensor([1.0, INF]),
    "an empty list": [],
    "an empty array": np.array([]),
    "an empty tensor": torch.tensor([]),
    "a matrix": np.ones((2, 2)),
    "a matrix of a subclass": np.ones((1, 2)).view(Subclass),
    "a tensor of two axes": torch.ones(1, 2),
    "a meta tensor": torch.ones(2, device="meta"),
    "a sparse tensor": torch.ones(2).to_sparse(),
    "a tensor with a gradient": torch.ones(2, requires_grad=True),
}
NOT_POSITIVE = {"zero": 0, "a negative number": -1.0, "zero in an array": np.array([1.0, 0.0]), "-0.0": -0.0}
NO_SWITCHES = {
    "a string": "yes",
    "None": None,
    "one": 1,
    "NaN": NAN,
    "an array": ONES,
    "a tensor": torch.tensor(True),
}
NO_NAMES = {
    "another name": "x",
    "an array of names": np.array(["biased", "literal"]),
    "None": None,
    "one": 1,
    "True": True,
    "a list": ["biased"],
    "a long string": "x" * 10_000,
}
NO_SHARES = NO_NUMBERS | {
    "NaN": NAN,
    "infinity": INF,
    "two": 2,
    "a negative number": -0.1,
    "an integer beyond float64": HUGE,
    "an integer beyond printing": LONG,
    "an array": ONES,
    "a tensor": torch.tensor(0.5),
}
NO_DIMS = NO_NUMBERS | {
    "zero": 0,
    "a negative number": -2,
    "a float": 2.0,
    "NaN": NAN,
    "more than memory": 10**12,
    "an integer beyond float64": HUGE,
    "an integer beyond printing": LONG,
    "an array": ONES,
    "a tensor": torch.tensor(2),
}
NO_BOUNDS = NO_NUMBERS | {
    "NaN": NAN,
    "an array": ONES,
    "a tensor": torch.tensor(0.5),
    "minus infinity": -INF,
}
del NO_DIMS["None"]

RBF, MMD, REPULSIVE, RATIO, ARTICLE = (
    gkfast.nn.RBF,
    gkfast.nn.MMDLoss,
    gkfast.nn.RepulsiveLoss,
    gkfast.nn.KDERatioLoss,
    gkfast.nn.ArticleRegularizer,
)
# module, its argument, what else it is made with, what the argument may not be
ARGUMENTS = [
    *((module, "sigma", {}, NO_CONSTANTS | NOT_POSITIVE) for module in (RBF, MMD, REPULSIVE, RATIO, ARTICLE)),
    (RBF, "sigma", {"dims": 2}, NO_CONSTANTS | NOT_POSITIVE | {"three for two": [1.0, 2.0, 3.0]}),
    (RBF, "weights", {"sigma": ONES}, {k: v for k, v in NO_CONSTANTS.items() if k != "None"} | {"one for two": 1.0}),
    (RBF, "dims", {}, NO_DIMS),
    (RBF, "learnable", {}, NO_SWITCHES),
    *((module, "scales", {}, NO_CONSTANTS | NOT_POSITIVE) for module in (MMD, RATIO)),
    (MMD, "scales", {"sigma": 1.0}, NO_CONSTANTS | NOT_POSITIVE),
    *((module, "momentum", {}, NO_SHARES) for module in (MMD, RATIO)),
    (MMD, "estimator", {}, NO_NAMES),
    (MMD, "root", {"estimator": "biased"}, NO_SWITCHES),
    (REPULSIVE, "lower", {}, NO_BOUNDS | {"infinity": INF, "beyond upper": 5.0, "negative": -1, "huge": HUGE}),
    (REPULSIVE, "upper", {}, NO_BOUNDS | {"below lower": 0.1, "zero": 0}),
    (ARTICLE, "form", {}, NO_NAMES),
    (ARTICLE, "sigma", {}, {"two numbers": [1.0, 2.0], "two in an array": ONES}),
]
CASES = [
    pytest.param(module, name, rest, value, id=f"{module.__name__}-{name}-{case}")
    for module, name, rest, values in ARGUMENTS
    for case, value in values.items()
]


def is_one_sentence(error, name):
    """Its name, its rule, the value, the way out, in one line of bearable length."""
    text = str(error.value)
    assert re.search(rf"\b{name}\b.* must .*, got .+; .+", text), text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(("module", "name", "rest", "value"), CASES)
def test_arguments_are_refused_in_one_sentence(module, name, rest, value):
    with pytest.raises((ValueError, TypeError)) as error:
        module(**rest, **{name: value})
    is_one_sentence(error, name)


@pytest.mark.parametrize(
    "sigma",
    [
        [1, 2],
        (1.0, np.float32(2)),
        range(1, 3),
        np.array([1.0, 2.0]),
        np.array([1, 2]),
        np.array([1.0, 2.0], np.float16),
        np.array([1.0, 2.0], np.longdouble),
        np.array([1.0, 2.0], object),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1, 2]),
        [torch.tensor(1.0), np.array(2.0)],
    ],
    ids=repr,
)
def test_several_numbers_of_any_kind(sigma):
    x, y = torch.randn(2, 6, 3, dtype=torch.float64)
    assert RBF(sigma).sigma.tolist() == pytest.approx([1, 2], rel=1e-15)
    assert RBF(sigma, weights=sigma).weights == REPULSIVE(sigma).sigma == [1, 2]
    torch.testing.assert_close(MMD(sigma)(x, y), gkfast.mmd2(x, y, [1.0, 2.0], weights=[0.5, 0.5]), rtol=0, atol=0)
    assert MMD("median", scales=sigma).bandwidth.scales == RATIO("mean", scales=sigma).bandwidth.scales == [1, 2]


@pytest.mark.parametrize("sigma", [2, np.int64(2), np.float16(2), np.array(2.0), torch.tensor(2.0), [2.0]], ids=repr)
def test_one_number_of_any_kind(sigma):
    assert ARTICLE(sigma).sigma == RATIO(sigma).bandwidth.running.item() == 2
    assert MMD("mean", momentum=np.float32(0.5), scales=sigma).bandwidth.momentum == 0.5
    assert RBF(sigma, dims=np.int64(3)).sigma.tolist() == pytest.approx([2, 2, 2], rel=1e-15)


X = torch.randn(6, 2)
IMAGES, BATCHES = torch.randn(6, 1, 4, 4), torch.randn(3, 6, 2)
# what no module takes
NO_TENSORS = {
    "an array": X.numpy(),
    "a masked array": np.ma.masked_array(X.numpy(), mask=X.numpy() > 0),
    "an array of a subclass": X.numpy().view(Subclass),
    "a record array": X.numpy().view(np.recarray),
    "a list": X.tolist(),
    "a number": 1.0,
    "a string": "x",
    "integers": torch.ones(6, 2, dtype=torch.uint8),
    "complex numbers": torch.ones(6, 2, dtype=torch.complex64),
    "booleans": torch.ones(6, 2, dtype=torch.bool),
    "a sparse tensor": X.to_sparse(),
    "no axes": torch.tensor(1.0),
    "one axis": torch.ones(6),
}
NO_ROWS = NO_TENSORS | {"None": None, "images": IMAGES, "batches": BATCHES}
OTHERS = {"other coordinates": X[:, :1], "another dtype": X.double(), "another device": X.to("meta")}
MODULES = {
    "RBF": (RBF(), ("x", "y")),
    "RBF of several": (RBF([1.0, 2.0]), ("x", "y")),
    "ARD": (RBF(dims=2), ("x", "y")),
    "MMD": (MMD(1.0), ("x", "y")),
    "MMD of the median": (MMD(), ("x", "y")),
    "linear MMD": (MMD(estimator="linear"), ("x", "y")),
    "the critic": (REPULSIVE().critic, ("real", "fake")),
    "the generator": (REPULSIVE().generator, ("real", "fake")),
    "both": (REPULSIVE(), ("real", "fake")),
    "KDE": (RATIO(1.0), ("fake", "real")),
    "KDE of the mean": (RATIO("mean"), ("fake", "real")),
    "the article's": (ARTICLE(), ("fake", "real")),
    "the article's as printed": (ARTICLE(form="literal"), ("fake", "real")),
}


@pytest.mark.parametrize("which", MODULES)
def test_samples_are_refused_in_one_sentence(which):
    module, names = MODULES[which]
    kernel = isinstance(module, RBF)
    for k, name in enumerate(names):
        cases = dict(NO_TENSORS if kernel else NO_ROWS)
        if k == 1:
            cases |= OTHERS
        for case, value in cases.items():
            arguments = [X, X]
            arguments[k] = value
            with pytest.raises((ValueError, TypeError)) as error:
                module(*arguments)
            is_one_sentence(error, name)
            if case in ("images", "batches"):
                assert f"{name}.flatten(1)" in str(error.value)
                assert re.search(r"call gkfast\.\w+.* for batches", str(error.value))


@pytest.mark.parametrize(
    "which", [name for name in MODULES if not name.startswith(("RBF", "ARD", "the article's as"))]
)
def test_too_few_rows(which):
    module, names = MODULES[which]
    for k, name in enumerate(names):
        # a density of one row is one, but not of its own row
        for rows in (0,) if name == "real" and "fake" in names[:1] else (0, 1):
            arguments = [X, X]
            arguments[k] = X[:rows]
            with pytest.raises(ValueError, match=rf"^{name} must have at least [12] rows? for .+, got {rows}; "):
                module(*arguments)


@pytest.mark.parametrize("which", MODULES)
def test_shapes_on_the_meta_device(which):
    """Of meta tensors a module says what shape and dtype its values have, and keeps its bandwidths."""
    module, _ = MODULES[which]
    found = module(X.to("meta"), X.to("meta"))
    expected = module(X, X)
    for ours, real in zip(*(v if isinstance(v, tuple) else (v,) for v in (found, expected)), strict=True):
        assert (ours.is_meta, ours.shape, ours.dtype) == (True, real.shape, real.dtype)
