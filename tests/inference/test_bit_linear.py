import numpy as np
import pytest
import torch
from torch import nn

from qbook.inference import bit_linear
from qbook.inference.convert import convert, nbytes
from qbook.inference.ternary_linear import TernaryLinear
from qbook.models import char_gpt
from qbook.qat import bitnet

PACKINGS = ["2-bit", "base-3"]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bits", [1.58, 1])
@pytest.mark.parametrize(("in_", "out"), [(1, 1), (37, 41), (128, 512)])
@torch.no_grad()
def test_the_packed_layer_is_the_trained_one_bit_for_bit(in_, out, bits, packing):
    layer = bitnet.BitLinear(in_, out, bits=bits, bias=in_ > 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 9, in_)).astype(np.float32))
    # The sums are integers below 2^24 and exact on either side; the scales meet in one order.
    assert torch.equal(bit_linear.pack(layer, packing=packing)(x), layer(x))


@pytest.mark.parametrize("packing", PACKINGS)
@torch.no_grad()
def test_the_packed_character_gpt_is_the_trained_one_bit_for_bit(packing):
    model = bitnet.convert(char_gpt.load())
    packed = convert(model, bit_linear.pack, skip=("head",), packing=packing)
    ids = char_gpt.encode("ROMEO:\nBut soft, what light through yonder window breaks?")[None]
    assert torch.equal(packed(ids), model(ids))
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, bitnet.BitLinear))
    saved = (nbytes(model) - nbytes(packed)) * 8 / linears
    # 32 bits less those of a code, with scales and short last blocks of rows.
    assert abs(saved - (32 - {"2-bit": 2.0, "base-3": 1.6}[packing])) <= 0.4


def test_another_layer_is_refused():
    with pytest.raises(ValueError, match="the layer is a Linear, not trained with ternary codes"):
        bit_linear.pack(nn.Linear(3, 3))
    assert isinstance(bit_linear.pack(bitnet.BitLinear(3, 3))[1], TernaryLinear)
