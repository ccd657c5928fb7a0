"""Loads and stores at a byte offset into an array of any type.  No alignment is asked; no bound is
checked: a kernel's launcher has checked them.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qbook.kernels.simd.types import (
    I8,
    I32,
    address,
    constant,
    f32x16,
    i32x16,
    splat,
)

# Pointers lost their element type in LLVM 17, and names of functions the suffix that told it.
OPAQUE = llvm.llvm_version_info[0] >= 17


def _loader(vector):
    @intrinsic
    def load(typing, array, offset):
        """array, offset in bytes -> vector"""

        def generate(context, builder, signature, arguments):
            pointer = address(context, builder, signature.args[0], *arguments, vector.llvm)
            return builder.load(pointer, align=1)

        return vector(array, types.intp), generate

    return load


def _broadcaster(vector):
    @intrinsic
    def broadcast(typing, array, offset):
        """array, offset in bytes -> vector with the element there in every lane"""

        def generate(context, builder, signature, arguments):
            element = vector.llvm.element
            pointer = address(context, builder, signature.args[0], *arguments, element)
            return splat(builder, builder.load(pointer, align=1), vector.llvm)

        return vector(array, types.intp), generate

    return broadcast


@intrinsic
def store(typing, array, offset, vector):
    """Write vector at an offset in bytes."""

    def generate(context, builder, signature, arguments):
        pointer = address(
            context, builder, signature.args[0], *arguments[:2], signature.args[2].llvm
        )
        builder.store(arguments[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def store_first(typing, array, offset, vector, count):
    """Write the first ``count`` lanes of vector at an offset in bytes, and nothing behind them."""

    def generate(context, builder, signature, arguments):
        llvm_type = signature.args[2].llvm
        pointer = address(context, builder, signature.args[0], *arguments[:2], llvm_type)
        numbers = ir.VectorType(I32, llvm_type.count)
        limit = splat(builder, builder.trunc(arguments[3], I32), numbers)
        mask = builder.icmp_signed("<", constant(numbers, range(llvm_type.count)), limit)
        suffix = f"v{llvm_type.count}{_short(llvm_type.element)}"
        suffix += ".p0" if OPAQUE else f".p0{suffix}"
        kind = ir.FunctionType(ir.VoidType(), [llvm_type, pointer.type, I32, mask.type])
        function = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.masked.store.{suffix}"
        )
        builder.call(function, [arguments[2], pointer, ir.Constant(I32, 1), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.int64), generate


def _short(element):
    """LLVM's name of an element type inside the names of its functions: i32, f32"""
    return "f32" if str(element) == "float" else str(element)


@intrinsic
def prefetch(typing, array, offset):
    """Ask for the cache line at an offset in bytes; an address that does not exist does no harm."""

    def generate(context, builder, signature, arguments):
        pointer = address(context, builder, signature.args[0], *arguments, I8)
        emit_prefetch(builder, pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def emit_prefetch(builder, pointer):
    name = "llvm.prefetch.p0" if OPAQUE else "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    read, keep, data = (ir.Constant(I32, n) for n in (0, 3, 1))
    builder.call(function, [pointer, read, keep, data])


load_i32, broadcast_i32 = _loader(i32x16), _broadcaster(i32x16)
load_f32, broadcast_f32 = _loader(f32x16), _broadcaster(f32x16)
