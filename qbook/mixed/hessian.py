"""HAWQ: how curved the loss is along a layer's weights, without ever forming the Hessian.

    trace: the mean of z^T H z over random signs z (Hutchinson)
    Omega = trace(H) / n * |w_hat - w|^2, for a layer of n weights

Trace and Omega: Dong et al. 2020 (HAWQ-V2), arXiv:1911.03852, eq. 2.11; Hutchinson 1989.  Top
eigenvalue: Dong et al. 2019 (HAWQ), arXiv:1905.03696.  Products with H: Pearlmutter 1994, here by
differentiating twice.  Book: 3.3.1
"""

import math

import numpy as np
import torch


def gradient(loss, parameters):
    """Scalar loss, dict name -> parameter -> dict name -> gradient, itself differentiable.

    Raises ValueError for a loss that is no scalar, or does not depend on every parameter.
    """
    if loss.numel() != 1:
        raise ValueError(f"the loss has shape {tuple(loss.shape)}; reduce it to a scalar")
    grads = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, allow_unused=True
    )
    unused = [name for name, g in zip(parameters, grads, strict=True) if g is None]
    if unused:
        raise ValueError(f"the loss does not depend on {', '.join(unused)}; leave them out")
    return dict(zip(parameters, grads, strict=True))


def product(grads, parameters, vectors):
    """H v: grads of ``gradient``, v in the parameters' shapes -> dict name -> rows of H v.

    H holds the second derivatives between all the parameters given, across layers too.
    """
    slope = sum((grads[name] * vectors[name]).sum() for name in parameters)
    if not slope.requires_grad:
        # A loss linear in the parameters.
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    rows = torch.autograd.grad(
        slope, list(parameters.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(parameters, rows, strict=True))


def hutchinson(loss, parameters, probes, seed=0):
    """z^T H z of each layer's own block of the Hessian, for random signs z -> dict name -> [probes]

    loss:        scalar, computed from the parameters, with its graph
    parameters:  dict, name -> tensor that requires a gradient
    One product with the whole H serves all layers, z_l^T (H z)_l.  Its mean is the trace of block
    l; its variance is 2 sum H_ij^2 over i != j within the block, plus sum H_ij^2 over i in it and
    j in another: give one layer alone to be rid of these.  float64 arrays; signs of NumPy's seed.
    """
    grads = gradient(loss, parameters)
    rng = np.random.default_rng(seed)
    samples = {name: np.empty(probes) for name in parameters}
    for k in range(probes):
        z = {name: _signs(rng, p) for name, p in parameters.items()}
        for name, row in product(grads, parameters, z).items():
            samples[name][k] = (z[name] * row).double().sum().item()
    return samples


def estimate(samples):
    """samples [probes] of ``hutchinson`` -> (mean, standard error of the mean).

    Raises ValueError for fewer than two.
    """
    samples = np.asarray(samples, np.float64)
    if samples.size < 2:
        raise ValueError(f"{samples.size} probe has no standard error; draw two or more")
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(samples.size))


def omega(trace, w, w_hat):
    """HAWQ-V2's cost of rounding a layer: trace / n * |w_hat - w|^2, n weights -> float.

    About twice the change of the loss, where the perturbation favours no direction.
    Raises ValueError for shapes that differ.
    """
    if w.shape != w_hat.shape:
        raise ValueError(f"w and w_hat have shapes {tuple(w.shape)} and {tuple(w_hat.shape)}")
    return trace * (w_hat.double() - w.double()).square().mean().item()


def top_eigenvalue(loss, parameters, *, iterations=100, tolerance=1e-3, seed=0):
    """The eigenvalue of largest magnitude of the parameters' Hessian, by power iteration -> float

    parameters:  dict as for ``hutchinson``; give one layer for its block, as HAWQ does
    tolerance:   stops when the Rayleigh quotient moves less, relatively, in one iteration
    Raises ValueError where ``iterations`` do not suffice: two eigenvalues of almost one magnitude.
    """
    grads = gradient(loss, parameters)
    rng = np.random.default_rng(seed)
    v = _scaled(
        {n: torch.from_numpy(rng.normal(size=tuple(p.shape))).to(p) for n, p in parameters.items()}
    )
    previous = math.inf
    for _ in range(iterations):
        image = product(grads, parameters, v)
        value = sum((v[name] * image[name]).double().sum().item() for name in v)
        if abs(value - previous) <= tolerance * abs(value):
            return value
        previous, v = value, _scaled(image)
    raise ValueError(
        f"after iterations={iterations} the eigenvalue {value:.4g} still moves by more than "
        f"tolerance={tolerance}; allow more of either"
    )


def _scaled(vectors):
    norm = math.sqrt(sum(v.double().square().sum().item() for v in vectors.values()))
    return {name: v / norm if norm else v for name, v in vectors.items()}


def _signs(rng, parameter):
    signs = 2 * rng.integers(0, 2, tuple(parameter.shape)) - 1
    return torch.from_numpy(signs).to(parameter)
