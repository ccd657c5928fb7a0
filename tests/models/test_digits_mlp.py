import pytest
import torch

from qbook import data
from qbook.models import digits_mlp


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(torch.from_numpy(images)).argmax(dim=1).numpy() == labels).mean()


def test_the_trained_network_reads_unseen_digits():
    train, test = data.digits()
    model = digits_mlp.load()
    assert accuracy(model, *test) >= 0.95
    assert accuracy(model, *train) >= accuracy(model, *test)


def test_training_again_gives_the_stored_network():
    stored, again = digits_mlp.load().state_dict(), digits_mlp.train().state_dict()
    for name, weight in stored.items():
        # Two processors round differently, and 200 steps of Adam amplify it; a change of the
        # recipe (seed, step size, data) moves weights by their own size, about 0.1.
        assert (weight - again[name]).abs().max() <= 1e-2


def test_training_is_deterministic_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = digits_mlp.train().state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = digits_mlp.train().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_load_is_a_fresh_copy_in_eval_mode():
    first = digits_mlp.load()
    with torch.no_grad():
        first[0].weight.zero_()
    second = digits_mlp.load()
    assert second[0].weight.abs().max() > 0
    assert not second.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_can_be_trained_where_the_caller_records_no_gradients(context):
    with context():
        model = digits_mlp.train()
    assert accuracy(model, *data.digits()[1]) >= 0.95
    assert not model[0].weight.is_inference()
