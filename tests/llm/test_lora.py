import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbook.llm import lora, nf4
from qbook.models import char_gpt

IDS = torch.randint(65, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trained(layer):
    """A LoRALinear whose B is no longer zero."""
    nn.init.normal_(layer.b)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "in_"), [(3, 5), (7, 64), (65, 33)])
def test_an_nf4_linear_is_the_linear_with_the_decoded_weight(out, in_, bias, double):
    linear = nn.Linear(in_, out, bias=bias)
    frozen = lora.NF4Linear(linear, double=double)
    w_hat = nf4.fake_quantize(linear.weight.detach(), double=double)
    assert torch.equal(frozen.dequantize(), w_hat)
    x = torch.randn(2, 3, in_)
    # Sums of up to 64 products of float32 in another order.
    assert float((frozen(x) - F.linear(x, w_hat, linear.bias)).abs().max()) <= 1e-5
    assert not list(frozen.parameters())


def test_the_gradient_passes_a_frozen_base_exactly():
    linear = nn.Linear(6, 4)
    layer = trained(lora.LoRALinear(lora.NF4Linear(linear), 2, alpha=5)).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    # Against finite differences, for x and both adapters.
    assert torch.autograd.gradcheck(
        lambda x, a, b: torch.func.functional_call(layer, {"a": a, "b": b}, (x,)),
        (x, layer.a, layer.b),
    )


def test_the_base_sees_no_gradient_and_keeps_no_decoded_weight_for_backward():
    kept = []
    layer = lora.LoRALinear(lora.NF4Linear(nn.Linear(96, 80)), 3, alpha=1)
    x = torch.randn(5, 96, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = layer(x)
    assert kept
    assert max(shape.numel() for shape in kept) < 80 * 96
    y.sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"a", "b"}
    assert all(buffer.grad is None for buffer in layer.buffers())


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_adds_a_product_of_rank_r():
    base = nn.Linear(9, 7)
    layer = lora.LoRALinear(base, 2, alpha=6)
    x = torch.randn(4, 9)
    assert torch.equal(layer(x), base(x))
    trained(layer)
    added = layer.merged().weight - base.weight
    assert torch.linalg.matrix_rank(added) == 2
    by_hand = x @ (base.weight + 6 / 2 * layer.b @ layer.a).T + base.bias
    # A handful of roundings of numbers up to about 20.
    assert float((layer(x) - by_hand).abs().max()) <= 1e-4


@pytest.mark.parametrize("make_base", [lora.NF4Linear, None])
@torch.no_grad()
def test_attaching_and_merging_keep_the_function(make_base):
    model = char_gpt.load()
    attached = lora.attach(model, 4, make_base=make_base)
    layers = [m for m in attached.modules() if isinstance(m, lora.LoRALinear)]
    # Six Linears in each of four blocks, and the head.
    assert len(layers) == 25
    trainable = [p for p in attached.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == sum(
        4 * sum(m.base.in_features + m.base.out_features for m in [layer]) for layer in layers
    )
    if make_base is None:
        assert torch.equal(attached(IDS), model(IDS))
    for layer in layers:
        nn.init.normal_(layer.b, std=0.01)
    merged = lora.merge(attached)
    assert not any(isinstance(m, lora.LoRALinear | lora.NF4Linear) for m in merged.modules())
    assert float((attached(IDS) - model(IDS)).abs().max()) > 1e-2
    # Logits of about 10, some hundred float32 operations deep.
    assert float((merged(IDS) - attached(IDS)).abs().max()) <= 1e-3


def test_only_what_is_named_gets_an_adapter_and_the_model_stays():
    model = char_gpt.load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attached = lora.attach(model, 2, names=["blocks.0.up", "head"])
    trained = {name for name, p in attached.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in ("blocks.0.up", "head") for part in "ab"}
    F.cross_entropy(attached(IDS).flatten(0, 1), IDS.flatten()).backward()
    torch.optim.SGD([p for p in attached.parameters() if p.requires_grad], lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_state_dict_holds_the_packed_bytes_and_loads():
    one, two = (lora.attach(char_gpt.load(), 2) for _ in range(2))
    state = one.state_dict()
    assert state["blocks.0.up.base.codes"].shape == (512 * 128 // 2,)
    assert state["blocks.0.up.base.absmax"].dtype == torch.uint8
    two.load_state_dict(state)
    assert torch.equal(one(IDS), two(IDS))


def test_bad_input_raises():
    with pytest.raises(ValueError, match="rank=0 does not fit 7 x 9; choose 1 to 7"):
        lora.LoRALinear(nn.Linear(9, 7), 0, 1)
    with pytest.raises(ValueError, match="rank=8 does not fit 7 x 9"):
        lora.LoRALinear(nn.Linear(9, 7), 8, 1)
    with pytest.raises(ValueError, match="no Linear is called 'norm'; this model has"):
        lora.attach(char_gpt.load(), 2, names=["norm"])
