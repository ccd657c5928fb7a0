"""Data sheets of GPUs: the most that their vendor promises.

Dense figures: a figure for matrices in which half of the weights are zero is halved.  A type is
listed only where the tensor cores multiply it (float32: the ordinary cores) and the vendor states
the rate.  Nothing here was measured.  Book: 6.1
"""

import dataclasses

from qbook.roofline import A100, Machine

# A multiplication with float32 sums; int8 and int4 with int32 sums.
T4 = Machine(
    name="NVIDIA T4",
    peak={"float32": 8.1e12, "float16": 65e12, "int8": 130e12, "int4": 260e12},
    bandwidth=320e9,
    memory=16e9,
    source="NVIDIA T4 Tensor Core GPU data sheet, 2019",
)

# The sheet's figures are those with zeros: 242, 485 and 485.
L4 = Machine(
    name="NVIDIA L4",
    peak={
        "float32": 30.3e12,
        "float16": 121e12,
        "bfloat16": 121e12,
        "int8": 242.5e12,
        "fp8": 242.5e12,
    },
    bandwidth=300e9,
    memory=24e9,
    source="NVIDIA L4 Tensor Core GPU data sheet, 2023",
)

H100 = Machine(
    name="NVIDIA H100 SXM",
    peak={
        "float32": 66.9e12,
        "float16": 989.4e12,
        "bfloat16": 989.4e12,
        "int8": 1978.9e12,
        "fp8": 1978.9e12,
    },
    bandwidth=3.35e12,
    memory=80e9,
    source="NVIDIA H100 Tensor Core GPU Architecture, white paper, 2022; bandwidth: data sheet",
)

# The same chip with more and faster memory.
H200 = dataclasses.replace(
    H100,
    name="NVIDIA H200 SXM",
    bandwidth=4.8e12,
    memory=141e9,
    source="NVIDIA H200 Tensor Core GPU data sheet, 2024; peaks as of the H100",
)

# Of eight in an HGX B200.
B200 = Machine(
    name="NVIDIA B200",
    peak={
        "float32": 80e12,
        "float16": 2250e12,
        "bfloat16": 2250e12,
        "int8": 4500e12,
        "fp8": 4500e12,
        "fp4": 9000e12,
    },
    bandwidth=8e12,
    memory=192e9,
    source="NVIDIA Blackwell Architecture, technical brief, 2024",
)

ALL = (T4, A100, L4, H100, H200, B200)
