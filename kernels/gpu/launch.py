"""Launches of kernels, and plans of them, which make a call cheap for the host.

A training repeats its few shapes. All that a call does then, which kernels it launches with which grids, sizes and
constants, and which tensors it makes, follows from the shapes and options of its arguments. `planned` records these
steps when it meets a call for the second time, and afterwards takes them without running the function: the tensors
are made, their pointers put into place, and each compiled kernel is called directly. Otherwise Triton looks at every
argument of every launch, 10 to 20 us each.

A plan is kept by all that a kernel is compiled for: dtypes, shapes, None, the last bits of a pointer, options, the
device, Triton's settings for debugging. Values are no part of it: tensors are put into place, and so are numbers of
the host. A call that does anything besides, such as a copy, has no plan. TILES and other constants of this package
are thought to stay as they are: who changes one says forget().
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler import make_backend
from triton.runtime import driver

from .device import check, explained
from .numbers import MOST, Encoded, Numbers, numbers

# calls that are kept
_MOST_KEPT = 256
# tensors up to so many bytes that no caller gets are parts of one
_SMALL = 2**20
# where each of these parts begins: at a multiple of what torch's allocator aligns to
_ALIGNMENT = 512
# torch's operators that make a tensor, and those that make a view, whatever they say of themselves
_MAKING = {"empty", "new_empty", "empty_like", "empty_strided"}
_VIEWING = {"detach", "alias", "_unsafe_view", "lift_fresh"}

_plans: dict[Any, "Plan | None"] = {}
_met: set[Any] = set()
_runtime, _compilation = triton.knobs.runtime, triton.knobs.compilation
_INTERPRETED = _runtime.interpret
# one call is recorded at a time
_recording = threading.Lock()


class _Thread(threading.local):
    recorder: "_Recorder | None" = None


_thread = _Thread()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """kernel[grid](*arguments, **options), on the current device.

    AMD's compiler refuses options that it does not know, such as maxnreg: these are left out.
    """
    if torch.version.hip is not None:
        known = _known(kernel, driver.active.get_current_target().arch)
        options = {name: value for name, value in options.items() if name in known}
    try:
        compiled = kernel[grid](*arguments, **options)
    except (RuntimeError, CalledProcessError) as error:
        clear = explained(error)
        if clear is None:
            raise
        raise clear from error
    if _thread.recorder is not None:
        _thread.recorder.launched(kernel, compiled, grid, arguments, options)


@functools.cache
def _known(kernel: Any, architecture: Any) -> frozenset[str]:
    """The names of a kernel's constants, and of the options of the compiler for that architecture of AMD's."""
    backend = make_backend(driver.active.get_current_target())
    return frozenset(kernel.arg_names) | backend.parse_options({}).__dict__.keys()


def refuse_plan() -> None:
    """Says that the function which runs depends on more than its plan would be kept by."""
    if _thread.recorder is not None:
        _thread.recorder.refused = True


def forget() -> None:
    """Drops all plans."""
    _plans.clear()
    _met.clear()


def planned(function: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
    """A function of tensors, numbers of the host and None; all kernels run on the device of the place-th, a tensor.

    Numbers are a tuple of floats, the same for all of the batch; the function gets them as Numbers, or as they are if
    they are more than a kernel takes. Options are Python's, or tensors or None.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        given = [numbers(a) if type(a) is tuple and len(a) <= MOST else a for a in arguments]
        if _INTERPRETED or _thread.recorder is not None:
            return function(*given, **options)
        device = given[place].get_device()
        check(device)
        with _on(device):
            key = _key(function, device, given, options)
            if key is None:
                return function(*given, **options)
            plan, inputs = _plans.get(key), [*given, *options.values()]
            if plan is not None:
                return plan(device, inputs)
            if key not in _met:
                # a shape that never comes again is not worth it
                if len(_met) >= _MOST_KEPT:
                    forget()
                _met.add(key)
                return function(*given, **options)
            if key in _plans:
                return function(*given, **options)
            recorder = _Recorder(inputs, place)
            with _recording:
                result = recorder.record(function, len(given), list(options))
            _plans[key] = recorder.plan(result)
            return recorder.given(result)

    return call


_NOWHERE = contextlib.nullcontext()


def _on(device: int) -> Any:
    """A context in which that device is the current one."""
    if device < 0 or device == torch.cuda.current_device():
        return _NOWHERE
    return torch.cuda.device(device)


# options as they are in a key
_SCALARS = {bool, int, str, tuple}


def _key(function: Any, device: int, given: Sequence[Any], options: dict[str, Any]) -> Any:
    """All that the steps of a call follow from; None where they follow from more."""
    key: list[Any] = [function, device, _runtime.debug, _compilation.instrumentation_mode]
    if _runtime.add_stages_inspection_hook is not None:
        return None
    for a in (*given, *options.values()):
        kind = type(a)
        if a is None or kind in _SCALARS:
            key.append(a)
        elif kind is torch.Tensor or kind is torch.nn.Parameter:
            # what is elsewhere is copied, or read
            if a.get_device() != device:
                return None
            # not a stride that says nothing
            key.append((a.shape, a.dtype, a.data_ptr() & 15, a.is_contiguous() or a.stride()))
        elif isinstance(a, torch.Tensor):
            return None
        elif kind is Numbers:
            if not a.usual:
                return None
            key.append((len(a.floats), a.moderate, a.steps))
        elif kind is list:
            key.append(tuple(a))
        else:
            return None
    return (*key, *options)


class _Step(NamedTuple):
    """A launch."""

    kernel: Any
    compiled: Any
    grid: tuple[int, int, int]
    # (slot, what finds it among the slots) of tuples among its arguments, inner ones first
    tuples: list[tuple[int, Callable[[Any], tuple[Any, ...]]]]
    arguments: Callable[[Any], tuple[Any, ...]]


class _View(NamedTuple):
    """An output: the slot of a tensor, and how it is seen there; None: as it is."""

    slot: int
    # sizes, strides, first element
    place: tuple[Any, ...] | None


class _Recorder(TorchDispatchMode):
    """Watches a call: which tensors it makes, and what it launches with them."""

    def __init__(self, inputs: Sequence[Any], place: int) -> None:
        super().__init__()
        self.inputs, self.place, self.refused = inputs, place, False
        # launches in all
        self.count = 0
        self.made: list[torch.Tensor] = []
        # (kernel, compiled kernel, grid, arguments and constants)
        self.launches: list[tuple[Any, ...]] = []
        # of a tensor, or an input's numbers, by id: its slot, and how many bytes it is behind what that one holds
        self.origins: dict[int, tuple[int, int]] = {}
        # no id and no address is given again
        self.alive: list[Any] = []

    def record(self, function: Callable[..., Any], given: int, options: Sequence[str]) -> Any:
        """function of the first inputs, and of the others as options."""
        # each an object of its own, though the caller may have given one twice
        own: list[Any] = []
        for slot, a in enumerate(self.inputs):
            own.append(a)
            if isinstance(a, torch.Tensor):
                own[slot] = a.detach()
                self._note(own[slot], slot)
            elif type(a) is Numbers:
                own[slot] = a._replace(encoded=Encoded._make(a.encoded))
                self._note(own[slot].encoded, slot)
        _thread.recorder, enter = self, _runtime.launch_enter_hook
        if not hasattr(enter, "add"):
            # somebody's own function stands there
            self.refused = True
            enter = triton.knobs.HookChain()
        enter.add(_count)
        try:
            with self:
                found = function(*own[:given], **dict(zip(options, own[given:], strict=True)))
        finally:
            _thread.recorder = None
            enter.remove(_count)
        # some were not by launch()
        self.refused |= self.count != len(self.launches)
        return found

    def given(self, found: Any) -> Any:
        """An input, where a result is one."""
        slot, behind = self.origins.get(id(found), (len(self.inputs), 0))
        return self.inputs[slot] if slot < len(self.inputs) and behind == 0 else found

    def _note(self, found: Any, slot: int, behind: int = 0) -> None:
        self.origins[id(found)] = slot, behind
        self.alive.append(found)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        found = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        if name in _MAKING:
            self._note(found, len(self.inputs) + len(self.made))
            self.made.append(found)
            elsewhere = found.device != self.inputs[self.place].device
            self.refused |= elsewhere or found.data_ptr() % 16 > 0 or not found.is_contiguous()
        elif (function.is_view or name in _VIEWING) and id(arguments[0]) in self.origins and torch.is_tensor(found):
            slot, behind = self.origins[id(arguments[0])]
            self._note(found, slot, behind + found.data_ptr() - arguments[0].data_ptr())
        else:
            self.refused = True
        return found

    def launched(self, kernel: Any, compiled: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
        names = kernel.arg_names[len(arguments) :]
        # what only looks at launches, or compiles in the background, gives nothing that could be called
        known = hasattr(compiled, "packed_metadata") and all(name in options for name in names)
        if not (known and self._knows(arguments)):
            self.refused = True
            return
        constants = [options[name] for name in names]
        self.launches.append((kernel, compiled, (*grid, 1, 1)[:3], (*arguments, *constants)))

    def _knows(self, arguments: Any) -> bool:
        """Whether all tensors among the arguments are inputs, or made by the call."""
        if isinstance(arguments, tuple) and type(arguments) is not Encoded:
            return all(map(self._knows, arguments))
        return not isinstance(arguments, torch.Tensor) or id(arguments) in self.origins

    def plan(self, result: Any) -> "Plan | None":
        """None where a call does more than making tensors and launching kernels."""
        known = all(t is None or self._can_be_made(t) for t in (result if type(result) is tuple else (result,)))
        return Plan(self, result) if known and not self.refused else None

    def _can_be_made(self, t: torch.Tensor) -> bool:
        """An output: an input as it is, or a view of what the call makes."""
        slot, behind = self.origins.get(id(t), (-1, 0))
        if slot < 0:
            return False
        base = (*self.inputs, *self.made)[slot]
        itself = behind == 0 and (t.shape, t.stride()) == (base.shape, base.stride())
        return t.dtype == base.dtype and (itself or slot >= len(self.inputs))


class Plan:
    """The steps of a call.

    Its slots hold the inputs, then the tensors that it makes, then constants, tuples, and places within tensors.
    """

    def __init__(self, recorder: _Recorder, result: Any) -> None:
        self.several = type(result) is tuple
        outputs = result if self.several else (result,)
        inputs, made = recorder.inputs, recorder.made
        self._origins, self._constants = recorder.origins, len(inputs) + len(made)
        self.place, self.numbers = recorder.place, [k for k, a in enumerate(inputs) if type(a) is Numbers]
        # behind the inputs: constants, and room for what changes
        self.rest: list[Any] = [None] * len(made)
        self._inputs, self._changing = len(inputs), set(range(self._constants))
        # (slot, slot of the tensor that it is a place in, how many bytes behind its first)
        self.places: list[tuple[int, int, int]] = []
        self.steps = [self._step(*each) for each in recorder.launches]
        # each output is made in the sizes that the caller gets, where it can be
        tensors, self._made_for = [*inputs, *made], set[int]()
        self.outputs = [None if t is None else self._output(t, tensors) for t in outputs]
        # tensors of their own: (slot, sizes, dtype); the others share one: (slot, first byte)
        self.whole: list[tuple[int, Any, Any]] = []
        self.parts: list[tuple[int, int]] = []
        self.bytes = 0
        given = {view.slot for view in self.outputs if view is not None}
        for slot, t in enumerate(tensors[self._inputs :], self._inputs):
            length = t.numel() * t.element_size()
            if slot in given or length > _SMALL:
                # a tuple is taken in half the time of a torch.Size
                self.whole.append((slot, tuple(t.shape), t.dtype))
            else:
                self.parts.append((slot, self.bytes))
                self.bytes += -(-max(1, length) // _ALIGNMENT) * _ALIGNMENT

    def _output(self, t: torch.Tensor, tensors: list[Any]) -> _View:
        slot, behind = self._origins[id(t)]
        base = tensors[slot]
        if slot >= self._inputs and slot not in self._made_for and t.is_contiguous() and t.numel() == base.numel():
            tensors[slot] = base = t
        # a second output of the same numbers is a view of them
        self._made_for.add(slot)
        same = behind == 0 and (t.shape, t.stride()) == (base.shape, base.stride())
        return _View(slot, None if same else (t.shape, t.stride(), behind // t.element_size()))

    def _step(self, kernel: Any, compiled: Any, grid: Any, arguments: Any) -> _Step:
        tuples: list[tuple[int, Callable[[Any], Any]]] = []
        slots = [self._slot_of(a, tuples) for a in arguments]
        return _Step(kernel, compiled, grid, tuples, _getter(slots))

    def _slot_of(self, a: Any, tuples: list[tuple[int, Callable[[Any], Any]]]) -> int:
        """Where an argument is; tuples of what changes are made anew for each launch."""
        found = self._origins.get(id(a)) if isinstance(a, (torch.Tensor, Encoded)) else None
        if found is not None:
            slot, behind = found
            return slot if behind == 0 else self._room((self.places, (slot, behind)))
        if isinstance(a, tuple):
            parts = [self._slot_of(part, tuples) for part in a]
            if not self._changing.isdisjoint(parts):
                return self._room((tuples, (_getter(parts),)))
        self.rest.append(a)
        return self._inputs + len(self.rest) - 1

    def _room(self, entry: Any) -> int:
        """A slot for what changes; (slot, *what makes it) goes to a list."""
        self.rest.append(None)
        slot = self._inputs + len(self.rest) - 1
        self._changing.add(slot)
        entry[0].append((slot, *entry[1]))
        return slot

    def __call__(self, device: int, inputs: Sequence[Any]) -> Any:
        x = inputs[self.place]
        slots = [*inputs, *self.rest]
        for k in self.numbers:
            slots[k] = slots[k].encoded
        for slot, shape, dtype in self.whole:
            slots[slot] = x.new_empty(shape, dtype=dtype)
        if self.parts:
            memory = x.new_empty(self.bytes, dtype=torch.uint8)
            address = memory.data_ptr()
            for slot, first in self.parts:
                # an address stands for a tensor
                slots[slot] = address + first
        for slot, base, behind in self.places:
            of = slots[base]
            slots[slot] = behind + (of if type(of) is int else of.data_ptr())
        stream = driver.active.get_current_stream(driver.active.get_current_device() if device < 0 else device)
        enter, leave = _some(_runtime.launch_enter_hook), _some(_runtime.launch_exit_hook)
        for kernel, compiled, grid, tuples, arguments_of in self.steps:
            for slot, tuple_of in tuples:
                slots[slot] = tuple_of(slots)
            arguments = arguments_of(slots)
            for hook in kernel.pre_run_hooks:
                hook(*arguments)
            metadata = None if enter is None else compiled.launch_metadata(grid, stream, *arguments)
            compiled.run(
                *grid, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *arguments
            )
        found = [None if view is None else _seen(slots[view.slot], view.place) for view in self.outputs]
        return tuple(found) if self.several else found[0]


def _seen(tensor: torch.Tensor, place: tuple[Any, ...] | None) -> torch.Tensor:
    return tensor if place is None else tensor.as_strided(*place)


def _count(metadata: Any) -> None:
    """A hook of Triton's: counts the launches of a thread that records."""
    if _thread.recorder is not None:
        _thread.recorder.count += 1


def _some(hooks: Any) -> Any:
    """None for a chain without hooks, which costs a call for each launch."""
    return hooks if getattr(hooks, "calls", True) else None


def _getter(slots: Sequence[int]) -> Callable[[Any], tuple[Any, ...]]:
    """What makes a tuple of these slots."""
    if len(slots) > 1:
        return itemgetter(*slots)
    return lambda found: tuple(found[slot] for slot in slots)
