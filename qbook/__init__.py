"""qbook: the executable textbook of neural-network quantization.

The package computes, the chapters derive, the notebooks measure.  Rooms and the direction of
imports are drawn in README.md.  ``qbook.quantize(model, batches, method=..., bits=...)`` applies a
method of the book to any torch model; ``qbook.save`` and ``qbook.load`` store what it returns.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["load", "quantize", "save"]
_HOMES = {
    "quantize": "qbook.pipeline.quantize",
    "save": "qbook.pipeline.storage",
    "load": "qbook.pipeline.storage",
}


def __getattr__(name):
    # On demand and by name, so that ``import qbook`` imports no torch and depends on no room.
    if name not in _HOMES:
        raise AttributeError(f"module 'qbook' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
