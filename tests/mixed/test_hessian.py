import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.func import hessian as full_hessian
from torch.nn.functional import cross_entropy

from qbook.mixed import hessian

# torch.func's forward mode scripts a helper of its own, which torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def small_net(seed=0):
    """-> float64 network with curvature everywhere, its weights by name, a loss, its full Hessian.

    The Hessian is torch.func's, of all the weights as one vector: independent of double backward.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (7,), generator=generator)
    parameters = {"0": model[0].weight, "2": model[2].weight}

    def of_vector(vector):
        first, second = vector[:12].reshape(4, 3), vector[12:].reshape(3, 4)
        replaced = {"0.weight": first, "2.weight": second}
        return cross_entropy(functional_call(model, replaced, x), labels)

    vector = torch.cat([p.detach().flatten() for p in parameters.values()])
    return parameters, lambda: cross_entropy(model(x), labels), full_hessian(of_vector)(vector)


BLOCKS = {"0": slice(0, 12), "2": slice(12, 24)}


def test_a_product_equals_the_full_hessian_times_the_vector():
    parameters, loss, h = small_net()
    grads = hessian.gradient(loss(), parameters)
    v = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shaped = {n: v[BLOCKS[n]].reshape(p.shape) for n, p in parameters.items()}
    rows = hessian.product(grads, parameters, shaped)
    found = torch.cat([rows[n].flatten() for n in parameters])
    # Sums of 24 products of size 1.
    assert bool(((found - h @ v).abs() <= 1e-13).all())


def test_all_signs_of_a_small_layer_average_to_its_trace():
    # A layer of 2 x 3 weights: z over all 64 sign vectors, for 7 samples of a logistic loss.
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (7,), generator=generator)
    h = full_hessian(lambda v: cross_entropy(x @ v.reshape(2, 3).T, labels))(w.detach().flatten())
    grads = hessian.gradient(cross_entropy(x @ w.T, labels), {"w": w})
    values = []
    for signs in itertools.product((-1.0, 1.0), repeat=6):
        z = torch.tensor(signs, dtype=torch.float64).reshape(2, 3)
        values.append((z * hessian.product(grads, {"w": w}, {"w": z})["w"]).sum().item())
    # 64 sums of 36 products of size below 1.
    assert abs(np.mean(values) - h.trace().item()) <= 1e-13
    off_diagonal = (h - torch.diag(h.diag())).square().sum().item()
    assert abs(np.var(values) - 2 * off_diagonal) <= 1e-13


def test_samples_have_the_mean_and_the_variance_that_the_chapter_proves():
    parameters, loss, h = small_net()
    probes = 4000
    samples = hessian.hutchinson(loss(), parameters, probes, seed=3)
    for name, block in BLOCKS.items():
        within, rows = h[block, block], h[block]
        diagonal = within.diag().square().sum()
        # Twice the squares within the block, once those towards the other block.
        variance = 2 * (within.square().sum() - diagonal) + (
            rows.square().sum() - within.square().sum()
        )
        mean, error = hessian.estimate(samples[name])
        # Five standard errors of the mean; the variance of a sample variance is below
        # 30 var^2 / probes for sums of signs (fourth moments at most 31 var^2): 5 * 0.09.
        assert abs(mean - within.trace().item()) <= 5 * (variance.item() / probes) ** 0.5
        assert abs(samples[name].var() / variance.item() - 1) <= 0.2
        assert abs(error / (variance.item() / probes) ** 0.5 - 1) <= 0.1


def test_one_layer_alone_has_less_variance_and_the_same_mean():
    parameters, loss, h = small_net()
    alone = {"2": parameters["2"]}
    samples = hessian.hutchinson(loss(), alone, 4000, seed=3)["2"]
    within = h[BLOCKS["2"], BLOCKS["2"]]
    variance = 2 * (within.square().sum() - within.diag().square().sum()).item()
    assert abs(samples.mean() - within.trace().item()) <= 5 * (variance / 4000) ** 0.5
    assert abs(samples.var() / variance - 1) <= 0.2


def test_a_diagonal_hessian_is_traced_exactly_by_one_probe():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    samples = hessian.hutchinson((torch.tensor([1.0, 2.0, 3.0]) * w**2).sum(), {"w": w}, 3)
    # Second derivatives 2, 4, 6.
    assert samples["w"].tolist() == [12.0, 12.0, 12.0]
    assert hessian.estimate(samples["w"]) == (12.0, 0.0)


def test_equal_seeds_give_equal_samples_and_others_do_not():
    parameters, loss, _ = small_net()
    samples = [hessian.hutchinson(loss(), parameters, 5, seed)["0"] for seed in (1, 1, 2)]
    first, again, other = samples
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("names", [["0"], ["2"], ["0", "2"]])
def test_the_top_eigenvalue_equals_eigvalsh(names):
    parameters, loss, h = small_net()
    chosen = {name: parameters[name] for name in names}
    index = np.concatenate([np.arange(24)[BLOCKS[name]] for name in names])
    eigenvalues = torch.linalg.eigvalsh(h[index][:, index])
    expected = eigenvalues[eigenvalues.abs().argmax()].item()
    found = hessian.top_eigenvalue(loss(), chosen, iterations=2000, tolerance=1e-10)
    # It stops at steps of 1e-10; with a ratio r of the next eigenvalue r^2 / (1 - r^2) of that is
    # still owed: below 1e-7 for r up to 0.999.
    assert abs(found / expected - 1) <= 1e-7


def test_a_negative_eigenvalue_of_the_largest_magnitude_keeps_its_sign():
    w = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert abs(hessian.top_eigenvalue(w[0] ** 2 - 3 * w[1] ** 2, {"w": w}) + 6) <= 1e-2


def test_two_eigenvalues_of_almost_one_magnitude_are_refused():
    w = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    # Eigenvalues 4, -3.998 and 2: the share of the second falls by one part in 2000 a step.
    loss = 2 * w[0] ** 2 - 1.999 * w[1] ** 2 + w[2] ** 2
    with pytest.raises(ValueError, match=r"iterations=5 .* allow more"):
        hessian.top_eigenvalue(loss, {"w": w}, iterations=5, tolerance=1e-9)


def test_a_linear_loss_has_no_curvature():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert hessian.hutchinson(w.sum(), {"w": w}, 2)["w"].tolist() == [0.0, 0.0]
    assert hessian.top_eigenvalue(w.sum(), {"w": w}) == 0.0


def test_omega_is_twice_the_mean_loss_change_over_perturbations_of_every_direction():
    # All 2^6 signs are isotropic: their second moment is the identity.
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    h, w = root @ root.T, torch.zeros(2, 3, dtype=torch.float64)
    changes, costs = [], []
    for signs in itertools.product((-0.1, 0.1), repeat=6):
        delta = torch.tensor(signs, dtype=torch.float64)
        changes.append((delta @ h @ delta / 2).item())
        costs.append(hessian.omega(h.trace().item(), w, w + delta.reshape(2, 3)))
    # Sums of 36 products of size 0.1.
    assert abs(np.mean(changes) - costs[0] / 2) <= 1e-13
    assert np.ptp(costs) <= 1e-13


def test_losses_and_shapes_that_do_not_fit_are_refused():
    w = torch.ones(3, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(3,\); reduce it"):
        hessian.gradient(w**2, {"w": w})
    with pytest.raises(ValueError, match="does not depend on other"):
        hessian.gradient((w**2).sum(), {"w": w, "other": other})
    with pytest.raises(ValueError, match="two or more"):
        hessian.estimate([1.0])
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        hessian.omega(1.0, w, other)
