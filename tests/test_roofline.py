import numpy as np
import pytest

from qbook import roofline


def counted(samples, in_, out):
    """Naive reference: count what three loops do and touch."""
    operations, touched = 0, set()
    for s in range(samples):
        for o in range(out):
            for i in range(in_):
                operations += 2
                touched |= {("w", o, i), ("x", s, i), ("y", s, o)}
    names = [name for name, *_ in touched]
    return operations, names.count("w"), names.count("x"), names.count("y")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (4, 3, 5)])
def test_operations_and_bytes_are_those_of_three_loops(shape):
    operations, w, x, y = counted(*shape)
    assert roofline.matmul_operations(*shape) == operations
    found = roofline.matmul_bytes(*shape, weight_bits=4, input_bits=8, output_bits=32)
    assert found == (4 * w + 8 * x + 32 * y) / 8


@pytest.mark.parametrize("intensity", [0.1, 1.0, 10.0, 1000.0])
def test_time_and_rate_are_two_readings_of_one_bound(intensity):
    machine = {"peak": 100.0, "bandwidth": 7.0}
    operations = 1e6
    time = roofline.seconds(operations, operations / intensity, **machine)
    # Three roundings of float64 on either side.
    np.testing.assert_allclose(
        operations / time, roofline.attainable(intensity, **machine), rtol=1e-14
    )


def test_the_roof_bends_where_the_machine_is_in_balance():
    machine = roofline.A100
    balance = machine.balance("float16")
    peak, bandwidth = machine.peak["float16"], machine.bandwidth
    below = roofline.attainable(balance / 2, peak=peak, bandwidth=bandwidth)
    above = roofline.attainable(balance * 2, peak=peak, bandwidth=bandwidth)
    assert abs(below / peak - 0.5) <= 1e-14
    assert above == peak


@pytest.mark.parametrize("seed", range(20))
def test_no_speed_up_lies_outside_the_two_ratios(seed):
    # The theorem of chapter 1.1: between the ratio of peaks and the ratio of bytes.
    rng = np.random.default_rng(seed)
    operations, moved, peak, bandwidth = rng.lognormal(sigma=3, size=4)
    faster, fewer = rng.lognormal(sigma=1, size=2)
    before = roofline.seconds(operations, moved, peak=peak, bandwidth=bandwidth)
    after = roofline.seconds(operations, moved / fewer, peak=faster * peak, bandwidth=bandwidth)
    low, high = min(faster, fewer), max(faster, fewer)
    # A handful of float64 roundings.
    assert low * (1 - 1e-14) <= before / after <= high * (1 + 1e-14)


def test_the_data_sheet_is_the_vendors():
    # NVIDIA A100 data sheet, 80 GB SXM: dense tensor-core peaks, and 2,039 GB/s.
    peak = roofline.A100.peak
    assert (peak["float16"], peak["int8"], peak["int4"]) == (312e12, 624e12, 1248e12)
    assert roofline.A100.bandwidth == 2.039e12


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_bad_machines_are_named(bad):
    with pytest.raises(ValueError, match="peak"):
        roofline.seconds(1.0, 1.0, peak=bad, bandwidth=1.0)
    with pytest.raises(ValueError, match="bandwidth"):
        roofline.attainable(1.0, peak=1.0, bandwidth=bad)
