"""Kernels: one room an operation, and in it the naive reference, the fast versions, one launcher.

Importing any of this compiles nothing.  ``isa.explain()`` says what would run on this machine.
Book: 6.2
"""
