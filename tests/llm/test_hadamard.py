import numpy as np
import pytest
import scipy.linalg
import torch

from qbook.llm import hadamard


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256])
def test_powers_of_two_are_those_of_scipy(n):
    expected = scipy.linalg.hadamard(n) / np.sqrt(n)
    # Additions of +-1 are exact; one division by sqrt(n).
    assert np.abs(hadamard.matrix(n).numpy() - expected).max() <= 1e-15


@pytest.mark.parametrize("n", [12, 20, 24, 28, 36, 40, 60, 104, 384, 896, 1536])
def test_every_order_is_orthogonal_with_entries_of_one_size(n):
    h = hadamard.matrix(n, seed=3)
    assert float((h @ h.T - torch.eye(n)).abs().max()) <= 1e-13
    assert float((h.abs() * n**0.5 - 1).abs().max()) <= 1e-14


@pytest.mark.parametrize("shape", [(8,), (3, 12), (2, 5, 40)])
def test_the_fast_transform_is_the_product_with_the_matrix(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    expected = x @ hadamard.matrix(shape[-1])
    assert float((hadamard.transform(x) - expected).abs().max()) <= 1e-13


@pytest.mark.parametrize("n", [8, 12, 28, 40])
def test_the_inverse_undoes_the_transform(n):
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(2)).double()
    back = hadamard.transform(hadamard.transform(x), inverse=True)
    assert float((back - x).abs().max()) <= 1e-14 * 100


def test_signs_stand_before_the_transform():
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).double()
    expected = hadamard.transform(x * hadamard.signs(16, 7))
    assert float((x @ hadamard.matrix(16, seed=7) - expected).abs().max()) <= 1e-14
    assert set(hadamard.signs(64, 7).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("n", [3, 6, 52, 172])
def test_an_order_that_is_not_built_is_refused_with_those_that_are(n):
    with pytest.raises(ValueError, match=f"order {n} .* choose a power of two"):
        hadamard.matrix(n)


@pytest.mark.parametrize("order", [10, 16, 52])
def test_paley_refuses_an_order_that_is_not_his(order):
    with pytest.raises(ValueError, match=f"order={order} is none of Paley's"):
        hadamard.paley(order)
