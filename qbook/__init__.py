"""qbook: the executable textbook of neural-network quantization.

The package computes, the chapters derive, the notebooks measure.  Rooms and the direction of
imports are drawn in README.md.  ``qbook.quantize(model, batches, method=..., bits=...)`` applies a
method of the book to any torch model; ``qbook.save`` and ``qbook.load`` store what it returns.
"""

__version__ = "0.1.0"
__all__ = ["load", "quantize", "save"]


def __getattr__(name):
    # On demand, so that ``import qbook`` does not import torch.
    if name == "quantize":
        from qbook.pipeline.quantize import quantize

        return quantize
    if name in ("load", "save"):
        from qbook.pipeline import storage

        return getattr(storage, name)
    raise AttributeError(f"module 'qbook' has no attribute {name!r}")
