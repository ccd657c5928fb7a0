"""Footprint: what a number costs to store, to keep beside the model, and to compute with.

    bits per weight = bits + metadata bits / group size + outliers
    KV cache        = 2 x layers x KV heads x head size x tokens x bits / 8            bytes
    energy          = multiplications + additions + 64-bit memory accesses, each at its price

Metadata: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3.  Outliers: Dettmers et al. 2024
(SpQR), arXiv:2306.03078, section 4.  Prices: Horowitz 2014, ISSCC, figure 1.1.9.  Book: 1.1
"""

import math
from dataclasses import dataclass
from fractions import Fraction

# Five ternary codes in a byte, see qbook.packing.
TERNARY_BITS = Fraction(8, 5)


def bits_per_weight(
    bits,
    group_size=math.inf,
    *,
    scale_bits=16,
    zero_point_bits=0,
    outlier_share=0,
    outlier_bits=32,
):
    """What a weight of ``bits`` costs with its share of the metadata -> float.

    group_size:      weights that share a scale; inf: too many for it to count
    scale_bits, zero_point_bits: stored once a group
    outlier_share:   share of the weights, 0..1, that are stored once more
    outlier_bits:    of an outlier beyond its code: 16 of value, 16 of position
    Raises ValueError for a negative size or a share outside 0..1.
    """
    sizes = (bits, scale_bits, zero_point_bits, outlier_bits)
    if not min(sizes) >= 0:
        raise ValueError(f"bits={bits}, metadata {sizes[1:]}; choose 0 or more")
    if not group_size > 0:
        raise ValueError(f"group_size={group_size}; choose 1 or more, or inf")
    if not 0 <= outlier_share <= 1:
        raise ValueError(f"outlier_share={outlier_share}; choose 0 to 1")
    metadata = (scale_bits + zero_point_bits) / group_size
    return float(bits + metadata + outlier_share * outlier_bits)


def matrix_bytes(shape, bits, group_size=None, *, scale_bits=16, zero_point_bits=0):
    """Bytes of a packed matrix of codes with its metadata, exactly -> int.

    shape:       (out, in); every row starts a byte, as ``packing.pack`` lays it out
    bits:        of a code; TERNARY_BITS for ``packing.pack_ternary``
    group_size:  neighbours in a row that share a scale; None: the whole row.  The last group of a
                 row may be short
    Raises ValueError for a negative shape or width, or a group_size below 1.
    """
    out, in_ = shape
    if min(out, in_, bits, scale_bits, zero_point_bits) < 0:
        raise ValueError(f"shape={shape} and bits={bits} must not be negative")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size={group_size} holds no weight; choose 1 or more, or None")
    # Exact fractions: 15 ternary codes fill 3 bytes, and 15 * 1.6 / 8 in floats rounds up to 4.
    row = math.ceil(in_ * Fraction(bits).limit_denominator(1000) / 8)
    groups = math.ceil(in_ / (group_size or max(in_, 1)))
    return out * row + math.ceil(out * groups * (scale_bits + zero_point_bits) / 8)


def kv_cache_bytes(tokens, *, layers, kv_heads, head_size, bits=16):
    """Bytes of the keys and values that attention keeps for ``tokens`` tokens -> float.

    tokens:    of all sequences in flight together
    kv_heads:  heads that have keys of their own: all of them in multi-head attention, fewer in
               grouped-query and one in multi-query attention
    Raises ValueError for a negative size.
    """
    if min(tokens, layers, kv_heads, head_size, bits) < 0:
        raise ValueError(
            f"tokens={tokens}, layers={layers}, kv_heads={kv_heads}, head_size={head_size} and "
            f"bits={bits} must not be negative"
        )
    return 2 * layers * kv_heads * head_size * tokens * bits / 8


@dataclass(frozen=True)
class EnergyTable:
    """Prices in picojoules, and whose they are.

    multiply, add: data type -> one operation
    access:        memory -> one access of 64 bits
    """

    multiply: dict[str, float]
    add: dict[str, float]
    access: dict[str, float]
    source: str


# "Rough energy costs": the arithmetic units alone, without the instruction around them (70 pJ in a
# general-purpose processor, same paper).  DRAM is given as 1.3 to 2.6 nJ; the lower end stands
# here, so that no saving in memory is overstated.
HOROWITZ_45NM = EnergyTable(
    multiply={"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7},
    add={"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9},
    access={"SRAM 8 KB": 10.0, "SRAM 32 KB": 20.0, "SRAM 1 MB": 100.0, "DRAM": 1300.0},
    source="Horowitz 2014, ISSCC, figure 1.1.9: 45 nm, 0.9 V",
)


def matmul_energy(
    samples, in_, out, *, multiply, add, weight_bits, memory="DRAM", table=HOROWITZ_45NM
):
    """Energy of x [samples, in] @ w.T, w [out, in] read once -> (arithmetic, memory) picojoules.

    multiply, add: the data types of the product and of the accumulator, keys of the table
    weight_bits:   bits that a weight occupies in ``memory``; inputs and outputs are left out
    Raises ValueError for a type or memory that the table has no price for.
    """
    for name, prices, key in (
        ("multiply", table.multiply, multiply),
        ("add", table.add, add),
        ("memory", table.access, memory),
    ):
        if key not in prices:
            raise ValueError(f"{name}={key!r} has no price; choose one of {', '.join(prices)}")
    arithmetic = samples * in_ * out * (table.multiply[multiply] + table.add[add])
    return arithmetic, in_ * out * weight_bits / 64 * table.access[memory]
