"""Training with the quantizer in the loop: one paper, one module.

Book: 3.2
"""
