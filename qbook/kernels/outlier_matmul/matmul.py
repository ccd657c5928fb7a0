"""LLM.int8(): columns of x with outliers are multiplied in float, all the others in int8.

    x w^T  =  s_x s_w sum_(k not in O) q_x q_w  +  sum_(k in O) x_k w_k
    O      =  the columns k in which some |x| >= threshold

Dettmers et al. 2022, arXiv:2208.07339, section 3.2; the scales, one for each row of x and of w, are
the vector-wise quantization of 3.1.  The paper computes the second sum in 16-bit floats; here it is
float32.  One value of 60 among values around 1 makes the step of its row 20 times as coarse, and
outliers keep to few columns: without those the row has its fine step again.

bitsandbytes differs in one point: a value below the threshold counts for its row's scale even where
its column leaves the sum.  Here, as in the paper, the scale sees only what it is for.

Book: 5.1, 6.2
"""

import numpy as np

from qbook.kernels import isa, threads
from qbook.kernels.int8_matmul import matmul as int8
from qbook.kernels.int8_matmul import panels as int8_panels
from qbook.kernels.outlier_matmul import panels, reference, vectors
from qbook.kernels.rowwise import quantizer

INFINITY = 0x7F800000


def outlier_columns(x, threshold=6.0, *, use=None, num_threads=None):
    """x float32 [samples, in] -> the columns that reach the threshold anywhere, int64, ascending

    threshold: >= 0, rounded to float32; 0 takes every column, infinity none
    use: an instruction set, see ``isa``;  num_threads: see ``threads``
    Raises ValueError for another type or number of axes, NaN or infinity in x, or a threshold that
    is negative or NaN.
    """
    x = _checked(x, threshold)
    if isa.choose(use) == isa.REFERENCE:
        if not np.isfinite(x).all():
            raise ValueError("x holds NaN or infinity; quantize finite values only")
        return reference.outlier_columns(x, threshold)
    if not x.size:
        return np.empty(0, np.int64)
    tops = np.empty(x.shape[1], np.int32)
    vectors.column_tops(x, tops, threads.count(num_threads))
    if not tops.max() < INFINITY:
        raise ValueError("x holds NaN or infinity; quantize finite values only")
    return np.flatnonzero(tops.view(np.float32) >= np.float32(threshold))


def matmul(x, w, threshold=6.0, bias=None, *, use=None, num_threads=None):
    """x float32 [samples, in], w ``panels.Weight`` -> x w^T + bias, float32 [samples, out]

    threshold:  from which magnitude on a column of x stays in float, as in ``outlier_columns``
    bias:       [out] or None
    The int8 product has its bias added, then the float product, summed in ascending columns.  The
    same for any number of threads; the float products are rounded once or twice, as the processor
    can.  Raises ValueError as ``outlier_columns`` does, and for shapes that do not fit.
    """
    x = _checked(x, threshold)
    if x.shape[1] != w.shape[1]:
        raise ValueError(
            f"x is of shape {x.shape}, w of shape {w.shape}; pass x [samples, {w.shape[1]}]"
        )
    options = {"use": use, "num_threads": num_threads}
    columns = outlier_columns(x, threshold, **options)
    if isa.choose(use) == isa.REFERENCE:
        w_scale = w.scale[: w.shape[0]]
        out = reference.matmul(x, int8_panels.unpack(w.codes), w_scale, panels.unpack(w), threshold)
        return (out if bias is None else out + bias).astype(np.float32)
    rest = x
    if columns.size:
        # Code 0 adds nothing, and magnitude 0 leaves the scale to the others.
        rest = x.copy()
        rest[:, columns] = 0
    codes, scale = quantizer.quantize(rest, **options)
    w_scale = w.scale[: w.shape[0]]
    out = int8.linear(codes, scale.reshape(-1), w.codes, w_scale, bias, **options)
    if columns.size and out.size:
        floats = np.empty((1, 0, panels.LANES), np.float32) if w.floats is None else w.floats
        count = threads.count(num_threads)
        chosen = np.ascontiguousarray(x[:, columns])
        vectors.add_products(chosen, columns, w.codes.data, w.scale, floats, out, count)
    return out


def _checked(x, threshold):
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueError(f"x is of type {x.dtype} and shape {x.shape}; pass float32 [samples, in]")
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold} is no magnitude; choose 0 or more, 6.0 is usual")
    return np.ascontiguousarray(x)
