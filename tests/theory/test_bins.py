import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import integrate, stats

from qbook.theory import bins

DISTRIBUTIONS = {
    "gaussian": stats.norm(0.7, 1.9),
    "laplace": stats.laplace(-0.4, 0.6),
    "uniform": stats.uniform(-1.5, 4),
    "exponential": stats.expon(scale=2),
    "student": stats.t(5),
    "logistic": stats.logistic(1, 0.5),
}
EDGES = [
    np.array([-np.inf, np.inf]),
    np.array([-np.inf, -2.1, -0.4, 0.0, 0.03, 1.7, 5.0, np.inf]),
    np.array([-1.0, 0.5, 4.5]),
]


@pytest.mark.parametrize("dist", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("edges", EDGES, ids=["whole line", "tails", "bounded"])
def test_bin_moments_equal_adaptive_integration(dist, edges):
    moments = bins.bin_moments(dist, edges)
    low, high = dist.support()
    for i in range(len(edges) - 1):
        a, b = max(edges[i], low), min(edges[i + 1], high)
        for k in range(3):
            # Cut at the kink of the Laplace density, which adaptive integration would miss.
            cuts = [a, *([dist.median()] if a < dist.median() < b else []), b]
            expected = sum(
                integrate.quad(lambda x, k=k: x**k * dist.pdf(x), c, d, epsabs=1e-12)[0]
                for c, d in itertools.pairwise(cuts)
                if c < d
            )
            # quad stops at an estimate of 1.5e-8 of the value, which a smooth density undercuts.
            assert abs(moments[k][i] - expected) <= 1e-9


@pytest.mark.parametrize("dist", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_all_bins_together_give_the_moments_of_the_density(dist):
    edges = np.array([-np.inf, *np.linspace(-9, 9, 37), np.inf])
    p, m1, m2 = (m.sum() for m in bins.bin_moments(dist, edges))
    # Some 100 bins and panels, each rounded, of moments up to 8.
    assert abs(p - 1) <= 1e-13
    assert abs(m1 - dist.mean()) <= 1e-13
    assert abs(m2 - dist.var() - dist.mean() ** 2) <= 1e-12


@pytest.mark.parametrize(("beta", "closed"), [(2, stats.norm(3, 1)), (1, stats.laplace(3, 2**0.5))])
def test_quadrature_equals_the_antiderivatives(beta, closed):
    # scipy's generalised normal is the Gaussian at beta = 2 and the Laplace density at beta = 1,
    # and takes the other branch of bin_moments.
    edges = np.array([-np.inf, -2, -1.9, 0, 3, 3.7, 8, 30, np.inf])
    same = stats.gennorm(beta, loc=3, scale=2**0.5)
    for ours, theirs in zip(
        bins.bin_moments(same, edges), bins.bin_moments(closed, edges), strict=True
    ):
        # Gauss-Legendre with 20 nodes per panel is exact to rounding; moments reach about 10.
        assert np.abs(ours - theirs).max() <= 1e-13


def test_probabilities_keep_their_digits_in_both_tails():
    edges = np.array([-9.0, -8.0, 8.0, 9.0])
    p, _, _ = bins.bin_moments(stats.norm(), edges)
    # Mills' ratio: sf(x) = pdf(x) / x (1 - 1/x^2 + 3/x^4 - 15/x^6 + 105/x^8 - ...); the next term
    # is 945/8^10 = 9e-7.  The part above 9 is 1.8e-4 of it.
    mills = stats.norm.pdf(8) / 8 * (1 - 8.0**-2 + 3 * 8.0**-4 - 15 * 8.0**-6 + 105 * 8.0**-8)
    assert abs(p[2] / (mills - stats.norm.sf(9)) - 1) <= 1e-6
    assert abs(p[0] / p[2] - 1) <= 1e-12


@pytest.mark.parametrize("dist", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("scale", [0.37, 1.0, 50.0])
def test_midtread_bins_surround_the_multiples_of_scale_and_leave_nothing_out(dist, scale):
    levels, edges = bins.midtread_bins(dist, scale)
    assert_array_equal(np.rint(levels / scale) * scale, levels)
    assert np.abs(edges[:-1] + scale / 2 - levels).max() <= 1e-15 * np.abs(edges).max()
    assert np.abs(edges[1:] - scale / 2 - levels).max() <= 1e-15 * np.abs(edges).max()
    # scipy's quantiles are good to about 1e-9 relative in the far tail.
    assert dist.cdf(edges[0]) + dist.sf(edges[-1]) <= 2.1 * bins.TAIL


@pytest.mark.parametrize("edges", [[0.0], [1.0, 0.0], [0.0, 0.0], [0.0, np.nan], [[0.0, 1.0]]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(ValueError, match="increasing"):
        bins.bin_moments(stats.norm(), edges)


def test_what_is_no_frozen_distribution_is_refused():
    for wrong in (stats.norm, lambda x: x, "norm"):
        with pytest.raises(ValueError, match="frozen"):
            bins.bin_moments(wrong, [0.0, 1.0])


def test_scales_that_make_no_sense_or_too_many_bins_are_refused():
    for scale in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="positive"):
            bins.midtread_bins(stats.norm(), scale)
    with pytest.raises(ValueError, match=r"at least 1\.59e-06"):
        bins.midtread_bins(stats.norm(), 1e-7)
