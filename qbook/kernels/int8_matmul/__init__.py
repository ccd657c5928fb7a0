"""INT8 matrix products.  Book: 6.2"""
