"""Transposition: blocks of a matrix turned inside registers, a load and a store for each row.

columns_of_four    4 rows of 16 bytes -> 16 columns of 4 bytes, each a lane
transpose          16 rows of 16 numbers of 32 bits, in place
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qbook.kernels.simd.register_loop import at, load_at, pointer
from qbook.kernels.simd.types import I8, I32, I64, i32x16

SIDE = 16
BYTES = ir.VectorType(I8, SIDE)


@intrinsic
def columns_of_four(typing, array, first, second, third, fourth):
    """Four offsets in bytes, each the start of 16 bytes -> i32x16: lane k holds byte k of each"""

    def generate(context, builder, signature, arguments):
        array, *offsets = arguments
        rows = [
            load_at(builder, pointer(context, builder, signature.args[0], array, o), 0, BYTES)
            for o in offsets
        ]
        halves = [_joined(builder, rows[i], rows[i + 1], range(2 * SIDE)) for i in (0, 2)]
        order = [SIDE * row + column for column in range(SIDE) for row in range(4)]
        return builder.bitcast(_joined(builder, *halves, order), i32x16.llvm)

    n = types.int64
    return i32x16(array, n, n, n, n), generate


@intrinsic
def transpose(typing, array, offset, stride):
    """The block of 16 x 16 numbers at an offset in bytes, stride bytes from row to row, in place.

    Four rounds: round b exchanges the quarters of every block of 2^(b+1), so that bit b of a
    number's row and bit b of its column change places.
    """

    def generate(context, builder, signature, arguments):
        start = pointer(context, builder, signature.args[0], *arguments[:2])
        starts = [
            at(builder, start, builder.mul(arguments[2], ir.Constant(I64, i)), i32x16.llvm)
            for i in range(SIDE)
        ]
        rows = [builder.load(place, align=1) for place in starts]
        for bit in (1, 2, 4, 8):
            # Indices from 16 on are those of the second of two vectors.
            upper = [k if not k & bit else SIDE + (k ^ bit) for k in range(SIDE)]
            lower = [k | bit if not k & bit else SIDE + k for k in range(SIDE)]
            for i in range(SIDE):
                if not i & bit:
                    pair = rows[i], rows[i | bit]
                    rows[i] = _joined(builder, *pair, upper)
                    rows[i | bit] = _joined(builder, *pair, lower)
        for place, row in zip(starts, rows, strict=True):
            builder.store(row, place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


def _joined(builder, x, y, indices):
    """Lanes of two vectors laid end to end, by their indices"""
    mask = ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
    return builder.shuffle_vector(x, y, mask)
