import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from qbook import affine, packing
from qbook.llm import awq, awq_layers, scaling
from qbook.models import char_gpt
from qbook.pipeline.quantize import quantize

IDS = torch.randint(65, (4, 40), generator=torch.Generator().manual_seed(0))
QUERY, KEY, VALUE, OUTPUT = (
    f"blocks.1.attention.{name}" for name in ("query", "key", "value", "output")
)
# What can be scaled in a block of the character GPT: LayerNorms write, values pass the average of
# attention, and between up and down lies a GELU.
GROUPS = [
    awq_layers.Group("blocks.1.attention_norm", (QUERY, KEY, VALUE), "blocks.1.attention"),
    awq_layers.Group(VALUE, (OUTPUT,)),
    awq_layers.Group("blocks.1.mlp_norm", ("blocks.1.up",)),
    awq_layers.Group(None, ("blocks.1.down",)),
]


def run(model):
    model(IDS)


def test_the_function_stays_before_anything_is_rounded():
    model = char_gpt.load()
    prepared, found = awq_layers.scale(model, GROUPS, run, bits=3, group_size=64)
    with torch.no_grad():
        before, after = model(IDS), prepared(IDS)
    # float32: errors of 1e-7, relative, in some hundred operations.
    assert float((after - before).abs().max() / before.abs().max()) <= 1e-5
    # The searches did find something, or nothing was tested.
    assert sum(f.exponent > 0 for f in found.values()) >= 3
    assert isinstance(prepared.blocks[1].down, scaling.ScaledLinear)
    expected = model.blocks[1].up.weight * found["blocks.1.up"].s
    assert torch.equal(prepared.blocks[1].up.weight, expected)
    down = prepared.blocks[1].down.linear.weight
    assert torch.equal(down, model.blocks[1].down.weight * found["blocks.1.down"].s)


def test_readers_that_share_an_input_are_judged_together_by_their_block():
    model = char_gpt.load()
    prepared, found = awq_layers.scale(model, GROUPS[:1], run, bits=3, group_size=64)
    chosen = found[QUERY]
    seen = {}
    model.blocks[1].attention.register_forward_pre_hook(
        lambda _, x: seen.setdefault("x", x[0].detach())
    )
    run(model)
    attention = char_gpt.Attention()
    attention.load_state_dict(model.blocks[1].attention.state_dict())
    with torch.no_grad():
        y = attention(seen["x"])
        for name in ("query", "key", "value"):
            linear = getattr(attention, name)
            w = linear.weight * chosen.s
            qparams = affine.choose_qparams(w, 3, axis=1, group_size=64, symmetric=False)
            linear.weight.copy_(affine.fake_quantize(w, qparams) / chosen.s)
        error = float(((attention(seen["x"]) - y) ** 2).mean())
    # float32 sums of the same numbers in another order.
    assert abs(error / chosen.errors[chosen.exponent] - 1) <= 1e-5
    for name in (QUERY, KEY, VALUE):
        moved, own = (m.get_submodule(name).weight for m in (prepared, model))
        assert torch.equal(moved, own * chosen.s)


def test_named_layers_are_clamped_as_searched_on_their_own_inputs_and_no_others():
    model, _ = awq_layers.scale(char_gpt.load(), GROUPS, run, bits=3, group_size=64)
    names = (VALUE, OUTPUT, "blocks.1.up", "blocks.1.down.linear")
    clipped = awq_layers.clip(model, names, run, bits=3, group_size=64)
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(name, x[0].detach())
        )
    run(model)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        before, after = layer.weight.detach(), clipped.get_submodule(name).weight.detach()
        if name not in names:
            assert torch.equal(before, after), name
            continue
        shares = awq.search_clip(before, seen[name], bits=3, group_size=64)
        assert float(shares.min()) < 0.9
        limits = shares * before.reshape(len(before), -1, 64).abs().amax(dim=-1, keepdim=True)
        limits = limits.expand(-1, -1, 64).reshape(before.shape)
        assert torch.equal(after, torch.minimum(torch.maximum(before, -limits), limits)), name


def test_a_reader_that_also_writes_can_be_scaled_in_either_order():
    model = char_gpt.load()
    groups = [
        awq_layers.Group(None, (QUERY, KEY, VALUE), "blocks.1.attention"),
        awq_layers.Group(VALUE, (OUTPUT,)),
    ]
    with torch.no_grad():
        y = model(IDS)
        for order in (groups, groups[::-1]):
            prepared, _ = awq_layers.scale(model, order, run, bits=3, group_size=64)
            # float32, as above.
            assert float((prepared(IDS) - y).abs().max() / y.abs().max()) <= 1e-5


def test_the_pipeline_packs_the_prepared_model_bit_exactly():
    model = char_gpt.load()
    prepared, _ = awq_layers.scale(model, GROUPS, run, bits=4, group_size=64)
    prepared = awq_layers.clip(prepared, [VALUE, OUTPUT], run, bits=4, group_size=64)
    quantized, _ = quantize(prepared, bits=4, group_size=64, symmetric=False)
    for name in (VALUE, "blocks.1.down.linear"):
        w = prepared.get_submodule(name).weight.detach()
        qparams = affine.choose_qparams(w, 4, axis=1, group_size=64, symmetric=False)
        codes = affine.quantize(w, qparams)
        packed = packing.pack(codes, 4)
        assert packed.nbytes == w.numel() // 2
        assert torch.equal(packing.unpack(packed, 4, w.shape[1], signed=True), codes)
        x = torch.randn(3, w.shape[1], generator=torch.Generator().manual_seed(0))
        expected = x @ affine.dequantize(codes, qparams).T
        bias = prepared.get_submodule(name).bias
        # float32 sums of 512 products.
        assert_allclose(
            quantized.get_submodule(name)(x).detach().numpy(),
            (expected + bias).detach().numpy(),
            rtol=1e-4,
            atol=1e-5,
        )


def test_arguments_stay_as_they_are():
    model = char_gpt.load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    awq_layers.scale(model, GROUPS, run, bits=3, group_size=64)
    awq_layers.clip(model, [VALUE], run, bits=3, group_size=64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_input_raises():
    model = char_gpt.load()
    two = awq_layers.Group("blocks.1.attention_norm", (QUERY, KEY))
    with pytest.raises(ValueError, match=f"readers {QUERY}, {KEY} need a block"):
        awq_layers.scale(model, [two], run, bits=3)
    apart = awq_layers.Group(None, (QUERY, OUTPUT), "blocks.1.attention")
    with pytest.raises(ValueError, match=f"{OUTPUT} does not read what {QUERY} reads"):
        awq_layers.scale(model, [apart], run, bits=3)
    with pytest.raises(ValueError, match=r"calibration never calls blocks\.1\.up"):
        awq_layers.scale(model, GROUPS[2:3], lambda _: None, bits=3)
    with pytest.raises(ValueError, match="calibration never calls up; it calls blocks"):
        awq_layers.clip(model, ["up"], run, bits=3)
    assert not any(m._forward_pre_hooks for m in model.modules())
