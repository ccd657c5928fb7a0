import itertools

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.testing import assert_array_equal

from qbook.kernels import isa
from qbook.kernels.simd import emulate
from qbook.kernels.simd.dot import dot4
from qbook.kernels.simd.memory import load_i32, store
from qbook.kernels.simd.types import I8, I16, I32, address

SETS = [name for name in isa.available() if name != isa.REFERENCE]
BYTES = np.arange(256, dtype=np.uint8)


def instruction(name, source, target):
    """Build run(x, y, out): an instruction of 256 bits on x, y uint8 [32 n] -> out uint8 [32 n]"""
    source, target = ir.VectorType(*source), ir.VectorType(*target)

    @intrinsic
    def call(typing, x, y, out, at):
        def generate(context, builder, signature, arguments):
            *arrays, at = arguments
            x, y, out = (
                address(context, builder, kind, array, at, llvm_type)
                for kind, array, llvm_type in zip(
                    signature.args, arrays, (source, source, target), strict=False
                )
            )
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(target, [source, source]), name
            )
            loaded = [builder.load(pointer, align=1) for pointer in (x, y)]
            builder.store(builder.call(function, loaded), out, align=1)
            return context.get_dummy_value()

        return types.void(x, y, out, types.intp), generate

    @njit
    def run(x, y, out):
        for at in range(0, len(x), 32):
            call(x, y, out, at)

    return run


def needs(*features):
    lacking = [feature for feature in features if feature not in isa.features()]
    return pytest.mark.skipif(
        bool(lacking), reason=f"needs a processor with {', '.join(lacking)} to compare with"
    )


def draw_bytes(count):
    """Half of them extreme, so that pairs saturate on either side."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 256, count, np.uint8)
    extreme = rng.choice(np.uint8([0, 1, 127, 128, 129, 255]), count)
    return np.where(rng.random(count) < 0.5, anything, extreme)


def run_on_processor(run, x, y):
    out = np.full_like(x, 0x5A)
    run(x, y, out)
    return out


@needs("avx2")
def test_vpmaddubsw_is_that_of_the_processor():
    run = instruction("llvm.x86.avx2.pmadd.ub.sw", (I8, 32), (I16, 16))
    x, y = draw_bytes(2**16), draw_bytes(2**17)[2**16 :]
    found = run_on_processor(run, x, y).view(np.int16)
    expected = emulate.vpmaddubsw(x, y.view(np.int8))
    assert_array_equal(found, expected)
    assert (expected == 32767).sum() > 100
    assert (expected == -32768).sum() > 100


@needs("avx2")
def test_vpmaddwd_is_that_of_the_processor():
    run = instruction("llvm.x86.avx2.pmadd.wd", (I16, 16), (I32, 8))
    x, y = draw_bytes(2**16), draw_bytes(2**17)[2**16 :]
    # The one pair of products whose sum is 2^31.
    x[:4] = y[:4] = [0, 128, 0, 128]
    found = run_on_processor(run, x, y).view(np.int32)
    assert_array_equal(found, emulate.vpmaddwd(x.view(np.int16), y.view(np.int16)))
    assert found[0] == -(2**31)


@needs("avx512vnni", "avx512vl")
def test_vpdpbusds_is_that_of_the_processor():
    name = "llvm.x86.avx512.vpdpbusds.256"
    # From LLVM 22 on the bytes are typed as bytes.
    source = (I8, 32) if llvm.llvm_version_info[0] >= 22 else (I32, 8)
    acc_type, operand = ir.VectorType(I32, 8), ir.VectorType(*source)

    @intrinsic
    def call(typing, acc, x, y, at):
        def generate(context, builder, signature, arguments):
            *arrays, at = arguments
            pointers = [
                address(context, builder, kind, array, at, llvm_type)
                for kind, array, llvm_type in zip(
                    signature.args, arrays, (acc_type, operand, operand), strict=False
                )
            ]
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(acc_type, [acc_type, operand, operand]), name
            )
            loaded = [builder.load(pointer, align=1) for pointer in pointers]
            builder.store(builder.call(function, loaded), pointers[0], align=1)
            return context.get_dummy_value()

        return types.void(acc, x, y, types.intp), generate

    @njit
    def run(acc, x, y):
        for at in range(0, len(x), 32):
            call(acc, x, y, at)

    x, y = draw_bytes(2**14), draw_bytes(2**15)[2**14 :]
    acc = np.random.default_rng(0).choice(np.int32([-(2**31), 2**31 - 1, 0, 5]), 2**12)
    expected = emulate.vpdpbusds(acc, x, y.view(np.int8))
    assert (expected == 2**31 - 1).sum() > 100
    assert (expected != emulate.vpdpbusd(acc, x, y.view(np.int8))).sum() > 100
    run(acc, x, y)
    assert_array_equal(acc, expected)


@njit
def _dot4(isa, acc, u, s):
    for at in range(0, len(u), 64):
        store(acc, at, dot4(isa, load_i32(acc, at), load_i32(u, at), load_i32(s, at)))


@pytest.mark.parametrize("use", SETS)
def test_vpdpbusd_is_dot4_of_every_instruction_set(use):
    u, s = draw_bytes(2**16), draw_bytes(2**17)[2**16 :]
    acc = np.random.default_rng(0).choice(np.int32([-(2**31), 2**31 - 1, 0, 5]), 2**14)
    expected = emulate.vpdpbusd(acc, u, s.view(np.int8))
    _dot4(isa.ISAS[use], acc, u, s)
    assert_array_equal(acc, expected)


def test_every_pair_of_bytes_is_multiplied_exactly():
    u, s = np.meshgrid(BYTES, BYTES.view(np.int8))
    nothing = np.zeros_like(u)
    pairs = np.stack([u, nothing], -1), np.stack([s, np.full_like(s, -1)], -1)
    expected = [[int(a) * int(b) for a in BYTES] for b in BYTES.view(np.int8)]
    assert_array_equal(emulate.vpmaddubsw(*pairs)[..., 0], expected)
    assert not emulate.saturates(*pairs).any()
    quadruple = np.concatenate([pairs[0]] * 2, -1), np.concatenate([pairs[1]] * 2, -1)
    acc = np.int32([7])
    assert_array_equal(emulate.vpdpbusd(acc, *quadruple)[..., 0], 7 + 2 * np.array(expected))


def test_sums_of_pairs_stop_at_16_bits():
    # 255 * 64 * 2 = 32640 fits, 255 * 65 * 2 = 33150 does not, 255 * -64 * 2 = -32640 does.
    u = np.full(2, 255, np.uint8)
    assert emulate.vpmaddubsw(u, np.int8([64, 64])) == 32640
    assert emulate.vpmaddubsw(u, np.int8([65, 65])) == 32767
    assert emulate.vpmaddubsw(u, np.int8([-64, -64])) == -32640
    assert emulate.vpmaddubsw(u, np.int8([-65, -65])) == -32768


@pytest.mark.parametrize(("u_most", "s_most"), [(255, 64), (127, 128), (128, 127)])
def test_seven_bits_on_either_side_never_saturate(u_most, s_most):
    # A sum is linear in each byte, so that the extremes of the sum are at extremes of the bytes.
    s = np.int8([max(-s_most, -128), min(s_most, 127)])
    corners = np.array(list(itertools.product((0, u_most), (0, u_most), s, s)))
    u, s = corners[:, :2].astype(np.uint8), corners[:, 2:].astype(np.int8)
    assert not emulate.saturates(u, s).any()


def test_the_old_product_is_exact_where_nothing_saturates():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (7, 33), np.uint8)
    w = rng.integers(-64, 65, (5, 33)).astype(np.int8)
    sums, cut = emulate.saturating_matmul(x, w)
    assert_array_equal(sums, x.astype(np.int64) @ w.T.astype(np.int64))
    assert not cut.any()


def test_the_old_product_cuts_pair_by_pair():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (7, 34), np.uint8)
    w = rng.integers(-128, 128, (5, 34)).astype(np.int8)
    # Exactly at the limit and not cut: 255 * 127 + 191 * 2 = 32767.
    x[0, :2], w[0, :2] = [255, 191], [127, 2]
    sums, cut = emulate.saturating_matmul(x, w)
    assert sums.dtype == np.int32
    for i, j in itertools.product(range(7), range(5)):
        total = pieces = 0
        for k in range(0, 34, 2):
            pair = sum(int(x[i, k + b]) * int(w[j, k + b]) for b in (0, 1))
            kept = max(-32768, min(32767, pair))
            total, pieces = total + kept, pieces + (kept != pair)
        assert (sums[i, j], cut[i, j]) == (total, pieces)
    assert cut.sum() > 10


U, S, ACC = np.zeros(4, np.uint8), np.zeros(4, np.int8), np.zeros(1, np.int32)
WRONG = {
    "operands are int8 and int8; pass uint8 and int8": lambda: emulate.vpmaddubsw(S, S),
    "operands are uint8 and uint8; pass uint8 and int8": lambda: emulate.vpdpbusd(ACC, U, U),
    "operands are int8 and int8; pass int16 and int16": lambda: emulate.vpmaddwd(S, S),
    "acc is int64; pass int32": lambda: emulate.vpdpbusds(np.int64([0]), U, S),
    "operands have 3 and 3 elements": lambda: emulate.vpmaddubsw(U[:3], S[:3]),
    "operands have 2 and 2 elements.*that 4 divides": lambda: emulate.vpdpbusd(ACC, U[:2], S[:2]),
    "x is .4,., w is .4,.; pass": lambda: emulate.saturating_matmul(U, S),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
