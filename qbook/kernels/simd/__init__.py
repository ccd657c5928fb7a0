"""The SIMD layer: vector types for Numba and the few instructions that LLVM does not find itself.

Intrinsics of a processor live here and nowhere else.  A function that depends on the processor
takes an ``isa.Isa`` first and emits for it; everything else is plain vector code, which LLVM lowers
to whatever registers the machine has.  Book: 6.2
"""
