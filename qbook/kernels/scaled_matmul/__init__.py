"""Products of 8-bit codes with a scale per row, for a GPU: what INT8 and FP8 share.  Book: 6.1"""
