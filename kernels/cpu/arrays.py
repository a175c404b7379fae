"""Arrays within compiled code: a pointer and a shape, without gaps, and memory for them.

Numba's own have strides, owners that are counted, and indices that may be negative: most of what it compiles is about
these. An operation receives NumPy's arrays, and turns them into such.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_getattr, models, register_model
from numba.np.numpy_support import as_dtype

_INT, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_LINE = 64
# the fields of `taken`: bytes of the block, and the last piece of memory that was asked for beyond it
_USED, _BEYOND = range(2)


class Array(types.Type):
    """An array in C order: data and shape."""

    def __init__(self, dtype, ndim):
        self.dtype, self.ndim = dtype, ndim
        super().__init__(f"gkfast.Array({dtype}, {ndim})")


@register_model(Array)
class _ArrayModel(models.StructModel):
    def __init__(self, manager, array):
        shape = [(f"size{axis}", types.intp) for axis in range(array.ndim)]
        super().__init__(manager, array, [("data", types.CPointer(array.dtype)), *shape])


class View:
    """An Array's value, while code is emitted."""

    def __init__(self, builder, array, value):
        self.builder, self.array = builder, array
        self.data, *self.shape = cgutils.unpack_tuple(builder, value, array.ndim + 1)

    def size(self):
        total = self.shape[0]
        for length in self.shape[1:]:
            total = self.builder.mul(total, length)
        return total

    def at(self, indices):
        """The pointer to the first number with these indices of the first axes."""
        place = indices[0]
        for index, length in zip(indices[1:], self.shape[1 : len(indices)], strict=True):
            place = self.builder.add(self.builder.mul(place, length), index)
        for length in self.shape[len(indices) :]:
            place = self.builder.mul(place, length)
        return self.builder.gep(self.data, [place], inbounds=True)


def pack(context, builder, array, data, shape):
    return cgutils.pack_struct(builder, [data, *shape])


def type_of(kind):
    """What a type of Numba's is within compiled code."""
    if isinstance(kind, types.Array):
        assert kind.layout == "C", kind
        return Array(kind.dtype, kind.ndim)
    if isinstance(kind, types.BaseTuple):
        return types.BaseTuple.from_types([type_of(k) for k in kind.types], getattr(kind, "instance_class", None))
    return types.unliteral(kind)


def _convert(context, builder, kind, value):
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        return pack(context, builder, type_of(kind), array.data, cgutils.unpack_tuple(builder, array.shape))
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind.types, cgutils.unpack_tuple(builder, value, len(kind)), strict=True)
        parts = [_convert(context, builder, part, item) for part, item in parts]
        return context.make_tuple(builder, type_of(kind), parts)
    return context.cast(builder, value, kind, types.unliteral(kind))


@intrinsic
def within(typing_context, arguments):
    """NumPy's arrays, and those in tuples, as the arrays of this module."""

    def generate(context, builder, signature, values):
        return _convert(context, builder, arguments, values[0])

    return type_of(arguments)(arguments), generate


@infer_getattr
class _Attributes(AttributeTemplate):
    key = Array

    def resolve_shape(self, array):
        return types.UniTuple(types.intp, array.ndim)

    def resolve_size(self, array):
        return types.intp

    def resolve_itemsize(self, array):
        return types.intp

    def resolve_dtype(self, array):
        return types.DType(array.dtype)


@lower_getattr(Array, "shape")
def _shape(context, builder, array, value):
    return context.make_tuple(builder, types.UniTuple(types.intp, array.ndim), View(builder, array, value).shape)


@lower_getattr(Array, "size")
def _size(context, builder, array, value):
    return View(builder, array, value).size()


@lower_getattr(Array, "itemsize")
def _itemsize(context, builder, array, value):
    return _INT(_bytes_of(array.dtype))


@lower_getattr(Array, "dtype")
def _dtype(context, builder, array, value):
    return context.get_dummy_value()


def _bytes_of(dtype):
    return as_dtype(dtype).itemsize


def _indexed(array, index):
    """How many axes an index takes, 0 where it is none, and the types that it is cast to."""
    if isinstance(index, types.Integer):
        return 1, types.intp
    if isinstance(index, types.BaseTuple) and all(isinstance(kind, types.Integer) for kind in index.types):
        return len(index), types.UniTuple(types.intp, len(index))
    return 0, None


def _indices(builder, index, value):
    return [value] if index == types.intp else cgutils.unpack_tuple(builder, value)


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, arguments, keywords):
        array, index = arguments
        if isinstance(array, Array):
            axes, index = _indexed(array, index)
            if 0 < axes <= array.ndim:
                part = array.dtype if axes == array.ndim else Array(array.dtype, array.ndim - axes)
                return signature(part, array, index)
        return None


@lower_builtin(operator.getitem, Array, types.intp)
@lower_builtin(operator.getitem, Array, types.UniTuple)
def _get(context, builder, sig, arguments):
    array, index = sig.args
    view, indices = View(builder, array, arguments[0]), _indices(builder, index, arguments[1])
    place = view.at(indices)
    if len(indices) == array.ndim:
        return context.unpack_value(builder, array.dtype, place)
    return pack(context, builder, sig.return_type, place, view.shape[len(indices) :])


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, arguments, keywords):
        array, index, _ = arguments
        if isinstance(array, Array):
            axes, index = _indexed(array, index)
            if axes == array.ndim:
                return signature(types.none, array, index, array.dtype)
        return None


@lower_builtin(operator.setitem, Array, types.intp, types.Any)
@lower_builtin(operator.setitem, Array, types.UniTuple, types.Any)
def _set(context, builder, sig, arguments):
    array, index, _ = sig.args
    place = View(builder, array, arguments[0]).at(_indices(builder, index, arguments[1]))
    context.pack_value(builder, array.dtype, arguments[2], place)
    return context.get_dummy_value()


@infer_global(len)
class _Len(AbstractTemplate):
    def generic(self, arguments, keywords):
        return signature(types.intp, *arguments) if isinstance(arguments[0], Array) else None


@lower_builtin(len, Array)
def _len(context, builder, sig, arguments):
    return View(builder, sig.args[0], arguments[0]).shape[0]


@intrinsic
def fill(typing_context, array, number):
    """array[...] = number"""

    def generate(context, builder, signature, arguments):
        view = View(builder, array, arguments[0])
        number_ = context.cast(builder, arguments[1], number, array.dtype)
        with cgutils.for_range(builder, view.size()) as loop:
            context.pack_value(builder, array.dtype, number_, builder.gep(view.data, [loop.index], inbounds=True))
        return context.get_dummy_value()

    return types.void(array, number), generate


@intrinsic
def copy(typing_context, source, target):
    """target[...] = source, of equal sizes and types."""
    if source.dtype != target.dtype:
        return None

    def generate(context, builder, signature, arguments):
        view, out = (View(builder, kind, value) for kind, value in zip((source, target), arguments, strict=True))
        bytes_ = builder.mul(view.size(), _INT(_bytes_of(source.dtype)))
        cgutils.raw_memcpy(builder, out.data, view.data, bytes_, 1)
        return context.get_dummy_value()

    return types.void(source, target), generate


@intrinsic
def part(typing_context, array, start, stop):
    """array[start:stop]"""

    def generate(context, builder, signature, arguments):
        view, (_, first, last) = View(builder, array, arguments[0]), arguments
        return pack(context, builder, array, view.at([first]), [builder.sub(last, first), *view.shape[1:]])

    return array(array, types.intp, types.intp), generate


@intrinsic
def reshaped(typing_context, array, shape):
    """array.reshape(shape)"""
    result = Array(array.dtype, len(shape))
    sizes = types.UniTuple(types.intp, len(shape))

    def generate(context, builder, signature, arguments):
        data = View(builder, array, arguments[0]).data
        return pack(context, builder, result, data, cgutils.unpack_tuple(builder, arguments[1]))

    return result(array, sizes), generate


# what compiled code is given memory from: the block, and `taken`
MEMORY = types.Tuple((Array(types.uint8, 1), Array(types.int64, 1)))


@intrinsic
def empty(typing_context, memory, shape, dtype):
    """A new array of undefined content, aligned to a cache line, which lasts as long as the call of an operation or
    a loop that was given this memory."""
    return _new(memory, shape, dtype, lambda *_: None)


@intrinsic
def zeros(typing_context, memory, shape, dtype):
    """`empty` with all bytes 0."""
    return _new(memory, shape, dtype, lambda builder, data, size: cgutils.memset(builder, data, size, 0))


def _new(memory, shape, dtype, start):
    axes = 1 if isinstance(shape, types.Integer) else len(shape)
    result = Array(dtype.dtype, axes)
    sizes = types.intp if isinstance(shape, types.Integer) else types.UniTuple(types.intp, axes)

    def generate(context, builder, signature, arguments):
        memory_, shape_, _ = arguments
        shape_ = _indices(builder, sizes, shape_)
        block, taken = (
            View(builder, *item) for item in zip(MEMORY, cgutils.unpack_tuple(builder, memory_), strict=True)
        )
        size = _INT(_bytes_of(result.dtype))
        for length in shape_:
            size = builder.mul(size, length)
        place = builder.call(_allocate(builder.module), [block.data, block.shape[0], taken.data, size])
        with cgutils.if_unlikely(builder, cgutils.is_null(builder, place)):
            context.call_conv.return_user_exc(builder, MemoryError, ("no memory",))
        start(builder, place, size)
        data = builder.bitcast(place, context.get_value_type(types.CPointer(result.dtype)))
        return pack(context, builder, result, data, shape_)

    return result(memory, sizes, dtype), generate


def _function(module, name, result, kinds):
    """The function of this name in the module, and whether it is new there."""
    known = module.globals.get(name)
    if known is not None:
        return known, False
    function = ir.Function(module, ir.FunctionType(result, kinds), name)
    function.linkage = "linkonce_odr"
    return function, True


def _allocate(module):
    """allocate(block, its size, taken, bytes), or null"""
    function, new = _function(module, "gkfast_allocate", _BYTES, [_BYTES, _INT, _INT.as_pointer(), _INT])
    if not new:
        return function
    block, size, taken, wanted = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    used = builder.load(taken)
    gap = builder.and_(builder.neg(builder.add(builder.ptrtoint(block, _INT), used)), _INT(_LINE - 1))
    begin = builder.add(used, gap)
    end = builder.add(begin, wanted)
    builder.store(end, taken)
    with builder.if_then(builder.icmp_signed("<=", end, size)):
        builder.ret(builder.gep(block, [begin]))
    malloc = cgutils.get_or_insert_function(module, ir.FunctionType(_BYTES, [_INT]), "malloc")
    # in front of it is where the one before is
    more = builder.call(malloc, [builder.add(wanted, _INT(2 * _LINE))])
    with builder.if_then(cgutils.is_null(builder, more)):
        builder.ret(more)
    last = builder.gep(taken, [_INT(_BEYOND)])
    builder.store(builder.load(last), builder.bitcast(more, _INT.as_pointer()))
    address = builder.ptrtoint(more, _INT)
    builder.store(address, last)
    aligned = builder.and_(builder.add(address, _INT(2 * _LINE - 1)), _INT(-_LINE))
    builder.ret(builder.inttoptr(aligned, _BYTES))
    return function


def emit_release(builder, taken):
    """Frees what has been asked for beyond the block; taken is a pointer."""
    function, new = _function(builder.module, "gkfast_release", ir.VoidType(), [_INT.as_pointer()])
    if new:
        inside = ir.IRBuilder(function.append_basic_block())
        last = inside.gep(function.args[0], [_INT(_BEYOND)])
        free = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [_BYTES]), "free")
        look, take, end = (function.append_basic_block() for _ in range(3))
        inside.branch(look)
        inside.position_at_end(look)
        place = inside.load(last)
        inside.cbranch(inside.icmp_signed("!=", place, _INT(0)), take, end)
        inside.position_at_end(take)
        place = inside.inttoptr(place, _INT.as_pointer())
        inside.store(inside.load(place), last)
        inside.call(free, [inside.bitcast(place, _BYTES)])
        inside.branch(look)
        inside.position_at_end(end)
        inside.ret_void()
    builder.call(function, [taken])


@intrinsic
def release(typing_context, memory):
    """Frees what an operation has asked for beyond its block."""

    def generate(context, builder, signature, arguments):
        _, taken = cgutils.unpack_tuple(builder, arguments[0])
        emit_release(builder, View(builder, MEMORY[1], taken).data)
        return context.get_dummy_value()

    return types.void(memory), generate


def emit_memory(context, builder):
    """Memory without a block, and its `taken`, for a thread."""
    taken = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(_INT, 2), [0, 0]))
    taken = builder.bitcast(taken, _INT.as_pointer())
    block = pack(context, builder, MEMORY[0], ir.Constant(_BYTES, None), [_INT(0)])
    memory = context.make_tuple(builder, MEMORY, [block, pack(context, builder, MEMORY[1], taken, [_INT(2)])])
    return memory, taken
