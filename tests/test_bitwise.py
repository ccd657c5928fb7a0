import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from qbook import bitwise, packing

LIBRARIES = [np.asarray, torch.from_numpy]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_pair_of_sign_vectors_has_its_dot_product(n):
    vectors = np.array(list(itertools.product([-1, 1], repeat=n)), dtype=np.int8)
    packed = bitwise.pack_signs(vectors)
    found = bitwise.dot_signs(packed[:, None], packed[None, :], n)
    assert_array_equal(found, vectors.astype(int) @ vectors.T.astype(int))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("n", [7, 8, 9, 63, 64, 65])
def test_odd_lengths_do_not_count_the_filler(n, library):
    rng = np.random.default_rng(n)
    a, b = rng.choice(np.array([-1, 1], np.int8), size=(2, 5, n))
    found = bitwise.dot_signs(bitwise.pack_signs(library(a)), bitwise.pack_signs(library(b)), n)
    assert_array_equal(np.asarray(found), np.sum(a.astype(int) * b, axis=1))


def test_popcount_is_right_for_every_byte():
    every = np.arange(256, dtype=np.uint8)[:, None]
    assert_array_equal(bitwise.popcount(every), [f"{byte:b}".count("1") for byte in range(256)])
    assert_array_equal(bitwise.popcount(every), np.bitwise_count(every[:, 0]))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("x_bits", "y_bits"), [(1, 1), (1, 2), (2, 3), (4, 8)])
def test_planes_give_the_dot_product_of_unsigned_codes(x_bits, y_bits, library):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**x_bits, size=(3, 13), dtype=np.uint8)
    y = rng.integers(0, 2**y_bits, size=(3, 13), dtype=np.uint8)
    x[0], y[0] = 2**x_bits - 1, 2**y_bits - 1
    found = bitwise.dot_planes(library(x), library(y), x_bits, y_bits)
    assert_array_equal(np.asarray(found), np.sum(x.astype(int) * y, axis=1))


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=40))
def test_planes_agree_with_integers_for_any_pair_of_vectors(pairs):
    x, y = np.array(pairs, dtype=np.int16).T
    assert bitwise.dot_planes(x, y, 4, 4) == sum(a * b for a, b in pairs)


def test_xnor_in_the_first_form_is_wrong():
    # Footnote 2 of arXiv:1606.06160 prints n - 2 popcount(xnor(a, b)); for a = b = (+1) the dot
    # product is 1 and the printed form gives 1 - 2 = -1.
    a = packing.pack(np.array([1], np.uint8), 1)
    agreements = int(bitwise.popcount(~(a ^ a) & np.uint8(1)))
    assert 1 - 2 * agreements == -1
    assert bitwise.dot_signs(a, a, 1) == 2 * agreements - 1 == 1


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: bitwise.pack_signs(np.array([0, 1])), "other than -1"),
        (lambda: bitwise.popcount(np.array([1])), "int64"),
        (lambda: bitwise.dot_planes(np.array([4]), np.array([1]), 2, 2), "do not fit 2 bits"),
        (
            lambda: bitwise.dot_signs(np.zeros(2, np.uint8), np.zeros(2, np.uint8), 17),
            "count=17",
        ),
    ],
)
def test_bad_input_is_named(call, told):
    with pytest.raises(ValueError, match=told):
        call()
