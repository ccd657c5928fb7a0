"""The survey's CUDA kernel, completed: int8 tiles in shared memory, products by dp4a.

    build     -> the kernel: C int32, the sums, or float32, the sums times scale_A scale_B
    matmul    checks, views codes as words, launches

CUDA C++ in all but spelling: Numba compiles Python to the same PTX.  A block of 16 x 16 threads
computes 64 x 64 outputs, a thread 4 x 4 of them.  Nothing is compiled at import; without a GPU the
kernels run in Numba's simulator, in a process started with ``NUMBA_ENABLE_CUDASIM=1``.  Book: 6.1
"""

import functools

import numpy as np
from numba import config, cuda, float32, int32

from qbook.kernels.dp4a_matmul import reference

if config.ENABLE_CUDASIM:
    dp4a = reference.dp4a
else:
    from numba.cuda.extending import intrinsic

    @intrinsic
    def dp4a(_, a, b, c):
        """Words a and b, sum c, int32 -> c + four products: inline assembly, as asm() in C++"""

        def emit(context, builder, signature, arguments):
            from llvmlite import ir

            word = ir.IntType(32)
            text = "dp4a.s32.s32 $0, $1, $2, $3;"
            code = ir.InlineAsm(ir.FunctionType(word, [word] * 3), text, "=r,r,r,r")
            return builder.call(code, arguments)

        return int32(int32, int32, int32), emit


# Threads along each side of a block; outputs along each side of a thread's share; words of four
# inputs that a tile is deep.
THREADS, SHARE, DEPTH = 16, 4, 8
SIDE = THREADS * SHARE
# Four words more in each line of shared memory.  A warp fills 8 words of 4 rows, at the places
# 68 word + row: 32 different banks.  With lines of 64 words they would be 4.
LINE = SIDE + 4


@functools.cache
def build(scaled):
    """-> the kernel: C float32 = scale_A scale_B A B^T, or, not scaled, C int32 = A B^T"""

    @cuda.jit
    def quantized_gemm_kernel(A, B, C, scale_A, scale_B):
        """A int32 [M, words], B int32 [N, words], C [M, N], scale_A [M], scale_B [N]"""
        # One a line: the simulator takes shared arrays of one line for the same.
        tile_A = cuda.shared.array((DEPTH, LINE), int32)
        tile_B = cuda.shared.array((DEPTH, LINE), int32)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        first_m, first_n = cuda.blockIdx.y * SIDE, cuda.blockIdx.x * SIDE
        M, N, words = A.shape[0], B.shape[0], A.shape[1]

        total = cuda.local.array((SHARE, SHARE), int32)
        for i in range(SHARE):
            for j in range(SHARE):
                total[i, j] = 0

        for k in range(0, words, DEPTH):
            # All threads fill both tiles: eight neighbours read the 32 bytes of one row.
            for place in range(y * THREADS + x, SIDE * DEPTH, THREADS * THREADS):
                row, word = place // DEPTH, place % DEPTH
                m, n, inside = first_m + row, first_n + row, k + word < words
                # Beyond an edge stand zeros, which add nothing to a sum.
                tile_A[word, row] = A[m, k + word] if inside and m < M else 0
                tile_B[word, row] = B[n, k + word] if inside and n < N else 0
            # Every word is there before the first is used ...
            cuda.syncthreads()
            for word in range(DEPTH):
                for i in range(SHARE):
                    a = tile_A[word, y + i * THREADS]
                    for j in range(SHARE):
                        b = tile_B[word, x + j * THREADS]
                        total[i, j] = dp4a(a, b, total[i, j])
            # ... and the last is used before another takes its place.
            cuda.syncthreads()

        for i in range(SHARE):
            for j in range(SHARE):
                # Outputs THREADS apart, so that neighbours store to neighbours.
                m, n = first_m + y + i * THREADS, first_n + x + j * THREADS
                if m < M and n < N:
                    if scaled:
                        C[m, n] = float32(total[i, j]) * (scale_A[m] * scale_B[n])
                    else:
                        C[m, n] = total[i, j]

    return quantized_gemm_kernel


def matmul(x_codes, w_codes, x_scale=None, w_scale=None):
    """x_codes int8 [samples, in], w_codes int8 [out, in] -> int32 [samples, out]

    x_scale [samples] and w_scale [out]: the result is float32, the sums times both.
    NumPy arrays, copied to the GPU and back: to be read and checked, not to be timed.  Exact modulo
    2^32.  Raises ValueError for types and shapes that do not fit.
    """
    A, B = reference.words(x_codes), reference.words(w_codes)
    if A.ndim != 2 or B.ndim != 2 or np.shape(x_codes)[1] != np.shape(w_codes)[1]:
        raise ValueError(
            f"x_codes {np.shape(x_codes)} and w_codes {np.shape(w_codes)} do not match; "
            "choose [samples, in] and [out, in]"
        )
    if (x_scale is None) != (w_scale is None):
        raise ValueError("one scale is missing; pass both, or none for the int32 sums")
    m, n, scaled = len(A), len(B), x_scale is not None
    scales = [np.float32([0] if s is None else s) for s in (x_scale, w_scale)]
    if scaled and [s.shape for s in scales] != [(m,), (n,)]:
        raise ValueError(
            f"scales {scales[0].shape} and {scales[1].shape} do not fit; choose ({m},) and ({n},)"
        )
    dtype = np.float32 if scaled else np.int32
    if not A.size or not B.size:
        return np.zeros((m, n), dtype)
    C = cuda.device_array((m, n), dtype)
    grid, block = (-(-n // SIDE), -(-m // SIDE)), (THREADS, THREADS)
    build(scaled)[grid, block](*map(cuda.to_device, (A, B)), C, *map(cuda.to_device, scales))
    return C.copy_to_host()


def compile_for(architecture, scaled=False):
    """-> PTX of a kernel for (7, 5), (9, 0), ..., without a GPU

    Numba needs libnvvm of a CUDA toolkit for that; where there is none, it raises its own error.
    """
    words, vector = int32[:, ::1], float32[::1]
    signature = words, words, float32[:, ::1] if scaled else words, vector, vector
    return cuda.compile_ptx(build(scaled).py_func, signature, cc=architecture)[0]
