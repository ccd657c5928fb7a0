import pytest
import torch

from qbook.training.communication import power_sgd, wire


def matrices(count, shape, rank=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if rank is None:
        return [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(count)]
    factors = torch.randn(shape[0], rank, generator=draw, dtype=torch.float64)
    return [
        factors @ torch.randn(rank, shape[1], generator=draw, dtype=torch.float64)
        for _ in range(count)
    ]


def rounds(ranks, tensors, rank, count, **settings):
    """tensors[i] of rank i -> (means of each round, errors owed at the end, bytes) of each rank"""

    def work(w):
        average = power_sgd.PowerSgd(w, rank, **settings)
        means = [
            average(["a", "b"], [tensors[w.rank], torch.ones(3) * w.rank]) for _ in range(count)
        ]
        return means, average.errors, w.sent

    return wire.run_threads(ranks, work)


@pytest.mark.parametrize(("shape", "rank"), [((9, 14), 2), ((31, 8), 3), ((5, 50), 1)])
def test_a_mean_of_low_rank_is_sent_exactly_at_the_first_step(shape, rank):
    tensors = matrices(3, shape, rank)
    for means, errors, _ in rounds(3, tensors, rank, 1):
        exact = torch.stack(tensors).mean(dim=0)
        # A QR decomposition in float64 of numbers of size 10.
        assert (means[0][0] - exact).abs().max() <= 1e-12
        assert means[0][1].tolist() == [1.0] * 3
        assert set(errors) == {"a"}


def test_without_feedback_the_same_matrix_tends_to_its_best_approximation():
    tensors = matrices(2, (12, 17))
    exact = torch.stack(tensors).mean(dim=0)
    u, s, v = torch.linalg.svd(exact)
    best = (u[:, :2] * s[:2]) @ v[:2]
    means, errors, _ = rounds(2, tensors, 2, 200, error_feedback=False)[0]
    first, last = means[0][0], means[-1][0]
    # Power iteration leaves (s_3 / s_2)^(2 * 200) of the wrong directions.
    left = float((s[2] / s[1]) ** 400)
    assert (last - best).norm() <= 10 * left * s[0] + 1e-9
    assert (first - exact).norm() > (last - exact).norm()
    assert not errors


def test_without_a_warm_start_no_iteration_follows_another():
    tensors = matrices(2, (12, 17))
    means, _, _ = rounds(2, tensors, 2, 30, error_feedback=False, warm_start=False)[0]
    exact = torch.stack(tensors).mean(dim=0)
    errors = [(m[0] - exact).norm().item() for m in means]
    assert max(errors[20:]) > min(errors[:10])


@pytest.mark.parametrize("count", [1, 7])
def test_what_was_sent_and_what_is_owed_make_up_the_sum_of_the_gradients(count):
    ranks = 3
    tensors = matrices(ranks, (9, 14))
    found = rounds(ranks, tensors, 2, count)
    sent = sum(m[0] for m in found[0][0])
    owed = torch.stack([errors["a"] for _, errors, _ in found]).mean(dim=0)
    # A few sums of float64 numbers of size 10.
    assert (sent + owed - count * torch.stack(tensors).mean(dim=0)).abs().max() <= 1e-12


def test_all_ranks_receive_the_same_bits_and_send_two_thin_factors():
    found = rounds(4, matrices(4, (40, 60)), 2, 1)
    for means, _, sent in found:
        assert torch.equal(means[0][0], found[0][0][0][0])
        # Twice 3/4 of 2 * (40 + 60) float64 and of three float32.
        assert sent == 2 * 3 * (2 * 40 * 8) // 4 + 2 * 3 * (2 * 60 * 8) // 4 + 2 * 3 * 12 // 4


@pytest.mark.parametrize(
    ("shape", "rank", "thin"),
    [
        ((5,), 1, False),
        ((4, 4), 1, True),
        ((4, 4), 2, False),
        ((1, 90), 1, False),
        ((8, 3, 3), 2, True),
    ],
)
def test_only_matrices_larger_than_their_factors_are_compressed(shape, rank, thin):
    def work(w):
        return power_sgd.PowerSgd(w, rank).compresses(torch.ones(shape))

    assert wire.run_threads(1, work) == [thin]


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank=0"):
        power_sgd.PowerSgd(None, 0)
