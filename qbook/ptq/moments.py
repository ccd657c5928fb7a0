"""Moments: give each output channel of a quantized weight the mean and the size it had.

    mu = mean(w) - mean(w_hat),    xi = |w - mean(w)| / |w_hat - mean(w_hat)|,    xi (w_hat + mu)

Banner et al. 2019, arXiv:1810.05723, bias correction.  Clipping shrinks weights and moves their
means, and both errors are the same for every sample.  At run time xi joins the scale, and xi mu
adds one multiple of the sum of the inputs.  Book: 3.1
"""

from array_api_compat import array_namespace, size


def correct(w, w_hat, *, resize=True):
    """w, w_hat [out, in, ...] -> [out, in, ...]: xi (w_hat + mu) of each output channel.

    resize=False: mu alone.  As in the formula, xi multiplies the mean as well.  A channel
    whose w_hat is constant keeps its size.  Raises ValueError for shapes that differ.
    """
    if w.shape != w_hat.shape:
        shapes = f"w {tuple(w.shape)} and w_hat {tuple(w_hat.shape)}"
        raise ValueError(f"{shapes} differ; pass w and its quantization")
    if size(w) == 0:
        return w_hat
    xp = array_namespace(w)
    before, after = (v.reshape((v.shape[0], -1)) for v in (w, w_hat))
    mean, mean_after = (xp.mean(v, axis=1, keepdims=True) for v in (before, after))
    xi = xp.ones_like(mean)
    if resize:
        length, length_after = (
            xp.sqrt(xp.sum((v - m) ** 2, axis=1, keepdims=True))
            for v, m in ((before, mean), (after, mean_after))
        )
        flat = length_after == 0
        xi = xp.where(flat, xi, length / xp.where(flat, xi, length_after))
    return (xi * (after + (mean - mean_after))).reshape(w.shape)
