"""For sums of squared errors: rounding to integers, and a sum of lanes in 64 bits."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qbook.kernels.simd.types import constant, f32x16, i32x16, lanes

F64 = ir.DoubleType()
# Adding 1.5 2^23 to |x| < 2^22 leaves no bit behind the point: the sum rounds, ties to even.
SHIFTER = 1.5 * 2**23


@intrinsic
def round_even(typing, isa, x):
    """isa, f32x16 with |x| < 2^22 -> the nearest integers, ties to even; -0 may become 0"""

    def generate(context, builder, signature, arguments):
        value = arguments[1]
        if signature.args[0].isa == "portable":
            # Processors without an instruction for it would call a function for each lane.
            shifter = constant(value.type, SHIFTER)
            return builder.fsub(builder.fadd(value, shifter), shifter)
        kind = ir.FunctionType(value.type, [value.type])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.v16f32")
        return builder.call(function, [value])

    return f32x16(isa, f32x16), generate


@intrinsic
def to_i32(typing, x):
    """f32x16 with |x| < 2^31 -> i32x16, cut off towards 0"""

    def generate(context, builder, signature, arguments):
        return builder.fptosi(arguments[0], i32x16.llvm)

    return i32x16(f32x16), generate


@intrinsic
def wide_sum(typing, x):
    """f32x16 -> float64, the sum of its lanes: halves added to halves, in 64 bits"""

    def generate(context, builder, signature, arguments):
        value = builder.fpext(arguments[0], ir.VectorType(F64, 16))
        count = 16
        while count > 1:
            count //= 2
            low, high = (lanes(builder, value, range(i, i + count)) for i in (0, count))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float64(f32x16), generate
