"""What an operator declares, and everything that follows from the declaration.

    class RbfMatmul(Operator):
        name = "rbf_matmul"
        tensors = "x: N D, y: M D, v: M E, sigma: S, weights: S"
        result = "N E"
        gradients = "x y v sigma weights"

        def change(self, tensors, tangents, options): ...

`tensors` names the axes behind the batch dimensions; all tensors of a call have the same batch dimensions. `change`
is how the result moves when the tensors move along tangents. From these follow the schema, the fake kernel, the calls
of the CPU and GPU kernels of that name, backward (by the kernel `rbf_matmul_backward`), forward mode, both modes of
the second derivative, and vmap.

A call takes the shortest way that still shows the operator to whoever asks: a kernel directly for ordinary tensors,
an autograd Function where a gradient is wanted, and torch's dispatcher for compiled graphs, transforms, modes and
profilers.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from gkfast import notices
from gkfast.ops.tiling import add, vjp
from gkfast.ops.torch_private import (
    below_autograd,
    constant_when_compiled,
    eager_place,
    forward_mode_enabled,
    plain_place,
    transforms,
    unwrap_dead_wrappers,
)

Options = dict[str, Any]
# a tensor, or the numbers that it would hold for every problem of the batch
Argument = Any

library = torch.library.Library("gkfast", "DEF")
# what the dispatcher has been given for CUDA, by operator: tests without a GPU call it
gpu_kernels: dict[str, Callable[..., Any]] = {}

# arguments that may be Python numbers: a tuple of floats, the same for every problem of the batch
_NUMBERS = frozenset({"scale", "sigma", "weights", "log_weights"})


# constants of a compiled graph, since dynamo cannot trace them; torch traces anew where the setting goes from or to
# "highest", not between the other two
@constant_when_compiled
def torch_precision() -> str:
    """What precision="torch" is."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        # torch refuses to tell it where the newer setting stands beside it
        newer = torch.backends.cuda.matmul.fp32_precision
        return {"tf32": "high", "bf16": "medium"}.get(newer, "highest")


@constant_when_compiled
def default_precision() -> str:
    """What precision=None is on a GPU, whatever torch's products have."""
    notices.lower_setting(torch_precision())
    return "highest"


def visible(tensor: Tensor) -> bool:
    """Whether the numbers in a tensor may be read: it is on the CPU, and nothing is traced or transformed."""
    return eager_place((tensor,)) == "cpu"


def differentiated(*arguments: Argument) -> bool:
    """Whether somebody may ask for a derivative of a result of these."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in arguments):
        return True
    return not torch.compiler.is_dynamo_compiling() and transforms()


class Slot(NamedTuple):
    """One declared tensor: "shift?: N S" is optional, with rows of K and then bandwidths behind the batch."""

    name: str
    axes: tuple[str, ...]
    optional: bool

    @property
    def kind(self) -> str:
        """Its type in the schema."""
        if self.name == "out":
            return "Tensor(a!)"
        return "Tensor?" if self.optional or self.name in _NUMBERS else "Tensor"


class Output(NamedTuple):
    """A result: its axes, and the place of the tensor whose dtype and device it has; None: float64, beside x."""

    axes: tuple[str, ...]
    like: int | None


def _slots(declaration: str) -> tuple[Slot, ...]:
    pairs = [part.split(":") for part in declaration.split(",")]
    return tuple(Slot(n.strip(" ?"), tuple(axes.split()), "?" in n) for n, axes in pairs)


class Operator:
    """A declaration, callable as ``operator(*arguments, **options)``."""

    name: str
    tensors: str
    result: str
    # whether the result is float64 where x is float32
    result_float64 = False
    # as in the schema; "str precision" is every operator's
    options = ""
    # tensors to which the kernel `<name>_backward` gives gradients, in its order
    gradients = ""
    # the operator that gives them
    gradient: "Gradient"

    def __init__(self) -> None:
        self.slots = _slots(self.tensors)
        self.names = [slot.name for slot in self.slots]
        self.count = len(self.slots)
        self.x = self.names.index("x")
        self.numbers = [k for k, name in enumerate(self.names) if name in _NUMBERS]
        self.option_kinds = [*self.options.split(", "), "str precision"] if self.options else ["str precision"]
        self.option_names = [kind.split()[1] for kind in self.option_kinds]
        # how many inputs of the schema are no tensors
        self.others = len(self.numbers) + len(self.option_names)
        self.outputs = self.declared_outputs()
        # `_on_gpu`, once it has been called
        self.planned: Callable[..., Any] | None = None
        # whether results are a tuple, the last of them wanted or not by the option `wants`
        self.several = "wants" in self.option_names or not self.outputs

    def declared_outputs(self) -> list[Output]:
        return [Output(tuple(self.result.split()), None if self.result_float64 else self.x)]

    def define(self) -> None:
        """Make the operator and its kernels known to torch's dispatcher."""
        kinds = [f"{slot.kind} {slot.name}" for slot in self.slots]
        kinds += [f"float[] {self.names[k]}_numbers" for k in self.numbers]
        kinds += self.option_kinds
        results = ", ".join(["Tensor"] * len(self.outputs))
        library.define(f"{self.name}({', '.join(kinds)}) -> {f'({results})' if self.several else results}")
        torch.library.register_fake(f"gkfast::{self.name}", self._fake, lib=library)
        library.impl(self.name, partial(self._by_kernel, self.on_cpu), "CPU")
        gpu_kernels[self.name] = partial(self._by_kernel, self.on_gpu)
        library.impl(self.name, gpu_kernels[self.name], "CUDA")

    def differentiate(self) -> None:
        """Make its derivatives known as well."""
        self.function = _function(self)
        torch.library.register_autograd(
            f"gkfast::{self.name}", self.function.backward, setup_context=self.function.setup_context, lib=library
        )
        # torch.func's transforms see the operator itself where a graph is traced: its Function has the rules for them
        library.impl(self.name, self.function.apply, "FuncTorchDynamicLayerFrontMode")

    def __call__(self, *arguments: Argument, **options: Any) -> Any:
        place = eager_place(arguments)
        if not place:
            return self.dispatched(arguments, options)
        arguments += (None,) * (self.count - len(arguments))
        if torch.is_grad_enabled():
            for a in arguments:
                if a is not None and type(a) is not tuple and a.requires_grad:
                    return _apply(_Eager, self, place, options, *arguments)
        return self.on(place, arguments, options)

    def dispatched(self, arguments: Sequence[Argument], options: Options) -> Any:
        """The call in the forms of torch: an operator of the dispatcher, or its Function."""
        inputs = self.flat(arguments, options)
        # in a graph that is being traced the operator stands for itself
        if torch.compiler.is_dynamo_compiling():
            return getattr(torch.ops.gkfast, self.name)(*inputs)
        if transforms():
            return self.function.apply(*inputs)
        # unwrap tensors left by a torch.func transform that has ended, as Function.apply does
        inputs = unwrap_dead_wrappers(inputs)
        if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs[: self.count]):
            return _apply(self.function, *inputs)
        return self.run(inputs)

    def run(self, inputs: Sequence[Any]) -> Any:
        """Without derivatives. Results that are not wanted are None or empty."""
        place = plain_place(inputs[: self.count])
        if place:
            return self.on(place, self.arguments(inputs), self.chosen(inputs))
        with below_autograd():
            return getattr(torch.ops.gkfast, self.name).default(*inputs)

    # arguments: tensors, tuples of numbers, None; inputs: those of the schema, tensors, numbers, options

    def flat(self, arguments: Sequence[Argument], options: Options) -> tuple[Any, ...]:
        tensors = [None if type(a) is tuple else a for a in arguments] + [None] * (self.count - len(arguments))
        numbers = [arguments[k] if type(arguments[k]) is tuple else () for k in self.numbers]
        return (
            *tensors,
            *numbers,
            *[options[name] for name in self.option_names[:-1]],
            options.get("precision", "highest"),
        )

    def arguments(self, inputs: Sequence[Any]) -> list[Argument]:
        found = list(inputs[: self.count])
        for place, k in enumerate(self.numbers, self.count):
            if len(inputs[place]):
                found[k] = tuple(inputs[place])
        return found

    def chosen(self, inputs: Sequence[Any]) -> Options:
        """The options among the inputs."""
        return dict(zip(self.option_names, inputs[self.count + len(self.numbers) :], strict=True))

    def as_tensors(self, arguments: Sequence[Argument]) -> list[Any]:
        """Numbers as float64 tensors of the call's batch, beside those that are tensors.

        Else on the CPU, where kernels read them without waiting.
        """
        batch = arguments[self.x].shape[:-2]
        beside = next((arguments[k] for k in self.numbers if isinstance(arguments[k], Tensor)), None)
        return [tensor_of(a, batch, beside) if type(a) is tuple else a for a in arguments]

    # kernels

    def kernel_options(self, device: str, options: Options) -> Options:
        """The options of the kernel: those of the CPU have one precision."""
        return options if device == "cuda" else {name: options[name] for name in self.option_names[:-1]}

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        """The results, for operands with one batch dimension: arrays on the CPU, tensors on a GPU."""
        return (getattr(kernels(device), self.name)(*operands, **options),)

    def on(self, place: str, arguments: Sequence[Argument], options: Options) -> Any:
        """By the kernel of that place."""
        return self.on_cpu(arguments, options) if place == "cpu" else self.on_gpu(arguments, options)

    def on_cpu(self, arguments: Sequence[Argument], options: Options) -> Any:
        """By the CPU kernel."""
        batch = arguments[self.x].shape[:-2]
        count, axes = batch.numel(), len(batch)
        operands: list[Any] = []
        for k, a in enumerate(arguments):
            if type(a) is tuple:
                a = array_of(a, count)
            elif a is not None:
                a = (a.detach().double() if k in self.numbers else a.detach()).numpy()
                a = a.reshape((count, *a.shape[axes:]))
            operands.append(a)
        found = self.call_kernel("cpu", operands, self.kernel_options("cpu", options))
        found = [r if r is None else torch.from_numpy(r.reshape(batch + r.shape[1:])) for r in found]
        if any([isinstance(arguments[k], Tensor) for k in self.numbers]):
            # gradients to bandwidths are float64
            found = [self._like(r, arguments, output) for r, output in zip(found, self.outputs, strict=True)]
        return tuple(found) if self.several else found[0]

    def on_gpu(self, arguments: Sequence[Argument], options: Options) -> Any:
        """By the GPU kernel; a call that repeats by its plan, see kernels/gpu/launch.py."""
        if self.planned is None:
            self.planned = kernels("cuda").planned(self._on_gpu, self.x)
        return self.planned(*arguments, **options)

    def _on_gpu(self, *arguments: Argument, **options: Any) -> Any:
        batch = arguments[self.x].shape[:-2]
        operands: list[Any] = []
        for slot, a in zip(self.slots, arguments, strict=True):
            # numbers go along as they are
            if isinstance(a, Tensor):
                # kernels read bandwidths by their strides, and those on the CPU without waiting
                a = a.detach() if slot.name in _NUMBERS else a.contiguous()
                a = a.reshape((batch.numel(), *a.shape[len(batch) :]))
            operands.append(a)
        found = self.call_kernel("cuda", operands, self.kernel_options("cuda", options))
        found = [r if r is None else r.reshape(batch + r.shape[1:]) for r in found]
        found = [self._like(r, arguments, output) for r, output in zip(found, self.outputs, strict=True)]
        return tuple(found) if self.several else found[0]

    def _like(self, result: Tensor | None, arguments: Sequence[Argument], output: Output) -> Tensor | None:
        """A result with the dtype and device that it is declared with."""
        like = None if output.like is None else arguments[output.like]
        return result.to(like) if result is not None and isinstance(like, Tensor) else result

    def _by_kernel(self, kernel: Callable[..., Any], *inputs: Any) -> Any:
        """The dispatcher takes no None: a result that is not wanted is empty."""
        found = kernel(self.arguments(inputs), self.chosen(inputs))
        if not self.several:
            return found
        x = inputs[self.x]
        return tuple([x.new_empty(*x.shape[:-2], 0) if result is None else result for result in found]) or None

    def _fake(self, *inputs: Any) -> Any:
        x = inputs[self.x]
        sizes = {"3": 3}
        for slot, a in zip(self.slots, self.arguments(inputs), strict=True):
            if type(a) is tuple:
                sizes[slot.axes[0]] = len(a) if len(slot.axes) == 1 else len(a) // 3
            elif a is not None:
                sizes |= dict(zip(slot.axes, a.shape[a.ndim - len(slot.axes) :], strict=True))
        # without y, x is both
        sizes.setdefault("M", sizes["N"])
        wants = self.chosen(inputs).get("wants", [])
        wants = [True] * (len(self.outputs) - len(wants)) + list(wants)
        found = []
        for output, want in zip(self.outputs, wants, strict=True):
            shape = (*x.shape[:-2], *([sizes[axis] for axis in output.axes] if want else [0]))
            like = None if output.like is None else inputs[output.like]
            found.append(x.new_empty(shape, dtype=torch.float64) if like is None else like.new_empty(shape))
        return (tuple(found) or None) if self.several else found[0]

    # derivative rules

    def change(self, tensors: Sequence[Any], tangents: Sequence[Any], options: Options) -> Tensor:
        """How the result moves when the tensors move along the tangents; numbers have become tensors."""
        raise NotImplementedError

    def change_vjp(
        self, g: Tensor, tensors: Sequence[Any], tangents: Sequence[Any], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of sum g . change(tensors, tangents) to those of (g, *tensors) that need one."""

        def total(g: Tensor, *tensors: Any) -> Tensor:
            return (g * self.change(tensors, tangents, options)).sum()

        return vjp(total, (g, *tensors), needed)

    def gradients_of(
        self, g: Tensor, arguments: Sequence[Argument], options: Options, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of sum g . result by the operator `<name>_backward`; None where none is needed."""
        places = self.gradient.given
        wants = [needed[k] for k in places]
        found: list[Tensor | None] = [None] * self.count
        for k, want, gradient in zip(
            places, wants, self.gradient(g, *arguments, **options, wants=wants), strict=True
        ):
            found[k] = gradient if want else None
        return found

    def save(self, ctx: Any, arguments: Sequence[Argument], options: Options, result: Any) -> list[Any]:
        """Keep for backward what needs no gradient; what must be saved as tensors."""
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.numbers = [(k, arguments[k]) for k in self.numbers if type(arguments[k]) is tuple]
        return [None if type(a) is tuple else a for a in arguments]

    def restored(self, ctx: Any, saved: Sequence[Any]) -> list[Argument]:
        """The arguments of a call, and what else was saved."""
        found = list(saved)
        for k, numbers in ctx.numbers:
            found[k] = numbers
        return found

    def record(self, ctx: Any, place: str, arguments: Sequence[Argument], options: Options) -> Any:
        """Forward of a call on ordinary tensors."""
        found = self.on(place, arguments, options)
        ctx.save_for_backward(*self.save(ctx, arguments, options, found))
        return found

    def constants(self, results: Sequence[Any], wants: Sequence[bool]) -> list[Tensor]:
        """The results without a derivative."""
        own = zip(results[len(results) - len(wants) :], wants, strict=True)
        return [t for t, want in own if not want and t is not None]

    def backward(self, ctx: Any, g: Sequence[Tensor | None], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        """The gradients, for what a Function has saved."""
        if g[0] is None:
            return [None] * self.count
        return self.gradients_of(g[0], self.restored(ctx, ctx.saved_tensors), ctx.options, needed)

    def jvp(self, ctx: Any, saved: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """The tangent of the result."""
        tensors = self.as_tensors(self.restored(ctx, saved))
        change = self.change(tensors, tangents, ctx.options)
        return change.to(torch.float64 if self.result_float64 else tensors[self.x].dtype)

    def vmap(self, info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
        """One more batch dimension, in front."""

        def in_front(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            return argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)

        moved = [in_front(a, d) for a, d in zip(inputs, in_dims, strict=True)]
        found = Operator.__call__(self, *self.arguments(moved), **self.chosen(moved))
        return found, 0 if isinstance(found, Tensor) else tuple(0 for _ in found)


class Gradient(Operator):
    """The operator `<name>_backward`: gradients of sum g . result, to the tensors that the declaration names."""

    # whether the result itself comes first, since the same sweep has it
    with_value = False

    def __init__(self, of: Operator, name: str = "") -> None:
        self.of = of
        self.name = name or f"{of.name}_backward"
        self.tensors = f"g: {of.result}, {of.tensors}"
        self.options = f"{of.options}, bool[] wants".lstrip(", ")
        # of the tensors with a gradient, among those of the value
        self.given = [of.names.index(name) for name in of.gradients.split()]
        super().__init__()
        of.gradient = self
        self.define()
        self.differentiate()

    def declared_outputs(self) -> list[Output]:
        value = [Output(tuple(self.of.result.split()), None)] * self.with_value
        return [*value, *(Output(self.slots[k + 1].axes, k + 1) for k in self.given)]

    def call_kernel(self, device: str, operands: Sequence[Any], options: Options) -> Sequence[Any]:
        found: Sequence[Any] = getattr(kernels(device), self.name)(*operands, **options)
        return found

    def backward(self, ctx: Any, g: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
        directions, arguments = g, self.restored(ctx, ctx.saved_tensors)
        weights, *tensors = self.as_tensors(arguments)
        first, wants = int(self.with_value), ctx.options["wants"]
        tangents = self._placed(_wanted(directions[first:], wants))[1:]
        found: list[Tensor | None] = [None] * self.count
        if any(t is not None for t in tangents):
            found = self.of.change_vjp(weights, tensors, tangents, ctx.options, needed)
        if first and directions[0] is not None:
            wants = [needed[k + 1] for k in self.given]
            along = self(directions[0], *arguments[1:], **{**ctx.options, "wants": wants})[1:]
            found = add(found, self._placed(_wanted(along, wants)))
        return found

    def jvp(self, ctx: Any, saved: Sequence[Any], tangents: Sequence[Any]) -> Any:
        # the jvp of a gradient is the gradient of the jvp, plus the gradient along the tangent of g
        arguments = self.restored(ctx, saved)
        g, *tensors = self.as_tensors(arguments)
        (tg, *tangents), wants, change = tangents, ctx.options["wants"], None
        moved: list[Any] = [None] * len(wants)
        if any(t is not None for t in tangents):
            change = self.of.change(tensors, tangents, ctx.options) if self.with_value else None
            found = self.of.change_vjp(g, tensors, tangents, ctx.options, [bool(w) for w in self._placed(wants)])
            moved = [found[k + 1] for k in self.given]
        if tg is not None:
            along = self(tg, *arguments[1:], **ctx.options)[int(self.with_value) :]
            moved = add(moved, _wanted(along, wants))
        return *[change] * self.with_value, *moved

    def _placed(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients in the order of the slots, None for the other slots."""
        placed: list[Any] = [None] * self.count
        for k, d in zip(self.given, gradients, strict=True):
            placed[k + 1] = d
        return placed


def _wanted(gradients: Sequence[Any], wants: Sequence[bool]) -> list[Any]:
    return [d if want else None for d, want in zip(gradients, wants, strict=True)]


def _apply(function: Any, *inputs: Any) -> Any:
    """function.apply, which first looks at forward's signature: that costs more than a small kernel."""
    return super(torch.autograd.Function, function).apply(*inputs)


def _function(operator: Operator) -> Any:
    """The autograd Function of an operator, for the schema's inputs."""
    count = operator.count

    class Function(torch.autograd.Function):
        vmap = staticmethod(operator.vmap)

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return operator.run(inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            options = operator.chosen(inputs)
            saved = operator.save(ctx, operator.arguments(inputs), options, output)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)
            if operator.several:
                ctx.mark_non_differentiable(*operator.constants(output, options["wants"]))

        @staticmethod
        def backward(ctx: Any, *g: Tensor | None) -> Any:
            return *operator.backward(ctx, g, ctx.needs_input_grad[:count]), *[None] * operator.others

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            # PyTorch turns forward mode off around a jvp, and so would lose the tangents of an outer level, silently.
            # Here it stays on, and the saved tensors come without their tangents of this level.
            saved = [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors]
            with forward_mode_enabled(True):
                return operator.jvp(ctx, saved, tangents[:count])

    return Function


class _Eager(torch.autograd.Function):
    """A call on ordinary tensors: the kernel, and what backward needs, without the forms of the dispatcher."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, place: str, options: Options, *arguments: Argument) -> Any:
        ctx.operator = operator
        return operator.record(ctx, place, arguments, options)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> Any:
        return None, None, None, *ctx.operator.backward(ctx, g, ctx.needs_input_grad[3:])


@cache
def kernels(device: str) -> Any:
    """The kernels of a device."""
    if device == "cpu":
        from gkfast.kernels import cpu

        return cpu
    from gkfast.kernels import gpu

    return gpu


def tensor_of(numbers: tuple[float, ...], batch: Sequence[int], beside: Tensor | None = None) -> Tensor:
    """Numbers for each problem of the batch, (..., S)."""
    if beside is None or beside.device.type == "cpu":
        # the device named, since torch.set_default_device may say otherwise
        found = torch.tensor(numbers, dtype=torch.float64, device="cpu")
    else:
        # filled there: a copy would wait
        found = torch.stack([beside.new_full((), number, dtype=torch.float64) for number in numbers])
    return found.expand(*batch, len(numbers))


@lru_cache(maxsize=256)
def array_of(numbers: tuple[float, ...], count: int) -> np.ndarray:
    """As `tensor_of`, for the kernels of the CPU: (B, S), which nobody writes to."""
    return np.repeat(np.array(numbers)[None], count, 0)
