"""Arithmetic lane by lane: what LLVM lowers on every processor.

``add``, ``sub``, ``mul``, ``and_``, ``or_``, ``xor`` take two vectors of one type; shifts take a
count; ``fma`` rounds once.
"""

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from qbook.kernels.simd.types import F32, Vector, f32x16, i32x16, splat


def _binary(integer, floating=None):
    @intrinsic
    def operate(typing, x, y):
        if not isinstance(x, Vector) or x != y:
            raise errors.TypingError(f"vectors of one type are needed, not {x} and {y}")
        real = x.llvm.element == F32
        name = floating if real else integer
        if name is None:
            raise errors.TypingError(f"{integer} is not defined for {x}")

        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments)

        return x(x, y), generate

    return operate


def _shift(name):
    @intrinsic
    def shift(typing, x, count):
        def generate(context, builder, signature, arguments):
            value, by = arguments
            by = builder.trunc(by, x.llvm.element) if x.llvm.element.width < 64 else by
            return getattr(builder, name)(value, splat(builder, by, x.llvm))

        return x(x, types.int64), generate

    return shift


def _splat(vector, scalar):
    @intrinsic
    def fill(typing, value):
        """A vector with the number in every lane"""

        def generate(context, builder, signature, arguments):
            return splat(builder, arguments[0], vector.llvm)

        return vector(scalar), generate

    return fill


def _cast(target, source, name):
    @intrinsic
    def cast(typing, x):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(arguments[0], target.llvm)

        return target(source), generate

    return cast


add, sub, mul = _binary("add", "fadd"), _binary("sub", "fsub"), _binary("mul", "fmul")
and_, or_, xor = _binary("and_"), _binary("or_"), _binary("xor")
shift_left, shift_right, shift_right_signed = _shift("shl"), _shift("lshr"), _shift("ashr")
splat_i32, splat_f32 = _splat(i32x16, types.int32), _splat(f32x16, types.float32)
to_f32 = _cast(f32x16, i32x16, "sitofp")


@intrinsic
def fma(typing, x, y, z):
    """x y + z of f32x16, rounded once"""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(x.llvm, [x.llvm] * 3)
        name = f"llvm.fma.v{x.llvm.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return f32x16(f32x16, f32x16, f32x16), generate


@intrinsic
def multiply_add(typing, x, y, z):
    """x y + z of f32x16, rounded once where the processor can and twice elsewhere"""

    def generate(context, builder, signature, arguments):
        return emit_multiply_add(builder, *arguments)

    return f32x16(f32x16, f32x16, f32x16), generate


def emit_multiply_add(builder, x, y, z):
    """LLVM code for ``multiply_add``"""
    kind = ir.FunctionType(z.type, [z.type] * 3)
    name = f"llvm.fmuladd.v{z.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


@intrinsic
def sum_lanes(typing, x):
    """i32x16 -> int32, the sum of its lanes modulo 2^32"""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(x.llvm.element, [x.llvm])
        name = f"llvm.vector.reduce.add.v{x.llvm.count}i32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return types.int32(i32x16), generate
