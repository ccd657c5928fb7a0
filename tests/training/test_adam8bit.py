import copy
import math
import warnings

import numpy as np
import pytest
import torch

from qbook.formats import E4M3, E5M2, INT8, Format
from qbook.formats.dynamic import DYNAMIC, DYNAMIC_UNSIGNED
from qbook.training import adam8bit
from qbook.training.adam8bit import AdamW8bit, load, store, stored_bytes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bnb = pytest.importorskip("bitsandbytes")
    torchao = pytest.importorskip("torchao.optim.quant_utils")

UINT8 = Format("UINT8", 8, np.arange(256))
SIGNED = [(True, DYNAMIC), (False, DYNAMIC_UNSIGNED)]
SHAPES = [(70, 61), (5, 7), (4096,), (1,), (3, 11, 257)]
# The released CPU code looks a number up in 2^16 equal bins from -1 to 1.
HALF_BIN = 2.0**-16


def numbers(shape, signed=True, seed=0):
    """Normal numbers spread over several decades; some are zeros, but never a whole block."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x * torch.exp(3 * torch.randn(shape, generator=generator))
    x.flatten()[1::50] = 0
    return x if signed else x.abs()


def normalised(x, group_size=256):
    """x / max|x| of its block, block by block in a loop, float32."""
    flat, out = x.flatten(), []
    for start in range(0, flat.numel(), group_size):
        block = flat[start : start + group_size]
        out.append(block * (1 / block.abs().max()))
    return torch.cat(out).reshape(x.shape)


@pytest.mark.parametrize(("signed", "fmt"), SIGNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_bitsandbytes_where_it_searches_the_nearest_level(shape, signed, fmt):
    # In float64 its CPU operator takes the argmin over all levels; the table is ours to the last
    # bit or beside it (test_dynamic), so that only numbers at a tie could differ: none does here.
    x, table = numbers(shape, signed), bnb.functional.create_dynamic_map(signed=signed)
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise(x.double(), table, 256)
    stored = store(x, fmt)
    assert torch.equal(stored.codes, codes)
    assert torch.equal(stored.scales, scales)
    theirs = bnb.functional.dequantize_blockwise(codes, absmax=scales, code=table, blocksize=256)
    # The tables agree to one unit in the last place, 2^-23, and each side rounds its product.
    assert bool(((load(stored) - theirs).abs() <= 2**-22 * theirs.abs()).all())


@pytest.mark.parametrize(("signed", "fmt"), SIGNED)
def test_codes_are_those_of_its_compiled_code_up_to_half_a_bin_of_its_table(signed, fmt):
    x, table = numbers((70, 61), signed), bnb.functional.create_dynamic_map(signed=signed)
    theirs, state = bnb.functional.quantize_blockwise(x, code=table, blocksize=256)
    assert torch.equal(store(x, fmt).scales, state.absmax)
    # It rounds the middle of the bin that x is in, at most half a bin from x.
    middle = normalised(x).double()
    low, high = fmt.encode(middle - HALF_BIN), fmt.encode(middle + HALF_BIN)
    assert bool(((low <= theirs) & (theirs <= high)).all())
    # Which makes something of nothing: a zero is stored as a positive level.
    assert bool((theirs[x == 0] > store(x, fmt).codes[x == 0]).all())


@pytest.mark.parametrize(("signed", "fmt"), SIGNED)
def test_codes_are_torchaos_except_at_ties(signed, fmt):
    x = numbers((64, 64), signed)
    scaled_x, scales = torchao.scale_tensor(x, 256)
    theirs = torchao.quantize_8bit_with_qmap(
        scaled_x, torch.tensor(torchao.create_dynamic_map(signed))
    )
    stored = store(x, fmt)
    assert torch.equal(stored.scales, scales)
    # It divides; we multiply by the reciprocal.  Numbers within that rounding of a tie may differ.
    low = fmt.encode(scaled_x.double() * (1 - 2**-21))
    high = fmt.encode(scaled_x.double() * (1 + 2**-21))
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    assert bool(((low <= theirs) & (theirs <= high)).all())
    assert (stored.codes != theirs).sum() <= 3


def test_many_steps_follow_bitsandbytes_adam8bit_when_each_begins_from_the_same_states():
    lr, betas, eps, decay = 1e-3, (0.9, 0.99), 1e-8, 0.1
    ours, theirs = (torch.nn.Parameter(numbers((70, 61), seed=1)) for _ in range(2))
    constants = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
    a, b = AdamW8bit([ours], **constants), bnb.optim.Adam8bit([theirs], **constants)
    for t in range(1, 21):
        ours.grad = numbers((70, 61), seed=t + 1)
        theirs.grad = ours.grad.clone()
        with torch.no_grad():
            ours.copy_(theirs)
        old = {k: load(s) for k, s in a.state[ours].items() if k != "step"}
        a.step()
        b.step()
        state, mine = b.state[theirs], a.state[ours]
        # Every product and sum is rounded a few times in another order: 2^-24 of each term.
        m = (old["first"].abs() if old else 0) + ours.grad.abs()
        v = (old["second"] if old else 0) * betas[1] + (1 - betas[1]) * ours.grad**2
        rms = v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps
        tol = 2**-22 * theirs.abs() + lr / (1 - betas[0] ** t) * m / rms * 2**-20
        assert bool(((ours - theirs).abs() <= tol).all())
        for name, k, fmt in (("first", 1, DYNAMIC), ("second", 2, DYNAMIC_UNSIGNED)):
            # What was rounded is within half a gap of our level, and theirs rounds half a bin away.
            level = fmt.decode(mine[name].codes)
            reach = _gap(fmt, level) / 2 + HALF_BIN * (1 + 1e-3)
            codes = state[f"state{k}"]
            assert bool((fmt.encode(level - reach) <= codes).all())
            assert bool((codes <= fmt.encode(level + reach)).all())
            state[f"state{k}"].copy_(mine[name].codes)
            state[f"absmax{k}"].copy_(mine[name].scales)


def _gap(fmt, values):
    """Distance from each level of fmt to the farther of its neighbours."""
    levels = torch.from_numpy(fmt.levels.copy())
    rank = torch.searchsorted(levels, values.contiguous()).clamp(1, len(levels) - 2)
    around = torch.stack([levels[rank - 1], levels[rank], levels[rank + 1]])
    return around.diff(dim=0).amax(dim=0)


def by_the_paper(w, gradients, group_size, *, lr, betas, eps, decay):
    """Algorithm of the paper in NumPy's float64, an argmin over the table for every element."""

    def kept(x, levels):
        out = np.empty_like(x)
        for start in range(0, len(x), group_size):
            block = x[start : start + group_size]
            n = np.abs(block).max() or 1.0
            out[start : start + group_size] = [
                levels[np.abs(levels - value / n).argmin()] * n for value in block
            ]
        return out

    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        update = m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
        w = w * (1 - lr * decay) - lr * update
        m = kept(m, DYNAMIC.levels.astype(float))
        v = kept(v, DYNAMIC_UNSIGNED.levels.astype(float))
    return w, m, v


@pytest.mark.parametrize("group_size", [4, 7, 100])
def test_the_optimizer_follows_the_papers_algorithm_written_as_loops(group_size):
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=(3, 7)), rng.normal(size=(12, 3, 7)) * np.logspace(-3, 0, 7)
    p = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    constants = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-8}
    optimizer = AdamW8bit(
        [p], weight_decay=0.1, group_size=group_size, min_8bit_size=0, **constants
    )
    for g in gradients:
        p.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
    flat = gradients.reshape(12, -1)
    w, m, v = by_the_paper(w.flatten(), flat, group_size, decay=0.1, **constants)
    state = optimizer.state[p]
    # float32 against float64: 12 steps of a few roundings each, 2^-24 of numbers around 1.
    assert np.abs(p.detach().numpy().flatten() - w).max() <= 12 * 4 * 2**-24 * 4
    for name, expected in (("first", m), ("second", v)):
        found = load(state[name]).numpy().flatten()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("exact", [{"first": None, "second": None}, {"min_8bit_size": 10**6}])
def test_with_float32_moments_it_is_torchs_adamw_to_the_bit(exact):
    ours, theirs = (
        [torch.nn.Parameter(numbers(shape)) for shape in ((70, 61), (5,), (2, 3, 4))]
        for _ in range(2)
    )
    constants = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    a = AdamW8bit(ours, **constants, **exact)
    b = torch.optim.AdamW(theirs, **constants, foreach=False)
    for t in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = numbers(p.shape, seed=t)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_the_weight_moves_by_moments_that_are_not_yet_rounded():
    # The first step is lr * sign(g), which no rounded pair of moments would give to float32.
    p = torch.nn.Parameter(torch.zeros(9))
    optimizer = AdamW8bit([p], lr=1e-2, weight_decay=0.0, min_8bit_size=0)
    p.grad = torch.linspace(0.3, 1.1, 9)
    optimizer.step()
    assert bool(((p + 1e-2).abs() <= 1e-8).all())


@pytest.mark.parametrize("fmt", [DYNAMIC, DYNAMIC_UNSIGNED])
@pytest.mark.parametrize("decade", range(-5, 1))
def test_the_largest_relative_error_in_a_decade_is_that_of_the_chapters_theorem(fmt, decade):
    n = 2 ** (decade + 6) * (2 if fmt is DYNAMIC_UNSIGNED else 1)
    expected = 4.5 / (n + 9) if n >= 16 else 2.7 / (n + 1.8)
    x = 10.0 ** (decade - np.linspace(0, 1, 200_001)[:-1])
    error = np.abs(fmt.round(x) / x - 1).max()
    # The grid misses the worst number by half a step of 1e-5 decades at most; levels are float32.
    assert abs(error / expected - 1) <= 2e-4


@pytest.mark.parametrize("fmt", [DYNAMIC, DYNAMIC_UNSIGNED])
def test_in_the_lowest_decade_numbers_become_zero_below_half_its_lowest_level(fmt):
    lowest = 5.5e-7 if fmt is DYNAMIC else 3.25e-7
    x = np.array([0.4999, 0.5001, 1.0]) * lowest
    assert (fmt.round(x) == 0).tolist() == [True, False, False]


def test_an_outlier_changes_its_own_block_only():
    x = numbers((1000,))
    y = x.clone()
    y[300] = 1e6
    a, b = store(x, DYNAMIC), store(y, DYNAMIC)
    outside = torch.ones(1000, dtype=torch.bool)
    outside[256:512] = False
    assert torch.equal(a.codes[outside], b.codes[outside])
    assert a.scales.tolist()[0::2] == b.scales.tolist()[0::2]
    assert (load(b)[256:512] == 0).sum() > (load(a)[256:512] == 0).sum()


@pytest.mark.parametrize(("beta2", "stays"), [(0.999, True), (0.9, False)])
def test_a_block_without_gradients_forgets_but_beside_a_steady_largest_an_element_may_not(
    beta2, stays
):
    # Every half step of the unsigned code is more than 0.0035 and less than 0.036 of a level in
    # the top decade: 1 - beta2 = 0.001 moves none of them, 0.1 moves all of them.
    v = torch.from_numpy(DYNAMIC_UNSIGNED.levels[128:256].copy())
    p = torch.nn.Parameter(torch.zeros(128))
    for steady in (False, True):
        optimizer = AdamW8bit([p], betas=(0.9, beta2), min_8bit_size=0)
        optimizer.state[p].update(
            step=1000, first=store(torch.zeros(128), DYNAMIC), second=store(v, DYNAMIC_UNSIGNED)
        )
        p.grad = torch.zeros(128)
        p.grad[-1] = float(steady)
        optimizer.step()
        after = load(optimizer.state[p]["second"])
        if steady:
            assert torch.equal(after[:-1], v[:-1]) == stays
            assert bool((after[:-1] < v[:-1]).all()) != stays
        else:
            assert bool(((after / v / beta2 - 1).abs() <= 1e-6).all())


def test_a_linear_code_lets_a_step_explode_where_the_dynamic_code_keeps_it_bounded():
    # The gradients are 2^-9 of the block's largest, their squares 2^-18: zero in steps of 1/255.
    longest = {}
    for name, second in (("linear", UINT8), ("dynamic", DYNAMIC_UNSIGNED), ("float32", None)):
        p = torch.nn.Parameter(torch.zeros(2))
        optimizer = AdamW8bit(
            [p],
            lr=1.0,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            first=None,
            second=second,
            min_8bit_size=0,
        )
        steps = []
        for t in range(1, 201):
            before = p.detach().clone()
            p.grad = torch.tensor([1.0, 2.0**-9 if t % 10 else 2.0**-16])
            optimizer.step()
            steps.append((p.detach() - before)[1].abs().item())
        longest[name] = max(steps)
    bound = 0.1 / math.sqrt(0.01 * (1 - 0.81 / 0.99))
    assert longest["float32"] <= bound
    # The lowest levels are 40 % apart: a v rounded down makes a step 1.3 times too long at most.
    assert longest["dynamic"] <= 1.4 * bound
    assert longest["linear"] >= 50 * bound


def test_two_bytes_a_parameter_and_eight_a_block_are_stored():
    count = 256 * 33
    counts = {}
    for name, options in (("8 bits", {}), ("float32", {"first": None, "second": None})):
        p = torch.nn.Parameter(numbers((33, 256)))
        optimizer = AdamW8bit([p], **options)
        p.grad = torch.ones_like(p)
        optimizer.step()
        counts[name] = stored_bytes(optimizer)
        # Independently: every tensor that the optimizer holds.
        held = [s for s in optimizer.state[p].values() if not isinstance(s, int)]
        tensors = [t for stored in held for t in (stored.codes, stored.scales)]
        assert sum(counts[name].values()) == sum(t.numel() * t.element_size() for t in tensors)
    assert counts["8 bits"] == {"first": count + 4 * 33, "second": count + 4 * 33}
    assert counts["float32"] == {"first": 4 * count, "second": 4 * count}


@pytest.mark.parametrize("fmt", [DYNAMIC, INT8, E4M3, E5M2])
@pytest.mark.parametrize("group_size", [1, 3, 256, None])
def test_what_is_stored_is_within_half_a_step_and_has_the_shape_it_had(fmt, group_size):
    x = numbers((5, 7))
    before = x.clone()
    stored = store(x, fmt, group_size)
    blocks = 1 if group_size is None else math.ceil(35 / group_size)
    assert stored.codes.shape == (5, 7)
    assert stored.codes.dtype == torch.uint8
    assert stored.scales.shape == (blocks,)
    assert stored.nbytes == 35 + 4 * blocks
    levels = fmt.levels.astype(np.float64)
    scales = stored.scales.double().repeat_interleave(group_size or 35)[:35]
    error = (load(stored) - x).flatten().double().abs() / scales
    # Half the widest gap, or what lies beyond the lowest level of a code without -1.
    worst = max(np.diff(levels).max() / 2, abs(levels[0] + levels[-1]))
    assert bool((error <= worst * (1 + 1e-5) + 1e-6).all())
    assert torch.equal(x, before)


def test_zeros_and_empty_tensors_are_stored_as_they_are():
    assert torch.equal(load(store(torch.zeros(300), DYNAMIC_UNSIGNED)), torch.zeros(300))
    assert load(store(torch.zeros(0, 3), DYNAMIC)).shape == (0, 3)


def test_groups_may_store_differently_small_tensors_and_those_without_gradient_are_left():
    a, b, c, d = (torch.nn.Parameter(torch.full((n,), 0.3)) for n in (4096, 4096, 4096, 4095))
    optimizer = AdamW8bit([{"params": [a], "first": None, "second": None}, {"params": [b, c, d]}])
    for p in (a, b, d):
        p.grad = torch.ones_like(p)
    optimizer.step()
    formats = {p: [optimizer.state[p][name].fmt for name in ("first", "second")] for p in (a, b, d)}
    assert formats == {a: [None, None], b: [DYNAMIC, DYNAMIC_UNSIGNED], d: [None, None]}
    assert c not in optimizer.state
    assert bool((c == 0.3).all())


def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_interrupted():
    p = torch.nn.Parameter(numbers((70, 61)))
    optimizer = AdamW8bit([p])
    for t in range(3):
        p.grad = numbers((70, 61), seed=t)
        optimizer.step()
    again = torch.nn.Parameter(p.detach().clone())
    other = AdamW8bit([again])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(3):
        p.grad = again.grad = numbers((70, 61), seed=10 + t)
        optimizer.step()
        other.step()
    assert other.state[again]["first"].codes.dtype == torch.uint8
    assert torch.equal(p, again)


def test_the_closure_is_called_with_gradients_and_its_loss_returned():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW8bit([p])

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert bool((p < 1).all())


def test_bad_arguments_and_gradients_are_refused():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="int8"):
        AdamW8bit([p], second=torch.int8)
    with pytest.raises(ValueError, match=r"group_size=0.*256"):
        AdamW8bit([p], group_size=0)
    with pytest.raises(ValueError, match="NaN"):
        store(torch.tensor([math.nan]), DYNAMIC)
    optimizer = AdamW8bit([p], min_8bit_size=0)
    p.grad = torch.tensor([1.0, math.inf])
    with pytest.raises(ValueError, match="gradient"):
        optimizer.step()
    assert adam8bit.AdamW8bit is AdamW8bit
    assert bool((p == 1).all())


def test_a_second_moment_that_is_not_lost_lengthens_a_step_by_37_percent_at_most():
    # The worst tie is where the second decade begins: 1.45e-6 between 0.775e-6 and 2.125e-6.
    v = 10.0 ** np.linspace(math.log10(1.6251e-7), 0, 400_001)
    longer = np.sqrt(v / DYNAMIC_UNSIGNED.round(v).astype(float))
    assert abs(longer.max() - math.sqrt(1.45 / 0.775)) <= 1e-3
    assert abs(v[longer.argmax()] - 1.45e-6) <= 1e-9


def test_no_half_gap_of_the_unsigned_code_is_below_0_00175_of_the_level_above_it():
    levels = DYNAMIC_UNSIGNED.levels.astype(float)[1:]
    half_gaps = np.diff(levels) / 2 / levels[1:]
    assert half_gaps.argmin() == len(half_gaps) - 1
    assert 0.00175 <= half_gaps[-1] <= 0.00176
    assert half_gaps[:-1].min() >= 0.0035
