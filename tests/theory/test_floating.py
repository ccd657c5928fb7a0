import ml_dtypes
import numpy as np
import pytest
from scipy import integrate

from qbook import affine, metrics
from qbook.formats import E4M3, E5M2
from qbook.formats.scaled import absmax_scale, fake_quantize
from qbook.theory import floating

# Formats of other makers, by their stored mantissa bits.
THEIRS = {
    1: ml_dtypes.float4_e2m1fn,
    2: ml_dtypes.float8_e5m2,
    3: ml_dtypes.float8_e4m3fn,
    4: ml_dtypes.float8_e3m4,
    7: ml_dtypes.bfloat16,
    10: np.float16,
}


def octave(count):
    """[count] float64: the midpoints of equal parts of an octave, logarithmically, in [1, 2]."""
    return 2 ** ((np.arange(count) + 0.5) / count)


def relative_error(v, cast):
    return (v - v.astype(cast).astype(np.float64)) / v


@pytest.mark.parametrize("mantissa_bits", THEIRS)
def test_the_noise_of_an_octave_equals_the_mean_over_casts_of_other_libraries(mantissa_bits):
    cast = relative_error(octave(2**20), THEIRS[mantissa_bits])
    expected = floating.octave_noise(mantissa_bits)
    # The midpoint rule with parts of 2^-20: at each of 2^m ties the slope of (e / v)^2 jumps by at
    # most 2 * 2^-m, which costs (2^-20)^2 of that.  The mean itself is at least 0.038 * 4^-m.
    assert abs(np.mean(cast**2) / expected - 1) <= 2 / 0.038 * 2.0**-40 * 4.0**mantissa_bits


@pytest.mark.parametrize("mantissa_bits", range(8))
def test_the_noise_of_an_octave_equals_quadrature(mantissa_bits):
    step = 2.0**-mantissa_bits
    total = 0.0
    for level in np.arange(1, 2 + step / 2, step):
        low, high = max(1.0, level - step / 2), min(2.0, level + step / 2)
        total += integrate.quad(lambda v, a=level: (v - a) ** 2 / v**3, low, high, epsrel=1e-10)[0]
    expected = total / np.log(2)
    # The stated cancellation, 1e-15 * 8^m, and the quadrature's 1e-10.
    tolerance = 1e-10 + 1e-15 * 8.0**mantissa_bits
    assert abs(floating.octave_noise(mantissa_bits) / expected - 1) <= tolerance


@pytest.mark.parametrize("mantissa_bits", range(3, 11))
def test_the_noise_tends_to_its_limit_from_below(mantissa_bits):
    ratio = floating.octave_noise(mantissa_bits) * 4**mantissa_bits / floating.OCTAVE_LIMIT
    # The next term of the expansion in 4^-m; the coefficient found for m = 3 is -0.217.
    assert -0.22 * 4.0**-mantissa_bits <= ratio - 1 <= 0
    # Widrow and Kollar, Quantization Noise, 2008, chapter 12: 0.180 * 4^-p, where p counts the
    # leading 1 as well.
    assert abs(4 * floating.OCTAVE_LIMIT - 0.180) <= 0.0005


@pytest.mark.parametrize(
    "x", [[1.0], [1.0625, 0.0], [0.01, 0.3, 77.0], [1.0, -1.37, 1.4, 3.0, 3.9]], ids=str
)
def test_averaged_over_an_octave_of_scales_every_distribution_has_the_same_ratio(x):
    x = np.array(x)
    scaled = octave(2**14)[:, None] * x
    noise = (scaled - scaled.astype(ml_dtypes.bfloat16).astype(np.float64)) ** 2
    ratio = np.mean(noise.sum(axis=1) / (scaled**2).sum(axis=1))
    # As above, with parts of 2^-14 and 2^7 ties.
    assert abs(ratio / floating.octave_noise(7) - 1) <= 2 / 0.038 * 2.0**-28 * 4.0**7


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
def test_at_the_breakeven_crest_integers_and_floats_are_equally_noisy(fmt):
    crest = floating.breakeven_crest(127, fmt.mantissa_bits)
    x = np.random.default_rng(0).normal(size=200_000)
    # One outlier; its own square adds crest^2 / 200000, at most 0.3 percent, to the power.
    x[0] = crest * np.sqrt(np.mean(x**2))
    integers = metrics.sqnr_db(x, affine.fake_quantize(x, affine.choose_qparams(x, 8)))
    floats = metrics.sqnr_db(x, fake_quantize(x, fmt, absmax_scale(x, fmt)))
    # 0.05 dB: a Gaussian at one scale ripples by 0.02 dB about its average over an octave, the
    # outlier takes 0.012 dB, and sampling 10 log10(1 + sqrt(2 / 200000)) = 0.014 dB.
    assert abs(integers - floats) <= 0.05


def test_arguments_out_of_range_are_named():
    for mantissa_bits in (-1, 11, 2.5):
        with pytest.raises(ValueError, match=f"mantissa_bits={mantissa_bits}"):
            floating.octave_noise(mantissa_bits)
    with pytest.raises(ValueError, match="qmax=0 must be positive"):
        floating.breakeven_crest(0, 3)
