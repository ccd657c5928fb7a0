"""How many programs a multiprocessor holds, and how many bytes must be under way to fill a bus.

Little's law: what is under way = rate * time of one.  A memory with a latency of L seconds delivers
its bandwidth only while bandwidth * L bytes have been asked for and have not arrived.

Little 1961, Operations Research 9(3); limits: NVIDIA, CUDA C++ Programming Guide, technical
specifications per compute capability.  Book: 6.1
"""

from typing import NamedTuple

REGISTERS = 65536
# A warp's registers are handed out in pieces of 256, shared memory in pieces of 1 KiB at most.
REGISTER_PIECE = 256


class Multiprocessor(NamedTuple):
    """warps, programs: the most at one time;  shared: bytes for all of them;
    reserved: bytes of it that each program costs besides what it asks for"""

    warps: int
    programs: int
    shared: int
    reserved: int


KIB = 1024
MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 * KIB, 0),
    80: Multiprocessor(64, 32, 164 * KIB, KIB),
    86: Multiprocessor(48, 16, 100 * KIB, KIB),
    89: Multiprocessor(48, 24, 100 * KIB, KIB),
    90: Multiprocessor(64, 32, 228 * KIB, KIB),
    100: Multiprocessor(64, 32, 228 * KIB, KIB),
    120: Multiprocessor(48, 24, 100 * KIB, KIB),
}


def resident(registers, shared, num_warps, architecture):
    """-> programs that one multiprocessor holds at a time, 0 where not even one fits

    registers: of a thread;  shared: bytes of a program;  num_warps: warps of 32 threads of one
    Raises ValueError for an architecture that is not known.
    """
    if architecture not in MULTIPROCESSORS:
        known = ", ".join(map(str, MULTIPROCESSORS))
        raise ValueError(f"architecture={architecture} is not known; choose one of {known}")
    limit = MULTIPROCESSORS[architecture]
    of_a_warp = -(-32 * registers // REGISTER_PIECE) * REGISTER_PIECE
    return min(
        limit.programs,
        limit.warps // num_warps,
        REGISTERS // (of_a_warp * num_warps),
        limit.shared // (shared + limit.reserved) if shared + limit.reserved else limit.programs,
    )


def bytes_needed(bandwidth, latency, multiprocessors):
    """bytes a second, seconds, count -> bytes that each multiprocessor must have asked for"""
    return bandwidth * latency / multiprocessors
