import copy
import math

import pytest
import torch

from qbook.training import fp8_adam, scaled_tensor
from qbook.training.fp8_adam import FP8AdamW, adamw, stored_bytes

E4M3, E5M2, FP16, FP32 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float32
EXACT = {"master": FP32, "gradient": FP32, "first": FP32, "second": FP32}
SHAPES = [(3, 7), (5,), (1, 1), (2, 3, 4)]


def parameters(seed=0):
    """A few tensors of odd shapes, and for each step a gradient of its own size."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return params, generator


def train(optimizer, params, generator, steps):
    for _ in range(steps):
        for k, p in enumerate(params):
            p.grad = 10.0 ** (1 - 2 * k) * torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_float32_in_all_four_places_it_is_torchs_adamw_to_the_bit(scaled, decay):
    ours, theirs = parameters()[0], parameters()[0]
    constants = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": decay}
    train(FP8AdamW(ours, **constants, **EXACT, scaled=scaled), ours, parameters()[1], 20)
    train(torch.optim.AdamW(theirs, **constants, foreach=False), theirs, parameters()[1], 20)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def by_the_paper(w, gradients, formats, *, lr, betas, eps, decay):
    """One weight in Python's double precision, stored by the bare cast after a scale by hand."""

    def kept(value, dtype):
        if value == 0:
            return 0.0
        scale = 2.0 ** -math.floor(math.log2(torch.finfo(dtype).max / abs(value)))
        return torch.tensor(value / scale, dtype=torch.float32).to(dtype).item() * scale

    w, m, v = kept(w, formats[0]), 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        g = kept(g, formats[1])
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        update = m / (1 - betas[0] ** step) / (math.sqrt(v / (1 - betas[1] ** step)) + eps)
        w = kept(w * (1 - lr * decay) - lr * update, formats[0])
        m, v = kept(m, formats[2]), kept(v, formats[3])
    return w, m, v


@pytest.mark.parametrize("formats", [(FP16, E4M3, E4M3, FP16), (FP16, FP32, E5M2, E4M3)])
def test_one_weight_follows_the_papers_recipe_computed_by_hand(formats):
    # One element a tensor, so that the scale is the element's own.  Numbers drawn so that no value
    # falls within float32's error of a tie, where the two computations might round apart.
    gradients = torch.randn(30, generator=torch.Generator().manual_seed(3)).tolist()
    p = torch.nn.Parameter(torch.tensor([0.7]))
    names = ("master", "gradient", "first", "second")
    optimizer = FP8AdamW(
        [p], lr=0.01, betas=(0.9, 0.97), weight_decay=0.1, **dict(zip(names, formats, strict=True))
    )
    for g in gradients:
        p.grad = torch.tensor([g])
        optimizer.step()
    w, m, v = by_the_paper(
        torch.tensor(0.7).item(),
        gradients,
        formats,
        lr=0.01,
        betas=(0.9, 0.97),
        eps=1e-8,
        decay=0.1,
    )
    state = optimizer.state[p]
    assert p.item() == w
    assert scaled_tensor.load(state["first"]).item() == m
    assert scaled_tensor.load(state["second"]).item() == v


def test_the_weight_moves_by_moments_that_are_not_yet_rounded():
    # m = 0.1 * 1.0625 is no number of E4M3; the first step must be lr to float32's accuracy all
    # the same, because bias correction makes it g / |g|.
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = FP8AdamW(
        [p], lr=1e-2, weight_decay=0.0, **(EXACT | {"first": E4M3, "second": E4M3})
    )
    p.grad = torch.tensor([1.0625])
    optimizer.step()
    assert abs(p.item() + 1e-2) <= 1e-8
    assert scaled_tensor.load(optimizer.state[p]["first"]).item() != 0.1 * 1.0625


def test_six_bytes_a_parameter_are_stored_against_sixteen_and_the_scales():
    p = torch.nn.Parameter(torch.randn(50, 40, generator=torch.Generator().manual_seed(0)))
    counts = {}
    for name, stored in (("FP8-LM", {}), ("float32", EXACT)):
        optimizer = FP8AdamW([p], **stored)
        p.grad = torch.ones_like(p)
        optimizer.step()
        counts[name] = stored_bytes(optimizer)
        # Independently: every tensor that the optimizer holds.
        held = [t for s in optimizer.state.values() for t in s.values() if not isinstance(t, int)]
        tensors = [t for stored in held for t in (stored.codes, stored.scale)]
        assert sum(counts[name].values()) == sum(t.numel() * t.element_size() for t in tensors)
    scale = 4
    assert counts["FP8-LM"] == {
        name: size * 2000 + scale
        for name, size in (("master", 2), ("gradient", 1), ("first", 1), ("second", 2))
    }
    assert sum(counts["float32"].values()) == 16 * 2000 + 4 * scale


def test_no_step_exceeds_the_bound_of_adam_unless_the_second_moment_underflows():
    # Element 0 keeps the scale high.  Element 1 has small gradients, and now and then a tinier one:
    # in E4M3 its second moment is zero, and the tiny gradient alone divides the first moment.
    betas = (0.9, 0.99)
    bound = (1 - betas[0]) / math.sqrt((1 - betas[1]) * (1 - betas[0] ** 2 / betas[1]))
    largest = {}
    for name, dtype in (("FP32", FP32), ("FP16", FP16), ("E4M3", E4M3)):
        p = torch.nn.Parameter(torch.zeros(2))
        optimizer = FP8AdamW(
            [p], lr=1.0, betas=betas, weight_decay=0.0, **(EXACT | {"second": dtype})
        )
        steps = []
        for t in range(1, 301):
            before = p.detach().clone()
            p.grad = torch.tensor([1.0, 2.0**-13 if t % 10 else 2.0**-20])
            optimizer.step()
            steps.append((p.detach() - before)[1].abs().item())
        largest[name] = max(steps[100:])
    # Bias correction only shortens it: sqrt(1 - 0.99^t) <= 1 - 0.9^t.
    assert largest["FP32"] <= bound
    assert largest["FP16"] <= bound
    # m = 2^-13 up to a factor of two, sqrt(v) = 0.1 * 2^-20: hundreds.
    assert largest["E4M3"] >= 100 * bound


@pytest.mark.parametrize(
    ("dtype", "mantissa_bits", "beta"),
    [(E4M3, 3, 0.97), (E4M3, 3, 0.99), (E5M2, 2, 0.95), (FP16, 10, 0.9998), (FP16, 10, 0.999)],
)
def test_a_stored_second_moment_forgets_nothing_if_one_minus_beta_is_below_a_quarter_ulp(
    dtype, mantissa_bits, beta
):
    # From every mantissa: a step with gradient 0.  Element 0 fixes the scale.
    forgets = 1 - beta >= 2.0 ** -(mantissa_bits + 2)
    v = 1 + torch.arange(2**mantissa_bits) / 2**mantissa_bits
    p = torch.nn.Parameter(torch.zeros(len(v)))
    optimizer = FP8AdamW([p], betas=(0.9, beta), **(EXACT | {"second": dtype}))
    optimizer.state[p].update(
        step=1000,
        master=scaled_tensor.store(p, FP32),
        first=scaled_tensor.store(torch.zeros_like(v), FP32),
        second=scaled_tensor.store(v, dtype),
    )
    p.grad = torch.zeros_like(v)
    optimizer.step()
    assert torch.equal(scaled_tensor.load(optimizer.state[p]["second"]), v) == (not forgets)


def test_groups_may_store_differently_and_parameters_without_gradient_stay():
    a, b, c = (torch.nn.Parameter(torch.full((3,), 0.3)) for _ in range(3))
    optimizer = FP8AdamW([{"params": [a], **EXACT}, {"params": [b, c], "second": E5M2}])
    a.grad, b.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    assert optimizer.state[a]["second"].codes.dtype == FP32
    assert optimizer.state[b]["second"].codes.dtype == E5M2
    assert optimizer.state[b]["master"].codes.dtype == FP16
    assert c not in optimizer.state
    assert c.tolist() == torch.full((3,), 0.3).tolist()


def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_interrupted():
    params, generator = parameters()
    optimizer = FP8AdamW(params)
    train(optimizer, params, generator, 5)
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = FP8AdamW(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, torch.Generator().manual_seed(1), 5)
    train(other, again, torch.Generator().manual_seed(1), 5)
    assert other.state[again[0]]["first"].codes.dtype == E4M3
    for a, b in zip(params, again, strict=True):
        assert torch.equal(a, b)


def test_the_closure_is_called_with_gradients_and_its_loss_returned():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = FP8AdamW([p])

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert bool((p < 1).all())


def test_bad_types_and_gradients_are_refused():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="int8"):
        FP8AdamW([p], second=torch.int8)
    optimizer = FP8AdamW([p])
    p.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(ValueError, match="finite"):
        optimizer.step()


def test_the_step_leaves_its_arguments_alone():
    tensors = [torch.linspace(-1, 1, 5) for _ in range(3)] + [torch.linspace(0, 1, 5)]
    copies = [t.clone() for t in tensors]
    adamw(*tensors, 3, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert fp8_adam.STORED == ("master", "gradient", "first", "second")
