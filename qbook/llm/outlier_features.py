"""Outlier features: which dimensions of the hidden states are large, in how much of a model.

A feature is a dimension of the hidden state, the same one in all layers.  It is an outlier feature
if it reaches the magnitude 6.0 in at least 25 % of the layers and at 6 % of the sequence positions:
Dettmers et al. 2022, arXiv:2208.07339, section 4, whose alpha is that magnitude.  The product of
section 3.2 asks for the magnitude alone, see ``llm_int8``.

No power law is part of it.  ``hill`` measures the exponent that a tail would have: Hill 1975,
doi:10.1214/aos/1176343247.  Book: 5.1
"""

from array_api_compat import array_namespace, size


def shares(hidden, magnitude=6.0):
    """-> of each feature the share of layers and of positions that it is large in, two [features]

    hidden:     list of arrays [positions, features], one a layer
    positions:  the share of all positions in all layers; layers: those with one position or more
    Raises ValueError for no layers, for different shapes, and for NaN.
    """
    shapes = {tuple(x.shape) for x in hidden}
    if len(shapes) != 1 or min(map(len, shapes)) != 2 or 0 in next(iter(shapes)):
        raise ValueError(
            f"the layers are of shapes {sorted(shapes)}; pass one shape [positions, features]"
        )
    xp = array_namespace(*hidden)
    if any(bool(xp.any(xp.isnan(x))) for x in hidden):
        raise ValueError("a hidden state holds NaN; pass numbers only")
    large = [xp.astype(xp.abs(x) >= magnitude, xp.float64) for x in hidden]
    layers = sum(xp.max(hits, axis=0) for hits in large) / len(hidden)
    positions = sum(xp.mean(hits, axis=0) for hits in large) / len(hidden)
    return layers, positions


def detect(hidden, *, magnitude=6.0, layers=0.25, positions=0.06):
    """-> the outlier features, ascending.  hidden, magnitude: see ``shares``

    layers, positions:  the least share of each.  Raises ValueError as ``shares``.
    """
    of_layers, of_positions = shares(hidden, magnitude)
    xp = array_namespace(of_layers)
    return xp.nonzero((of_layers >= layers) & (of_positions >= positions))[0]


def hill(x, k):
    """Exponent alpha of P(|x| > t) ~ t^-alpha beyond the (k + 1)-th largest magnitude -> float

    1 / mean of log(|x|_(i) / |x|_(k + 1)), i = 1 ... k: the maximum of the likelihood if the tail
    is a power law, with standard error alpha / sqrt(k).  It is a number for any tail: only where
    it does not depend on k is there a power law.  Raises ValueError unless 1 <= k < number of
    values, and where the (k + 1)-th largest magnitude is 0 or as large as the first.
    """
    xp = array_namespace(x)
    if not 1 <= k < size(x):
        raise ValueError(f"k={k} largest of {size(x)} values; choose 1 to {size(x) - 1}")
    tail = xp.sort(xp.astype(xp.abs(x.reshape(-1)), xp.float64))[-(k + 1) :]
    if not 0 < float(tail[0]) < float(tail[-1]):
        raise ValueError(
            f"the {k + 1} largest magnitudes go from {float(tail[0])} to {float(tail[-1])}; "
            "an exponent needs positive ones that differ"
        )
    return float(1 / xp.mean(xp.log(tail[1:] / tail[0])))
