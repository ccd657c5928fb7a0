"""Four bits as a float: a table in a register, where a processor can look up sixteen lanes.

vpermps takes the low 4 bits of each lane as the number of a lane of its table, whatever stands
above them: no mask, no conversion.  Elsewhere the four bits are put into the last digits of a float
of which these digits count ones, where they stand: 2^(23 - place) + code, exactly.

Both take 8 off: the middle of the sixteen codes, so that a zero-point there costs nothing.
"""

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from qbook.kernels.simd.types import constant, f32x16, i32x16

CODES, MIDDLE = 16, 8
DIGITS, BIAS = 23, 127
NUMBERS, FLOATS = i32x16.llvm, f32x16.llvm


@intrinsic(prefer_literal=True)
def nibble_to_f32(typing, isa, x, place):
    """isa, x i32x16, place a constant -> f32x16: bits place ... place + 3 of each lane, minus 8"""
    if not isinstance(place, types.IntegerLiteral) or not 0 <= place.literal_value <= 28:
        raise errors.TypingError(f"place={place} is not a constant from 0 to 28")

    def generate(context, builder, signature, arguments):
        emit = _looked_up if signature.args[0].isa == "avx512vnni" else _put_together
        return emit(builder, arguments[1], place.literal_value)

    return f32x16(isa, i32x16, place), generate


def _looked_up(builder, x, place):
    kind = ir.FunctionType(FLOATS, [FLOATS, NUMBERS])
    function = cgutils.get_or_insert_function(
        builder.module, kind, "llvm.x86.avx512.permvar.sf.512"
    )
    table = constant(FLOATS, [float(code - MIDDLE) for code in range(CODES)])
    return builder.call(function, [table, builder.lshr(x, constant(NUMBERS, place))])


def _put_together(builder, x, place):
    # The digits end below bit 23; one shift serves the three nibbles that stand higher.
    if place + 4 > DIGITS:
        x, place = builder.lshr(x, constant(NUMBERS, 12)), place - 12
    code = builder.and_(x, constant(NUMBERS, (CODES - 1) << place))
    exponent = constant(NUMBERS, (BIAS + DIGITS - place) << DIGITS)
    mixed = builder.bitcast(builder.or_(code, exponent), FLOATS)
    return builder.fsub(mixed, constant(FLOATS, 2.0 ** (DIGITS - place) + MIDDLE))
