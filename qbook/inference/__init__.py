"""Modules that hold packed weights and compute on the kernels: what a quantized model runs on.

Book: 6.2
"""
