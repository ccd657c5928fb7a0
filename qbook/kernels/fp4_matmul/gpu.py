"""MXFP4, NVFP4 and NF4 on a GPU."""

from qbook.kernels.weight_only import matmul as weight_only


def contracts(architecture):
    for name, group_size in (("mxfp4", 32), ("nvfp4", 16), ("nf4", 64)):
        yield from weight_only.contracts(name, architecture, group_size)
