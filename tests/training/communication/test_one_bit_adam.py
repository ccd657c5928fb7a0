import pytest
import torch

from qbook.training.communication import one_bit_adam, wire

SHAPES = [(7, 9), (5,), (3, 4, 6), (1,)]


def tensors(rank, step=0):
    draw = torch.Generator().manual_seed(97 * step + rank)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def rounds(size, count, **settings):
    """-> (means of each round, the average itself) of each rank"""

    def work(w):
        average = one_bit_adam.OneBitAverage(w, **settings)
        return [average(range(4), tensors(w.rank, step)) for step in range(count)], average, w.sent

    return wire.run_threads(size, work)


def by_hand(size, count):
    """Algorithm 1 for one vector after the other, element by element in float64 -> means"""
    worker = [[torch.zeros(s.numel()).double() for s in tensors(0)] for _ in range(size)]
    server = [torch.zeros(s.numel()).double() for s in tensors(0)]
    found = []
    for step in range(count):
        means = []
        for key, shape in enumerate(SHAPES):
            total = torch.zeros_like(server[key])
            for rank in range(size):
                owed = tensors(rank, step)[key].reshape(-1).double() + worker[rank][key]
                length = len(owed)
                part = 8 * -(-length // (8 * size))
                sent = torch.empty_like(owed)
                # The scale of a tensor, and one sign an element.
                for i, x in enumerate(owed.tolist()):
                    sent[i] = (1 if x >= 0 else -1) * float(owed.abs().sum()) / length
                worker[rank][key] = owed - sent
                total += sent / size
            total += server[key]
            mean = torch.empty_like(total)
            for start in range(0, length, part):
                piece = total[start : start + part]
                scale = float(piece.abs().sum()) / len(piece)
                mean[start : start + part] = torch.where(piece >= 0, scale, -scale)
            server[key] = total - mean
            means.append(mean.reshape(shape))
        found.append(means)
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_means_are_those_of_the_algorithm_by_hand(size):
    expected = by_hand(size, 4)
    for means, _, _ in rounds(size, 4):
        for step in range(4):
            for mean, by in zip(means[step], expected[step], strict=True):
                # float32 against float64; no sum here comes nearer to 0 than that.
                assert (mean - by).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [1, 4])
def test_what_was_sent_and_what_is_owed_make_up_the_sum_of_the_tensors(size):
    count = 9
    found = rounds(size, count)
    for key, shape in enumerate(SHAPES):
        sent = sum(found[0][0][step][key] for step in range(count))
        exact = sum(tensors(r, step)[key] for r in range(size) for step in range(count)) / size
        worker = torch.stack([average.worker_errors[key] for _, average, _ in found]).mean(dim=0)
        server = torch.stack([average.server_errors[key] for _, average, _ in found])
        owed = (worker + server).reshape(-1)[: exact.numel()].reshape(shape)
        # Nine float32 sums of numbers of size ten.
        assert (sent + owed - exact).abs().max() <= 1e-4
        assert ((worker + server).reshape(-1)[exact.numel() :] == 0).all()


def test_without_feedback_errors_pile_up():
    count = 60

    def owed(**settings):
        def work(w):
            average = one_bit_adam.OneBitAverage(w, **settings)
            return sum(average([0], [fixed + 0.3 * tensors(w.rank, s)[0]])[0] for s in range(count))

        fixed = torch.linspace(-1, 1, 63).reshape(7, 9)
        return (wire.run_threads(2, work)[0] / count - fixed).norm()

    assert owed() <= 0.35 * owed(error_feedback=False)


def test_all_ranks_receive_the_same_bits_and_send_one_an_element_each_way():
    def work(w):
        means = one_bit_adam.OneBitAverage(w)([0], [torch.randn(64, 100)])
        return means[0], w.sent

    found = wire.run_threads(4, work)
    for mean, sent in found:
        assert torch.equal(mean, found[0][0])
        # 3/4 of 6400 bits twice, and three times a scale of 4 bytes, twice.
        assert sent == 2 * 3 * 6400 // 8 // 4 + 2 * 3 * 4


def descend(w, make, steps=12):
    """Steps on (x - target of this rank)^2 with an optimizer -> x after each step"""
    x = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    unseen = torch.nn.Parameter(torch.full((3,), 5.0))
    optimizer = make(w, [x, unseen])
    after = []
    for step in range(steps):
        target = torch.randn(20, generator=torch.Generator().manual_seed(10 * step + w.rank)) + 2
        optimizer.zero_grad()
        # The last five elements and all of the other tensor have no gradient.
        ((x - target)[:15].square().sum() + 0 * unseen.sum()).backward()
        optimizer.step()
        after.append(x.detach().clone())
    return after, unseen.detach().clone(), optimizer


class AdamOnMeans(torch.optim.Adam):
    def __init__(self, w, params, **settings):
        super().__init__(params, **settings)
        self.w = w

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = self.w.mean(p.grad.reshape(-1)).reshape(p.shape)
        super().step()


def test_the_warm_up_is_torchs_adam_on_mean_gradients():
    def work(w):
        ours = descend(w, lambda w, p: one_bit_adam.OneBitAdam(p, w, warm_up=12, lr=0.1))
        return ours[0], descend(w, lambda w, p: AdamOnMeans(w, p, lr=0.1))[0]

    for ours, theirs in wire.run_threads(3, work):
        # The same float32 steps in another order.
        assert all((a - b).abs().max() <= 2e-6 for a, b in zip(ours, theirs, strict=True))


def test_after_the_warm_up_the_variance_stays_and_ranks_stay_together():
    def work(w):
        after, unseen, optimizer = descend(
            w, lambda w, p: one_bit_adam.OneBitAdam(p, w, warm_up=4, lr=0.1)
        )
        return after, unseen, optimizer.state, optimizer.param_groups[0]["params"][0]

    def short(w):
        _, _, optimizer = descend(
            w, lambda w, p: one_bit_adam.OneBitAdam(p, w, warm_up=4, lr=0.1), steps=4
        )
        return optimizer.state[optimizer.param_groups[0]["params"][0]]["v"]

    found, frozen = wire.run_threads(2, work), wire.run_threads(2, short)
    for after, unseen, state, x in found:
        assert torch.equal(state[x]["v"], frozen[0])
        assert torch.equal(after[-1], found[0][0][-1])
        # Never trained in the warm-up: left alone, although signs of its zeros were sent.
        assert unseen.tolist() == [5.0] * 3
        assert torch.equal(after[-1][15:], torch.linspace(-1, 1, 20)[15:])
        assert state[x]["m"][15:].abs().min() > 0
        # One scale of all momenta but the parts of two servers: at most two sizes of m.
        assert len(state[x]["m"].abs().unique()) <= 2
        assert (after[-1] - after[3]).abs().max() > 0.01


def test_a_warm_up_of_nothing_is_refused():
    with pytest.raises(ValueError, match="warm_up=0"):
        one_bit_adam.OneBitAdam([torch.nn.Parameter(torch.ones(1))], None, warm_up=0)
