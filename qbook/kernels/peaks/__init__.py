"""What the machine can do at best: the roofs that kernels are measured against.  Book: 6.2"""
