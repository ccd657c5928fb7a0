"""W4A16 from the affine quantizer's codes: packing, and the product in the interpreter."""

import numpy as np
import pytest
import torch

from qbook import affine
from qbook.kernels.int4_matmul import gpu
from qbook.kernels.weight_only import packed
from qbook.ptq import gptq


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, None])
def test_what_is_packed_is_what_the_affine_quantizer_reconstructs(
    group_size, symmetric, signed, library
):
    w = np.random.default_rng(0).normal(size=(9, 96)).astype(np.float32)
    w = torch.from_numpy(w) if library == "torch" else w
    options = {"symmetric": symmetric, "signed": signed}
    qparams = affine.choose_qparams(w, 4, axis=1, group_size=group_size, **options)
    codes = affine.quantize(w, qparams)
    found = packed.dequantize(gpu.pack(codes, qparams))
    scale = torch.as_tensor(qparams.scale)
    halved = affine.QParams(
        scale.half().float(),
        torch.as_tensor(qparams.zero_point),
        qparams.qmin,
        qparams.qmax,
        qparams.group_axis,
    )
    assert torch.equal(found, affine.dequantize(torch.as_tensor(codes), halved))


def test_every_code_and_every_zero_point_is_multiplied_as_it_is_meant(architecture):
    # Sixteen rows, each with its own zero-point; sixteen neighbours hold all codes.
    codes = torch.arange(16).repeat(16, 4)
    zero_point = torch.arange(16).reshape(16, 1)
    qparams = affine.QParams(torch.full((16, 1), 0.5), zero_point, 0, 15)
    w = gpu.pack(codes, qparams)
    # One column at a time: the products are the weights themselves.
    x = torch.eye(64).half()
    assert torch.equal(gpu.matmul(x, w), (0.5 * (codes - zero_point)).T.half())
    assert torch.equal(gpu.matmul(x[5:6], w), (0.5 * (codes - zero_point)).T[5:6].half())


def test_what_gptq_leaves_is_multiplied():
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(33, 64)), rng.normal(size=(128, 64))
    qparams = affine.choose_qparams(w, 4, axis=1, group_size=32)
    codes = gptq.quantize(w, gptq.hessian(x), qparams)
    y = gpu.matmul(torch.from_numpy(x[:5]).half(), gpu.pack(codes, qparams))
    expected = x[:5] @ affine.dequantize(codes, qparams).T
    # x, scales, weights and y are each rounded to float16: 2^-11 of themselves at most; products of
    # 64 columns of order 1 are of order 10.
    assert np.abs(y.numpy() - expected).max() <= 4 * 2**-11 * 64


def test_what_is_not_of_four_bits_is_told():
    qparams = affine.choose_qparams(np.ones((2, 32), np.float32), 8, axis=1)
    with pytest.raises(ValueError, match="-127 to 127 need more than 4 bits"):
        gpu.pack(np.ones((2, 32), np.int8), qparams)
    qparams = affine.choose_qparams(np.ones((2, 48), np.float32), 4, axis=1, group_size=24)
    with pytest.raises(ValueError, match=r"group_size=24.*multiple of 16"):
        gpu.pack(np.ones((2, 48), np.int8), qparams)
