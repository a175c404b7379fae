"""Random calls of every public name, each judged by the documentation.

A call is all its seed: `python tests/fuzz.py 17` makes call 17, prints it and says what is wrong with it. About half
of the calls are valid by the docstrings: they must give the value and the gradients of the formulas below, which are
written in float64 torch and share nothing with gkfast. The others break one documented rule: they must be refused, by
an error that names the argument.
"""

import math
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

import gkfast
import gkfast.distributed
import gkfast.nn

D64 = torch.float64
ROWS = (0, 1, 1, 2, 3, 7, 7, 33)
DIMS = (0, 1, 2, 3, 5, 17, 40)
BATCHES = ((), (), (), (), (1,), (2,), (2, 3), (0,))
ESTIMATORS = ("unbiased", "biased", "u_statistic", "linear")


@dataclass
class Call:
    seed: int
    name: str
    arguments: dict[str, Any]
    # of a module: what it is made with
    made_with: dict[str, Any] = field(default_factory=dict)
    tensors: bool = False
    # what a gradient is wanted for
    wanted: tuple[str, ...] = ()
    mode: str = "grad"
    # the rule that is broken, and what an error may name
    broken: str = ""
    blamed: tuple[str, ...] = ()

    def __str__(self) -> str:
        made = ", ".join(f"{k}={shown(v)}" for k, v in self.made_with.items())
        given = ", ".join(f"{k}={shown(v)}" for k, v in self.arguments.items())
        name = f"{self.name}({made})" if self.name.startswith("nn.") else self.name
        wanted = f", gradients to {', '.join(self.wanted)}" if self.wanted else ""
        return f"{name}({given}) [{self.mode}{wanted}{', breaks: ' + self.broken if self.broken else ''}]"


def shown(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        kind = "torch" if isinstance(value, torch.Tensor) else "numpy"
        if 0 < math.prod(value.shape) <= 6 and value.dtype != object:
            try:
                return f"{kind}.{str(value.dtype).removeprefix('torch.')}({value.tolist()})"
            except (RuntimeError, NotImplementedError):
                pass
        return f"{kind}.{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
    try:
        text = repr(value)
    except ValueError:
        return "a number too long to print"
    return text if len(text) < 60 else f"{text[:60]}..."


# ---- the random inputs ----


class Maker:
    """Draws the arguments of one call."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors = self.chance(0.6)
        kinds = ("float32", "float32", "float64", "float64", "float16", "bfloat16")
        self.dtype = str(self.pick(kinds[: 6 if self.tensors else 5]))
        self.wide = self.dtype in ("float32", "float64")
        self.batch = self.pick(BATCHES)
        self.dims = self.pick(DIMS)
        data = ["normal", "normal", "normal", "clustered", "duplicated", "zeros", "offset", "nan", "inf"]
        if self.wide:
            data += ["tiny", "subnormal", "huge", "greatest"]
        self.data = self.pick(data)
        smallest, greatest = {"float64": (1e-310, 1e300)}.get(self.dtype, (1e-40, 1e38))
        self.scale = {"tiny": 1e-30, "subnormal": smallest, "huge": 1e20, "greatest": greatest}.get(self.data, 1.0)

    def pick(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def points(self, rows: int, dims: int | None = None) -> Any:
        """An array (..., rows, dims) whose batch dimensions broadcast to this maker's."""
        shape = (*self.leading(), rows, self.dims if dims is None else dims)
        rng, values = self.rng, self.rng.normal(size=shape)
        if self.data == "clustered":
            values[..., ::2, :] += 100
        elif self.data == "duplicated" and rows:
            values = values[..., rng.integers(0, (rows + 2) // 3, rows), :]
        elif self.data == "zeros":
            values = values * 0
        elif self.data == "offset":
            values += 1000
        elif self.data in ("nan", "inf") and values.size:
            values.reshape(-1)[rng.integers(values.size)] = (
                math.nan if self.data == "nan" else self.pick((math.inf, -math.inf))
            )
        return self.laid_out(self.typed(values * self.scale))

    def leading(self) -> tuple[int, ...]:
        whole = self.batch
        if self.chance(0.6) or not whole:
            return whole
        if self.chance(0.5):
            return whole[1:]
        return tuple(1 if self.chance(0.5) else n for n in whole)

    def typed(self, values: np.ndarray) -> Any:
        if self.tensors:
            return torch.tensor(values).to(getattr(torch, self.dtype))
        with np.errstate(all="ignore"):
            return values.astype(self.dtype)

    def laid_out(self, a: Any) -> Any:
        """The same numbers, or some of them repeated, at other places in memory."""
        kind = self.pick(("plain", "plain", "plain", "swapped", "apart", "columns", "backwards", "repeated", "fixed"))
        if a.ndim < 2:
            return a
        xp = torch if self.tensors else np
        if kind == "swapped":
            return (
                xp.swapaxes(xp.asarray(xp.swapaxes(a, -1, -2) + 0), -1, -2)
                if self.tensors
                else np.swapaxes(np.ascontiguousarray(np.swapaxes(a, -1, -2)), -1, -2)
            )
        if kind == "apart":
            doubled = xp.repeat_interleave(a, 2, -2) if self.tensors else np.repeat(a, 2, -2)
            return doubled[..., ::2, :]
        if kind == "columns":
            return xp.concatenate([a, a], -1)[..., a.shape[-1] :]
        if kind == "backwards" and not self.tensors:
            return np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1]
        if kind == "repeated" and a.shape[-2]:
            return xp.broadcast_to(a[..., :1, :], a.shape)
        if kind == "fixed" and not self.tensors:
            a.flags.writeable = False
        return a

    def sigma(self, name: str = "sigma") -> Any:
        """One bandwidth or some, of any documented type."""
        count = self.pick((1, 1, 2, 3))
        typical = self.scale * math.sqrt(max(self.dims, 1))
        wide = typical if self.chance(0.8) else 1.0
        found = [float(min(max(wide * 10 ** self.rng.uniform(-1, 1.5), 1e-307), 1e306)) for _ in range(count)]
        return self.numbers(found)

    def kernel_weights(self, sigma: Any, positive: bool) -> Any:
        if self.chance(0.6):
            return None
        values = self.rng.uniform(0.1, 2, size=count_of(sigma))
        if not positive:
            values = values * self.rng.choice([1, 1, 1, 0, -1], size=len(values))
        return self.numbers(values.tolist())

    def numbers(self, values: list[float]) -> Any:
        single = np.finfo(np.float32)
        in_single = all(v == 0 or float(single.tiny) < abs(v) < float(single.max) for v in values)
        kinds = ["list", "list", "tuple", "entries"]
        if self.batch != (len(values),) or self.batch == (1,):
            # else they could be meant for the problems of the batch, one for each, and are refused
            kinds += ["array", "tensor"]
        if len(values) == 1:
            kinds += ["number", "number", "number", "numpy", "0-d array", "0-d tensor"]
        if math.prod(self.batch) > 1:
            kinds += ["batch"]
        kind = self.pick(kinds)
        dtype = self.pick((torch.float32, torch.float64)) if in_single else D64
        match kind:
            case "list":
                return list(values)
            case "tuple":
                return tuple(values)
            case "array":
                return np.array(values)
            case "tensor":
                return torch.tensor(values, dtype=dtype)
            case "entries":
                return [torch.tensor(v, dtype=dtype) if k % 2 else v for k, v in enumerate(values)]
            case "number":
                return values[0]
            case "numpy":
                return np.float64(values[0])
            case "0-d array":
                return np.array(values[0])
            case "0-d tensor":
                return torch.tensor(values[0], dtype=dtype)
        # one row of numbers for each problem of the batch
        grown = np.array(values) * self.rng.uniform(0.5, 2, size=(*self.batch, 1))
        return torch.from_numpy(grown) if self.tensors else grown

    def row_weights(self, points: Any, least: int) -> Any:
        """Not negative, some of them zero; at least `least` positive."""
        rows = points.shape[-2]
        leading = tuple(points.shape[:-2]) if self.chance(0.7) else ()
        values = self.rng.uniform(0.5, 2, size=(*leading, rows))
        zero = self.rng.random(rows) < 0.3
        zero[: min(least, rows)] = False
        return self.typed(values * ~zero)


def plain_numbers(values: Any) -> list[float]:
    """One number or some, of any type, as a list of floats."""
    entries = values if isinstance(values, list | tuple) else np.atleast_1d(np.asarray(values))
    return [float(entry) for entry in entries]


def count_of(numbers: Any) -> int:
    shape = getattr(numbers, "shape", None)
    if shape is None:
        shape = (len(numbers),) if isinstance(numbers, list | tuple) else ()
    return shape[-1] if shape else 1


POINTS = {
    "rbf": ("x", "y"),
    "rbf_matmul": ("x", "y"),
    "log_density": ("x", "data"),
    "score": ("x", "data"),
    "kernel_means": ("x", "y"),
    "mmd2": ("x", "y"),
    "mmd2_and_variance": ("x", "y"),
    "mmd_test": ("x", "y"),
    "witness": ("points", "x", "y"),
    "mean_sigma": ("x", "y"),
    "median_sigma": ("x", "y"),
    "nn.RBF": ("x", "y"),
    "nn.MMDLoss": ("x", "y"),
    "nn.RepulsiveLoss": ("real", "fake"),
    "nn.KDERatioLoss": ("fake", "real"),
    "nn.ArticleRegularizer": ("fake", "real"),
    "distributed.gather": ("x",),
    "distributed.mmd2": ("x", "y"),
}
FUNCTIONS = tuple(name for name in POINTS if not name.startswith("nn."))
OPTIONAL = {("rbf", "y"), ("rbf_matmul", "y"), ("mean_sigma", "y"), ("median_sigma", "y"), ("nn.RBF", "y")}
WITH_SIGMA = tuple(n for n in FUNCTIONS if n not in ("mean_sigma", "median_sigma", "distributed.gather"))
ROW_WEIGHTS = {
    "log_density": ("data_weights",),
    "score": ("data_weights",),
    "kernel_means": ("x_weights", "y_weights"),
    "mmd2": ("x_weights", "y_weights"),
    "witness": ("x_weights", "y_weights"),
}
BY_BANDWIDTH = ("log_density", "mmd2")
# hsic, whose two bandwidths have names of their own, is tested in test_hsic.py, and what one-step generators need in
# test_drift.py and test_one_step.py
ELSEWHERE = ("hsic", "drift", "mean_embedding", "row_means", "pairwise_mmd2", "TwoSampleTest")
PUBLIC = tuple(name for name in gkfast.__all__ if name not in ELSEWHERE)
NAMES = (*PUBLIC, *PUBLIC, *(name for name in POINTS if "." in name))


def drawn(seed: int) -> Call:
    """Call `seed`."""
    m = Maker(seed)
    name = m.pick(NAMES)
    module, spread = name.startswith("nn."), name.startswith("distributed.")
    if module or spread:
        m.tensors = True
    if (module and name != "nn.RBF") or name == "distributed.mmd2":
        m.batch = ()
    rows = [m.pick(ROWS) for _ in range(3)]
    if name == "mmd2_and_variance":
        # their oracle takes every four rows
        rows = [m.pick((1, 3, 4, 5, 7)) for _ in range(3)]
    if m.chance(0.5):
        rows = [rows[0]] * 3
    given: dict[str, Any] = {}
    for argument, n in zip(POINTS[name], rows, strict=False):
        given[argument] = m.points(n)
    if (name, "y") in OPTIONAL and m.chance(0.4):
        given["y"] = None
    m.batch = np.broadcast_shapes(*(a.shape[:-2] for a in given.values() if a is not None))
    call = Call(seed, name, given, tensors=m.tensors)
    (_options_of_module if module else _options)(m, call)
    _gradients(m, call)
    broken, blamed = ruled_out(call)
    if m.chance(0.4):
        _break(m, call)
    # of two broken rules either may be told
    call.broken, call.blamed = call.broken or broken, (*call.blamed, *blamed)
    return call


def _options(m: Maker, call: Call) -> None:
    name, given = call.name, call.arguments
    density = name in ("log_density", "score")
    if name == "rbf_matmul":
        y = given["x"] if given["y"] is None else given["y"]
        leading = m.leading()
        if m.chance(0.5) and y.ndim == 2:
            given["v"] = m.typed(m.rng.normal(size=(y.shape[-2],)))
        else:
            # as many axes as y: read as (..., M, E)
            leading = (1,) * (y.ndim - 2 - len(leading)) + leading
            given["v"] = m.laid_out(m.typed(m.rng.normal(size=(*leading, y.shape[-2], m.pick((0, 1, 3))))))
    if name in WITH_SIGMA:
        given["sigma"] = m.sigma()
        if name == "distributed.mmd2":
            given["estimator"] = m.pick(ESTIMATORS[:2])
        if (weights := m.kernel_weights(given["sigma"], density)) is not None:
            given["weights"] = weights
    if name in ("kernel_means", "mmd2"):
        given["estimator"] = m.pick(ESTIMATORS)
    if name in ROW_WEIGHTS and m.chance(0.4) and given.get("estimator") != "linear":
        for argument in ROW_WEIGHTS[name]:
            if m.chance(0.7):
                rows_of = argument.removesuffix("_weights")
                given[argument] = m.row_weights(given[rows_of], 2)
    if density and m.chance(0.3):
        given["leave_one_out"] = True
    # of some calls, whatever else is drawn
    if name in BY_BANDWIDTH and call.seed % 3 == 0:
        given["by_bandwidth"] = True
        if density:
            given.pop("weights", None)
    if name == "mmd_test":
        given["permutations"] = m.pick((1, 9, 40, 40))
        given["seed"] = m.pick((0, 3, np.int64(5), 7))
        given["estimator"] = m.pick(ESTIMATORS[:2])
    if name == "mmd2_and_variance":
        given["estimator"], given["variance"] = m.pick(ESTIMATORS[:2]), m.pick(ESTIMATORS[:2])
    if name == "median_sigma" and m.chance(0.3):
        given["max_points"] = m.pick((2, 5, 2000))
    if name in WITH_SIGMA and not name.startswith("distributed.") and m.chance(0.3):
        given["precision"] = m.pick((None, "highest", "high", "medium", "torch"))
        given["backend"] = m.pick((None, "cpu", "reference"))
    if name == "rbf" and m.chance(0.2):
        y = given["x"] if given["y"] is None else given["y"]
        batch = np.broadcast_shapes(given["x"].shape[:-2], y.shape[:-2])
        given["out"] = m.typed(np.full((*batch, given["x"].shape[-2], y.shape[-2]), 7.0))


def _options_of_module(m: Maker, call: Call) -> None:
    made, name = call.made_with, call.name
    batch, m.batch = m.batch, ()
    made["sigma"] = m.sigma()
    m.batch = batch
    if name == "nn.RBF":
        if m.chance(0.4) and m.dims:
            made["sigma"], made["dims"] = [float(s) for s in m.rng.uniform(0.5, 2, m.dims) * m.scale], m.dims
            made["sigma"] = [max(s, 1e-307) for s in made["sigma"]]
        elif m.chance(0.3):
            made["weights"] = m.rng.uniform(-1, 2, size=count_of(made["sigma"])).tolist()
        made["learnable"] = m.chance(0.7)
    if name in ("nn.MMDLoss", "nn.KDERatioLoss") and m.chance(0.5):
        made["sigma"] = m.pick(("median", "mean"))
        made["scales"] = m.pick(((0.5, 1.0, 2.0), (1.0,)))
    if name == "nn.MMDLoss":
        made["estimator"] = m.pick(ESTIMATORS)
        made["root"] = made["estimator"] == "biased" and m.chance(0.5)
    if name == "nn.RepulsiveLoss" and m.chance(0.5):
        made["lower"], made["upper"] = 0.0, math.inf
    if name == "nn.ArticleRegularizer":
        made["sigma"] = plain_numbers(made["sigma"])[0]
        made["form"] = m.pick(("log_ratio", "literal"))


def _gradients(m: Maker, call: Call) -> None:
    if not call.tensors:
        return
    call.mode = m.pick(("grad", "grad", "grad", "no_grad", "inference_mode", "autocast"))
    if call.mode == "autocast" and "out" in call.arguments:
        # of which dtype K is there is said nowhere
        call.mode = "grad"
    if m.chance(0.5):
        could = [k for k, v in call.arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
        call.wanted = tuple(k for k in could if k != "out" and m.chance(0.7))
        if "out" in call.arguments:
            call.wanted = ()
        for k in call.wanted:
            # leaves keep their strides
            call.arguments[k] = call.arguments[k].detach().requires_grad_()


# ---- the rules of the documentation ----


def ruled_out(call: Call) -> tuple[str, tuple[str, ...]]:
    """What the docstrings say of rows: the broken rule, and what to blame for it."""
    given, name = call.arguments, call.name
    estimator = given.get("estimator", call.made_with.get("estimator", "unbiased"))
    rows = [0 if given[p] is None else given[p].shape[-2] for p in POINTS[name]]
    n, m = (*rows, 0)[:2] if name != "witness" else rows[1:]
    names = POINTS[name][-2:]
    if name in ("log_density", "score"):
        if m < 1:
            return "a density of no rows", names
        if given.get("leave_one_out") and (n != m or m < 2):
            return "leave_one_out of other rows", names
    if name == "kernel_means" or name in ("mmd2", "distributed.mmd2", "nn.MMDLoss", "mmd_test"):
        one_row = estimator == "biased" or (name == "kernel_means" and estimator == "unbiased")
        if min(n, m) < (1 if one_row else 2):
            return f"too few rows for {estimator}", names
        if estimator in ("u_statistic", "linear") and n != m:
            return f"as many rows for {estimator}", names
    if name == "mmd2_and_variance":
        if given["variance"] == "biased" and (n != m or n < 2):
            return "the biased variance of other rows", names
        if given["variance"] == "unbiased" and min(n, m) < 4:
            return "too few rows for a variance", names
    if name == "witness" and min(n, m) < 1:
        return "a mean of no rows", names
    if name in ("mean_sigma", "median_sigma") and n + m < 2:
        return "one row has no distance", names
    if name == "nn.RepulsiveLoss" and min(n, m) < 2:
        return "a mean over no pairs", names
    ratio = name == "nn.KDERatioLoss" or call.made_with.get("form") == "log_ratio"
    if ratio and (n < 2 or m < 1):
        return "a density of no rows", names
    return "", ()


class Subclass(np.ndarray):
    """An array that is no more than one."""


def _other_dtype(a: Any) -> Any:
    if isinstance(a, torch.Tensor):
        return a.detach().to(torch.float32 if a.dtype == D64 else D64)
    with np.errstate(over="ignore"):
        return a.astype(np.float32 if a.dtype == np.float64 else np.float64)


def _as_matrix(a: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.matrix(a)


ARRAY = {
    "a list": lambda a: a.tolist(),
    "a number": lambda a: 1.0,
    "a string": lambda a: "x",
    "no axes": lambda a: a.reshape(-1)[:1].reshape(()) if math.prod(a.shape) else None,
    "a tuple": lambda a: (a, a),
}
NUMPY = ARRAY | {
    "whole numbers": lambda a: np.ones(a.shape, np.int32),
    "booleans": lambda a: np.ones(a.shape, bool),
    "complex numbers": lambda a: np.ones(a.shape, complex),
    "objects": lambda a: np.ones(a.shape, object),
    "another order of bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "extended precision": lambda a: a.astype(np.longdouble),
    "strings": lambda a: np.full(a.shape, "1"),
    "dates": lambda a: np.zeros(a.shape, "datetime64[s]"),
    "a mask": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    "a matrix": lambda a: _as_matrix(a) if a.ndim == 2 else None,
    "a structure": lambda a: np.zeros(a.shape, [("a", "f8")]),
}
TORCH = ARRAY | {
    "whole numbers": lambda a: torch.ones(a.shape, dtype=torch.int64),
    "booleans": lambda a: torch.ones(a.shape, dtype=torch.bool),
    "complex numbers": lambda a: torch.ones(a.shape, dtype=torch.complex64),
    "eight bits": lambda a: torch.ones(a.shape).to(torch.float8_e4m3fn),
    "sparse": lambda a: a.detach().float().to_sparse(),
}
# only beside another array of points
BESIDE = {
    "another dtype": _other_dtype,
    "another library": lambda a: np.ones(a.shape) if isinstance(a, torch.Tensor) else torch.ones(a.shape, dtype=D64),
}
NO_SIGMA: dict[str, Callable[[], Any]] = {
    "zero": lambda: 0.0,
    "minus one": lambda: -1,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "an empty list": lambda: [],
    "an empty array": lambda: np.array([]),
    "an empty tensor": lambda: torch.tensor([]),
    "NaN in a list": lambda: [1.0, math.nan],
    "zero in an array": lambda: np.array([1.0, 0.0]),
}
NO_NUMBERS: dict[str, Callable[[], Any]] = {
    "a string": lambda: "wide",
    "bytes": lambda: b"1",
    "True": lambda: True,
    "True in a list": lambda: [True],
    "NumPy's True": lambda: np.True_,
    "a complex number": lambda: 1j,
    "an array of booleans": lambda: np.array([True]),
    "an array of objects": lambda: np.array([None]),
    "an array of complex numbers": lambda: np.array([1j]),
    "an array of strings": lambda: np.array(["1.0"]),
    "a complex tensor": lambda: torch.tensor([1j]),
    "a boolean tensor": lambda: torch.tensor([True]),
    "a sparse tensor": lambda: torch.ones(1).to_sparse(),
    "a list of lists": lambda: [[1.0]],
    "a list of strings": lambda: ["1.0"],
    "None in a list": lambda: [None],
    "a dictionary": lambda: {1.0: 2.0},
    "a set": lambda: {1.0},
    "a masked array": lambda: np.ma.masked_array([1.0], [True]),
    "an integer beyond float64": lambda: 10**400,
    "an integer beyond printing": lambda: [10**5000],
    "too many axes": lambda: np.ones((5, 5, 5, 5, 2)),
    "a function": lambda: len,
}
NO_INTEGER_TENSOR: dict[str, Callable[[], Any]] = {"a tensor of whole numbers": lambda: torch.tensor([1])}
NO_KERNEL_WEIGHTS: dict[str, Callable[[], Any]] = {
    "NaN": lambda: [math.nan],
    "infinity": lambda: math.inf,
    "too many": lambda: [1.0] * 9,
    "none at all": lambda: [],
    "a tensor of too many": lambda: torch.ones(9),
}
NO_CHOICE: dict[str, Callable[[], Any]] = {
    "another name": lambda: "best",
    "a number": lambda: 1,
    "a list": lambda: ["biased"],
    "an array of names": lambda: np.array(["biased", "high"]),
    "a tensor": lambda: torch.ones(2),
    "True": lambda: True,
}
NO_WHOLE: dict[str, Callable[[], Any]] = {
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "a fraction": lambda: 2.5,
    "True": lambda: True,
    "a string": lambda: "9",
    "None": lambda: None,
    "an array": lambda: np.array([9, 9]),
    "NaN": lambda: math.nan,
}
NO_SEED: dict[str, Callable[[], Any]] = {
    "minus one": lambda: -1,
    "a fraction": lambda: 1.5,
    "a string": lambda: "1",
    "True": lambda: True,
    "an array": lambda: np.array([1, 2]),
}
NO_SWITCH: dict[str, Callable[[], Any]] = {
    "a string": lambda: "no",
    "two": lambda: 2,
    "an array": lambda: np.ones(2),
    "a tensor": lambda: torch.ones(2),
    "None": lambda: None,
}


def _break(m: Maker, call: Call) -> None:
    """Breaks one rule, if the one that is drawn can be."""
    rules = [_break_points] * 3
    if "sigma" in call.arguments or "sigma" in call.made_with:
        rules += [_break_numbers] * 3
    if call.name in ROW_WEIGHTS:
        rules += [_break_row_weights]
    rules += [_break_option]
    if call.name == "rbf":
        rules += [_break_out]
    if call.name == "rbf_matmul":
        rules += [_break_v]
    m.pick(rules)(m, call)


def _break_points(m: Maker, call: Call) -> None:
    given, names = call.arguments, [p for p in POINTS[call.name] if call.arguments[p] is not None]
    which = m.pick(names)
    a = given[which].detach() if call.tensors else given[which]
    others = [p for p in names if p != which]
    kinds: dict[str, Any] = dict(TORCH if call.tensors else NUMPY)
    kinds["one axis"] = lambda a: a.reshape(-1)[: a.shape[-1]]
    if (call.name, which) not in OPTIONAL:
        kinds["None"] = "None"
    if others:
        kinds |= BESIDE
        other = given[others[0]]
        kinds["other coordinates"] = lambda a: m.points(a.shape[-2], m.dims + 1)
        if call.tensors:
            kinds["on meta"] = lambda a: a.to("meta")
        batched = call.name in FUNCTIONS or call.name == "nn.RBF"
        if other.ndim > 2 and other.shape[-3] != 1 and batched:
            kinds["another batch"] = lambda a: m.typed(np.ones((other.shape[-3] + 5, *a.shape[-2:])))
    if call.name.startswith("nn.") and call.name != "nn.RBF":
        kinds["a batch"] = lambda a: a[None]
    if call.name == "distributed.mmd2":
        kinds["a batch"] = lambda a: a[None]
    kind = m.pick(list(kinds))
    value = None if kind == "None" else kinds[kind](a)
    if value is None and kind != "None":
        return
    given[which] = value
    call.wanted = tuple(k for k in call.wanted if k != which)
    # a rule of two arrays may be told of either; what a module takes, it passes on under the same names
    blamed = (which, *others) if kind in (*BESIDE, "other coordinates", "on meta", "another batch") else (which,)
    extra = ("v",) if call.name == "rbf_matmul" else ()
    weights = tuple(w for w in ROW_WEIGHTS.get(call.name, ()) if w in given)
    call.broken, call.blamed = f"{which}: {kind}", (*blamed, *(extra + weights if len(blamed) > 1 else ()))


def _break_numbers(m: Maker, call: Call) -> None:
    module = call.name.startswith("nn.")
    where = call.made_with if module else call.arguments
    which = "sigma"
    kinds: dict[str, Callable[[], Any]] = NO_NUMBERS | NO_SIGMA
    if not module:
        kinds = kinds | NO_INTEGER_TENSOR | {"None": lambda: None}
        if m.chance(0.4):
            which, kinds = "weights", NO_NUMBERS | NO_KERNEL_WEIGHTS | NO_INTEGER_TENSOR
            if call.name in ("log_density", "score"):
                count = count_of(where["sigma"])
                kinds = kinds | {
                    "not positive": lambda: [0.0] * count,
                    "a negative array": lambda: -np.ones(count),
                }
    kind = m.pick(list(kinds))
    where[which] = kinds[kind]()
    call.wanted = tuple(k for k in call.wanted if k != which)
    call.broken, call.blamed = f"{which}: {kind}", (which,)


def _break_row_weights(m: Maker, call: Call) -> None:
    given, which = call.arguments, m.pick(ROW_WEIGHTS[call.name])
    points = given[which.removesuffix("_weights")]
    if points is None or given.get("estimator") == "linear" or points.shape[-2] == 0 or 0 in points.shape[:-2]:
        return
    right = m.typed(np.ones(points.shape[-2]))
    kinds: dict[str, Callable[[], Any]] = {
        "too many": lambda: m.typed(np.ones(points.shape[-2] + 1)),
        "a list": right.tolist,
        "a number": lambda: 1.0,
        "no axes": lambda: m.typed(np.ones(())),
        "another dtype": lambda: _other_dtype(right),
        "whole numbers": lambda: (NUMPY, TORCH)[call.tensors]["whole numbers"](right),
        "booleans": lambda: (NUMPY, TORCH)[call.tensors]["booleans"](right),
        "another library": lambda: BESIDE["another library"](right),
    }
    if not call.tensors:
        # values of tensors are not looked at
        kinds |= {"zeros": lambda: right * 0, "negative": lambda: -right, "NaN": lambda: right * math.nan}
    kind = m.pick(list(kinds))
    given[which] = kinds[kind]()
    call.wanted = tuple(k for k in call.wanted if k != which)
    call.broken, call.blamed = f"{which}: {kind}", (which,)


def _break_option(m: Maker, call: Call) -> None:
    given, name = call.arguments, call.name
    where: dict[str, tuple[dict[str, Any], dict[str, Callable[[], Any]]]] = {}
    if name in WITH_SIGMA and not name.startswith("distributed."):
        where |= {"precision": (given, NO_CHOICE), "backend": (given, NO_CHOICE | {"gpu": lambda: "gpu"})}
    if name in ("log_density", "score"):
        where["leave_one_out"] = given, NO_SWITCH
    if name in BY_BANDWIDTH:
        where["by_bandwidth"] = given, NO_SWITCH
    if "estimator" in given:
        where["estimator"] = given, NO_CHOICE | {"None": lambda: None}
        if name in ("mmd_test", "mmd2_and_variance", "distributed.mmd2"):
            where["estimator"] = given, where["estimator"][1] | {"one of pairs": lambda: "u_statistic"}
    if "variance" in given:
        where["variance"] = given, NO_CHOICE | {"None": lambda: None}
    if name == "median_sigma":
        where["max_points"] = given, NO_WHOLE | {"one": lambda: 1}
    if name == "mmd_test":
        where |= {"permutations": (given, NO_WHOLE), "seed": (given, NO_SEED)}
    if name == "nn.MMDLoss":
        where |= {"estimator": (call.made_with, NO_CHOICE), "root": (call.made_with, NO_SWITCH)}
    if name == "nn.ArticleRegularizer":
        where["form"] = call.made_with, NO_CHOICE
    if name in ("kernel_means", "mmd2") and given["estimator"] == "linear":
        where["x_weights"] = given, {"beside linear": lambda: m.typed(np.ones(given["x"].shape[-2]))}
    if not where:
        return
    which = m.pick(list(where))
    target, kinds = where[which]
    kind = m.pick(list(kinds))
    target[which] = kinds[kind]()
    call.broken, call.blamed = f"{which}: {kind}", (which,)


def _break_out(m: Maker, call: Call) -> None:
    given = call.arguments
    x, y = given["x"], given["x"] if given["y"] is None else given["y"]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    n, k = x.shape[-2], y.shape[-2]
    right = m.typed(np.full((*batch, n, k), 7.0))
    kinds: dict[str, Callable[[], Any]] = {
        "a list": right.tolist,
        "another dtype": lambda: _other_dtype(right),
        "another library": lambda: BESIDE["another library"](right),
        "another shape": lambda: m.typed(np.ones((*batch, n + 1, k))),
    }
    if n > 1 and k > 1 and math.prod(batch):
        kinds["transposed"] = lambda: (torch if call.tensors else np).swapaxes(
            m.typed(np.ones((*batch, k, n))), -1, -2
        )
        if call.tensors:
            kinds["with a gradient"] = lambda: right.requires_grad_()
        else:
            kinds["read-only"] = lambda: np.broadcast_to(right, right.shape)
    kind = m.pick(list(kinds))
    given["out"] = kinds[kind]()
    if kind == "with a gradient":
        call.mode = "grad"
    call.wanted = ()
    for name in ("x", "y", "sigma", "weights"):
        if isinstance(given.get(name), torch.Tensor):
            given[name] = given[name].detach()
    call.broken, call.blamed = f"out: {kind}", ("out",)


def _break_v(m: Maker, call: Call) -> None:
    given = call.arguments
    rows = (given["x"] if given["y"] is None else given["y"]).shape[-2]
    right = m.typed(np.ones(rows))
    kinds: dict[str, Callable[[], Any]] = {
        "a list": right.tolist,
        "None": lambda: None,
        "no axes": lambda: m.typed(np.ones(())),
        "another dtype": lambda: _other_dtype(right),
        "another library": lambda: BESIDE["another library"](right),
        "another length": lambda: m.typed(np.ones(rows + 1)),
        "whole numbers": lambda: (NUMPY, TORCH)[call.tensors]["whole numbers"](right),
    }
    kind = m.pick(list(kinds))
    given["v"] = kinds[kind]()
    call.wanted = tuple(k for k in call.wanted if k != "v")
    call.broken, call.blamed = f"v: {kind}", ("v",)


# ---- the formulas, in float64 ----


@dataclass
class Truth:
    """A value and how far from it the result may be; what sums of gradients are small against."""

    value: torch.Tensor
    bound: torch.Tensor | float
    gradient_scale: float = 1.0


def exponents(x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor, clamp: bool = True) -> torch.Tensor:
    """-|x_i - y_j|^2 / (2 sigma_s^2), (..., S, N, M)."""
    t = (x[..., None, :, None, :] - y[..., None, None, :, :]) / sigma[..., :, None, None, None]
    # infinite squares have derivatives of 0 times infinity
    return -0.5 * (t.clamp(-1e100, 1e100) if clamp else t).square().sum(-1)


def kernel(x: torch.Tensor, y: torch.Tensor, sigma: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (weights[..., :, None, None] * exponents(x, y, sigma).exp()).sum(-3)


class Exact:
    """The arguments of a call in float64."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.leaves: dict[str, torch.Tensor] = {}
        given = call.arguments
        self.compute = given[POINTS[call.name][0]].dtype
        name = str(self.compute).removeprefix("torch.")
        self.half = name in ("float16", "bfloat16")
        self.single = name != "float64"
        self.tensor = {name: self._exact(name, value) for name, value in given.items()}

    def _exact(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # a copy of its numbers, expanded or not
            exact = value.detach().to(D64).clone()
        elif isinstance(value, np.ndarray) or (name in ("sigma", "weights") and value is not None):
            entries = [float(v) for v in value] if isinstance(value, list | tuple) else value
            exact = torch.from_numpy(np.array(entries, dtype=np.float64))
        else:
            return value
        if name in self.call.wanted:
            self.leaves[name] = exact.requires_grad_()
        return exact

    def bandwidths(self) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = self.tensor["sigma"]
        sigma = sigma[None] if sigma.ndim == 0 else sigma
        weights = self.tensor.get("weights")
        weights = torch.ones_like(sigma.detach()) if weights is None else weights
        return sigma, weights[None] if weights.ndim == 0 else weights

    def rows(self, name: str, weighted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Points, and their weights; a row of weight 0 counts for nothing, whatever its coordinates."""
        points, a = self.tensor[name], self.tensor.get(f"{name}_weights") if weighted else None
        if a is None:
            return points, points.new_ones(points.shape[:-1])
        odd = (a == 0) & ~points.isfinite().all(-1)
        return torch.where(odd[..., None], 0.0, points), a

    @property
    def infinite(self) -> bool:
        """Without NaN, but with infinities."""
        every = [self.tensor[p] for p in POINTS[self.call.name] if self.tensor[p] is not None]
        return not self.finite and not any(bool(t.isnan().any()) for t in every)

    @property
    def finite(self) -> bool:
        every = (self.tensor[p] for p in POINTS[self.call.name] if self.tensor[p] is not None)
        return all(bool(t.isfinite().all()) for t in every)


def _total(weights: torch.Tensor) -> torch.Tensor:
    return weights.detach().abs().sum(-1)


def _true_rbf(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    x, y = e.tensor["x"], e.tensor["y"]
    sigma, weights = e.bandwidths()
    k = kernel(x, x if y is None else y, sigma, weights)
    return [Truth(k, tol("kernel") * _total(weights)[..., None, None])]


def _true_rbf_matmul(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    x, y, v = e.tensor["x"], e.tensor["y"], e.tensor["v"]
    y = x if y is None else y
    sigma, weights = e.bandwidths()
    columns = v.ndim >= 2 and v.ndim >= y.ndim
    k = kernel(x, y, sigma, weights)
    v = v if columns else v[..., None]
    bound = tol("kernel") * _total(weights)[..., None, None] * v.detach().abs().sum(-2, keepdim=True)
    value = k @ v
    bound = bound.expand(value.shape)
    return [Truth(value, bound) if columns else Truth(value[..., 0], bound[..., 0])]


def _log_terms(e: Exact) -> tuple[torch.Tensor, ...]:
    x = e.tensor["x"]
    data, a = e.rows("data")
    sigma, weights = e.bandwidths()
    parts = exponents(x, data, sigma, clamp=False)
    every = a[..., None, :].expand(*a.shape[:-1], x.shape[-2], a.shape[-1])
    if e.call.arguments.get("leave_one_out"):
        counted = ~torch.eye(x.shape[-2], dtype=torch.bool)
        # a row that is left out may be NaN
        every, parts = every * counted, torch.where(counted, parts, 0.0)
    shares = every / every.sum(-1, keepdim=True)
    share_of_kernels = (weights / weights.sum(-1, keepdim=True))[..., :, None, None]
    normaliser = (-x.shape[-1] * (sigma.log() + 0.5 * math.log(2 * math.pi)))[..., :, None, None]
    terms = parts + normaliser + share_of_kernels.log() + shares[..., None, :, :].log()
    return x, data, sigma, parts, terms


def _true_log_density(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    *_, parts, terms = _log_terms(e)
    if e.call.arguments.get("by_bandwidth"):
        # without the equal weights of the bandwidths
        value = torch.logsumexp(terms, -1).mT + math.log(terms.shape[-3])
    else:
        value = torch.logsumexp(terms.movedim(-3, -2).flatten(-2), -1)
    # of no derivative: a share of the greatest exponent
    greatest = 1 + _greatest(parts)
    alone = not e.call.wanted or e.call.mode in ("no_grad", "inference_mode")
    bound = tol("density alone") * greatest if alone else tol("density") * (1 + value.detach().abs())
    return [Truth(value, bound + tol("density") * value.detach().abs())]


def _true_score(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    x, data, sigma, parts, terms = _log_terms(e)
    # a softmax over exponents of this size is known to their rounding
    rounding = 1e-15 * _greatest(parts)
    flat = terms.movedim(-3, -2).flatten(-2)
    p = torch.softmax(flat, -1).unflatten(-1, terms.shape[-3:-2] + terms.shape[-1:]).movedim(-2, -3)
    widths = sigma[..., :, None, None, None]
    apart = (data[..., None, None, :, :] - x[..., None, :, None, :]) / widths / widths
    shares = p[..., None]
    value = torch.where(shares == 0, 0.0, shares * apart).sum((-2, -4))
    pulls = torch.where(shares == 0, 0.0, apart.detach().abs()).nan_to_num(0, 0, 0)
    greatest_pull = float(pulls.max()) if pulls.numel() else 0.0
    return [Truth(value, (tol("density") + rounding) * (greatest_pull + value.detach().abs()))]


def _greatest(exponents: torch.Tensor) -> float:
    finite = exponents.detach()[exponents.isfinite()]
    return float(-finite.min()) if finite.numel() else 0.0


def _pair_means(e: Exact, estimator: str, weights: torch.Tensor | None = None) -> list[torch.Tensor]:
    """xx, yy, xy and, of kernel weights without their signs, the same."""
    sigma, given = e.bandwidths()
    weights = given if weights is None else weights
    (x, a), (y, b) = e.rows(POINTS[e.call.name][0]), e.rows(POINTS[e.call.name][1])
    if estimator == "linear":
        parts = x.shape[-2] // 2
        x, y = (t[..., : 2 * parts, :].unflatten(-2, (parts, 2)) for t in (x, y))
        a, b = x.new_ones(x.shape[:-1]), y.new_ones(y.shape[:-1])
        sigma, weights = (t if t.ndim == 1 else t[..., None, :] for t in (sigma, weights))
    found = []
    for (p, u), (q, v), drop in (
        ((x, a), (x, a), estimator != "biased"),
        ((y, b), (y, b), estimator != "biased"),
        ((x, a), (y, b), estimator in ("u_statistic", "linear")),
    ):
        pairs = u[..., :, None] * v[..., None, :]
        k = kernel(p, q, sigma, weights)
        if drop:
            counted = ~torch.eye(p.shape[-2], dtype=torch.bool)
            # a pair that is left out may be NaN
            pairs, k = pairs * counted, torch.where(counted, k, 0.0)
        mean = (pairs * k).sum((-1, -2)) / pairs.sum((-1, -2))
        found.append(mean.mean(-1) if estimator == "linear" else mean)
    return list(torch.broadcast_tensors(*found))


def _true_kernel_means(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    means = _pair_means(e, e.call.arguments["estimator"])
    bound = tol("kernel") * _total(e.bandwidths()[1])
    return [Truth(mean, bound) for mean in means]


def _true_mmd2(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    estimator, weights = e.tensor.get("estimator", e.call.made_with.get("estimator", "unbiased")), e.bandwidths()[1]
    by_bandwidth = e.call.arguments.get("by_bandwidth")
    # the others have no weight
    summed = [weights * own for own in torch.eye(weights.shape[-1], dtype=D64)] if by_bandwidth else [weights]
    values, scales = [], []
    for own in summed:
        xx, yy, xy = _pair_means(e, estimator, own)
        positive = _pair_means(e, estimator, own.detach().abs())
        values.append(xx + yy - 2 * xy)
        # to 1e-5 of the greater of |MMD^2| and the mean between the samples; of float64 to the oracle's own rounding
        size = torch.maximum(values[-1].detach().abs(), positive[2].detach()) if e.single else sum(positive).detach()
        scales.append(size * (1e-5 if e.single else 1e-13))
    value, scale = (torch.stack(parts, -1) if by_bandwidth else parts[0] for parts in (values, scales))
    return [Truth(value, scale)]


def _true_mmd_test(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    (statistic,) = _true_mmd2(e, tol)
    return [statistic, Truth(_p_values(e), 0.0)]


def _p_values(e: Exact) -> torch.Tensor:
    """Exact where all relabellings are taken, else NaN: whatever they were."""
    x, y = e.tensor["x"], e.tensor["y"]
    n, m = x.shape[-2], y.shape[-2]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    unknown = torch.full(batch, math.nan, dtype=D64)
    if math.comb(n + m, n) > e.call.arguments["permutations"] or not e.finite:
        return unknown
    z = torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (x, y)], -2).detach()
    sigma, weights = (t.detach() for t in e.bandwidths())
    parts = exponents(z, z, sigma)
    # a constant less in k changes nothing but the digits
    k = (weights[..., :, None, None] * (parts.expm1() if bool((parts > -0.5).all()) else parts.exp())).sum(-3)
    drop = 0 if e.call.arguments["estimator"] == "biased" else 1
    if drop:
        k = k * ~torch.eye(n + m, dtype=torch.bool)
    statistics, sizes = [], []
    for first in combinations(range(n + m), n):
        u = torch.zeros(n + m, dtype=D64)
        u[list(first)] = 1
        w = 1 - u
        xx, yy, xy = ((k * p[:, None] * q[None, :]).sum((-1, -2)) for p, q in ((u, u), (w, w), (u, w)))
        means = xx / (n * (n - drop)), yy / (m * (m - drop)), 2 * xy / (n * m)
        statistics.append(means[0] + means[1] - means[2])
        sizes.append(sum(mean.abs() for mean in means))
    every = torch.stack(statistics, -1)
    apart, size = (every - every[..., :1]).abs(), torch.stack(sizes, -1)
    near, equal = apart <= 1e-5 * size, apart <= 1e-13 * size
    share = ((every >= every[..., :1]) | equal).double().mean(-1)
    # of what is nearly equal, rounding may decide
    return torch.where((near & ~equal).any(-1), math.nan, share)


def _true_variance(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    (statistic,) = _true_mmd2(e, tol)
    x, y = e.tensor["x"], e.tensor["y"]
    sigma, weights = e.bandwidths()
    batch = np.broadcast_shapes(np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), sigma.shape[:-1])
    xx, yy, xy = (
        kernel(p, q, sigma, weights).expand(*batch, p.shape[-2], q.shape[-2]) for p, q in ((x, x), (y, y), (x, y))
    )
    spread = (_published if e.call.arguments["variance"] == "biased" else _unbiased)(xx, yy, xy)
    # terms up to the square of the weights cancel, in float64
    scale = _total(weights).square()
    return [statistic, Truth(spread, spread.detach().abs() * (1e-5 if e.single else 1e-10) + scale * 1e-13)]


def _distinct(*sizes: int) -> torch.Tensor:
    """True where indices of the same range differ, (sizes)."""
    n = sizes[0]
    places = [torch.arange(n).reshape([-1 if a == k else 1 for a in range(len(sizes))]) for k in range(len(sizes))]
    mask = torch.ones(sizes, dtype=torch.bool)
    for i, j in combinations(range(len(sizes)), 2):
        mask = mask & (places[i] != places[j])
    return mask.double()


def _unbiased(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """By its definition: means of products of kernels over different rows."""

    def within(k: torch.Tensor) -> torch.Tensor:
        n = k.shape[-1]
        pairs, triples, fours = (_distinct(*[n] * count) for count in (2, 3, 4))
        shared = torch.einsum("...ij,...ik,ijk->...", k, k, triples) / triples.sum()
        apart = torch.einsum("...ij,...kl,ijkl->...", k, k, fours) / fours.sum()
        same = torch.einsum("...ij,...ij,ij->...", k, k, pairs) / pairs.sum()
        return (4 * (n - 2) * (shared - apart) + 2 * (same - apart)) / (n * (n - 1))

    n, m = xy.shape[-2:]
    of_x, of_y = _distinct(n, n), _distinct(m, m)
    pairs_x, pairs_y = n * (n - 1), m * (m - 1)
    apart = torch.einsum("...ik,...jl,ij,kl->...", xy, xy, of_x, of_y) / (pairs_x * pairs_y)
    share_x = torch.einsum("...ik,...il,kl->...", xy, xy, of_y) / (n * pairs_y) - apart
    share_y = torch.einsum("...ik,...jk,ij->...", xy, xy, of_x) / (m * pairs_x) - apart
    same = xy.square().mean((-1, -2)) - apart
    between = ((m - 1) * share_x + (n - 1) * share_y + same) / (n * m)

    def covariance(k: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        n, m = across.shape[-2:]
        pairs, triples = _distinct(n, n), _distinct(n, n, n)
        shared = torch.einsum("...ij,...ik,ij->...", k, across, pairs) / (pairs.sum() * m)
        apart = torch.einsum("...ij,...lk,ijl->...", k, across, triples) / (triples.sum() * m)
        return 2 * (shared - apart) / n

    return within(xx) + within(yy) + 4 * between - 4 * covariance(xx, xy) - 4 * covariance(yy, xy.mT)


def _published(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """As in the code of optimized MMD (Sutherland et al., ICLR 2017)."""
    n = xy.shape[-1]
    off = 1 - torch.eye(n, dtype=D64)
    xx, yy = xx * off, yy * off
    rows_x, rows_y, over, under = xx.sum(-1), yy.sum(-1), xy.sum(-1), xy.sum(-2)
    squares = sum(2 * r.square().sum(-1) - k.square().sum((-1, -2)) for r, k in ((rows_x, xx), (rows_y, yy)))
    return (
        2 / (n**2 * (n - 1) ** 2) * squares
        - (4 * n - 6) / (n**3 * (n - 1) ** 3) * (rows_x.sum(-1) ** 2 + rows_y.sum(-1) ** 2)
        + 4 * (n - 2) / (n**3 * (n - 1) ** 2) * (over.square().sum(-1) + under.square().sum(-1))
        - 4 * (n - 3) / (n**3 * (n - 1) ** 2) * xy.square().sum((-1, -2))
        - (8 * n - 12) / (n**5 * (n - 1)) * over.sum(-1) ** 2
        + 8
        / (n**3 * (n - 1))
        * ((rows_x.sum(-1) + rows_y.sum(-1)) * over.sum(-1) / n - (rows_x * over).sum(-1) - (rows_y * under).sum(-1))
    )


def _true_witness(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    sigma, weights = e.bandwidths()
    means = []
    for name in ("x", "y"):
        rows, a = e.rows(name)
        k = kernel(e.tensor["points"], rows, sigma, weights)
        means.append((k * a[..., None, :]).sum(-1) / a.sum(-1)[..., None])
    return [Truth(means[0] - means[1], 2 * tol("kernel") * _total(weights)[..., None])]


def _pooled(e: Exact) -> torch.Tensor:
    x, y = e.tensor["x"], e.tensor.get("y")
    if y is None:
        return x
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (x, y)], -2)


def _unit(z: torch.Tensor) -> float:
    """A power of two near the greatest coordinate, so that no square leaves the range."""
    greatest = float(z.detach().abs().max()) if z.numel() else 0.0
    return 2.0 ** math.floor(math.log2(greatest)) if 0 < greatest < math.inf else 1.0


def mean_distance(z: torch.Tensor) -> torch.Tensor:
    unit = _unit(z)
    apart = (z[..., None, :] - z[..., None, :, :]) / unit
    n = z.shape[-2]
    return (apart.square().sum((-1, -2, -3)) / (n * (n - 1))).sqrt() * unit


def median_distance(z: torch.Tensor, most: int = 2000) -> torch.Tensor:
    if z.shape[-2] > most:
        z = z[..., (torch.arange(most) * z.shape[-2]) // most, :]
    unit = _unit(z)
    i, j = torch.triu_indices(z.shape[-2], z.shape[-2], 1)
    squares = ((z[..., i, :] - z[..., j, :]) / unit).square().sum(-1)
    # the root of 0 has no derivative
    distances = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0) if z.shape[-2] else squares
    distances = torch.where(squares.isnan(), squares, distances)
    ordered = torch.sort(distances, -1).values
    count = ordered.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2 * unit


def _true_mean_sigma(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    value = mean_distance(_pooled(e))
    return [Truth(value, value.detach().abs() * (1e-6 if e.single else 1e-12))]


def _true_median_sigma(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    z = _pooled(e)
    value = median_distance(z, e.tensor.get("max_points", 2000))
    return [Truth(value, value.detach().abs() * (1e-6 if e.single else 1e-12))]


def _module_sigma(e: Exact, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = e.call.made_with
    if isinstance(made["sigma"], str):
        z = torch.cat([x, y], -2).detach()
        found = (median_distance if made["sigma"] == "median" else mean_distance)(z)
        if e.single:
            # the rule gives it in the dtype of the data
            found = found.float().double()
        found = found if 0 < found < math.inf else torch.ones((), dtype=D64)
        return found * torch.tensor(made["scales"], dtype=D64)
    return torch.tensor(plain_numbers(made["sigma"]), dtype=D64)


def _true_nn_rbf(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    made, x = e.call.made_with, e.tensor["x"]
    y = x if e.tensor["y"] is None else e.tensor["y"]
    sigma = torch.tensor(plain_numbers(made["sigma"]), dtype=D64)
    weights = torch.ones_like(sigma) if made.get("weights") is None else torch.tensor(made["weights"], dtype=D64)
    if made.get("dims") is not None:
        # x / sigma is rounded: an exponent t^2 / 2 is known to eps t |x| / sigma
        one = torch.ones(1, dtype=D64)
        k = kernel(x / sigma, y / sigma, one, one)
        size = max(
            [float((t.detach() / sigma).abs().nan_to_num(0, 0, 0).max()) if t.numel() else 0.0 for t in (x, y)]
        )
        eps = 1.2e-7 if e.single else 2.3e-16
        return [Truth(k, tol("kernel") + eps * 4 * size * math.sqrt(max(x.shape[-1], 1)))]
    # what is learned is the logarithm of sigma
    rounding = 2.3e-16 * float(sigma.log().abs().max())
    return [Truth(kernel(x, y, sigma, weights), (tol("kernel") + rounding) * _total(weights))]


def _true_mmd_loss(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    made = e.call.made_with
    sigma = _module_sigma(e, e.tensor["x"], e.tensor["y"])
    e.tensor |= {"sigma": sigma, "weights": torch.full_like(sigma, 1 / len(sigma))}
    (truth,) = _true_mmd2(e, tol)
    if made["root"]:
        value = (truth.value.clamp(min=0) + 1e-8).sqrt()
        slope = 0.5 / value.detach()
        return [Truth(value, truth.bound * slope + (1e-6 if e.single else 1e-13))]
    return [truth]


def _true_repulsive(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    made = e.call.made_with
    real, fake = e.tensor["real"], e.tensor["fake"]
    sigma = _module_sigma(e, real, fake)
    weights = torch.ones_like(sigma)
    e.tensor |= {"sigma": sigma, "weights": weights}

    def bounded(squared: float) -> float:
        with np.errstate(over="ignore"):
            return float(torch.exp(-torch.tensor(squared, dtype=D64) / sigma / sigma / 2).sum())

    def mean(k: torch.Tensor) -> torch.Tensor:
        n = k.shape[-1]
        return (k * (1 - torch.eye(n, dtype=D64)).bool()).sum() / (n * (n - 1))

    far, near = bounded(made.get("upper", 4.0)), bounded(made.get("lower", 0.25))
    # of a NaN, too, clamp knows no bound
    critic = mean(kernel(real, real, sigma, weights).clamp(min=far)) - mean(
        kernel(fake, fake, sigma, weights).clamp(max=near)
    )
    (generator,) = _true_mmd2(e, tol)
    return [Truth(critic, 2 * tol("kernel") * len(sigma)), generator]


def _true_ratio(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    fake, real = e.tensor["fake"], e.tensor["real"]
    terms, bound, worst = [], torch.zeros((), dtype=D64), 0.0
    for s in _module_sigma(e, fake, real):
        within = exponents(fake, fake.detach(), s[None], clamp=False)[0]
        within = within.masked_fill(torch.eye(len(fake), dtype=torch.bool), -math.inf)
        across = exponents(fake, real, s[None], clamp=False)[0]
        own, other = within.logsumexp(-1) - math.log(len(fake) - 1), across.logsumexp(-1) - math.log(len(real))
        terms.append(s.square() * (own - other).mean())
        normaliser = fake.shape[-1] * (abs(float(s.log())) + 1)
        greatest = max(float(-t.detach().nan_to_num(0, 0, 0).min()) if t.numel() else 0.0 for t in (within, across))
        bound = bound + s.square() * (1 + greatest + normaliser) * (4e-6 if e.single else 1e-12)
        worst = max(worst, greatest)
    # densities beyond the range of float32 have no difference
    lost = e.single and worst > 1e38
    return [Truth(torch.stack(terms).mean(), math.inf if lost else bound / len(terms))]


def _true_article(e: Exact, tol: Callable[[str], float]) -> list[Truth]:
    if e.call.made_with["form"] == "log_ratio":
        return _true_ratio(e, tol)
    fake = e.tensor["fake"]
    # log K(g, g) = 0, NaN where g is not finite; a mean over nothing has no value
    return [Truth((fake * 0).sum(-1).mean(-1) if fake.shape[-2] else fake.new_full((), math.nan), 0.0)]


TRUTHS: dict[str, Callable[[Exact, Callable[[str], float]], list[Truth]]] = {
    "rbf": _true_rbf,
    "rbf_matmul": _true_rbf_matmul,
    "log_density": _true_log_density,
    "score": _true_score,
    "kernel_means": _true_kernel_means,
    "mmd2": _true_mmd2,
    "mmd2_and_variance": _true_variance,
    "mmd_test": _true_mmd_test,
    "witness": _true_witness,
    "mean_sigma": _true_mean_sigma,
    "median_sigma": _true_median_sigma,
    "nn.RBF": _true_nn_rbf,
    "nn.MMDLoss": _true_mmd_loss,
    "nn.RepulsiveLoss": _true_repulsive,
    "nn.KDERatioLoss": _true_ratio,
    "nn.ArticleRegularizer": _true_article,
    "distributed.gather": lambda e, tol: [Truth(e.tensor["x"], 0.0)],
    "distributed.mmd2": _true_mmd2,
}
# in the dtype of the points; all others in float32 for halves
SAME_DTYPE = ("rbf", "nn.RBF", "distributed.gather")


# ---- judgement ----


def run(call: Call) -> list[Any]:
    """The results of the call as it stands."""
    name = call.name.removeprefix("nn.").removeprefix("distributed.")
    if call.name.startswith("nn."):
        function = getattr(gkfast.nn, name)(**call.made_with)
    else:
        function = getattr(gkfast.distributed if call.name.startswith("distributed.") else gkfast, name)
    modes = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    with modes.get(call.mode, nullcontext)():
        result = function(**call.arguments)
    return list(result) if isinstance(result, tuple) else [result]


def judged(call: Call, tolerance: Callable[[str, Any], float]) -> str | None:
    """What is wrong with what the call does: the kind, a colon, and more; None if nothing is."""
    inputs = {} if call.broken else {name: value for name, value in call.arguments.items() if name != "out"}
    before = {name: _bits(value) for name, value in inputs.items()}
    call_gradients: dict[str, torch.Tensor | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = run(call)
            factors = _factors(call, found)
            if factors is not None:
                call_gradients = _gradients_of(call, found, factors)
        except Exception as error:
            return _wrong_error(call, error)
    if call.broken:
        return f"accepted in silence: {call.broken}"
    for name, bits in before.items():
        if bits is not None and bits != _bits(call.arguments[name]):
            return f"input changed: {name}"
    if call.arguments.get("out") is not None and found[0] is not call.arguments["out"]:
        return "out: another array came back"
    return _wrong_values(call, found, factors, call_gradients, tolerance)


def _bits(value: Any) -> bytes | None:
    if isinstance(value, torch.Tensor):
        return bytes(value.detach().contiguous().view(-1).view(torch.uint8).numpy()) if value.numel() else b""
    return value.tobytes() if isinstance(value, np.ndarray) else None


def _factors(call: Call, found: list[Any]) -> list[torch.Tensor | None] | None:
    """What each result is multiplied with for a loss, None where no gradient is to come."""
    if call.broken or call.mode not in ("grad", "autocast") or not call.wanted:
        return None
    generator = torch.Generator().manual_seed(call.seed)
    return [torch.randn(r.shape, generator=generator).to(r.dtype) if r.requires_grad else None for r in found]


def _gradients_of(call: Call, found: list[Any], factors: list[Any]) -> dict[str, torch.Tensor | None]:
    loss = sum((r.double() * g.double()).sum() for r, g in zip(found, factors, strict=True) if g is not None)
    if not isinstance(loss, torch.Tensor):
        return dict.fromkeys(call.wanted)
    leaves = [call.arguments[name] for name in call.wanted]
    return dict(zip(call.wanted, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))


def _wrong_error(call: Call, error: Exception) -> str | None:
    text = str(error)
    what = f"{type(error).__name__}: {text[:300]}"
    if isinstance(error, Warning):
        return f"warning from inside: {what}"
    documented = isinstance(error, TypeError | ValueError | NotImplementedError) and re.search(
        r"must .*, got .*; ", text
    )
    if not call.broken:
        return f"{'refused though valid' if documented else 'error from inside'}: {what}"
    if not documented:
        return f"error from inside: {what}"
    if not any(re.search(rf"\b{name}\b", text) for name in call.blamed):
        return f"error names no culprit: {what}"
    if "\n" in text or len(text) > 500:
        return f"error of many lines: {what}"
    return None


def _wrong_values(
    call: Call,
    found: list[Any],
    factors: list[Any] | None,
    gradients: dict[str, torch.Tensor | None],
    tolerance: Callable[[str, Any], float],
) -> str | None:
    e = Exact(call)
    kind = np.float32 if e.single else np.float64
    truths = TRUTHS[call.name](e, lambda what: tolerance(what, kind))
    for result, truth in zip(found, truths, strict=True):
        wrong = _wrong_value(call, e, result, truth)
        if wrong:
            return wrong
    if factors is None:
        # alone, gather gives back what it got
        fresh = call.tensors and call.name != "distributed.gather"
        if fresh and call.mode in ("no_grad", "inference_mode") and any(r.requires_grad for r in found):
            return "gradient: recorded where none is wanted"
        return None
    return _wrong_gradients(call, e, truths, factors, gradients, tolerance("gradient", kind))


def _expected_dtype(call: Call, e: Exact, result: int | Any) -> str:
    name = str(e.compute).removeprefix("torch.")
    if name == "float64":
        return name
    if e.half and call.name in SAME_DTYPE and not (call.mode == "autocast" and call.name != "distributed.gather"):
        return name
    return "float32"


def _wrong_value(call: Call, e: Exact, result: Any, truth: Truth) -> str | None:
    if call.tensors != isinstance(result, torch.Tensor) or not isinstance(
        result, torch.Tensor | np.ndarray | np.floating
    ):
        return f"library: {type(result).__name__}"
    dtype = str(result.dtype).removeprefix("torch.")
    expected = "float64" if _is_p_value(call, truth) else _expected_dtype(call, e, result)
    if dtype != expected:
        return f"dtype: {dtype}, not {expected}"
    if tuple(result.shape) != tuple(truth.value.shape):
        return f"shape: {tuple(result.shape)}, not {tuple(truth.value.shape)}"
    ours = (result.detach() if call.tensors else torch.from_numpy(np.asarray(result))).double()
    value = truth.value.detach()
    if _is_p_value(call, truth):
        unknown = value.isnan()
        whole = ours * (1 + call.arguments["permutations"])
        possible = (ours > 0) & (ours <= 1)
        if e.finite and not bool(torch.where(unknown, possible, (ours - value).abs() < 1e-12).all()):
            return f"value: p = {ours.tolist()}, not {value.tolist()}, {whole.tolist()}"
        return None
    # as far as the dtype goes
    rounded = value.to(getattr(torch, dtype)).double()
    info = torch.finfo(getattr(torch, dtype))
    bound = torch.as_tensor(truth.bound, dtype=D64).expand(value.shape)
    bound = bound + info.eps * rounded.abs().nan_to_num(0, 0, 0) + info.smallest_normal * (1 + len(value.shape))
    with_nan = call.name in ("mean_sigma", "median_sigma") and not e.finite
    # beyond the range even of the bound nothing is known
    same = (
        (ours == rounded) | (bound > info.max) | (ours.isnan() & rounded.isnan()) | ((ours - rounded).abs() <= bound)
    )
    if with_nan:
        # a distance of infinity and one of NaN have no documented order
        same = same | ~ours.isfinite() | ~rounded.isfinite()
    if e.infinite and call.name in PAIRS_OF_ONE:
        # the distance of an infinite row from itself: NaN by its coordinates, 0 by its index
        same = same | rounded.isnan()
    if bool(same.all()):
        return None
    k = int((~same).reshape(-1).nonzero()[0])
    return (
        f"value: {ours.reshape(-1)[k].item():.9g}, not {rounded.reshape(-1)[k].item():.9g} "
        f"(within {bound.reshape(-1)[k].item():.2g}; {int((~same).sum())} of {same.numel()})"
    )


def _is_p_value(call: Call, truth: Truth) -> bool:
    return call.name == "mmd_test" and isinstance(truth.bound, float)


# what may take the diagonal by its index
PAIRS_OF_ONE = (
    "kernel_means",
    "mmd2",
    "mmd_test",
    "mmd2_and_variance",
    "distributed.mmd2",
    "nn.MMDLoss",
    "nn.RepulsiveLoss",
)
# no gradients are documented
WITHOUT_GRADIENT = ("mmd_test",)


def _wrong_gradients(
    call: Call,
    e: Exact,
    truths: list[Truth],
    factors: list[Any],
    gradients: dict[str, torch.Tensor | None],
    tol: float,
) -> str | None:
    if call.name in WITHOUT_GRADIENT:
        return "gradient: recorded though there is none" if any(g is not None for g in factors) else None
    if call.name == "distributed.mmd2":
        # no gradient reaches the others on several processes
        gradients = {name: g for name, g in gradients.items() if name in ("x", "y")}
    loss = sum((t.value * g.double()).sum() for t, g in zip(truths, factors, strict=True) if g is not None)
    reachable = [n for n in gradients if n in e.leaves and any(t.value.requires_grad for t in truths)]
    if all(g is None for g in factors):
        return "gradient: none is recorded" if reachable else None
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return None
    if not reachable or not all(_in_range(t.value, f) for t, f in zip(truths, factors, strict=True)):
        return None
    exact = torch.autograd.grad(loss, [e.leaves[n] for n in reachable], allow_unused=True)
    total = sum(float(g.double().abs().sum()) for g in factors if g is not None)
    for name, truth in zip(reachable, exact, strict=True):
        ours = gradients[name]
        leaf = call.arguments[name]
        if ours is None:
            if truth is not None and bool((truth != 0).any()):
                return f"gradient: none to {name}"
            continue
        if ours.shape != leaf.shape or ours.dtype != leaf.dtype:
            return f"gradient: to {name} of {tuple(ours.shape)} {ours.dtype}, not {tuple(leaf.shape)} {leaf.dtype}"
        if truth is None or not e.finite or (call.name == "median_sigma" and _tied(e)):
            continue
        info = torch.finfo(leaf.dtype)
        in_range = bool(truth.isfinite().all()) and float(truth.abs().max() if truth.numel() else 0) < info.max / 4
        if not in_range:
            continue
        floor = _floor(call, e, name, total) * (1e-6 if e.single else 1e-13)
        if not floor < math.inf:
            # no digit is known
            continue
        error = float((ours.double() - truth).norm())
        rounding = info.eps * float(truth.norm()) + info.smallest_normal * (1 + truth.numel())
        if not error <= tol * float(truth.norm()) + floor + rounding:
            return (
                f"gradient: to {name} off by {error:.3g} of {float(truth.norm()):.3g} "
                f"(within {tol * float(truth.norm()) + floor + rounding:.2g})"
            )
    return None


def _tied(e: Exact) -> bool:
    """Whether pairs are equally far apart: any of them may have the median's gradient."""
    z = _pooled(e).detach()
    if "max_points" in e.tensor and z.shape[-2] > e.tensor["max_points"]:
        z = z[..., (torch.arange(e.tensor["max_points"]) * z.shape[-2]) // e.tensor["max_points"], :]
    i, j = torch.triu_indices(z.shape[-2], z.shape[-2], 1)
    apart = torch.sort((z[..., i, :] - z[..., j, :]).norm(dim=-1), -1).values
    return bool((apart.diff(dim=-1) <= 1e-9 * apart[..., 1:]).any())


def _in_range(value: torch.Tensor, of_dtype: torch.Tensor | None) -> bool:
    """Whether a result, and not only its truth, is finite and not rounded to 0: else it has no gradient."""
    if of_dtype is None:
        return True
    info, size = torch.finfo(of_dtype.dtype), value.detach().abs()
    return bool(((size < info.max) & ((size >= info.smallest_normal) | (size == 0))).all())


def _floor(call: Call, e: Exact, name: str, total: float) -> float:
    """What the terms of a gradient add up to before they cancel, for factors that add up to `total`."""
    if "sigma" not in e.tensor or e.tensor["sigma"] is None:
        if "sigma" not in call.made_with or isinstance(call.made_with["sigma"], str):
            return total
        sigma = torch.tensor(plain_numbers(call.made_with["sigma"]), dtype=D64)
        weight = float(np.abs(call.made_with.get("weights") or [1.0] * len(sigma)).sum())
    else:
        sigma, weights = e.bandwidths()
        sigma, weight = sigma.detach(), float(_total(weights).max()) if weights.numel() else 0.0
    narrow = float(sigma.min()) if sigma.numel() else 1.0
    spread = 0.0
    for p in POINTS[call.name]:
        z = e.tensor[p]
        if z is not None and z.numel():
            spread = max(spread, 2 * float(z.detach().abs().max()) * math.sqrt(z.shape[-1]))
    if call.name in ("log_density", "score", "nn.KDERatioLoss", "nn.ArticleRegularizer"):
        # pulls, or their derivatives, times exponents that round
        ratio = spread / narrow
        power = (name in ("x", "data", "sigma")) + (call.name == "score")
        if ratio > 3e6:
            # exponents whose rounding decides which row has the density
            return math.inf
        with np.errstate(all="ignore"):
            scale = (1 + np.float64(ratio)) ** (3 if call.name == "score" else 2) / np.float64(narrow) ** power
            return float(total * scale * (narrow * np.float64(narrow) if call.name.startswith("nn.") else 1.0))
    slope = min(spread / narrow / narrow, 0.61 / narrow) if narrow > 1e-150 else 0.61 / narrow
    v = e.tensor.get("v")
    size = float(v.detach().abs().max()) if v is not None and v.numel() else 1.0
    if name == "sigma":
        slope = 0.75 / narrow
    if name in ("weights", "v") or name.endswith("_weights"):
        slope = 1.0
    return 4 * total * weight * slope * (1.0 if name == "v" else size)


@dataclass
class Known:
    """A fault that a named test of test_fuzz.py has as an expected failure: which calls meet it, and how it shows."""

    shows: str
    meets: Callable[[Call], bool]


def _mixes_float32(call: Call) -> bool:
    lists = [v for v in (call.arguments.get("sigma"), call.arguments.get("weights")) if isinstance(v, list | tuple)]
    return any(isinstance(entry, torch.Tensor) and entry.dtype != D64 for entries in lists for entry in entries)


def _by_a_rule(call: Call) -> bool:
    return call.name in ("mean_sigma", "median_sigma") or isinstance(call.made_with.get("sigma"), str)


def _extreme(call: Call) -> bool:
    """Squares of the coordinates leave the range, or those of float32 may."""
    sizes = [float(t.detach().abs().max()) for t in _exact_points(call) if t.numel()]
    return any(size > 1e37 or 0 < size < 1e-150 for size in sizes if math.isfinite(size))


def _exact_points(call: Call) -> list[torch.Tensor]:
    given = [call.arguments[p] for p in POINTS[call.name]]
    arrays = [torch.tensor(v.astype(np.float64)) if isinstance(v, np.ndarray) else v for v in given if v is not None]
    return [a.double() for a in arrays]


def _not_finite(call: Call) -> bool:
    return any(not bool(t.isfinite().all()) for t in _exact_points(call))


KNOWN = {
    "log densities near the end of float32": Known(
        "value: -inf, not -[0-9.]*e\\+3[78]", lambda c: "density" in c.name
    ),
    "the reference of what is not finite": Known(
        "value: nan", lambda c: c.arguments.get("backend") == "reference" and (_not_finite(c) or _extreme(c))
    ),
}


def failures(seeds: Any, tolerance: Callable[[str, Any], float]) -> list[tuple[int, str, str]]:
    """(seed, call, what is wrong) of the calls with these seeds that are wrong, but for known faults."""
    found = []
    for seed in seeds:
        call = drawn(seed)
        text = str(call)
        wrong = judged(call, tolerance)
        if wrong is not None and not any(re.match(k.shows, wrong) and k.meets(call) for k in KNOWN.values()):
            found.append((seed, text, wrong))
    return found


if __name__ == "__main__":
    from conftest import TOLERANCE

    torch.set_num_threads(1)
    first, last = int(sys.argv[1]), int(sys.argv[-1])
    for seed in range(first, last + 1):
        call = drawn(seed)
        print(f"{seed}: {call}\n    {judged(call, lambda what, dtype: TOLERANCE[what, np.dtype(dtype).type])}")
