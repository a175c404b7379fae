"""Plans of launches (kernels/gpu/launch.py), with Triton's own compiler and a driver that only notes what it gets.

Run by test_gpu_plans.py in a process of its own, since kernels are compiled here, not interpreted. Prints JSON: what
went wrong in each check, or nothing.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parent.parent))
from gkfast.kernels import gpu
from gkfast.kernels.gpu import launch as module
from gkfast.kernels.gpu.launch import forget, launch, planned, refuse_plan
from gkfast.kernels.gpu.numbers import number

calls = []
DEVICE = SimpleNamespace(current=0, target=GPUTarget("cuda", 90, 32))


class Launcher:
    """Notes a launch: the kernel that was compiled, as Triton identifies it, and what it gets."""

    def __init__(self, source, metadata):
        kinds = {name: (source.signature.get(name), value) for name, value in source.signature.items()}
        self.compiled = source.fn.__name__, str(kinds), str(source.attrs), str(source.constants), metadata.hash

    def __call__(self, *arguments):
        grid, stream, (metadata, enter, leave), own = arguments[:3], arguments[3], arguments[6:9], arguments[9:]
        for hook in (enter, leave):
            if hook is not None:
                hook(metadata)
        calls.append((self.compiled, grid, stream, own))


class Driver:
    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 1, 128, 0, 1024),
        unload_module=lambda *_: None,
        get_device_properties=lambda _: {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32},
    )

    def get_current_device(self):
        return DEVICE.current

    def get_current_stream(self, device):
        return 100 + device

    def get_current_target(self):
        return DEVICE.target

    def get_active_torch_device(self):
        return torch.device("cpu")


driver.set_active(Driver())


def described(arguments, inputs):
    """Arguments with pointers by what they point at: an input and how far behind, or the how-manieth other memory."""
    others = {}

    def of(a):
        if isinstance(a, tuple):
            return [of(part) for part in a]
        address = a.data_ptr() if isinstance(a, torch.Tensor) else a if type(a) is int and a > 2**40 else None
        # numbers are odd
        if address is None or address % 2:
            return str(a)
        for name, tensor in inputs.items():
            if 0 <= address - tensor.data_ptr() < max(1, tensor.numel() * tensor.element_size()):
                return name, address - tensor.data_ptr()
        return "other", others.setdefault(address, len(others))

    return [of(a) for a in arguments]


def noted(function, inputs, *arguments, **options):
    """What a call launches, and the facts of its results."""
    calls.clear()
    found = function(*arguments, **options)
    # all together, since launches share memory
    whole = described([part for *_, own in calls for part in own], inputs)
    results = found if type(found) is tuple else (found,)
    facts = [None if t is None else (t.shape, t.stride(), t.dtype) for t in results]
    return [call[:3] for call in calls], whole, facts


def thrice(function, inputs, *arguments, **options):
    """A call by Triton, one that is recorded, and one by its plan: all the same."""
    forget()
    first, second = (noted(function, inputs, *arguments, **options) for _ in range(2))
    plans = [plan for plan in module._plans.values() if plan is not None]
    assert len(plans) == 1, "no plan was made"
    third = noted(function, inputs, *arguments, **options)
    assert first == second, (first, second)
    assert first == third, (first, third)
    return first


class Pair(NamedTuple):
    one: object
    two: object
    size: object


@triton.jit(do_not_specialize=["N"])
def _toy_kernel(x, pair, encoded, N, K, FLAG: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < N, other=0.0) + K
    if pair.two is not None:
        value += tl.load(pair.two + at, mask=at < N, other=0.0)
    if encoded is not None:
        value += number(1, encoded).to(tl.float32)
    if FLAG:
        tl.store(pair.one + at, value, mask=at < N)


KEPT = torch.zeros(48, 3)


def toy(x, y, numbers, *, flag=True, outside=False, copied=False, read=False, kept=False, k=7):
    """Two launches, a tensor that nobody gets, and views as results."""
    middle, out = x.new_empty(x.shape[0], 4), torch.empty(1, x.shape[0], 3, dtype=x.dtype, device=x.device)
    encoded = None if numbers is None else numbers.encoded
    n = x.shape[0]
    by = {"FLAG": flag, "BLOCK": 16, "num_warps": 1, "enable_fp_fusion": True}
    if copied:
        x = x + 1
    if read:
        refuse_plan()
    if kept:
        x = KEPT
    launch(_toy_kernel, (n % 7 + 1,), x, Pair(middle, y, n), encoded, n, k, **by)
    if outside:
        _toy_kernel[(1,)](x, Pair(middle, y, n), encoded, n, k, **by)
    launch(_toy_kernel, (1, 2), middle, Pair(out, None if y is None else y[1:], 5), encoded, n, k, **by)
    return out[0], None, middle[:, 2:], out, out.flatten()[3:], middle


toy_planned = planned(toy)


def check_a_plan_launches_what_triton_would():
    x, y = torch.zeros(48, 3), torch.zeros(48, 3)
    thrice(toy_planned, {"x": x, "y": y}, x, y, (1.0, 2.0))
    thrice(toy_planned, {"x": x}, x, None, None)


def check_each_kind_of_argument_has_its_own_kernel():
    """Calls that differ in what Triton compiles for, one after another under one memory of plans."""
    base = torch.zeros(4096)
    big = torch.empty(2**31 + 8, dtype=torch.bfloat16)
    x = base[:144].view(48, 3)
    kinds = {
        "plain": (x, x, (1.0,), {}),
        "misaligned": (base[1:145].view(48, 3), x, (1.0,), {}),
        "misaligned beside": (x, base[3:147].view(48, 3), (1.0,), {}),
        "double": (x.double(), x, (1.0,), {}),
        "half": (x.half(), x, (1.0,), {}),
        "none": (x, None, (1.0,), {}),
        "no numbers": (x, x, None, {}),
        "two numbers": (x, x, (1.0, 3.0), {}),
        "small numbers": (x, x, (5e-324,), {}),
        "another constant": (x, x, (1.0,), {"flag": False}),
        "an integer of 16": (x, x, (1.0,), {"k": 16}),
        "an integer of 1": (x, x, (1.0,), {"k": 1}),
        "a large integer": (x, x, (1.0,), {"k": 2**40 + 1}),
        "another size": (x[:47], x, (1.0,), {}),
        "beyond 2^31": (big[:, None], None, (1.0,), {}),
        "strides": (x[:, :1], x, (1.0,), {}),
    }
    truth = {name: noted(toy_by_triton, {}, *arguments, **options) for name, (*arguments, options) in kinds.items()}
    assert len({str(launches[0]) for launches, *_ in truth.values()}) > 10
    forget()
    for _ in range(4):
        for name, (*arguments, options) in kinds.items():
            found = noted(toy_planned, {}, *arguments, **options)
            assert found[0] == truth[name][0], (name, found[0], truth[name][0])
    # all but the numbers that make small integers
    assert sum(plan is not None for plan in module._plans.values()) == len(kinds) - 1


def toy_by_triton(x, y, numbers, **options):
    return toy(x, y, None if numbers is None else module.numbers(numbers), **options)


def check_debugging_has_its_own_kernel():
    x = torch.zeros(48, 3)
    plain = thrice(toy_planned, {"x": x}, x, None, None)
    knobs.runtime.debug = True
    try:
        found = [noted(toy_planned, {"x": x}, x, None, None) for _ in range(3)]
        assert found == [noted(toy_by_triton, {"x": x}, x, None, None)] * 3
        assert found[0][0][0][0] != plain[0][0][0]
    finally:
        knobs.runtime.debug = False


def check_values_are_put_into_place():
    """Tensors and numbers of each call, and no others, though one tensor was given twice when it was recorded."""
    x = torch.zeros(48, 3)
    thrice(toy_planned, {"x": x}, x, x, (1.0, 1.0))
    y, z = torch.zeros(48, 3), torch.zeros(48, 3)
    found = noted(toy_planned, {"y": y, "z": z}, y, z, (2.0, 3.0))
    assert found == noted(toy_by_triton, {"y": y, "z": z}, y, z, (2.0, 3.0))
    assert ("z", 12) in [part for a in found[1] if isinstance(a, list) for part in a]
    assert len(module._plans) == 1


def check_results_are_new():
    x = torch.zeros(48, 3)
    first, _, middle, *_ = toy_planned(x, None, None)
    results = [toy_planned(x, None, None) for _ in range(4)]
    assert len({r[0].data_ptr() for r in results}) == 4
    # views of one tensor stay views of one
    assert len({t.untyped_storage().data_ptr() for t in (results[3][k] for k in (0, 3, 4))}) == 1
    assert results[3][3].shape == (1, 48, 3)
    assert results[3][4].storage_offset() == 3
    assert results[3][2].storage_offset() == 2
    assert results[3][2].stride() == (4, 1)
    assert first.shape == (48, 3)
    assert middle.shape == (48, 2)


def check_what_is_more_than_launches_is_not_planned():
    x = torch.zeros(48, 3)
    for options in ({"copied": True}, {"read": True}, {"outside": True}, {"kept": True}):
        forget()
        for _ in range(4):
            calls.clear()
            toy_planned(x, None, None, **options)
            assert len(calls) == 2 + options.get("outside", False)
        assert list(module._plans.values()) == [None], options


def check_hooks_run():
    x, seen = torch.zeros(48, 3), []
    thrice(toy_planned, {"x": x}, x, None, None)

    def enter(metadata):
        seen.append(("enter", metadata.get()["name"], metadata.get()["stream"]))

    def leave(metadata):
        seen.append(("leave", metadata.get()["name"], metadata.get()["stream"]))

    knobs.runtime.launch_enter_hook.add(enter)
    knobs.runtime.launch_exit_hook.add(leave)
    try:
        toy_planned(x, None, None)
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
        knobs.runtime.launch_exit_hook.remove(leave)
    assert seen == [("enter", "_toy_kernel", 100), ("leave", "_toy_kernel", 100)] * 2, seen
    before = []
    hook = lambda *arguments, **options: before.append(len(arguments))  # noqa: E731
    _toy_kernel.pre_run_hooks.append(hook)
    try:
        toy_planned(x, None, None)
    finally:
        _toy_kernel.pre_run_hooks.remove(hook)
    assert len(before) == 2


def check_each_device_has_its_own_kernels(which=(1, 0, 1, 1, 1, 0, 0, 0)):
    """Kernels run on the device of x, whichever is the current one."""
    x, entered = torch.zeros(48, 3), []

    @contextlib.contextmanager
    def on(device):
        before, DEVICE.current = DEVICE.current, device
        entered.append(device)
        yield
        DEVICE.current = before

    of_x = [0]
    real = torch.Tensor.get_device, torch.cuda.current_device, torch.cuda.device, torch.cuda.get_device_capability
    torch.Tensor.get_device = lambda t: of_x[0]
    torch.cuda.current_device, torch.cuda.device = (lambda: DEVICE.current), on
    # the third is too old
    torch.cuda.get_device_capability, torch.cuda.get_device_name = (lambda k: (9 - k, 0)), str
    forget()
    try:
        for device in which:
            of_x[0] = device
            calls.clear()
            toy_planned(x, None, None)
            assert [stream for _, _, stream, _ in calls] == [100 + device] * 2
            assert DEVICE.current == 0
        of_x[0] = 2
        calls.clear()
        with contextlib.suppress(RuntimeError):
            toy_planned(x, None, None)
            raise AssertionError("a GPU before Ampere was not refused")
        assert not calls
    finally:
        torch.Tensor.get_device, torch.cuda.current_device, torch.cuda.device, torch.cuda.get_device_capability = real
    # never where it is the current one already
    assert entered == [1] * 4
    assert len(module._plans) == 2


def check_options_of_other_compilers_are_left_out():
    """AMD's compiler has no maxnreg: the launch is not refused."""
    given = []

    class Kernel:
        arg_names = ("x", "FLAG")

        def __getitem__(self, grid):
            return lambda *arguments, **options: given.append(options)

    by = {"FLAG": 1, "num_warps": 4, "enable_fp_fusion": True}
    launch(Kernel(), (1,), 0, maxnreg=128, **by)
    torch.version.hip, DEVICE.target = "6.4", GPUTarget("hip", "gfx942", 64)
    try:
        launch(Kernel(), (1,), 0, maxnreg=128, **by)
    finally:
        torch.version.hip, DEVICE.target = None, GPUTarget("cuda", 90, 32)
    assert given == [by | {"maxnreg": 128}, by]


def points(n, m, d, dtype=torch.float32):
    return torch.zeros(2, n, d, dtype=dtype), torch.zeros(2, m, d, dtype=dtype)


def check_operations():
    """Every operation of the package launches by its plan what it launches without one."""
    both = (True, True)
    for n, m, d, dtype in ((64, 64, 128, torch.float32), (5, 300, 3, torch.float64), (33, 17, 40, torch.bfloat16)):
        x, y = points(n, m, d, dtype)
        g, v, w = x.new_zeros(2, n, m), x.new_zeros(2, m, 2), x.new_zeros(2, n, 2)
        a, b = x.new_zeros(2, n), x.new_zeros(2, m)
        shares, wide = y.new_zeros(2, m, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        scale, out = torch.zeros(2, 1, 3, dtype=torch.float64), x.new_zeros(2, n, m)
        numbers, inputs = ((0.5, 2.0), (1.0, 1.0)), {"x": x, "y": y, "g": g, "v": v, "w": w, "a": a, "b": b, "o": out}
        inputs |= {"shares": shares, "wide": wide, "scale": scale}
        thrice(gpu.baselines, inputs, x, y, numbers[0])
        thrice(gpu.rbf, inputs, x, y, *numbers)
        thrice(gpu.rbf, inputs, x, None, *numbers)
        found = thrice(gpu.rbf, inputs, x, y, *numbers, out=out)
        assert gpu.rbf(x, y, *numbers, out=out) is out
        assert len(found[0]) >= 1
        thrice(gpu.rbf_backward, inputs, g, x, y, *numbers, wants=[*both, *both])
        thrice(gpu.rbf_matmul, inputs, x, y, v, *numbers)
        thrice(gpu.rbf_matmul_backward, inputs, w, x, y, v, *numbers, wants=[*both, True, *both])
        thrice(gpu.log_density, inputs, x, y, *numbers, shares, leave_one_out=False)
        for wants in ([*both, *(False,) * 4], [True] * 6):
            sums = gpu.kernel_sums_with_gradients
            thrice(sums, inputs, scale, x, y, a, b, *numbers, wide, drop=1, wants=wants)
        thrice(sums, inputs, scale, x, y, None, None, *numbers, wide, drop=1, wants=[*both, *(False,) * 4])


def check_public_functions():
    """Values and gradients of the public functions, whose operators have plans of their own."""
    import gkfast
    from gkfast.ops import operator, torch_private

    plain, keys = torch_private._PLAIN, frozenset(torch_private._PLAIN)
    torch_private._PLAIN, torch_private.plain_of_gpu = frozenset(), lambda: keys
    functions = {
        "mmd2": lambda x, y: gkfast.mmd2(x, y, [0.5, 1.0]),
        "kernel_means": lambda x, y: gkfast.kernel_means(x, y, 0.5)[2],
        "rbf": lambda x, y: gkfast.rbf(x, y, 0.5),
        "rbf_matmul": lambda x, y: gkfast.rbf_matmul(x, y, y, [0.5] * 12),
        "log_density": lambda x, y: gkfast.log_density(x, y, 0.5),
    }
    try:
        for name, function in functions.items():
            for shape in ((20, 3), (2, 20, 3), (2, 1, 20, 3)):

                def call(function=function, shape=shape):
                    x, y = torch.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
                    value = function(x, y)
                    return value, *torch.autograd.grad(value.sum(), (x, y))

                forget()
                found = []
                for _ in range(4):
                    launches, _, facts = noted(call, {})
                    found.append((launches, facts))
                assert found[1:] == found[:1] * 3, (name, shape)
                assert found[0][0], (name, shape)
            # more numbers than a kernel takes are copied
            planned_here = [k[0] for k, plan in module._plans.items() if plan is not None]
            assert any(isinstance(getattr(f, "__self__", None), operator.Operator) for f in planned_here) == (
                name != "rbf_matmul"
            ), (name, planned_here)
    finally:
        torch_private._PLAIN = plain


if __name__ == "__main__":
    only = sys.argv[1:]
    report = {}
    for name, check in list(globals().items()):
        if name.startswith("check_") and (not only or name in only):
            try:
                forget()
                check()
                report[name] = ""
            except Exception:
                report[name] = traceback.format_exc()[-3000:]
    print(json.dumps(report))
