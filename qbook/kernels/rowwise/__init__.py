"""Quantization to int8 with a scale per row or per column.  Book: 6.2"""
