import math

import pytest
import torch

from qbook.formats import E4M3, E5M2
from qbook.training.communication import auto_scale


def torchs_e4m3(x):
    # Older versions of torch make NaN of what overflows.
    return x.clamp(-448, 448).to(torch.float8_e4m3fn)


def several(count, shape=(40, 50), binades=24, seed=0):
    """Gradients of ``count`` ranks, elements spread over many binades, some of them common"""
    draw = torch.Generator().manual_seed(seed)
    size = torch.exp2(-binades * torch.rand(shape, generator=draw))
    common = torch.randn(shape, generator=draw)
    return [size * (0.2 * common + torch.randn(shape, generator=draw)) for _ in range(count)]


@pytest.mark.parametrize("mu", [1.0, 0.5, 0.3, 2**-7])
def test_codes_are_those_of_torchs_cast(mu):
    (g,) = several(1)
    scale = auto_scale.shared_scale(g.abs().max())
    codes = auto_scale.encode(g, scale, mu)
    expected = torchs_e4m3(g * (mu / scale)).view(torch.uint8)
    assert torch.equal(codes, expected)


def test_every_pair_of_codes_adds_to_the_nearest_value_and_saturates():
    finite = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8)
    a, b = torch.meshgrid(finite, finite, indexing="ij")
    # The sum of two values of E4M3 is exact in float32, so torch's cast rounds it once.
    total = a.contiguous().view(torch.float8_e4m3fn).float()
    total = total + b.contiguous().view(torch.float8_e4m3fn).float()
    expected = torchs_e4m3(total).float()
    for add in (auto_scale.add_wide, auto_scale.add_in_hops):
        assert torch.equal(E4M3.decode(add([a, b])), expected)


def test_the_mean_is_exact_where_every_sum_is_a_value_of_the_format():
    # Scale 1 for a maximum of 448; 448 - 192 = 256 and 3 + 5 = 8 are values, so is 13 + 13 = 26.
    gradients = [torch.tensor([448.0, 3, 13, 0]), torch.tensor([-192.0, 5, 13, 0])]
    for mu in (1.0, 0.5, 0.25):
        mean, _ = auto_scale.all_reduce(gradients, mu)
        assert mean.tolist() == [128.0, 4.0, 13.0, 0.0]


@pytest.mark.parametrize("ranks", [2, 4, 7, 64])
def test_pre_scaling_never_saturates_beyond_the_scale_and_post_scaling_does(ranks):
    # The same number on every rank: sums are ranks times the largest, the worst there is.
    gradients = [torch.full((100,), -3.0)] * ranks
    mean, codes = auto_scale.all_reduce(gradients, 1 / ranks)
    # One rounding of each part and one of the sum, each off by at most 2^-4 of the value.
    assert ((mean + 3).abs() <= 3 * (2 * 2**-4 + 2**-8)).all()
    mean, codes = auto_scale.all_reduce(gradients, 1.0)
    assert auto_scale.saturated_share(codes) == 1
    assert torch.allclose(mean, torch.tensor(-3.0 / ranks), rtol=1e-6)


def test_halving_mu_changes_nothing_but_small_and_saturated_numbers():
    gradients = several(4)
    scale = auto_scale.shared_scale(torch.stack(gradients).abs().max())
    high, low = (auto_scale.all_reduce(gradients, mu)[0] for mu in (0.25, 0.125))
    parts = torch.stack(gradients).abs().amin(dim=0) * 0.125 / scale
    total = (low * 4 * 0.125 / scale).abs()
    normal = (parts >= E4M3.smallest_normal) & (total >= E4M3.smallest_normal) & (total <= 200)
    assert 0.2 < normal.float().mean() < 0.9
    assert torch.equal(high[normal], low[normal])
    assert not torch.equal(high, low)


@pytest.mark.parametrize("fmt", [E4M3, E5M2])
@pytest.mark.parametrize("mu", [1.0, 0.25, 2**-9])
def test_a_number_is_lost_exactly_where_it_is_at_most_half_the_smallest(fmt, mu):
    (g,) = several(1, binades=40)
    scale = auto_scale.shared_scale(g.abs().max(), fmt)
    lost = fmt.decode(auto_scale.encode(g, scale, mu, fmt)) == 0
    # float64: products are exact enough that no element lies on the edge by rounding alone.
    ratio = g.double().abs() * mu / scale.double()
    assert torch.equal(lost, ratio <= fmt.smallest_subnormal / 2)
    assert 0 < lost.float().mean() < 1


@pytest.mark.parametrize("ranks", [16, 17, 64, 256])
def test_a_ring_that_adds_in_fp8_stands_still_at_sixteen_times_a_part(ranks):
    # Beyond 16 values are 2 apart: 16 + 1 is halfway and ties to the even 16.
    ones = [E4M3.encode(torch.ones(3))] * ranks
    assert E4M3.decode(auto_scale.add_in_hops(ones)).tolist() == [16.0] * 3
    # Of 16 and 17 the nearest values are both 16.
    wide = 16.0 if ranks == 17 else float(ranks)
    assert E4M3.decode(auto_scale.add_wide(ones)).tolist() == [wide] * 3


def test_auto_scaling_is_nearer_than_both_where_gradients_span_the_range():
    gradients = several(16)
    exact = torch.stack(gradients).double().mean(dim=0)

    def error(mu):
        mean = auto_scale.all_reduce(gradients, mu)[0].double()
        return ((mean - exact) / exact).abs().clamp(max=1).mean(), (mean - exact).norm()

    mu = auto_scale.settle(gradients)
    assert 1 / 16 < mu < 1
    auto, pre, post = error(mu), error(1 / 16), error(1.0)
    assert auto[0] < pre[0]
    assert auto[1] < post[1]
    assert auto[1] <= pre[1] * 1.001


def test_mu_halves_above_the_threshold_and_doubles_in_a_window():
    assert auto_scale.next_mu(0.5, 1.1e-5) == 0.25
    assert auto_scale.next_mu(0.5, 1e-5) > 0.5
    mu = 0.125
    for _ in range(1000):
        mu = auto_scale.next_mu(mu, 0.0)
    # 1000 products, each rounded by 2^-53.
    assert abs(mu - 0.25) <= 0.25 * 1e-12
    assert auto_scale.next_mu(1.0, 0.0, window=1) == 2.0
    assert auto_scale.next_mu(1.0, 0.01, threshold=0.02) > 1


def test_settling_stops_at_the_largest_half_that_the_rule_accepts():
    gradients = several(8, binades=2)
    mu = auto_scale.settle(gradients)
    shares = [
        auto_scale.saturated_share(auto_scale.all_reduce(gradients, m)[1]) for m in (mu, 2 * mu)
    ]
    assert math.log2(mu) == int(math.log2(mu))
    assert shares[0] <= 1e-5 < shares[1]


def test_a_sum_with_a_scale_of_its_own_neither_saturates_nor_loses_more():
    gradients = several(16)
    exact = torch.stack(gradients).double().mean(dim=0)
    mean, codes = auto_scale.all_reduce_rescaled(gradients)
    auto, _ = auto_scale.all_reduce(gradients, auto_scale.settle(gradients))
    # At most the largest itself is at the largest value, and what rounds to it.
    assert auto_scale.saturated_share(codes) <= 2 / codes.numel()
    assert (mean - exact).norm() <= 1.01 * (auto - exact).norm()
    assert ((mean == 0) & (exact != 0)).sum() <= ((auto == 0) & (exact != 0)).sum()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_on_one_rank_is_not_a_number_for_all(bad):
    gradients = [torch.tensor([1.0, 2.0]), torch.tensor([bad, 2.0])]
    mean, _ = auto_scale.all_reduce(gradients, 0.5)
    assert mean.isnan().all()


def test_zero_gradients_have_a_zero_mean():
    mean, codes = auto_scale.all_reduce([torch.zeros(3, 2)] * 3, 0.5)
    assert mean.tolist() == [[0.0, 0.0]] * 3
    assert auto_scale.saturated_share(codes) == 0
    assert auto_scale.saturated_share(codes[:0]) == 0


def test_bad_input_is_refused_and_arguments_stay():
    with pytest.raises(ValueError, match="one of each rank"):
        auto_scale.all_reduce([], 1.0)
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        auto_scale.all_reduce([torch.ones(2), torch.ones(3)], 1.0)
    for arguments in ((0.0, 0.0), (1.0, 1.5), (1.0, math.nan), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="choose mu > 0"):
            auto_scale.next_mu(*arguments)
    gradients = several(2)
    copies = [g.clone() for g in gradients]
    auto_scale.all_reduce(gradients, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(gradients, copies, strict=True))
