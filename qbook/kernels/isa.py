"""Instruction sets: which ones this process may use, which one it does use, and how to force one.

    avx512vnni   vpdpbusd on 512 bits: Intel since Cascade Lake (2019), AMD since Zen 4 (2022)
    avxvnni      vpdpbusd on 256 bits: Intel since Alder Lake (2021), AMD since Zen 5
    portable     vector code that LLVM turns into what the machine has: AVX2, SSE, NEON
    reference    NumPy, 64 bits: slow and obvious

``QBOOK_KERNELS=portable`` (or another name) forces one for the process.  Features are those that
Numba compiles for, not those of the chip: ``NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=`` makes a
run pretend to be an older machine.  Book: 6.2
"""

import functools
import os

from numba.core import types
from numba.extending import NativeValue, models, register_model, unbox

# Best first.  What LLVM must be allowed to use; without it, it would end the process.
NEEDS = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
    "avxvnni": ("avx2", "fma", "avxvnni"),
    "portable": (),
}
REFERENCE = "reference"


class IsaType(types.Type):
    def __init__(self, isa):
        self.isa = isa
        super().__init__(name=f"Isa({isa})")


class Isa:
    """An instruction set as an argument of a compiled function: each has a Numba type of its own.

    One source, compiled once for each set; the functions in ``simd`` look at the type.
    """

    def __init__(self, name):
        self.name = name
        # Numba asks for this first; asking its registry of types would cost 4 us a call.
        self._numba_type_ = IsaType(name)

    def __repr__(self):
        return self.name


register_model(IsaType)(models.OpaqueModel)


@unbox(IsaType)
def _unbox(typ, value, context):
    return NativeValue(context.context.get_dummy_value())


ISAS = {name: Isa(name) for name in NEEDS}


@functools.cache
def features():
    """-> frozenset of the names of the features that Numba compiles for, after its overrides."""
    from numba.core.registry import cpu_target

    flags = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


@functools.cache
def available():
    """-> names that this process can run, best first; "reference" is always the last."""
    able = (name for name, needed in NEEDS.items() if features().issuperset(needed))
    return (*able, REFERENCE)


def choose(name=None):
    """-> the name to use: ``name``, else QBOOK_KERNELS, else the best.

    Raises ValueError for a name that does not exist or that this process cannot run.
    """
    asked = name or os.environ.get("QBOOK_KERNELS") or available()[0]
    if asked not in available():
        known = [*NEEDS, REFERENCE]
        why = "is no instruction set" if asked not in known else "is not to be had here"
        raise ValueError(f"{asked!r} {why}; this process can run {', '.join(available())}")
    return asked


def explain():
    """-> one line: what runs, and why."""
    forced = os.environ.get("QBOOK_KERNELS")
    why = f"forced by QBOOK_KERNELS={forced}" if forced else "the best of what it can run"
    return f"kernels: {choose()} ({why}: {', '.join(available())})"
