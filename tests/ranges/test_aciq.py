import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from qbook import affine, metrics
from qbook.ranges import aciq, mse
from qbook.theory import noise

DENSITIES = {
    "laplace": (stats.laplace(), aciq.laplace_factor, aciq.laplace),
    "gaussian": (stats.norm(), aciq.gaussian_factor, aciq.gaussian),
}


@pytest.mark.parametrize(
    ("factor", "printed"),
    [
        # The tables of the authors' released code, 1 to 8 bits; some entries are cut off instead of
        # rounded, so that they are off by up to a hundredth.
        (aciq.laplace_factor, [1.86, 2.83, 3.89, 5.03, 6.2, 7.41, 8.64, 9.89]),
        (aciq.gaussian_factor, [1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]),
    ],
)
def test_the_factors_are_those_of_the_authors_tables(factor, printed):
    for bits, value in enumerate(printed, start=1):
        assert abs(factor(bits) - value) <= 0.01
        # Their tables for data after a ReLU are the same, shifted by a bit.
        assert factor(bits, one_sided=True) == factor(bits + 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_factor_is_a_minimum_of_the_two_terms(name, bits):
    dist, factor, _ = DENSITIES[name]

    def error(c):
        overload = integrate.quad(lambda x: (x - c) ** 2 * dist.pdf(x), c, np.inf, epsabs=1e-18)[0]
        return c**2 / (3 * 4**bits) + 2 * overload

    best = factor(bits)
    # Convex: a minimum lies between any two points that are worse.
    assert error(best) < min(error(0.999 * best), error(1.001 * best))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_exact_optimum_is_narrower_and_hardly_better_from_four_bits_on(name, bits):
    dist, factor, _ = DENSITIES[name]
    exact = noise.optimal_clip(dist, bits)
    gap = sum(noise.clipped_mse(dist, factor(bits), bits)) / sum(
        noise.clipped_mse(dist, exact, bits)
    )
    assert 1 <= gap
    assert exact < factor(bits)
    if bits >= 4:
        # The step of the model is short by 2 / 2^bits, an eighth at four bits: a clip off by a
        # part of that costs its square, less than (1/8)^2.
        assert gap <= 1 + 1 / 64


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_range_of_a_sample_is_the_factor_times_its_width(name, bits):
    dist, factor, search = DENSITIES[name]
    x = 3.0 * dist.rvs(50_000, random_state=0)
    low, high = search(x, bits)
    assert low == -high
    # The width of 50 000 draws is good to 1 / sqrt(50 000) times a little: 2 %.
    assert abs(high / (3 * factor(bits)) - 1) <= 0.02


@pytest.mark.parametrize("name", DENSITIES)
def test_rectified_data_get_all_codes_on_their_side(name):
    dist, factor, search = DENSITIES[name]
    x = np.maximum(dist.rvs(100_000, random_state=0), 0)
    low, high = search(x, 4)
    assert low == 0
    assert abs(high / factor(5) - 1) <= 0.02
    searched = mse.search(x, 4, symmetric=False)
    errors = [
        metrics.mse(x, affine.fake_quantize(x, affine.qparams_from_range(*r, 4, symmetric=False)))
        for r in ((low, high), searched)
    ]
    assert errors[1] <= errors[0] <= 1.05 * errors[1]


def test_torch_tensors_get_torch_ranges():
    x = torch.tensor([[-1.0, 2.0], [0.5, -0.5]], dtype=torch.bfloat16)
    low, high = aciq.laplace(x, 4)
    assert isinstance(high, torch.Tensor)
    assert high.dtype == torch.float32
    assert math.isclose(float(high), aciq.laplace_factor(4), rel_tol=1e-6)  # E |x| = 1
    assert low == -high


def test_zeros_get_an_empty_range_that_the_quantizer_accepts():
    low, high = aciq.laplace(np.zeros(5), 4)
    assert low == high == 0
    assert affine.qparams_from_range(low, high, 4).scale == 1


@pytest.mark.parametrize("search", [aciq.laplace, aciq.gaussian])
@pytest.mark.parametrize(
    ("x", "bits", "message"),
    [
        (np.ones(3), 0, "from 1 to 16"),
        (np.ones(3), 17, "from 1 to 16"),
        (np.array([]), 4, "empty"),
        (np.array([1.0, np.nan]), 4, "NaN"),
        (np.array([1, 2]), 4, "floating-point"),
    ],
)
def test_what_has_no_range_is_refused(search, x, bits, message):
    with pytest.raises(ValueError, match=message):
        search(x, bits)
