"""AdaRound against AIMET, the package of the paper's authors' laboratory.

AIMET's own requirements (27 packages beyond these tests', a second torchvision among them) are for
its front door.  The three modules compared need none of them: the fixture goes round the door.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from qbook import affine
from qbook.ptq import adaround

STEPS = 60


@pytest.fixture(scope="module")
def aimet():
    """-> (AdaroundLoss, AdaroundHyperParameters, AdaroundWrapperBase)"""
    spec = importlib.util.find_spec("aimet_torch")
    if spec is None:
        pytest.skip(
            "aimet-torch is not installed: pip install --no-deps aimet-torch -c constraints.txt"
        )
    with pytest.MonkeyPatch.context() as patch:
        # Names that the wrapper imports for a type hint and for its forward, which does not run.
        stand_ins = {
            "aimet_torch": {"__path__": list(spec.submodule_search_locations)},
            "aimet_torch.nn": {"BaseQuantizationMixin": object},
            "aimet_torch.utils": {"patch_attr": None},
        }
        for name, names in stand_ins.items():
            module = ModuleType(name)
            vars(module).update(names)
            patch.setitem(sys.modules, name, module)
        base = "aimet_torch._base.adaround.adaround_"
        loss = importlib.import_module(base + "loss")
        wrapper = importlib.import_module(base + "wrapper")
        yield loss.AdaroundLoss, loss.AdaroundHyperParameters, wrapper.AdaroundWrapperBase
        for name in [name for name in sys.modules if name.startswith("aimet_torch.")]:
            del sys.modules[name]


@pytest.fixture
def layer():
    """w, x, qparams in float64: codes from 0, some weights clipped, none on the grid."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(3, 7)), rng.normal(size=(33, 7)) @ rng.normal(size=(7, 7))
    return w, x, affine.choose_qparams(0.83 * w, 3, axis=1, symmetric=False, signed=False)


def wrapped(qparams, v, *, soft):
    """What AIMET's wrapper holds when it rounds: its offset is minus our zero-point."""
    return SimpleNamespace(
        alpha=v,
        broadcasted_delta=torch.from_numpy(qparams.scale),
        broadcasted_offset=-torch.from_numpy(qparams.zero_point),
        clip_min=qparams.qmin,
        clip_max=qparams.qmax,
        use_soft_rounding=soft,
    )


@pytest.mark.parametrize("beta", [(20, 20), (7.5, 7.5), (2, 2)])
def test_the_regulariser_of_the_rectified_sigmoid_is_aimet_s_rounding_loss(aimet, beta):
    loss, parameters, _ = aimet
    v = np.random.default_rng(1).normal(scale=2, size=(5, 33))
    settings = parameters(100, 0.01, beta, 0.2)
    theirs = loss.compute_round_loss(torch.from_numpy(v), settings, 20)
    ours = 0.01 * adaround.regulariser(adaround.rectified_sigmoid(v), beta[0])
    # 165 terms of at most 1, each through a sigmoid and a power good to a few ulp.
    assert_allclose(ours, theirs.item(), rtol=0, atol=0.01 * 165 * 32 * 2.0**-53)
    # Both wait for the same share of the steps.
    assert loss.compute_round_loss(torch.from_numpy(v), settings, 19) == 0
    assert adaround.anneal(19, 100) is None
    assert adaround.anneal(20, 100, beta=beta) == beta[0]


def test_aimet_s_exponent_follows_a_cosine_around_the_line(aimet):
    loss, *_ = aimet
    position = np.arange(20, 100)
    theirs = [loss._compute_beta(100, int(step), (20, 2), 0.2) for step in position]
    ours = [adaround.anneal(step, 100) for step in position]
    share = (position - 20) / 80
    # Half of the fall is a cosine there and a line here; they meet at the start and halfway.
    gap = 9 * (np.cos(np.pi * share) - (1 - 2 * share))
    assert_allclose(np.subtract(theirs, ours), gap, rtol=0, atol=1e-13)
    assert np.abs(gap[[0, 40]]).max() <= 1e-14
    assert gap.max() > 1


def test_the_initial_logits_are_aimet_s(aimet, layer):
    *_, wrapper = aimet
    w, _, qparams = layer
    theirs = wrapper._generate_alpha_parameter(torch.from_numpy(w), torch.from_numpy(qparams.scale))
    position = w / qparams.scale
    ours = adaround.initial_logits(position - np.floor(position))
    # AIMET stores them in float32.
    assert_allclose(ours, theirs.detach().numpy(), rtol=2.0**-24, atol=0)


def test_hard_rounding_is_aimet_s(aimet, layer):
    *_, wrapper = aimet
    w, _, qparams = layer
    v = np.random.default_rng(2).normal(size=w.shape)
    v[0, 0] = 0
    theirs = wrapper.apply_adaround(
        wrapped(qparams, torch.from_numpy(v), soft=False), torch.from_numpy(w)
    )
    codes = adaround.hard_round(w, v, qparams)
    assert_array_equal(affine.dequantize(codes, qparams), theirs.numpy())
    assert ((codes == qparams.qmin) | (codes == qparams.qmax)).any()


def test_the_output_error_is_aimet_s_reconstruction_loss(aimet, layer):
    loss, *_ = aimet
    w, x, qparams = layer
    codes = affine.quantize(w, qparams)
    w_hat = affine.dequantize(codes, qparams)
    theirs = loss.compute_recon_loss(torch.from_numpy(x @ w_hat.T), torch.from_numpy(x @ w.T))
    # Sums in another order.
    assert_allclose(adaround.errors(w, codes, x, qparams).sum(), theirs.item(), rtol=1e-12)


def test_the_descent_is_that_of_aimet_s_losses_under_torch_s_adam(aimet, layer):
    loss, parameters, wrapper = aimet
    w, x, qparams = layer
    # A constant exponent, because the schedules differ.
    *_, ours = adaround.descend(
        w, x, qparams, steps=STEPS, lam=0.05, learning_rate=0.1, beta=(3, 3)
    )
    position = w / qparams.scale
    start = adaround.initial_logits(position - np.floor(position))
    v = torch.from_numpy(start.copy()).requires_grad_()
    settings = parameters(STEPS, 0.05, (3, 3), 0.2)
    optimizer = torch.optim.Adam([v], lr=0.1)
    x_, w_ = torch.from_numpy(x), torch.from_numpy(w)
    for step in range(STEPS):
        w_hat = wrapper.apply_adaround(wrapped(qparams, v, soft=True), w_)
        total = loss.compute_recon_loss(x_ @ w_hat.T, x_ @ w_.T)
        total = total + loss.compute_round_loss(v, settings, step)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert np.abs(ours - start).max() > 0.5
    # Rounding of 1e-16 grows over 60 steps, at worst where a gradient crosses zero.
    assert_allclose(ours, v.detach().numpy(), rtol=0, atol=1e-8)
