"""A few instructions of PTX in NumPy: inline assembly is run here, as no interpreter runs it."""

import re

import numpy as np


def prmt(a, b, selector):
    """Bytes 0 to 3 are those of a, 4 to 7 those of b; four bits of the selector choose one."""
    pool = np.stack([*np.broadcast_arrays(a, b)], axis=-1).astype(np.uint32).view(np.uint8)
    chosen = [pool[..., selector >> 4 * place & 7] for place in range(4)]
    return np.ascontiguousarray(np.stack(chosen, axis=-1)).view(np.uint32)[..., 0]


OPERATIONS = {
    "shl.b32": np.left_shift,
    "shr.b32": np.right_shift,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "sub.u32": np.subtract,
    "xor.b32": np.bitwise_xor,
}
LINE = re.compile(r"(\w+\.\w+) ([$\w]+), ([$\w]+), ([$\w]+)(?:, (\w+))?;")


def run(text, **inputs):
    """Assembly, and name -> words uint32 without the dollar -> name -> words of every register"""
    registers = {f"${name[1:]}": np.asarray(words, np.uint32) for name, words in inputs.items()}

    def value(name):
        return registers[name] if name in registers else np.uint32(int(name, 0))

    lines = LINE.findall(text)
    assert len(lines) == text.count(";") - text.count(".reg"), "an instruction was not understood"
    for name, to, left, right, selector in lines:
        if name == "prmt.b32":
            registers[to] = prmt(value(left), value(right), int(selector, 0))
        else:
            registers[to] = OPERATIONS[name](value(left), value(right))
    return registers


def words():
    """uint32: every byte in each of four places, beside others that it must not reach"""
    every = np.arange(256, dtype=np.uint32)
    return np.concatenate(
        [
            every << np.uint32(8 * place) | np.uint32(0x01010101 * other & ~(255 << 8 * place))
            for place in range(4)
            for other in (0, 0x55, 255)
        ]
    )
