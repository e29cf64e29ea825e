"""Vectors that numba has no words for: 16 floats or 8 words of 64 bit, and the operations the kernels need on them.

Loops written in these keep their sums in registers, which the loop vectorizer of LLVM does not do for arrays. LLVM
splits a vector where the machine's registers are narrower, and counts bits by ``ctpop``: ``vpopcntq`` where the machine
has it, table look-ups of nibbles (``vpshufb``) on AVX2, ``popcnt`` elsewhere.

Arrays are one-dimensional and contiguous; an index is that of the first element. Nothing checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

FLOAT_LANES = 16
WORD_LANES = 8


class Lanes(types.Type):
    """The numba type of a vector: ``count`` values of a numba number type."""

    def __init__(self, dtype: types.Number, count: int) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        is_float = isinstance(lanes.dtype, types.Float)
        element = ir.FloatType() if is_float else ir.IntType(lanes.dtype.bitwidth)
        super().__init__(manager, lanes, ir.VectorType(element, lanes.count))


FLOATS = Lanes(types.float32, FLOAT_LANES)
BITS = Lanes(types.uint32, FLOAT_LANES)
WORDS = Lanes(types.uint64, WORD_LANES)
ZEROS = {FLOATS: 0.0, BITS: 0, WORDS: 0}


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    order = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, first), undefined, order)


def _pointer(context: Any, builder: Any, sig: Any, args: Any, vector: Any) -> Any:
    """The address of a vector in the array ``args[0]`` at the index ``args[1]``."""
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())


def _call(builder: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(args[0].type, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _zeros(lanes: Lanes) -> Callable[[], Any]:
    @intrinsic
    def zeros(_: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return ir.Constant(context.get_value_type(lanes), [ZEROS[lanes]] * lanes.count)

        return lanes(), codegen

    return zeros


def _load(lanes: Lanes) -> Callable[..., Any]:
    @intrinsic
    def load(_: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vector = context.get_value_type(lanes)
            return builder.load(_pointer(context, builder, sig, args, vector), align=4)

        return lanes(array, types.intp), codegen

    return load


def _store(lanes: Lanes) -> Callable[..., Any]:
    @intrinsic
    def store(_: Any, array: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[2], _pointer(context, builder, sig, args, args[2].type), align=4)
            return context.get_dummy_value()

        return types.none(array, types.intp, lanes), codegen

    return store


def _words_operation(operation: Callable[..., Any], operands: int) -> Callable[..., Any]:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return operation(builder, *args)

    if operands == 1:

        @intrinsic
        def unary(_: Any, a: Any) -> Any:
            return WORDS(WORDS), codegen

        return unary

    @intrinsic
    def binary(_: Any, a: Any, b: Any) -> Any:
        return WORDS(WORDS, WORDS), codegen

    return binary


no_floats, no_bits, no_words = _zeros(FLOATS), _zeros(BITS), _zeros(WORDS)
load_floats, load_words = _load(FLOATS), _load(WORDS)
store_floats, store_bits, store_words = _store(FLOATS), _store(BITS), _store(WORDS)
both = _words_operation(lambda builder, a, b: builder.and_(a, b), 2)
either = _words_operation(lambda builder, a, b: builder.or_(a, b), 2)
unlike = _words_operation(lambda builder, a, b: builder.xor(a, b), 2)
plus = _words_operation(lambda builder, a, b: builder.add(a, b), 2)
count_ones = _words_operation(lambda builder, a: _call(builder, f"llvm.ctpop.v{WORD_LANES}i64", a), 1)


@intrinsic
def unlike_bits(_: Any, array: Any, index: Any, word: Any) -> Any:
    """The bits in which the words of ``array`` from ``index`` on differ from ``word``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = context.get_value_type(WORDS)
        words = builder.load(_pointer(context, builder, sig, args, vector), align=8)
        return builder.xor(words, _splat(builder, args[2], vector))

    return WORDS(array, types.intp, types.uint64), codegen


@intrinsic
def store_agreement(_: Any, array: Any, index: Any, unequal: Any, total: Any) -> Any:
    """Store ``total - 2 * unequal`` as floats: the product of two vectors of signs, of which ``unequal`` differ."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(32), WORD_LANES)
        counts = builder.trunc(args[2], integers)
        signed = builder.sub(_splat(builder, args[3], integers), builder.add(counts, counts))
        floats = ir.VectorType(ir.FloatType(), WORD_LANES)
        builder.store(builder.sitofp(signed, floats), _pointer(context, builder, sig, args, floats), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, WORDS, types.int32), codegen


@intrinsic
def multiply_add(_: Any, total: Any, values: Any, factor: Any) -> Any:
    """``total + values * factor``, in one rounding where the machine has the instruction."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        factors = _splat(builder, args[2], args[1].type)
        return _call(builder, f"llvm.fmuladd.v{FLOAT_LANES}f32", args[1], factors, args[0])

    return FLOATS(FLOATS, FLOATS, types.float32), codegen


@intrinsic
def add_magnitude(_: Any, total: Any, values: Any) -> Any:
    """``total + |values|``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(args[0], _call(builder, f"llvm.fabs.v{FLOAT_LANES}f32", args[1]))

    return FLOATS(FLOATS, FLOATS), codegen


@intrinsic
def mark_negative(_: Any, marked: Any, values: Any, bit: Any) -> Any:
    """``marked`` with ``bit`` set in the lanes whose value is below 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        floats, bits = args[1].type, args[0].type
        negative = builder.fcmp_ordered("<", args[1], ir.Constant(floats, [0.0] * FLOAT_LANES))
        return builder.or_(
            args[0], builder.select(negative, _splat(builder, args[2], bits), ir.Constant(bits, [0] * FLOAT_LANES))
        )

    return BITS(BITS, FLOATS, types.uint32), codegen
