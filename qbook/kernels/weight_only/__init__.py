"""Products with weights of four or two bits, packed until they are multiplied.  Book: 6.1"""
