import os

# Before Numba is imported: results must not depend on the number of threads, on one core neither.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
