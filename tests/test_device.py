"""The operators and what calls them, on tensors that say they are on a GPU while their numbers are in memory here.

A GPU refuses an operation on tensors of two places, a kernel that gets a pointer into the host's memory, and, while
a CUDA graph is captured, whatever waits for the host or the device. All three can be seen without one.
"""

import contextlib
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

# it notes torch's functions when it is loaded: not while others stand in their place
import torch._dynamo
from functions import FUNCTIONS as ALL
from functions import selected
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import gkfast
import gkfast.nn
from gkfast.ops.operator import gpu_kernels

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_gpu_hardware.py has the GPU itself")
pytestmark = [pytest.mark.interpreter, no_gpu]

FACTORIES = ("as_tensor", "asarray", "empty", "eye", "full", "ones", "tensor", "zeros")
# these bring numbers along from the host
COPYING = ("as_tensor", "asarray", "tensor")


class There(torch.Tensor):
    """A tensor that says it is on a GPU; its numbers are in `here`."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)
    # what a CUDA graph could not capture
    waits: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, here):
        self = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=here.device
        )
        self.here = here
        return self

    def tolist(self):
        self.waits.append("tolist")
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        name, options = function.overloadpacket.__name__, options or {}
        if function.namespace == "gkfast":
            with torch.no_grad():
                return gpu_kernels[name](*arguments)
        tensors = [t for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)]
        # a number of the host goes along as an argument of the kernel
        elsewhere = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.ndim]
        if name in ("_local_scalar_dense", "equal", "nonzero") or (elsewhere and name in ("copy_", "index")):
            cls.waits.append(name)
        elif elsewhere:
            raise RuntimeError(f"{function} of tensors on cuda:0 and of those on cpu, of shapes {elsewhere}")
        found = function(*tree_map(here, arguments), **tree_map(here, options))
        found = tree_map(lambda t: There(t) if isinstance(t, torch.Tensor) else t, found)
        return return_and_correct_aliasing(function, arguments, options, found)


def here(value):
    return value.here if isinstance(value, There) else value


class Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        There.waits.append(f"a copy of {tuple(tensor.shape)}")
        return tensor.here.clone() if isinstance(tensor, There) else There(tensor.detach().clone())

    @staticmethod
    def backward(ctx, g):
        return Move.apply(g)


@pytest.fixture
def launched(monkeypatch):
    """An imitated GPU: the names of the kernels that were launched, which run if `launched.run` is set."""
    from triton.runtime.interpreter import GridExecutor

    from gkfast.kernels import gpu  # noqa: F401  (loads the modules that are changed below)

    found = SimpleNamespace(kernels=[], run=False)
    launch, to = GridExecutor.__call__, torch.Tensor.to

    def on_device(self, *arguments, **options):
        found.kernels.append(self.fn.__name__)
        for t in tree_leaves((arguments, options)):
            # Triton asks the driver what a pointer is; none has no memory
            if isinstance(t, torch.Tensor) and not isinstance(t, There) and t.numel():
                raise ValueError(f"{self.fn.__name__} got a tensor on the CPU, of shape {tuple(t.shape)}")
        if found.run:
            launch(self, *tree_map(here, arguments), **tree_map(here, options))

    def moved(tensor, *places, device=None, dtype=None, **options):
        for place in places:
            if isinstance(place, torch.Tensor):
                device, dtype = place.device, place.dtype
            elif isinstance(place, torch.dtype):
                dtype = place
            else:
                device = place
        tensor = tensor if dtype in (None, tensor.dtype) else to(tensor, dtype)
        if device is None or torch.device(device).type == tensor.device.type:
            return tensor
        return Move.apply(tensor)

    def made(name, make):
        def call(*arguments, device=None, **options):
            if device is None or torch.device(device).type != "cuda":
                return make(*arguments, device=device, **options)
            if name in COPYING:
                There.waits.append(name)
            wanted = options.pop("requires_grad", False)
            return There(make(*arguments, **options)).requires_grad_(wanted)

        return call

    There.waits.clear()
    monkeypatch.setattr(GridExecutor, "__call__", on_device)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: moved(t, "cpu"))
    for name in FACTORIES:
        monkeypatch.setattr(torch, name, made(name, getattr(torch, name)))
    monkeypatch.setattr(torch.cuda, "device_of", lambda t: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(sys.modules["gkfast.kernels.gpu.tiles"], "architecture", lambda device: 90)
    return found


FUNCTIONS = selected(
    "rbf",
    "rbf of x with itself",
    "rbf_matmul",
    "mmd2",
    "kernel_means",
    "mmd2, linear",
    "log_density",
    "log_density, weighted",
    "log_density, leave one out",
    "log_density, by bandwidth",
    "mmd2, by bandwidth",
    "score",
    "witness",
    "mmd2_and_variance",
) | {
    "log_density, high": lambda x, y, s: gkfast.log_density(x, y, s, precision="high"),
    "mmd2, weighted": lambda x, y, s: ALL["mmd2, weighted"](x, y, s, [0.5] * 2),
    "mmd2, weighted by bandwidth": lambda x, y, s: ALL["mmd2, by bandwidth"](
        x, y, s, [0.5, 2.0], a=x[:, 0].abs(), b=y[:, 0].abs()
    ),
}
# numbers; found on the device; learned there; learned on the host, whose gradient must come back to it
BANDWIDTHS = {
    "numbers": lambda place: [0.8, 1.7],
    "found": lambda place: torch.full((2,), 0.9, device=place),
    "learned": lambda place: torch.full((2,), 0.9, dtype=torch.float64, device=place).requires_grad_(),
    "learned on the host": lambda place: torch.full((2,), 0.9).requires_grad_(),
}
# the most copies of bandwidths and of their gradients where these are on the host; 3 where no number is given
COPIES = {"rbf": 1, "rbf of x with itself": 1, "rbf_matmul": 1, "score": 7, "mmd2_and_variance": 7}
# those of positive factors and of negative ones
COPIES |= {"log_density, by bandwidth": 4}


def sample(n, dims):
    torch.manual_seed(n)
    return torch.randn(n, dims), torch.randn(n + 1, dims)


def value_and_gradients(function, x, y, sigma):
    needed = [x, y, sigma] if isinstance(sigma, torch.Tensor) and sigma.requires_grad else [x, y]
    value = function(x.requires_grad_(), y.requires_grad_(), sigma)
    gradients = torch.autograd.grad(value.sum(), needed, allow_unused=True, materialize_grads=True)
    return value.detach(), *gradients


@pytest.mark.parametrize("size", [64, 2100])
@pytest.mark.parametrize("kind", BANDWIDTHS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_wait_for_no_device(name, kind, size, launched):
    """Small, and by products of pieces: values and gradients could be captured in a graph."""
    x, y = map(There, sample(size, 17))
    value_and_gradients(FUNCTIONS[name], x, y, BANDWIDTHS[kind]("cuda"))
    assert launched.kernels
    if kind == "learned on the host":
        # bandwidths and their gradients are copied, and nothing else
        assert len(There.waits) <= COPIES.get(name, 3)
        assert all(wait.startswith("a copy of") and not wait.endswith(", 17)") for wait in There.waits)
    else:
        assert not There.waits


@pytest.mark.parametrize("kind", BANDWIDTHS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_cpu(name, kind, launched):
    launched.run = True
    points = sample(9, 3)
    ours = value_and_gradients(FUNCTIONS[name], *(There(t.clone()) for t in points), BANDWIDTHS[kind]("cuda"))
    truth = value_and_gradients(FUNCTIONS[name], *points, BANDWIDTHS[kind]("cpu"))
    for found, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(here(found), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["numbers", "found"])
@pytest.mark.parametrize("dims", [3, 17])
@pytest.mark.parametrize("powers", [(0.5, 0.5), None])
def test_drift_is_that_of_the_cpu_and_waits_for_no_device(kind, dims, powers, launched):
    launched.run = True
    x, y = sample(9, dims)
    options = {"powers": powers, "real_weights": torch.rand(10)}
    truth = gkfast.drift(x, y, sigma=BANDWIDTHS[kind]("cpu"), **options)
    sigma = BANDWIDTHS[kind]("cuda")
    options["real_weights"] = There(options["real_weights"])
    found = gkfast.drift(There(x.clone()), There(y.clone()), sigma=sigma, **options)
    assert (here(found) - truth).norm() <= 1e-5 * truth.norm()
    assert not There.waits


# at most so many launches for the value, and for its gradients to x and y, as kernels/gpu/README.md says: of few
# coordinates, by differences; of more, by products; and of more than a program pulls, by panels
LAUNCHES = {
    "rbf": ((1, 2), (2, 3), (2, 3)),
    "rbf of x with itself": ((1, 2), (2, 3), (2, 3)),
    "rbf_matmul of a column": ((2, 2), (3, 3), (3, 4)),
    "rbf_matmul of three columns": ((2, 3), (3, 4), (3, 5)),
    "mmd2": ((2, 0), (2, 0), (4, 0)),
    "kernel_means": ((2, 0), (2, 0), (4, 0)),
    "log_density": ((2, 2), (3, 3), (3, 4)),
    "log_density, high": ((2, 2), (3, 3), (3, 4)),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_number_of_launches(name, launched):
    functions = FUNCTIONS | {
        "rbf_matmul of a column": lambda x, y, s: gkfast.rbf_matmul(x, y, y[:, 0], s),
        "rbf_matmul of three columns": lambda x, y, s: gkfast.rbf_matmul(x, y, y[:, :3], s),
    }
    found = {}
    for kind, dims_of_kind in (("few", (3,)), ("whole", (5, 128)), ("panels", (784,))):
        for n, dims in ((n, dims) for n in (64, 1023) for dims in dims_of_kind):
            x, y = (There(t).requires_grad_() for t in sample(n, dims))
            launched.kernels.clear()
            value = functions[name](x, y, [0.8, 1.7])
            of_value = len(launched.kernels)
            torch.autograd.grad(value.sum(), [x, y][: 1 if name == "rbf of x with itself" else 2])
            of_gradients = len(launched.kernels) - of_value
            most = found.get(kind, (0, 0))
            found[kind] = max(most[0], of_value), max(most[1], of_gradients)
    assert tuple(found.values()) == LAUNCHES[name]


MODULES = {
    "of the median": lambda: gkfast.nn.MMDLoss("median"),
    "of the mean, its root": lambda: gkfast.nn.MMDLoss("mean", estimator="biased", root=True),
    "of given bandwidths": lambda: gkfast.nn.MMDLoss([0.8, 1.7]),
    "of densities": lambda: gkfast.nn.KDERatioLoss(),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_step_of_a_loss_waits_for_no_device(name, launched):
    launched.run = True
    points = sample(9, 3)
    losses = MODULES[name](), MODULES[name]()
    for module in losses[1].modules():
        for own, buffer in module._buffers.items():
            module._buffers[own] = There(buffer)
    for step in range(2):
        # the first of a bandwidth's rule is before the graph
        There.waits.clear()
        truth, ours = (
            (value.detach(), torch.autograd.grad(value, x)[0])
            for value, x in (
                (loss(x, y), x)
                for loss, x, y in (
                    (losses[0], (points[0] + step).requires_grad_(), points[1]),
                    (losses[1], There(points[0] + step).requires_grad_(), There(points[1].clone())),
                )
            )
        )
        for found, exact in zip(ours, truth, strict=True):
            torch.testing.assert_close(here(found), exact, rtol=1e-5, atol=1e-6)
    assert not There.waits


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_permutation_test_is_that_of_the_cpu(estimator, launched):
    launched.run = True
    x, y = sample(9, 3)
    arguments = {"permutations": 20, "seed": 0, "estimator": estimator}
    ours = gkfast.mmd_test(There(x), There(y), 0.9, **arguments)
    truth = gkfast.mmd_test(x, y, 0.9, **arguments)
    for found, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(here(found), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: gkfast.kernel_means(x, y, [0.9, 20.0], parts="xx").xx,
        lambda x, y: gkfast.kernel_means(x, y, [0.9, 20.0], parts=("yy", "xy")).xy,
        lambda x, y: gkfast.row_means(x, x, [0.9, 20.0], leave_one_out=True),
        lambda x, y: gkfast.pairwise_mmd2(x, [0, 1, 0, 1, 2, 2, 0, 1, 2], [0.9, 20.0]),
        lambda x, y: gkfast.pairwise_mmd2(x, [0, 1, 0, 1, 2, 2, 0, 1, 2], [0.9, 20.0], estimator="biased"),
    ],
    ids=["xx", "xy", "rows", "groups", "groups, biased"],
)
def test_parts_rows_and_groups_are_those_of_the_cpu(call, launched):
    launched.run = True
    x, y = sample(9, 3)
    torch.testing.assert_close(here(call(There(x), There(y))), call(x, y), rtol=1e-5, atol=1e-6)


def test_the_imitated_device_refuses_what_a_gpu_refuses(launched):
    """Otherwise the tests above see nothing."""
    from gkfast.kernels import gpu

    x, y = map(There, sample(5, 3))
    with pytest.raises(RuntimeError, match="of those on cpu"):
        x + y.here[:5]
    with pytest.raises(ValueError, match="_table_kernel got a tensor on the CPU"):
        gpu.rbf(x.here[None], y[None], torch.ones(1, 9), torch.ones(1, 9))
    x.sum().item()
    assert There.waits == ["_local_scalar_dense"]
