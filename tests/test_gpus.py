"""Data sheets can only be compared: with each other, with the laws of the chip, with the vendor."""

import dataclasses

import pytest

from qbook import gpus

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "fp8": 8, "int4": 4, "fp4": 4}


@pytest.mark.parametrize("gpu", gpus.ALL, ids=lambda gpu: gpu.name)
def test_a_tensor_core_is_twice_as_fast_for_each_halving_of_the_width(gpu):
    for dtype, peak in gpu.peak.items():
        if dtype != "float32":
            # The sheets round to three figures: one in 100 at most.
            assert abs(peak * BITS[dtype] / (16 * gpu.peak["float16"]) - 1) <= 0.01


@pytest.mark.parametrize("gpu", gpus.ALL, ids=lambda gpu: gpu.name)
def test_every_figure_is_positive_and_of_a_known_type(gpu):
    assert set(gpu.peak) <= set(BITS)
    assert min(*gpu.peak.values(), gpu.bandwidth, gpu.memory) > 0
    # Between a gigabyte and a terabyte; between a tenth and ten terabytes a second.
    assert 1e9 < gpu.memory < 1e12
    assert 1e11 < gpu.bandwidth < 1e13
    assert gpu.source.startswith("NVIDIA")


def test_an_h200_is_an_h100_with_another_memory():
    changed = {
        field.name
        for field in dataclasses.fields(gpus.H100)
        if getattr(gpus.H100, field.name) != getattr(gpus.H200, field.name)
    }
    assert changed == {"name", "bandwidth", "memory", "source"}
    assert gpus.H200.bandwidth > gpus.H100.bandwidth


def test_the_balance_is_operations_for_each_byte():
    # By hand: 989.4 / 4.8 and 65 / 0.32.
    assert abs(gpus.H200.balance("float16") - 206.125) <= 1e-9
    assert abs(gpus.T4.balance("float16") - 203.125) <= 1e-9


@pytest.mark.parametrize(
    ("gpu", "multiprocessors", "cores", "clock"),
    # NVIDIA's white papers on Turing, Ampere and Hopper: multiprocessors, float16 multiply-adds
    # of one of them in a cycle, boost clock in Hz.
    [(gpus.T4, 40, 512, 1.59e9), (gpus.A100, 108, 1024, 1.41e9), (gpus.H100, 132, 2048, 1.83e9)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_peak_is_what_the_clock_makes_of_the_cores(gpu, multiprocessors, cores, clock):
    # Clocks and peaks are given in three figures: one in 200.
    assert abs(2 * multiprocessors * cores * clock / gpu.peak["float16"] - 1) <= 0.005


def test_types_are_listed_where_the_generation_has_them():
    has = {gpu.name: set(gpu.peak) for gpu in gpus.ALL}
    assert {name for name, types in has.items() if "int4" in types} == {
        gpus.T4.name,
        gpus.A100.name,
    }
    assert {name for name, types in has.items() if "fp8" in types} == {
        gpu.name for gpu in (gpus.L4, gpus.H100, gpus.H200, gpus.B200)
    }
    assert {name for name, types in has.items() if "fp4" in types} == {gpus.B200.name}
