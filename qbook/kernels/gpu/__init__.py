"""What all GPU kernels share: the device, a launch as a value, its contract, device functions.

Nothing here imports Triton before a kernel is launched or compiled.  Book: 6.1
"""
