import numpy as np
import onnxruntime.quantization.calibrate as ort
import pytest
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.ranges import entropy_two_sided

SAMPLES = {
    "gaussian": lambda rng, n: rng.normal(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy-tailed": lambda rng, n: rng.standard_t(2, size=n),
    "rectified": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "negative": lambda rng, n: -1 - rng.exponential(size=n),
    "constant": lambda rng, n: np.full(n, 3.0),
    "zero": lambda rng, n: np.zeros(n),
}


def sample(name, n, dtype=np.float32):
    return SAMPLES[name](np.random.default_rng(n), n).astype(dtype)


def onnxruntime_histogram(x, num_bins, levels):
    collector = ort.HistogramCollector("entropy", False, num_bins, levels, 99.99, "same")
    collector.collect_value({"x": x})
    return collector, collector.histogram_dict["x"]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("num_bins", "levels", "n"), [(2048, 128, 30_000), (4097, 128, 2_003), (2051, 96, 501)]
)
def test_every_divergence_and_the_range_equal_onnx_runtime_bit_for_bit(
    monkeypatch, name, num_bins, levels, n
):
    theirs = []
    original = ort.entropy

    def recording(p, q):
        theirs.append(original(p, q))
        return theirs[-1]

    monkeypatch.setattr(ort, "entropy", recording)
    x = sample(name, n)
    collector, histogram = onnxruntime_histogram(x, num_bins, levels)
    low, high = collector.get_entropy_threshold(histogram, levels)

    assert entropy_two_sided.search(x, num_bins=num_bins, levels=levels) == (low, high)
    ours = entropy_two_sided.divergences(histogram[0], levels)
    assert ours.dtype == np.float32
    # ONNX Runtime does not ask for a divergence where Q is empty, and takes it as infinite.
    assert theirs or name == "constant"
    assert_array_equal(ours[np.isfinite(ours)], theirs)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "heavy-tailed", "rectified"])
@pytest.mark.parametrize("num_bins", [2048, 4097])
def test_the_range_of_float64_data_equals_onnx_runtime(name, num_bins):
    x = sample(name, 100_000, np.float64)
    collector, histogram = onnxruntime_histogram(x, num_bins, 128)
    theirs = collector.get_entropy_threshold(histogram, 128)
    assert entropy_two_sided.search(x, num_bins=num_bins) == theirs


def test_rectified_data_get_a_range_that_starts_at_zero():
    low, high = entropy_two_sided.search(sample("rectified", 10_000))
    assert low == 0 < high


def test_constant_data_give_onnx_runtime_an_empty_range_that_the_quantizer_refuses():
    low, high = entropy_two_sided.search(sample("constant", 100), num_bins=4097)
    assert low > high
    with pytest.raises(ValueError, match="the range is empty"):
        affine.qparams_from_range(low, high, 8)


def test_bins_and_levels_out_of_bounds_are_refused():
    with pytest.raises(ValueError, match=r"num_bins=128 is outside 2048\.\.8192"):
        entropy_two_sided.search(np.ones(3), num_bins=128)
    with pytest.raises(ValueError, match=r"num_bins=8193 is outside"):
        entropy_two_sided.search(np.ones(3), num_bins=8193)
    for levels in (1, 129):
        with pytest.raises(ValueError, match=rf"levels={levels} is outside 2\.\.128"):
            entropy_two_sided.search(np.ones(3), levels=levels)
