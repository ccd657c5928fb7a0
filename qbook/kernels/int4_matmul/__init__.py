"""Products with weights of 4 bits.  Book: 6.2"""
