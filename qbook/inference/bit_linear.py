"""A trained BitLinear, packed: its norm, then integer codes times integer codes.

    convert.convert(model, bit_linear.pack, skip=("head",))

Ma et al. 2024, arXiv:2402.17764, section 2.  Book: 5.3
"""

from torch import nn

from qbook.inference.ternary_linear import TernaryLinear
from qbook.qat.bitnet import BitLinear


def pack(layer, *, packing="2-bit"):
    """BitLinear -> Sequential of its norm and a ``TernaryLinear``: the same function, bit for bit.

    packing: "2-bit" or "base-3" (1.6 bits)
    Raises ValueError for another layer, which was not trained with these codes, and as
    ``TernaryLinear`` does.
    """
    if not isinstance(layer, BitLinear):
        raise ValueError(
            f"the layer is a {type(layer).__name__}, not trained with ternary codes; "
            "pass a BitLinear, or choose TernaryLinear to round it all the same"
        )
    return nn.Sequential(layer.norm, TernaryLinear(layer, packing=packing, codes=layer.codes()))
