"""Range estimators: from a sample of values to the (low, high) that a quantizer should cover.

Each is one module: ``minmax``, ``percentile``, ``mse``, ``aciq``, ``entropy``,
``entropy_two_sided``.
``affine.qparams_from_range`` takes what they return.
"""
