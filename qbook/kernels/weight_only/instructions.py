"""Instructions for a weight: what memory leaves time for, and what the compiled loops hold.

    t = weights * max(bits / (8 bandwidth), instructions / issued)

Memory brings 8 bandwidth / bits weights a second, the schedulers start ``issued`` instructions of a
thread a second; a loop with more than bits * issued / (8 bandwidth) for each weight is what the
product waits for.  A bound: instructions of half rate, and waiting, come on top.

    python -m qbook.kernels.weight_only.instructions --arch 90

Compiled by Triton for a GPU that is not there, like ``gpu.contract``.  Book: 6.1
"""

import argparse
import collections
import dataclasses
import json
import re

from qbook.kernels.gpu import contract

# The way of one row and that of sixteen, as ``matmul.contracts`` names them.
WAYS = {"multiply_row": 1, "multiply": 16}
FORMATS = {"int4": 128, "ternary": None, "mxfp4": 32, "nvfp4": 16, "nf4": 64}


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop over the inputs of one compiled product.

    name:          the format, or int4 and one of ``alternatives``
    way:           the kernel
    weights:       that a thread multiplies in a turn
    instructions:  name of a machine instruction -> how often it stands in the loop
    """

    name: str
    way: str
    weights: int
    instructions: dict

    @property
    def per_weight(self):
        return sum(self.instructions.values()) / self.weights


def budget(bits, machine):
    """bits per weight with their metadata, ``roofline.Machine`` -> instructions per weight

    For GPUs with 128 float32 units a multiprocessor (H100, H200): as many as the lanes of its four
    schedulers, so that half of the peak, of multiplications and additions, is what they start.
    """
    return bits * machine.peak["float32"] / 2 / (8 * machine.bandwidth)


def loop(code):
    """Machine code as Triton disassembles it -> names of instructions of the longest loop, in order

    A loop ends with a jump back to its label.  Raises ValueError where there is none.
    """
    lines = code.splitlines()
    labels = {line[:-1]: place for place, line in enumerate(lines) if re.fullmatch(r"\w+:", line)}
    found = []
    for place, line in enumerate(lines):
        jump = re.search(r"\bBRA(?:\.\w+)*\s+(?:\w+,\s*)?(\w+);", line)
        if jump and labels.get(jump[1], place) < place:
            body = lines[labels[jump[1]] : place + 1]
            names = [re.search(r"\t(?:@!?\w+ )?(\w+)", one) for one in body]
            found.append([name[1] for name in names if name])
    # A jump to itself fills the code behind its end.
    found = [names for names in found if len(names) > 1]
    if not found:
        raise ValueError("no jump back to a label: there is no loop in this code")
    return max(found, key=len)


def read(architecture):
    """-> ``Loop`` of every format and way and of the alternatives, compiled in another process"""
    rows = contract.elsewhere(__name__, "--arch", str(architecture))
    return [Loop(**row) for row in rows]


def _launches(architecture):
    """-> name, way, launch, all with x in float16"""
    from qbook.kernels.weight_only import matmul

    for name, group_size in FORMATS.items():
        for label, launch in matmul.contracts(name, architecture, group_size):
            for way, rows in WAYS.items():
                if label == f"{name} float16 {rows} rows, {way}":
                    yield name, way, launch
                    if (name, way) == ("int4", "multiply"):
                        yield from _alternatives(launch)


def _alternatives(launch):
    import torch

    from qbook.kernels.weight_only import alternatives

    halves = torch.empty(launch.arguments["scale_ptr"].shape, dtype=torch.float16, device="meta")
    for name, changed in (
        ("converted", {"DECODE": alternatives.converted}),
        ("byte_by_byte", {"DECODE": alternatives.byte_by_byte}),
        ("half_scale", {"SCALE": alternatives.half_scale, "scale_ptr": halves}),
    ):
        replaced = dataclasses.replace(launch, arguments={**launch.arguments, **changed})
        yield f"int4, {name}", "multiply", replaced


def _loops(architecture):
    for name, way, launch in _launches(architecture):
        names = loop(contract.compile_for(launch, architecture).asm["sass"])
        given = launch.arguments
        tiles = given["TILES_A_STEP"] if way == "multiply" else given["BLOCK_TILES"]
        weights = given["BLOCK_N"] * tiles * given["PLANE"] * 8 // given["BITS"]
        yield Loop(name, way, weights // (32 * launch.num_warps), dict(collections.Counter(names)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = list(_loops(asked.arch))
    if asked.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
        return
    for one in found:
        parts = ", ".join(f"{k} {v}" for k, v in sorted(one.instructions.items()))
        print(f"{one.name:18} {one.way:14} {one.per_weight:5.2f} a weight: {parts}")


if __name__ == "__main__":
    main()
