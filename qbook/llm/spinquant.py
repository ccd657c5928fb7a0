"""SpinQuant: which rotation?  Let the loss of the quantized model choose.

Every rotation leaves the real model as it is and changes what rounding does to it.  Gradient
descent over rotations moves along the manifold by Cayley's transform, which never leaves it:

    a     = g q^T - q g^T                       skew, g the gradient of the loss by q
    q_new = (I + lr/2 a)^-1 (I - lr/2 a) q      orthogonal for every lr

Liu et al. 2025, arXiv:2405.16406, section 3.2; the transform as a step is Wen and Yin 2013, "A
feasible method for optimization with orthogonality constraints", eq. 7.  Book: 5.9
"""

import math

import torch
from torch.func import functional_call

from qbook import affine
from qbook.llm import quarot
from qbook.ste import fake_quantize_ste


def cayley_step(q, gradient, lr):
    """q [n, n] orthogonal, gradient of the loss by its entries [n, n] -> q a step of lr downhill

    Computed in float64, solved exactly; the authors iterate the same equation five times.
    Raises ValueError for a gradient that is not finite.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError("the gradient holds NaN or infinity; lower lr or look at the loss")
    wide, g = q.double(), gradient.double()
    a = (lr / 2) * (g @ wide.T - wide @ g.T)
    eye = torch.eye(len(q), dtype=torch.float64, device=q.device)
    return torch.linalg.solve(eye + a, (eye - a) @ wide).to(q)


def learn(
    model,
    stream,
    loss,
    q,
    *,
    steps=100,
    lr=1.5,
    bits=None,
    through_scale=False,
    skip=(),
    report=None,
):
    """-> q [width, width], learned: the stream rotated by it suits the quantized model better

    model:  norms fused (``quarot.fuse``); its inputs are to be rounded by hooks that let gradients
            pass, as ``round_inputs`` sets them
    loss:   function (call, step) -> a loss, where call(x) is the rotated model at x
    q:      the first rotation, such as ``hadamard.matrix(width, seed=0)``
    steps, lr: the paper's numbers; lr falls along half a cosine.  The paper's skew matrix is half
            of a, so that its lr of 1.5 goes half as far; its code adds momentum and bounds the step
    bits:   None: weights stay real, as in the paper, which rounds them afterwards by GPTQ; else
            readers and writers are rounded to nearest, a scale for each output
    through_scale: see ``round_inputs``; here of the weights
    skip:   names among them that stay real
    report: called with step and loss
    """
    linears = {*stream.writers, *(name for names in stream.readers.values() for name in names)}
    linears -= set(skip)
    for step in range(steps):
        leaf = q.detach().requires_grad_()
        tensors = quarot.rotated_tensors(model, stream, leaf)
        if bits is not None:
            rounded = {f"{n}.weight": tensors[f"{n}.weight"] for n in linears}
            rounding = {"axis": 1, "symmetric": True, "through_scale": through_scale}
            tensors |= {name: fake_quantize(w, bits, **rounding) for name, w in rounded.items()}
        value = loss(lambda x, t=tensors: functional_call(model, t, (x,)), step)
        (gradient,) = torch.autograd.grad(value, leaf)
        rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
        q = cayley_step(q, gradient, rate)
        if report:
            report(step, value.item())
    return q


def round_inputs(model, names, bits, *, through_scale=False):
    """Hooks on the named Linears: inputs rounded, a scale and zero-point for each token, gradients
    straight through.  -> the handles; the model is changed until ``handle.remove()``.

    through_scale: the gradient knows that the step depends on x, see ``fake_quantize``
    """
    rounding = {"axis": -1, "symmetric": False, "through_scale": through_scale}
    return [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x: (fake_quantize(x[0], bits, **rounding), *x[1:])
        )
        for name in names
    ]


def fake_quantize(x, bits, *, axis, symmetric, through_scale=False):
    """torch x [...] -> ``affine.fake_quantize`` with its min-max range of this axis, differentiable

    through_scale: False: the gradient is 1, as in the authors' code, which holds the step s fixed;
                   True: x_hat = x + r s with r = x_hat / s - x / s fixed, so that the gradient is
                   1 + r ds/dx and a shorter step is seen to make smaller errors
    """
    qparams = affine.choose_qparams(x.detach(), bits, axis=axis, symmetric=symmetric)
    if not through_scale:
        return fake_quantize_ste(x, qparams)
    high = x.amax(dim=axis, keepdim=True).clamp(min=0)
    low = x.amin(dim=axis, keepdim=True).clamp(max=0)
    step = torch.maximum(high, -low) / qparams.qmax
    if not symmetric:
        step = (high - low) / (qparams.qmax - qparams.qmin)
    error = affine.fake_quantize(x.detach(), qparams) - x.detach()
    return x + error / qparams.scale * step
