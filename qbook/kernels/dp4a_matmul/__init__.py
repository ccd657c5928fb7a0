"""int8 products by the instruction dp4a, on a GPU's ordinary cores.  Book: 6.1"""
