import pytest

from qbook.kernels.simd import assembly


@pytest.mark.parametrize(("processor", "count"), [("AVX-512 VNNI", 1), ("AVX-VNNI", 2)])
def test_sixty_four_products_are_one_instruction_of_512_bits_or_two_of_256(processor, count):
    assert assembly.instructions(assembly.dot4(processor)) == {"vpdpbusd": count}


@pytest.mark.parametrize("processor", ["AVX2", "SSE2"])
def test_without_vnni_the_bytes_are_widened_and_never_saturate(processor):
    found = assembly.instructions(assembly.dot4(processor))
    # 64 products, two a lane, 8 lanes of 32 bits in 256 bits or 4 in 128.
    expected = {"AVX2": ("vpmaddwd", 4), "SSE2": ("pmaddwd", 8)}[processor]
    assert found[expected[0]] == expected[1]
    assert not [name for name in found if "maddubs" in name or "dpbus" in name]


def test_neon_multiplies_16_bits_into_32():
    found = assembly.instructions(assembly.dot4("NEON"))
    # Four products each; smull2 takes the upper half of the register.
    assert found["smull"] + found["smull2"] == 16


def test_an_unknown_processor_is_refused_with_those_known():
    with pytest.raises(ValueError, match="'Z80' is not known; choose one of AVX-512 VNNI, AVX-VN"):
        assembly.dot4("Z80")
