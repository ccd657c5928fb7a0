"""AdaRound: learn for every weight whether to round down or up, from the layer's output.

    w_hat = scale * (clip(floor(w / scale) + zero_point + h(v), qmin, qmax) - zero_point)

with one logit v a weight and h the rectified sigmoid (Louizos et al. 2018, arXiv:1712.01312).
Minimised over v:  mean over samples of |y - w_hat x|^2  +  lam * sum(1 - |2 h(v) - 1|^beta).
Nagel et al. 2020, arXiv:2004.10568, eq. 21-25, for a linear layer and without its activation.
Book: 4.1

The samples enter through the Gram matrix alone, so a step costs out * in^2 whatever their number,
every step sees all of them, and nothing is random.
"""

from dataclasses import replace

from array_api_compat import array_namespace, device

from qbook import affine

# Logits of weights that lie on the grid start at the corner of h, up to rounding noise.
CORNER = 1e-6


def rectified_sigmoid(v, *, zeta=1.1, gamma=-0.1):
    """v [...] -> h = clip(sigmoid(v) * (zeta - gamma) + gamma, 0, 1): 0 and 1 are reached.

    zeta = 1, gamma = 0 is the plain sigmoid, which reaches neither.
    """
    xp = array_namespace(v)
    return xp.clip(_stretched(xp, _sigmoid(xp, v), zeta, gamma), 0.0, 1.0)


def initial_logits(fraction, *, zeta=1.1, gamma=-0.1):
    """fraction [...] in [0, 1) -> v with rectified_sigmoid(v) = fraction: w_hat starts as w.

    Raises ValueError where no finite v exists: fraction <= gamma or >= zeta.
    """
    xp = array_namespace(fraction)
    if not bool(xp.all((fraction > gamma) & (fraction < zeta))):
        raise ValueError(
            f"a fraction outside ({gamma}, {zeta}) has no finite logit; stretch the sigmoid, "
            "as the defaults zeta=1.1, gamma=-0.1 do"
        )
    return -xp.log((zeta - gamma) / (fraction - gamma) - 1)


def regulariser(h, beta):
    """h [...] in [0, 1] -> sum(1 - |2 h - 1|^beta), 0 where every h is 0 or 1.

    A float.  beta = 1 is twice the sum of min(h, 1 - h).  Raises ValueError unless beta >= 1.
    """
    if not beta >= 1:
        raise ValueError(f"beta={beta} makes the slope at h = 1/2 infinite; choose beta >= 1")
    xp = array_namespace(h)
    return float(xp.sum(1 - xp.abs(2 * h - 1) ** beta))


def anneal(step, steps, *, beta=(20, 2), warmup=0.2):
    """Exponent of the regulariser at a step 0 ... steps - 1, or None during the warm-up.

    Falls linearly (BRECQ's code; AIMET's follows a cosine) from beta[0] to beta[1] at step = steps.
    Raises ValueError for an exponent below 1, as ``regulariser`` does.
    """
    if not min(beta) >= 1:
        raise ValueError(f"beta={beta} goes below 1; the slope at h = 1/2 would be infinite")
    start = warmup * steps
    if step < start:
        return None
    return beta[1] + (beta[0] - beta[1]) * (steps - step) / (steps - start)


def hard_round(w, v, qparams):
    """w, v [out, in] -> integer codes: floor where v < 0, floor + 1 elsewhere, clipped.

    v < 0 is h(v) < 1/2 for every zeta + gamma = 1.
    """
    xp = array_namespace(w)
    codes = affine.quantize(w, qparams)
    steps, _, zero_point = _steps(w, qparams)
    up = xp.astype(v >= 0, steps.dtype)
    return xp.astype(
        xp.clip(xp.floor(steps) + zero_point + up, qparams.qmin, qparams.qmax), codes.dtype
    )


def errors(w, codes, x, qparams, *, y=None):
    """w, codes [out, in], x [samples, in] -> mean over samples of (y - w_hat x)^2, [out, 1].

    y [samples, out]: the wanted output, default x w^T.  Units: those of y, squared.
    """
    gram, owed, constant = _statistics(w, x, y)
    xp = array_namespace(w)
    delta = xp.astype(affine.dequantize(codes, qparams), gram.dtype) - xp.astype(w, gram.dtype)
    return xp.sum(delta * (delta @ gram - 2 * owed), axis=1, keepdims=True) + constant


def balance(w, x, qparams, *, y=None, strength=30.0):
    """-> lam [out, 1]: ``strength`` times nearest rounding's error, shared out over a row's inputs.

    The paper's lam is a constant, which binds it to the unit of y.  With this one the codes do not
    change with the unit, as long as the slopes stay far above Adam's epsilon of 1e-8.
    """
    nearest = errors(w, affine.quantize(w, qparams), x, qparams, y=y)
    return strength * nearest / w.shape[1]


def descend(
    w,
    x,
    qparams,
    *,
    y=None,
    steps=1000,
    learning_rate=0.01,
    lam=None,
    beta=(20, 2),
    warmup=0.2,
    zeta=1.1,
    gamma=-0.1,
):
    """Yield the logits v [out, in]: the initial ones, then after each of ``steps`` Adam steps.

    w [out, in], x [samples, in], y [samples, out] or None for x w^T.  With x from the quantized
    network and y from the real one it is the paper's asymmetric reconstruction.
    lam: weight of the regulariser, in squared units of y: a float (the paper's is 0.01), an array
    [out, 1], or None for ``balance``.  The paper takes 10 000 steps of 1e-3 on 32 images each;
    a tenth of the steps of ten times the size do when all are seen at once.
    Raises ValueError for NaN, shapes that do not fit, and fewer samples than inputs.
    """
    affine.quantize(w, qparams)
    gram, owed, _ = _statistics(w, x, y)
    xp = array_namespace(w)
    position, scale, zero_point = (xp.astype(a, gram.dtype) for a in _steps(w, qparams))
    floor = xp.floor(position)
    lam = balance(w, x, qparams, y=y) if lam is None else lam
    v = initial_logits(position - floor, zeta=zeta, gamma=gamma)
    mean, square = xp.zeros_like(v), xp.zeros_like(v)
    yield v
    for step in range(steps):
        sigmoid = _sigmoid(xp, v)
        stretched = _stretched(xp, sigmoid, zeta, gamma)
        h = xp.clip(stretched, 0.0, 1.0)
        raw = floor + zero_point + h
        code = xp.clip(raw, qparams.qmin, qparams.qmax)
        delta = scale * (code - zero_point - position)
        slope = 2 * (delta @ gram - owed) * scale * xp.astype(code == raw, v.dtype)
        exponent = anneal(step, steps, beta=beta, warmup=warmup)
        if exponent is not None:
            slope = slope + lam * _regulariser_slope(xp, h, exponent)
        alive = (stretched > -CORNER) & (stretched < 1 + CORNER)
        slope = slope * (zeta - gamma) * sigmoid * (1 - sigmoid) * xp.astype(alive, v.dtype)
        # Adam, arXiv:1412.6980, with its defaults.
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        momentum = mean / (1 - 0.9 ** (step + 1))
        spread = xp.sqrt(square / (1 - 0.999 ** (step + 1)))
        v = v - learning_rate * momentum / (spread + 1e-8)
        yield v


def optimise(w, x, qparams, *, y=None, **schedule):
    """w [out, in], x [samples, in], y [samples, out] or None -> integer codes [out, in].

    Learnt, rounded hard, and kept row by row only where ``errors`` falls below nearest rounding's:
    the result is never worse than nearest on the calibration samples.  The paper has no such guard.
    schedule: the keywords of ``descend``, which also says what raises ValueError.
    """
    for logits in descend(w, x, qparams, y=y, **schedule):
        v = logits
    nearest = affine.quantize(w, qparams)
    learnt = hard_round(w, v, qparams)
    better = errors(w, learnt, x, qparams, y=y) < errors(w, nearest, x, qparams, y=y)
    return array_namespace(w).where(better, learnt, nearest)


def _sigmoid(xp, v):
    # tanh does not overflow where exp(-v) would.
    return 0.5 + 0.5 * xp.tanh(0.5 * v)


def _stretched(xp, sigmoid, zeta, gamma):
    return sigmoid * (zeta - gamma) + gamma


def _regulariser_slope(xp, h, beta):
    centred = 2 * h - 1
    return -2 * beta * xp.sign(centred) * xp.abs(centred) ** (beta - 1)


def _steps(w, qparams):
    """-> w / scale as ``affine.quantize`` computes it, scale and zero_point of every weight."""
    xp = array_namespace(w)
    ones = xp.ones(w.shape, dtype=xp.int32, device=device(w))
    no_offset = replace(qparams, zero_point=xp.zeros_like(qparams.zero_point))
    scale = affine.dequantize(ones, no_offset)
    unit = replace(qparams, scale=xp.ones_like(qparams.scale))
    return xp.astype(w, scale.dtype) * (1.0 / scale), scale, -affine.dequantize(0 * ones, unit)


def _statistics(w, x, y):
    """-> x^T x, (y - x w^T)^T x and the column means of (y - x w^T)^2, all per sample."""
    xp = array_namespace(w, x)
    if w.ndim != 2 or x.ndim != 2 or w.shape[1] != x.shape[1]:
        raise ValueError(f"w {tuple(w.shape)} and x {tuple(x.shape)} are not [out, in], [n, in]")
    samples, out = x.shape[0], w.shape[0]
    if samples < x.shape[1]:
        raise ValueError(
            f"{samples} samples cannot fix the roundings of {x.shape[1]} inputs; pass at least "
            f"{x.shape[1]}"
        )
    dtype = xp.float64 if w.dtype == xp.float64 else xp.float32
    w, x = xp.astype(w, dtype), xp.astype(x, dtype)
    gap = xp.zeros((samples, out), dtype=dtype, device=device(w))
    if y is not None:
        if tuple(y.shape) != (samples, out):
            raise ValueError(f"y has shape {tuple(y.shape)}; [samples, out] is {(samples, out)}")
        gap = xp.astype(y, dtype) - x @ w.T
    if not (bool(xp.all(xp.isfinite(x))) and bool(xp.all(xp.isfinite(gap)))):
        raise ValueError("x or y holds NaN or infinity; calibrate on finite values only")
    constant = xp.sum(gap**2, axis=0)[:, None] / samples
    return x.T @ x / samples, gap.T @ x / samples, constant
