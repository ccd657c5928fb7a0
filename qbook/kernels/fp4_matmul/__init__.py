"""Products with weights in four-bit floating-point and NormalFloat formats.  Book: 6.1"""
