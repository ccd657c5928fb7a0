import itertools

import numpy as np
import pytest
import torch

from qbook.llm import e8p
from qbook.theory import lattice

ALL = torch.arange(2**16, dtype=torch.int32)


def test_magnitudes_are_256_different_vectors_of_the_shells_that_the_paper_names():
    a = e8p.magnitudes()
    assert len(torch.unique(a, dim=0)) == 256
    lengths = (a**2).sum(dim=1).tolist()
    assert sum(n <= 10 for n in lengths) == 227
    assert sum(n == 12 for n in lengths) == 29
    # All there are up to 10, by enumeration.
    halves = itertools.product((0.5, 1.5, 2.5, 3.5), repeat=8)
    assert sum(sum(v * v for v in vector) <= 10 for vector in halves) == 227


def test_every_code_is_its_own_and_all_points_lie_on_a_shifted_e8():
    points = e8p.decode(ALL)
    assert len(torch.unique(points, dim=0)) == 2**16
    for shift in (0, 1):
        # Half-integers of even sum: the half of E8 that D8 + 1/2 is.
        own = (points[ALL % 2 == shift] - 0.25 * (2 * shift - 1)).double().numpy()
        np.testing.assert_array_equal(lattice.nearest_e8(own), own)
        assert np.all(own % 1 == 0.5)


def test_decoding_and_encoding_are_inverse():
    assert torch.equal(e8p.encode(e8p.decode(ALL)), ALL)


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_the_nearest_of_all_points_is_found(size):
    x = size * torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
    points = e8p.decode(ALL).double()
    distances = ((x[:, None] - points) ** 2).sum(dim=2)
    found = ((x - e8p.decode(e8p.encode(x)).double()) ** 2).sum(dim=1)
    # Equal distances may go either way; the sums differ by rounding.
    assert float((found - distances.min(dim=1).values).abs().max()) <= 1e-12 * size**2 * 100


def test_two_bits_a_weight_beat_the_best_scalar_quantizer_and_not_the_bound():
    step, error = e8p.best_scale()
    # Lloyd and Max at 2 bits: 0.1175; rate-distortion: 2^-4.
    assert 2.0**-4 < error < 0.1 < 0.1175
    assert 0.85 < step < 1.15


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 5, 8), (0, 8)])
def test_any_number_of_vectors(shape):
    codes = e8p.encode(torch.ones(shape))
    assert codes.shape == shape[:-1]
    assert e8p.decode(codes).shape == shape


def test_another_length_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 7\); E8P needs a last axis of length 8"):
        e8p.encode(torch.ones(3, 7))
