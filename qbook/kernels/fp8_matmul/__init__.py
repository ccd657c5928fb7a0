"""FP8 matrix products.  Book: 6.1"""
