"""LLM.int8(): columns of x with outliers are multiplied in floating point, all the others in int8.

    x w^T  ~  s_x s_w sum_(k not in O) q_x q_w  +  sum_(k in O) x_k w_k
    O      =  the columns k in which some |x| >= threshold

Dettmers et al. 2022, arXiv:2208.07339, section 3.1 (vector-wise quantization: a scale for each row
of x and for each output) and section 3.2, eq. 8 (the decomposition).  Book: 5.1

The 16-bit part of the paper is computed in the type of x.  What the released code, bitsandbytes,
does otherwise: ``quantize_inputs_as_released``, and ``w_float=None`` in ``linear``.
"""

from array_api_compat import array_namespace

from qbook import affine, integer_product


def outlier_columns(x, threshold=6.0):
    """x [samples, in] -> the columns in which some magnitude reaches the threshold, ascending

    threshold: 0 takes every column, infinity none.  Raises ValueError for one below 0, or NaN.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold} is no magnitude; choose 0 or more, 6.0 is usual")
    xp = array_namespace(x)
    return xp.nonzero(xp.any(xp.abs(x) >= threshold, axis=0))[0]


def quantize_inputs(x, threshold=6.0, bits=8):
    """x [samples, in] -> codes [samples, in], qparams with a scale for each row, outlier columns

    Codes of outlier columns are 0, and the scale of a row covers what is left of it.
    threshold: None: no column is taken out, which is the vector-wise quantization of section 3.1.
    Raises ValueError as ``outlier_columns``, and for NaN or infinity outside of its columns.
    """
    columns = outlier_columns(x, float("inf") if threshold is None else threshold)
    # A copy.
    rest = x + 0
    rest[:, columns] = 0
    qparams = affine.choose_qparams(rest, bits, axis=1)
    return affine.quantize(rest, qparams), qparams, columns


def quantize_inputs_as_released(x, threshold=6.0):
    """The same as bitsandbytes 0.50 computes it: ``int8_vectorwise_quant``, 8 bits.

    Before the scales are taken *elements* that reach the threshold become 0, not columns: what is
    small in an outlier column counts for its row's scale, though its code is 0 afterwards.
    """
    xp = array_namespace(x)
    columns = outlier_columns(x, threshold)
    small = xp.where(xp.abs(x) >= threshold, xp.zeros_like(x), x)
    qparams = affine.choose_qparams(small, 8, axis=1)
    # Its order of operations, 127 / top, is not that of ``affine``: other codes next to a tie.
    top = xp.astype(xp.max(xp.abs(small), axis=1, keepdims=True), qparams.scale.dtype)
    codes = xp.astype(xp.round(small * (127.0 / xp.where(top == 0, top + 1, top))), xp.int8)
    codes[:, columns] = 0
    return codes, qparams, columns


def linear(x, w_codes, w_qparams, w_float=None, *, threshold=6.0, quantize=quantize_inputs):
    """x [samples, in], w_codes [out, in], its scale [out, 1] -> x w^T [samples, out]

    w_float:   [out, in], what outliers are multiplied with: the weight in the paper.  None: what
               its codes stand for, as in bitsandbytes, which keeps no other weight
    quantize:  ``quantize_inputs``, or the released one
    The int8 sum is exact.  Raises ValueError as ``quantize`` and ``integer_product.linear`` do.
    """
    xp = array_namespace(x)
    codes, qparams, columns = quantize(x, threshold)
    w_float = affine.dequantize(w_codes, w_qparams) if w_float is None else w_float
    outliers = xp.matmul(x[:, columns], xp.astype(w_float[:, columns], x.dtype).T)
    return integer_product.linear(codes, qparams, w_codes, w_qparams) + outliers


def simulate(model, *, threshold=6.0, bits=8, names=None, keep_floats=True):
    """-> a copy whose Linears, or those that are named, compute as ``linear`` does; the model stays

    threshold:    None: vector-wise quantization without decomposition, W8A8
    keep_floats:  outliers meet the weight itself, as in the paper; else what its codes stand for
    The arithmetic stays floating point, see ``llm_int8_linear``.
    Raises ValueError for a name that is no Linear of the model, bits outside 1..16, a threshold
    below 0.
    """
    import copy

    from torch import nn

    from qbook.llm.llm_int8_linear import SimulatedLinear

    known = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    copied = copy.deepcopy(model)
    for name in known if names is None else names:
        if name not in known:
            raise ValueError(f"no Linear is called {name!r}; this model has {', '.join(known)}")
        simulated = SimulatedLinear(
            known[name], threshold=threshold, bits=bits, keep_floats=keep_floats
        )
        copied.set_submodule(name, simulated)
    return copied
