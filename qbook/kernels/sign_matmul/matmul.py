"""Products of signs: the public calls.  They check, pick the instruction set, allocate and launch.

    matmul    in - 2 popcount(x xor w), int32           linear    the same, scaled, float32

Courbariaux et al. 2016, arXiv:1602.02830, section 1.4; scales: Rastegari et al. 2016 (XNOR-Net),
arXiv:1603.05279, eq. 11.  Versions, and what each changes: ``reference`` (NumPy, unpacked),
``loops`` (words, three ways to count ones), ``vectors`` (register tiles on packed panels).
Book: 1.2, 6.2
"""

import numpy as np

from qbook.kernels import arguments, isa, threads
from qbook.kernels.sign_matmul import panels, reference, vectors


def matmul(x, w, *, use=None, num_threads=None):
    """x [samples, in], w ``panels.Panels`` -> sum_k x w, int32 [samples, out]

    x:    words uint64 [samples, ceil(in / 64)] of ``panels.pack_rows``, or numbers [samples, in],
          of which this takes the signs
    use:  an instruction set, see ``isa``;  num_threads: see ``threads``
    Exact.  Raises ValueError for shapes that do not fit, and for NaN.
    """
    words = _words(x, w)
    out = np.empty((words.shape[0], w.shape[0]), np.int32)
    _launch(use, words, w, (), out, num_threads)
    return out


def linear(x, x_scale, w, w_scale, bias=None, *, use=None, num_threads=None):
    """The sums of ``matmul`` times x_scale w_scale, plus bias -> float32 [samples, out]

    x_scale: a number or [samples];  w_scale: a number or [out];  bias: [out] or None
    XNOR-Net takes for both the mean of the magnitudes whose signs are multiplied.  The product of
    the scales is rounded first, then that with the sum, then the bias added.  Raises ValueError as
    ``matmul``, and for scales of other shapes.
    """
    words = _words(x, w)
    samples, out = words.shape[0], w.shape[0]
    x_scale = arguments.floats(x_scale, samples, "x_scale")
    lanes = out + -out % 16
    w_scale = arguments.floats(w_scale, out, "w_scale", lanes)
    bias = arguments.floats(0 if bias is None else bias, out, "bias", lanes)
    # Room behind, because sums are read sixteen at a time.
    result = np.empty(samples * out + 16, np.int32)[: samples * out].reshape(samples, out)
    _launch(use, words, w, (x_scale, w_scale, bias), result, num_threads)
    return result.view(np.float32)


def _launch(use, words, w, scales, out, num_threads):
    chosen = isa.choose(use)
    count = w.shape[1]
    if chosen == isa.REFERENCE or count == 0:
        out[:] = reference.multiply(words, panels.unpack(w), count)
        if scales:
            x_scale, w_scale, bias = scales
            columns = out.shape[1]
            total = out.astype(np.float32) * (x_scale[:, None] * w_scale[:columns])
            out.view(np.float32)[:] = total + bias[:columns]
    elif out.size:
        set_ = isa.ISAS[chosen]
        vectors.multiply(set_, words, w.data, count, scales, out, threads.count(num_threads))


def _words(x, w):
    x = np.asarray(x)
    if x.dtype != np.uint64:
        if x.ndim != 2 or x.shape[1] != w.shape[1]:
            raise ValueError(f"x is of shape {x.shape}; pass numbers [samples, {w.shape[1]}]")
        return panels.pack_rows(x)
    words = panels.words_of(w.shape[1])
    if x.ndim != 2 or x.shape[1] != words:
        raise ValueError(
            f"x is words of shape {x.shape}; pass [samples, {words}], as pack_rows makes them of "
            f"[samples, {w.shape[1]}]"
        )
    return np.ascontiguousarray(x)
