"""Products of ternary weights, packed in 2 bits or in log2(243) / 5 = 1.6.  Book: 6.2"""
