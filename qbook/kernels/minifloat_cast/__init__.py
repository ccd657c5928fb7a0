"""float32 to FP8 and its shorter relatives, to NF4, and back.  Book: 2.5, 6.2"""
