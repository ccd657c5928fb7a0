"""qbook: the executable textbook of neural-network quantization.

The package computes, the chapters derive, the notebooks measure.  Rooms and the direction of
imports are drawn in README.md.
"""

__version__ = "0.1.0"
