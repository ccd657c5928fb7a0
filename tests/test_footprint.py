import math

import numpy as np
import pytest
import torch

from qbook import affine, footprint, packing

HALF = np.float16


@pytest.mark.parametrize(
    ("expected", "kwargs"),
    [
        # Published accounts, each the source's own arithmetic.
        # QLoRA, arXiv:2305.14314, section 3: 32-bit constants for blocks of 64 add 0.5 bits, and
        # double quantization, 8 bits and a 32-bit constant for 256 of them, adds 0.127.
        (4.5, {"bits": 4, "group_size": 64, "scale_bits": 32}),
        (4 + 0.126953125, {"bits": 4, "group_size": 64, "scale_bits": 8 + 32 / 256}),
        # OCP MX v1.0: an 8-bit scale for a block of 32.
        (4.25, {"bits": 4, "group_size": 32, "scale_bits": 8}),
        # NVFP4, arXiv:2509.25149: an 8-bit scale for a block of 16.
        (4.5, {"bits": 4, "group_size": 16, "scale_bits": 8}),
        # SpQR, arXiv:2306.03078: 32 bits an outlier.
        (3.32, {"bits": 3, "outlier_share": 0.01}),
        (2.5, {"bits": 2, "group_size": 64, "zero_point_bits": 16}),
        (1.6, {"bits": footprint.TERNARY_BITS}),
    ],
)
def test_bits_per_weight_are_those_that_the_sources_count(expected, kwargs):
    # One division and two additions of float64: a few ulp.
    assert abs(footprint.bits_per_weight(**kwargs) - expected) <= 1e-14


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("group_size", [1, 3, 21])
@pytest.mark.parametrize("zero_point_bits", [0, 16])
def test_matrix_bytes_are_those_of_arrays_that_are_packed(bits, group_size, zero_point_bits):
    w = np.random.default_rng(0).normal(size=(5, 21)).astype(np.float32)
    qparams = affine.choose_qparams(
        w, bits, axis=1, group_size=group_size, symmetric=False, signed=False
    )
    arrays = [packing.pack(affine.quantize(w, qparams), bits), qparams.scale.astype(HALF)]
    if zero_point_bits:
        arrays.append(qparams.zero_point.astype(np.int16))
    assert footprint.matrix_bytes(
        w.shape, bits, group_size, zero_point_bits=zero_point_bits
    ) == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("in_", [0, 1, 4, 5, 6, 15, 16, 1000])
def test_ternary_matrix_bytes_are_those_of_the_packed_array(in_):
    codes = np.zeros((3, in_), dtype=np.int8)
    payload = footprint.matrix_bytes(codes.shape, footprint.TERNARY_BITS, scale_bits=0)
    assert payload == packing.pack_ternary(codes).nbytes
    assert payload == footprint.matrix_bytes(codes.shape, 1.6, scale_bits=0)


def test_matrix_bytes_tend_to_bits_per_weight():
    shape = (64, 4096)
    found = 8 * footprint.matrix_bytes(shape, 4, 128, zero_point_bits=4) / math.prod(shape)
    # Nothing is rounded up at these sizes, so the two accounts agree to float64's last place.
    assert abs(found - footprint.bits_per_weight(4, 128, zero_point_bits=4)) <= 1e-14


def test_a_short_last_group_has_a_scale_of_its_own():
    assert footprint.matrix_bytes((1, 65), 8, 64) == 65 + 2 * 2
    assert footprint.matrix_bytes((1, 64), 8, 64) == 64 + 2


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_kv_cache_bytes_are_those_of_the_tensors_that_attention_keeps(kv_heads):
    layers, head_size, tokens = 3, 5, 7
    kept = [
        torch.zeros(kv_heads, tokens, head_size, dtype=torch.float16)
        for _ in range(layers)
        for _ in ("keys", "values")
    ]
    expected = sum(tensor.nbytes for tensor in kept)
    found = footprint.kv_cache_bytes(tokens, layers=layers, kv_heads=kv_heads, head_size=head_size)
    assert found == expected
    assert expected / 4 == footprint.kv_cache_bytes(
        tokens, layers=layers, kv_heads=kv_heads, head_size=head_size, bits=4
    )


def test_the_energy_of_a_product_is_the_sum_over_its_operations():
    samples, in_, out, table = 2, 3, 4, footprint.HOROWITZ_45NM
    arithmetic = memory = 0.0
    for _ in range(out):
        for _ in range(in_):
            memory += table.access["DRAM"] * 8 / 64
            for _ in range(samples):
                arithmetic += table.multiply["int8"] + table.add["int32"]
    found = footprint.matmul_energy(samples, in_, out, multiply="int8", add="int32", weight_bits=8)
    # 24 additions of float64, each within half an ulp.
    np.testing.assert_allclose(found, (arithmetic, memory), rtol=1e-14)


def test_the_energy_table_is_that_of_the_paper():
    # Horowitz 2014, figure 1.1.9, as reproduced by Sze et al. 2017, arXiv:1703.09039.
    table = footprint.HOROWITZ_45NM
    assert table.multiply == {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
    assert table.add == {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
    assert table.access["DRAM"] == 1300


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: footprint.bits_per_weight(4, 0), "group_size=0"),
        (lambda: footprint.bits_per_weight(4, math.nan), "group_size=nan"),
        (lambda: footprint.bits_per_weight(4, outlier_share=2), "outlier_share=2"),
        (lambda: footprint.bits_per_weight(-1), "bits=-1"),
        (lambda: footprint.matrix_bytes((2, 2), 4, 0), "group_size=0"),
        (lambda: footprint.matrix_bytes((2, -2), 4), r"shape=\(2, -2\)"),
        (lambda: footprint.kv_cache_bytes(-1, layers=1, kv_heads=1, head_size=1), "tokens=-1"),
        (
            lambda: footprint.matmul_energy(1, 1, 1, multiply="int4", add="int32", weight_bits=4),
            "multiply='int4'.*int8",
        ),
    ],
)
def test_bad_input_is_named(call, told):
    with pytest.raises(ValueError, match=told):
        call()
