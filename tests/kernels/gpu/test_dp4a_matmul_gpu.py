"""int8 products by dp4a: the instruction, Triton's kernel, and the CUDA kernel in the simulator."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from faults import must_fail
from numpy.testing import assert_array_equal

from qbook import affine, integer_product
from qbook.kernels.dp4a_matmul import configs, gpu, reference, triton_kernels
from qbook.kernels.gpu import contract, device

# samples, in, out: every config, below and beyond its tile, and inputs that fill no word.
SHAPES = [
    (1, 1, 1),
    (1, 65, 33),
    (2, 7, 1),
    (7, 64, 40),
    (31, 70, 65),
    (33, 129, 127),
    (70, 3, 130),
]


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def exact(x, w):
    return x.astype(np.int64) @ w.astype(np.int64).T


def word(codes):
    return int.from_bytes(bytes(code & 255 for code in codes), "little", signed=True)


def wrapped(number):
    return (number + 2**31) % 2**32 - 2**31


def test_dp4a_multiplies_every_pair_of_codes_at_every_place():
    codes = range(-128, 128)
    for place in range(4):
        a = np.int32([word([code * (place == k) for k in range(4)]) for code in codes])
        # The other three codes meet zeros.
        b = np.int32([word([code if place == k else -77 for k in range(4)]) for code in codes])
        found = reference.dp4a(a[:, None], b, np.int32(1000))
        assert found.dtype == np.int32
        assert_array_equal(found, [[1000 + x * y for y in codes] for x in codes])


def test_dp4a_wraps_around_as_a_register_of_32_bits_does():
    lowest = word([-128] * 4)
    for start in (2**31 - 1, 2**31 - 65536, 2**31 - 65537, -(2**31), 0):
        found = reference.dp4a(np.int32(lowest), np.int32(lowest), np.int32(start))
        assert found == wrapped(start + 4 * 128**2)
    mixed = reference.dp4a(np.int32(lowest), np.int32(word([127] * 4)), np.int32(-(2**31)))
    assert mixed == wrapped(-(2**31) - 4 * 128 * 127)


def test_the_reference_adds_modulo_two_to_the_32():
    # One product more than fits: 2^31, which becomes -2^31.
    x = np.full((1, reference.LONGEST + 1), -128, np.int8)
    assert reference.matmul(x, x).item() == -(2**31)
    assert reference.matmul(x[:, :-1], x[:, :-1]).item() == 128**2 * reference.LONGEST


def test_words_of_other_codes_are_refused():
    with pytest.raises(ValueError, match=r"uint8.*int8"):
        reference.words(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_sums_are_those_of_64_bit_integers(samples, in_, out, interpreted, monkeypatch):
    if not interpreted:
        monkeypatch.setattr(device, "interpreted", lambda: False)
    x, w = draw((samples, in_)), draw((out, in_), 1)
    found = gpu.matmul(torch.from_numpy(x), torch.from_numpy(w))
    assert found.dtype == torch.int32
    assert_array_equal(found.numpy(), exact(x, w))
    assert_array_equal(reference.matmul(x, w), exact(x, w))
    packed = gpu.pack(torch.from_numpy(w))
    assert_array_equal(gpu.unpack(packed, in_).numpy(), w)
    assert torch.equal(gpu.matmul(torch.from_numpy(x), packed), found)


@pytest.mark.parametrize("place", range(8))
def test_every_pair_of_codes_at_every_place_of_a_word(place):
    x = np.zeros((256, 8), np.int8)
    x[:, place] = np.arange(-128, 128)
    w = np.full((256, 8), -77, np.int8)
    w[:, place] = np.arange(-128, 128)
    found = gpu.matmul(torch.from_numpy(x), torch.from_numpy(w))
    assert_array_equal(found.numpy(), exact(x, w))


def test_the_longest_sum_of_the_lowest_codes_fits(on_the_cpu):
    x = torch.full((1, reference.LONGEST), -128, dtype=torch.int8)
    assert gpu.matmul(x, x).item() == 128**2 * reference.LONGEST


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_scaled_sums_have_the_bits_of_the_integer_product(
    samples, in_, out, interpreted, monkeypatch
):
    if not interpreted:
        monkeypatch.setattr(device, "interpreted", lambda: False)
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(n, in_)).astype(np.float32) for n in (samples, out))
    x_q, w_q = (affine.choose_qparams(values, 8, axis=1) for values in (x, w))
    codes = affine.quantize(x, x_q), affine.quantize(w, w_q)
    scales = [torch.from_numpy(q.scale[:, 0].copy()) for q in (x_q, w_q)]
    found = gpu.matmul(*map(torch.from_numpy, codes), *scales)
    assert found.dtype == torch.float32
    assert_array_equal(found.numpy(), integer_product.linear(codes[0], x_q, codes[1], w_q))
    # In the interpreter, an order of rounding of its own: the outsider computes in 64 bits.  Two
    # roundings of float32 and, of a sum beyond 2^24, a third, each by 2^-24 at most.
    real = exact(*codes) * (x_q.scale.astype(float) * w_q.scale[:, 0].astype(float))
    assert (np.abs(found.numpy() - real) <= 3 * 2.0**-24 * np.abs(real)).all()


def test_rows_may_lie_anywhere():
    x, w = draw((40, 90)), draw((50, 90))
    # A word would begin between two of these, or at one.
    for rows, columns in ((slice(0, 40, 3), slice(5, 69)), (slice(1, 9), slice(8, 72))):
        a, b = torch.from_numpy(x)[rows, columns], torch.from_numpy(w)[:, columns]
        assert_array_equal(gpu.matmul(a, b).numpy(), exact(x[rows, columns], w[:, columns]))
    wide = torch.from_numpy(draw((9, 128)))
    assert_array_equal(
        gpu.matmul(wide[:, 64:], wide[:, :64]).numpy(),
        exact(wide.numpy()[:, 64:], wide.numpy()[:, :64]),
    )


@pytest.mark.parametrize("config", configs.candidates(90))
def test_every_candidate_of_the_tuner_is_right(config):
    samples, outputs = (side + 3 for side in config.tile)
    x, w = draw((samples, 70)), draw((outputs, 70), 1)
    out = torch.full((samples, outputs), 99, dtype=torch.int32)
    x_, words = torch.from_numpy(x), gpu.pack(torch.from_numpy(w))
    gpu.launch(x_, words, None, None, out, 90, config).run()
    assert_array_equal(out.numpy(), exact(x, w))


def test_the_operator_is_sound_and_compiles_without_a_gpu(on_the_cpu):
    x, w = torch.from_numpy(draw((5, 70))), torch.from_numpy(draw((9, 70)))
    scales = torch.rand(5), torch.rand(9)
    torch.library.opcheck(gpu.dp4a_matmul, (x, gpu.pack(w), None, None))
    torch.library.opcheck(gpu.dp4a_matmul, (x, gpu.pack(w), *scales))
    compiled = torch.compile(gpu.matmul, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, w, *scales), gpu.matmul(x, w, *scales))
    assert torch.equal(compiled(x, w), gpu.matmul(x, w))


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(("samples", "in_", "out"), [(0, 5, 5), (5, 0, 5), (5, 5, 0), (0, 0, 0)])
def test_empty_operands_give_zeros_or_nothing(samples, in_, out, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    x, w = (torch.zeros(n, in_, dtype=torch.int8) for n in (samples, out))
    for scales, dtype in (
        ((), torch.int32),
        ((torch.ones(samples), torch.ones(out)), torch.float32),
    ):
        found = gpu.matmul(x, w, *scales)
        assert (found.shape, found.dtype) == ((samples, out), dtype)
        assert not found.any()


CODES, ONES = torch.zeros(3, 70, dtype=torch.int8), torch.ones(3)
LONG = torch.zeros(1, reference.LONGEST + 1, dtype=torch.int8)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((CODES.float(), CODES), r"x_codes is torch.float32 \[3, 70\].*int8 \[samples, in\]"),
        ((CODES, CODES[0]), r"w_codes is torch.int8 \[70\].*\[out, in\], or pack"),
        ((CODES, CODES.numpy()), r"w_codes is a ndarray.*int8 \[out, in\]"),
        ((CODES, CODES[:, 1:]), r"inputs of x 70 and inputs of w 69"),
        ((CODES, gpu.pack(CODES)[:8]), r"int64 \[8, 3\].*70 inputs is int64 \[16, out\]"),
        ((CODES, gpu.pack(CODES).T), r"int64 \[3, 16\]"),
        ((CODES.T, CODES), r"strides \(1, 70\).*contiguous"),
        ((CODES, CODES.to("meta")), r"x_codes on cpu, w_codes on meta"),
        ((CODES, CODES, ONES), r"w_scale is missing"),
        ((CODES, CODES, None, ONES), r"x_scale is missing"),
        ((CODES, CODES, ONES, ONES[:2]), r"w_scale is torch.float32 \[2\].*\[3\]"),
        ((CODES, CODES, ONES.double(), ONES), r"x_scale is torch.float64.*float32 \[3\]"),
        ((LONG, LONG), r"131072 inputs.*131071 inputs fit"),
    ],
)
def test_what_does_not_fit_is_told(arguments, told):
    with pytest.raises(ValueError, match=told):
        gpu.matmul(*arguments)


FAULTS = [
    ("byte order", "(b << (24 - 8 * byte))", "(b << (8 * byte))"),
    ("no sign", "((a << (24 - 8 * byte)) >> 24)", "(((a << (24 - 8 * byte)) >> 24) & 255)"),
    ("one half twice", "(w >> 32).to(tl.int32)", "w.to(tl.int32)"),
    ("one row only", "tl.minimum(row, m - 1)", "tl.minimum(row, 0)"),
    ("mask of rows", "(row < m) & (column < n)", "(row < m - 1) & (column < n)"),
    ("mask of columns", "(row < m) & (column < n)", "(row < m) & (column < n - 1)"),
    ("groups of columns", "tl.arange(0, COLUMNS) * LANES", "tl.arange(0, COLUMNS) * 0"),
    ("rows of warps", "tl.arange(0, WARP_ROWS) * ROWS", "tl.arange(0, WARP_ROWS)"),
    ("step of w", "w_at += UNROLL * n", "w_at += n"),
    ("step of x", "x_at += UNROLL", "x_at += 0"),
    ("scale", "x_scale_ptr + row", "x_scale_ptr + row * 0"),
]


@pytest.mark.parametrize(
    ("old", "new"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_seeded_fault_is_found(old, new, monkeypatch, tmp_path):
    # Kept: memory that is given back may be handed out again with the right sums in it.
    kept = []

    def check():
        for samples, in_, out in [(7, 65, 40), (34, 3, 130)]:
            x, w = draw((samples, in_)), draw((out, in_), 1)
            scales = 2.0 ** (torch.arange(samples) % 5), torch.ones(out)
            found = [gpu.matmul(*map(torch.from_numpy, (x, w)), *s) for s in ((), scales)]
            kept.extend(found)
            assert_array_equal(found[0].numpy(), exact(x, w))
            # Powers of two, and sums below 2^24: exact in float32.
            assert_array_equal(found[1].numpy(), exact(x, w) * scales[0].numpy()[:, None])

    must_fail(monkeypatch, tmp_path, triton_kernels, old, new, check)


def test_a_large_tile_loads_less_than_a_quarter_word_for_each_dp4a():
    # 8 x 4 sums a thread: 8 + 4 loads of two words for 64 instructions, and loads of scales.  Of a
    # tile with two axes the compiler gives a thread one column: more than half a load for each.
    reports = contract.read(["dp4a_matmul"], [75])
    large = [row.instructions for row in reports if row.name.startswith("4096")]
    assert large
    assert max(found["LDG"] / found["IDP"] for found in large) < 0.25


# samples, in, out: one word; two blocks side by side, two tiles deep; two blocks below each other.
SIMULATED = [(1, 1, 1), (3, 33, 66), (65, 5, 2)]
SIMULATION = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np
from qbook.kernels.dp4a_matmul import cuda_kernel

def check(kernel, shapes):
    for samples, in_, out in shapes:
        rng = np.random.default_rng(0)
        x, w = (rng.integers(-128, 128, (n, in_)).astype(np.int8) for n in (samples, out))
        x[:, 0] = w[:, 0] = -128
        exact = x.astype(np.int64) @ w.astype(np.int64).T
        found = kernel.matmul(x, w)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, exact)
        # Powers of two, and sums below 2^24: exact in float32.
        scales = [2.0 ** (np.arange(n) % 5) for n in (samples, out)]
        found = kernel.matmul(x, w, *scales)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, exact * scales[0][:, None] * scales[1])

def failed(number, old, new, shapes):
    source = Path(cuda_kernel.__file__).read_text()
    assert old in source, f"the fault's place is gone: {old!r}"
    path = Path(sys.argv[1]) / f"faulty_{number}.py"
    path.write_text(source.replace(old, new, 1))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        check(module, shapes)
    except AssertionError:
        return True
    return False

asked = json.load(sys.stdin)
check(cuda_kernel, asked["shapes"])
faults = asked.get("faults", [])
print(json.dumps([failed(i, old, new, asked["shapes"]) for i, (old, new) in enumerate(faults)]))
"""


def simulate(folder, **asked):
    """Run the check in another process: Numba decides at import whether it simulates."""
    done = subprocess.run(
        [sys.executable, "-c", SIMULATION, str(folder)],
        input=json.dumps(asked),
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cuda_kernel_gives_the_sums_of_64_bit_integers_in_the_simulator(tmp_path):
    simulate(tmp_path, shapes=SIMULATED)


CUDA_FAULTS = [
    ("edges of rows", "inside and n < N", "inside and n < N - 1"),
    ("edges of words", "k + word < words", "k + word < words - 1"),
    ("columns of a thread", "tile_B[word, x + j * THREADS]", "tile_B[word, x * SHARE + j]"),
    ("depth", "range(0, words, DEPTH)", "range(0, DEPTH, DEPTH)"),
    ("outputs", "if m < M and n < N:", "if m < M - 1 and n < N:"),
    ("scales", "(scale_A[m] * scale_B[n])", "(scale_A[m] * scale_B[0])"),
]


def test_a_seeded_fault_of_the_cuda_kernel_is_found(tmp_path):
    faults = [fault[1:] for fault in CUDA_FAULTS]
    found = simulate(tmp_path, shapes=[(3, 33, 5)], faults=faults)
    assert found == [True] * len(faults)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_the_cuda_kernel_compiles_to_dp4a_and_keeps_its_sums_in_registers(capability, scaled):
    from numba.cuda.cudadrv.error import NvvmSupportError

    from qbook.kernels.dp4a_matmul import cuda_kernel

    try:
        ptx = cuda_kernel.compile_for(capability, scaled)
    except (NvvmSupportError, OSError) as error:
        pytest.skip(f"Numba finds no libnvvm; install a CUDA toolkit to compile ({error})")
    assert ptx.count("dp4a.s32.s32") == cuda_kernel.SHARE**2
    assert ".local" not in ptx
    # Two tiles in shared memory, loaded word by word: 2 SHARE loads for SHARE^2 instructions.
    assert ptx.count("ld.shared") == 2 * cuda_kernel.SHARE


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.int8)), "uint8.*int8"),
        ((draw((2, 3)), draw((2, 4))), r"\(2, 3\).*\(2, 4\)"),
        ((draw((2, 3)), draw((2, 3)), [1.0, 2.0]), "scale is missing"),
        ((draw((2, 3)), draw((4, 3)), [1.0, 2.0], [1.0]), r"\(2,\) and \(1,\).*\(2,\) and \(4,\)"),
    ],
)
def test_the_cuda_kernel_tells_what_does_not_fit(arguments, told):
    from qbook.kernels.dp4a_matmul import cuda_kernel

    with pytest.raises(ValueError, match=told):
        cuda_kernel.matmul(*arguments)
