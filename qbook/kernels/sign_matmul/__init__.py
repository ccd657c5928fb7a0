"""Products of signs: XNOR and a count of ones.  Book: 6.2"""
