"""Vectors as Numba types: what LLVM keeps in one register, or in several where they are shorter.

i32x16 f32x16    512 bits: one register of AVX-512, two of AVX2, four of NEON
"""

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

I8, I16, I32, I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
F32, F16 = ir.FloatType(), ir.HalfType()


class Vector(types.Type):
    """``lanes`` numbers of an LLVM element type, side by side."""

    def __init__(self, element, lanes):
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({lanes} x {element})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


i32x16 = Vector(I32, 16)
f32x16 = Vector(F32, 16)
i8x16 = Vector(I8, 16)


def constant(llvm, values):
    """The same number in every lane, or one for each."""
    if not isinstance(values, (list, tuple, range)):
        values = [values] * llvm.count
    return ir.Constant(llvm, list(values))


def splat(builder, scalar, llvm):
    """scalar -> vector with it in every lane"""
    undefined = ir.Constant(llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(I32, llvm.count), 0))


def lanes(builder, vector, indices):
    """The lanes of these indices, in their order -> a shorter, longer or permuted vector"""
    mask = ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
    return builder.shuffle_vector(vector, vector, mask)


def address(context, builder, array_type, array, offset, llvm):
    """Pointer to ``llvm``, ``offset`` bytes behind the start of an array of any type."""
    data = context.make_array(array_type)(context, builder, array).data
    data = builder.bitcast(data, I8.as_pointer())
    return builder.bitcast(builder.gep(data, [offset]), llvm.as_pointer())
