import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook.llm import hqq

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    optimize = pytest.importorskip("hqq.core.optimize")
    hqq_quantizer = pytest.importorskip("hqq.core.quantize").Quantizer


def weights(out, in_, size=0.05, seed=0):
    """Small numbers with a few large ones, as in a layer."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(out, in_, generator=g) * size
    w[torch.rand(out, in_, generator=g) < 0.01] *= 8
    return w


SOLVERS = {
    "optimize_weights_proximal_v2": hqq.alternate,
    "optimize_weights_proximal_legacy": hqq.alternate_released,
}


@pytest.mark.parametrize("size", [1.0, 0.05])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("theirs", SOLVERS)
@pytest.mark.parametrize(("p", "beta"), [(0.7, 10.0), (1, 10.0), (0.5, 300.0)])
def test_codes_and_zeros_equal_the_released_solvers_bit_for_bit(theirs, bits, size, p, beta):
    w = weights(7, 192, size, seed=bits)
    groups = w.reshape(-1, 64)
    options = {"lp_norm": p, "beta": beta, "kappa": 1.01, "iters": 20}
    options |= {"tol": 0.0, "early_stop": True, "scale_gridsearch": False}
    codes, inverse_scale, zero = getattr(optimize, theirs)(
        groups, *hqq.start(groups, 2**bits - 1), [0, 2**bits - 1], axis=1, opt_params=options
    )
    ours = hqq.quantize(w, bits, solve=SOLVERS[theirs], p=p, beta=beta)
    assert_array_equal(ours.codes.reshape(-1, 64), codes)
    assert torch.equal(ours.zero_point.reshape(-1, 1), zero)
    assert torch.equal(ours.scale.reshape(-1, 1), 1 / inverse_scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_whole_released_quantizer_makes_the_same_weights(bits):
    w = weights(16, 128, seed=1)
    # A group of one value, where a range has no width.
    w[3, :64] = 0.25
    codes, meta = hqq_quantizer.quantize(
        w, nbits=bits, group_size=64, axis=1, bitpack=False, device="cpu",
        compute_dtype=torch.float32,
    )  # fmt: skip
    ours = hqq.quantize(w, bits, solve=hqq.alternate_released)
    assert_array_equal(ours.codes.reshape(-1, 64), codes)
    meta["compute_dtype"] = torch.float32
    assert torch.equal(hqq.dequantize(ours), hqq_quantizer.dequantize(codes, meta))


def test_numpy_and_torch_agree():
    w = weights(5, 64)
    for solve in (hqq.alternate, hqq.alternate_released, hqq.alternate_both, hqq.start):
        ours = hqq.quantize(w.numpy(), 3, group_size=16, solve=solve)
        theirs = hqq.quantize(w, 3, group_size=16, solve=solve)
        # Means are summed in another order: a code changes only on a tie, of which there are none.
        assert_array_equal(ours.codes, theirs.codes)
        assert np.abs(ours.zero_point - theirs.zero_point.numpy()).max() <= 1e-4


def objective(w, q, power):
    return (w - hqq.dequantize(q)).abs().double().pow(power).sum(dim=1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_without_shrinking_the_squares_of_no_group_rise(bits):
    w = weights(9, 64, seed=bits)
    last = objective(w, hqq.quantize(w, bits, solve=hqq.start), 2)
    for steps in range(1, 6):
        both = objective(w, hqq.quantize(w, bits, solve=hqq.alternate_both, steps=steps), 2)
        # One float32 rounding of each term.
        assert bool((both <= last * (1 + 1e-5)).all())
        last = both


def test_the_zero_is_the_mean_that_makes_the_squares_least():
    w, codes = weights(1, 64).double(), torch.arange(64).double()[None] % 8
    inverse_scale = torch.tensor([[9.0]], dtype=torch.float64)
    e = hqq.shrink(w, 30.0, 0.7)
    zero = hqq._fit_zero(w, codes, e, inverse_scale)

    def squares(z):
        return float((w - e - (codes - z) / inverse_scale).square().sum())

    least = squares(zero)
    # A parabola: any other zero is worse by 64 d^2 / 81 exactly.
    for d in (-0.3, 1e-3, 2.0):
        assert abs(squares(zero + d) - least - 64 * d * d / 81) <= 1e-9


def test_shrinking_with_p_one_is_the_exact_minimum_and_below_one_near_it():
    x = np.linspace(-2, 2, 81)
    candidates = np.linspace(-2.5, 2.5, 50001)[:, None]
    for p, tolerance in ((1.0, 1e-4), (0.7, 0.4)):
        cost = np.abs(candidates) ** p + 5 * (candidates - x) ** 2
        exact = candidates[cost.argmin(axis=0), 0]
        assert np.abs(hqq.shrink(x, 10.0, p) - exact).max() <= tolerance


@pytest.mark.parametrize(("p", "beta"), [(0.7, 10.0), (0.3, 40.0), (1.0, 4.0)])
def test_nothing_below_the_threshold_survives_shrinking(p, beta):
    threshold = beta ** (-1 / (2 - p))
    x = np.array([0.0, 0.5, 0.999, 1.001, 2.0]) * threshold
    shrunk = hqq.shrink(np.concatenate([-x, x]), beta, p)
    assert_array_equal(shrunk != 0, np.array([0, 0, 0, 1, 1] * 2, bool))
    assert_array_equal(np.sign(shrunk), np.sign(np.concatenate([-x, x])) * (shrunk != 0))


def test_weights_as_small_as_a_layers_never_reach_the_threshold():
    w = weights(32, 128, size=0.04)
    shrunk = [hqq.quantize(w, 4, p=p) for p in (0.3, 0.7, 1.0)]
    assert all(torch.equal(q.zero_point, shrunk[0].zero_point) for q in shrunk)
    other = hqq.quantize(w * 64, 4, p=0.3)
    assert not torch.equal(other.zero_point, hqq.quantize(w * 64, 4, p=1.0).zero_point)


def test_the_best_zero_is_kept_where_the_release_keeps_the_last():
    w = weights(64, 64, size=1.0, seed=3)
    kept, last = (hqq.quantize(w, 2, solve=s, beta=1.0, kappa=1.0) for s in SOLVERS.values())
    start = float(objective(w, hqq.quantize(w, 2, solve=hqq.start), 1).sum())
    assert float(objective(w, kept, 1).sum()) <= start
    assert not torch.equal(kept.zero_point, last.zero_point)


def test_bad_input_raises_and_arguments_stay():
    w = weights(2, 64)
    before = w.clone()
    hqq.quantize(w, 4)
    assert torch.equal(w, before)
    with pytest.raises(ValueError, match="bits=9 is not supported"):
        hqq.quantize(w, 9)
    with pytest.raises(ValueError, match="group_size=7 does not divide the 64"):
        hqq.quantize(w, 4, group_size=7)
    with pytest.raises(ValueError, match=r"p=1\.5, beta=10\.0"):
        hqq.quantize(w, 4, p=1.5)
    with pytest.raises(ValueError, match="steps=0"):
        hqq.quantize(w, 4, steps=0)
    w[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinity"):
        hqq.quantize(w, 4)
