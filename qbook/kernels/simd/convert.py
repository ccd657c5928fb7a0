"""Between floats, integers and bytes: bit patterns, comparisons, widening loads, narrowing stores.

Sixteen lanes of 32 bits.  A code of 8 bits lives in a lane while it is computed with, and in a byte
in memory.  All of it is plain vector code; ``first`` functions touch the first ``count`` elements.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import and_, splat_i32
from qbook.kernels.simd.memory import OPAQUE, load_f32, store, store_first
from qbook.kernels.simd.types import (
    F32,
    I8,
    I32,
    I64,
    Vector,
    address,
    constant,
    f32x16,
    i8x16,
    i32x16,
    lanes,
    splat,
)

LANES = 16
WITHOUT_SIGN, INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)

BYTES = i8x16.llvm
MASK = ir.VectorType(ir.IntType(1), 16)
SCALARS = {str(I32): types.int32, str(F32): types.float32}
SHORT = {str(I8): "i8", str(F32): "f32"}


def _bits(target, source):
    @intrinsic
    def cast(typing, x):
        """The same 512 bits, read as another type"""

        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], target.llvm)

        return target(source), generate

    return cast


def _compare(builder, x, y):
    """x < y, signed or floating, lane by lane"""
    if x.type.element == F32:
        return builder.fcmp_ordered("<", x, y)
    return builder.icmp_signed("<", x, y)


def _in_order(x, y):
    return x, y


def _reversed(x, y):
    return y, x


def _choice(pick):
    @intrinsic
    def choose(typing, x, y):
        """Of two vectors of one type, signed or floating; y where a lane is NaN"""
        if not isinstance(x, Vector) or x != y:
            raise errors.TypingError(f"vectors of one type are needed, not {x} and {y}")

        def generate(context, builder, signature, arguments):
            x, y = arguments
            return builder.select(_compare(builder, *pick(x, y)), x, y)

        return x(x, y), generate

    return choose


@intrinsic
def where_less(typing, x, y, yes, no):
    """yes where x < y, else no: x and y of one type, yes and no of one type"""
    if x != y or yes != no:
        raise errors.TypingError(f"pairs of one type are needed, not {x}, {y} and {yes}, {no}")

    def generate(context, builder, signature, arguments):
        x, y, yes, no = arguments
        return builder.select(_compare(builder, x, y), yes, no)

    return yes(x, y, yes, no), generate


def _lane(pick):
    @intrinsic
    def find(typing, x):
        """A vector -> the largest or smallest of its lanes"""

        def generate(context, builder, signature, arguments):
            (values,) = arguments
            while values.type.count > 1:
                half = values.type.count // 2
                pair = [lanes(builder, values, range(at, at + half)) for at in (0, half)]
                values = builder.select(_compare(builder, *pick(*pair)), *pair)
            return builder.extract_element(values, ir.Constant(I32, 0))

        return SCALARS[str(x.llvm.element)](x), generate

    return find


@intrinsic
def load_codes(typing, array, offset):
    """array of int8 or uint8, offset -> i32x16 with the sixteen codes there"""

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, array, *arguments, BYTES)
        return _widen(builder, array, builder.load(pointer, align=1))

    return i32x16(array, types.intp), generate


@intrinsic
def load_first_codes(typing, array, offset, count):
    """As ``load_codes``, with 0 behind the first ``count``"""

    def generate(context, builder, signature, arguments):
        loaded = _load_first(context, builder, array, BYTES, *arguments)
        return _widen(builder, array, loaded)

    return i32x16(array, types.intp, types.int64), generate


@intrinsic
def load_first_f32(typing, array, offset, count):
    """array, offset in bytes -> f32x16 of the first ``count``, 0 behind them"""

    def generate(context, builder, signature, arguments):
        return _load_first(context, builder, array, f32x16.llvm, *arguments)

    return f32x16(array, types.intp, types.int64), generate


@intrinsic
def low_bytes(typing, x):
    """i32x16 -> i8x16"""

    def generate(context, builder, signature, arguments):
        return builder.trunc(arguments[0], BYTES)

    return i8x16(i32x16), generate


def _shuffle(places):
    @intrinsic
    def take(typing, x, y):
        """Sixteen of the 32 lanes of two i32x16"""

        def generate(context, builder, signature, arguments):
            return builder.shuffle_vector(*arguments, constant(i32x16.llvm, places))

        return i32x16(i32x16, i32x16), generate

    return take


@intrinsic
def look_up(typing, table, index):
    """table array of 16 float32, index i32x16 of 0 to 15 -> f32x16

    A tournament: each bit of the index, the lowest first, decides between neighbours.  Hardly
    slower than vpermps where memory is what a kernel waits for, and every processor can do it.
    """

    def generate(context, builder, signature, arguments):
        entries = _entries(context, builder, table, arguments[0], LANES)
        for bit in range(4):
            mask = builder.and_(arguments[1], constant(i32x16.llvm, 1 << bit))
            even = builder.icmp_signed("==", mask, constant(i32x16.llvm, 0))
            pairs = zip(entries[::2], entries[1::2], strict=True)
            entries = [builder.select(even, *pair) for pair in pairs]
        return entries[0]

    return f32x16(table, i32x16), generate


@intrinsic
def count_below(typing, table, x):
    """table array of 15 ascending float32, x f32x16 -> i32x16: how many of them each lane exceeds

    Four halvings, each lane with the half that is left to it.
    """

    def generate(context, builder, signature, arguments):
        entries = _entries(context, builder, table, arguments[0], LANES - 1)
        count = zero = constant(i32x16.llvm, 0)
        while entries:
            half = len(entries) // 2
            above = builder.fcmp_ordered("<", entries[half], arguments[1])
            step = builder.select(above, constant(i32x16.llvm, half + 1), zero)
            count = builder.or_(count, step)
            pairs = zip(entries[half + 1 :], entries[:half], strict=True)
            entries = [builder.select(above, *pair) for pair in pairs]
        return count

    return i32x16(table, f32x16), generate


def _entries(context, builder, table, data, count):
    """-> vectors, one for each element of an array"""
    found = []
    for i in range(count):
        pointer = address(context, builder, table, data, ir.Constant(I64, 4 * i), F32)
        found.append(splat(builder, builder.load(pointer, align=4), f32x16.llvm))
    return found


def _widen(builder, array, loaded):
    return (builder.sext if array.dtype.signed else builder.zext)(loaded, i32x16.llvm)


def _load_first(context, builder, array, llvm, data, offset, count):
    pointer = address(context, builder, array, data, offset, llvm)
    kind = ir.FunctionType(llvm, [pointer.type, I32, MASK, llvm])
    suffix = f"v16{SHORT[str(llvm.element)]}"
    suffix += ".p0" if OPAQUE else f".p0{suffix}"
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{suffix}")
    zero = ir.Constant(llvm, [0] * LANES)
    limit = splat(builder, builder.trunc(count, I32), i32x16.llvm)
    mask = builder.icmp_signed("<", constant(i32x16.llvm, range(LANES)), limit)
    return builder.call(function, [pointer, ir.Constant(I32, 1), mask, zero])


bits_of, float_of = _bits(i32x16, f32x16), _bits(f32x16, i32x16)


@kernel
def magnitude(x):
    """f32x16 -> i32x16, the bits of |x|: larger where |x| is, and NaN above INFINITY"""
    return and_(bits_of(x), splat_i32(WITHOUT_SIGN))


@kernel
def values_at(x, index, count):
    """float32 array, index -> f32x16 from there on, 0 behind the first ``count``"""
    if count >= LANES:
        return load_f32(x, 4 * index)
    return load_first_f32(x, 4 * index, count)


@kernel
def codes_at(codes, index, count):
    """int8 or uint8 array, index -> i32x16 from there on, 0 behind the first ``count``"""
    if count >= LANES:
        return load_codes(codes, index)
    return load_first_codes(codes, index, count)


@kernel
def put_values(x, index, count, values):
    """Write the first ``count`` lanes of f32x16, at most sixteen."""
    if count >= LANES:
        store(x, 4 * index, values)
    else:
        store_first(x, 4 * index, values, count)


@kernel
def put_codes(codes, index, count, found):
    """Write the low bytes of the first ``count`` lanes of i32x16, at most sixteen."""
    if count >= LANES:
        store(codes, index, low_bytes(found))
    else:
        store_first(codes, index, low_bytes(found), count)


evens, odds = _shuffle(range(0, 32, 2)), _shuffle(range(1, 32, 2))
# Lanes of two vectors in turns: those of their first halves, those of their second halves.
alternate_first = _shuffle([lane + 16 * other for lane in range(8) for other in (0, 1)])
alternate_second = _shuffle([lane + 16 * other for lane in range(8, 16) for other in (0, 1)])
minimum, maximum = _choice(_in_order), _choice(_reversed)
smallest_lane, largest_lane = _lane(_in_order), _lane(_reversed)
