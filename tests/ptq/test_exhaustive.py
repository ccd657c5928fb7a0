import itertools
import math

import numpy as np
import pytest

from qbook import affine
from qbook.ptq import exhaustive


@pytest.mark.parametrize(("in_", "bits", "symmetric"), [(1, 2, True), (5, 3, True), (6, 2, False)])
def test_the_search_finds_what_nested_loops_find(in_, bits, symmetric):
    rng = np.random.default_rng(in_)
    w, x = rng.normal(size=in_), rng.normal(size=(20, in_))
    # The narrow range clips the outermost weights.
    qparams = affine.choose_qparams(0.6 * w, bits, symmetric=symmetric)
    scale, zero_point = qparams.scale.item(), qparams.zero_point.item()
    errors = {}
    for up in itertools.product([0, 1], repeat=in_):
        codes = [
            min(max(math.floor(value / scale) + step + zero_point, qparams.qmin), qparams.qmax)
            for value, step in zip(w, up, strict=True)
        ]
        gap = [scale * (code - zero_point) - value for code, value in zip(codes, w, strict=True)]
        errors[tuple(codes)] = sum(float(row @ gap) ** 2 for row in x) / 20
    best, found = exhaustive.search(w, x, qparams)
    assert found.shape == (2**in_,)
    assert {tuple(row) for row in exhaustive.roundings(w, qparams).tolist()} == set(errors)
    # The same sums in another order.
    assert abs(errors[tuple(best.tolist())] - min(errors.values())) <= 1e-12
    assert abs(found.min() - min(errors.values())) <= 1e-12


def test_more_inputs_and_more_scales_than_it_can_list_are_refused():
    w = np.ones(17)
    with pytest.raises(ValueError, match="in <= 16"):
        exhaustive.roundings(w, affine.choose_qparams(w, 2))
    rows = np.arange(8.0).reshape(2, 4)
    with pytest.raises(ValueError, match="one row has one scale"):
        exhaustive.roundings(rows[0], affine.choose_qparams(rows, 2, axis=1))
