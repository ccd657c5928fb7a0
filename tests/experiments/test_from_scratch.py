import pytest
import torch
from torch import nn

from qbook.data import available, how_to_get
from qbook.experiments import from_scratch
from qbook.models import char_gpt

NEEDS = "tinyshakespeare.txt"
pytestmark = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))
SHORT = {"steps": 4, "batch_size": 2}


def losses(**arm):
    (row,) = from_scratch.run(seeds=(3,), judge=lambda model: 0.0, **SHORT, **arm)
    return row["training"]


def test_an_arm_that_changes_nothing_is_the_float32_arm():
    assert losses() == losses(prepare=lambda model: model, make_optimizer=char_gpt.adamw)


def test_an_arm_that_draws_numbers_sees_the_same_first_batch():
    def prepare(model):
        torch.rand(7)
        return model

    assert losses(prepare=prepare) == losses()


def test_another_optimizer_changes_every_loss_but_the_first():
    plain = losses()
    other = losses(make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    assert plain[0] == other[0]
    assert plain[1:] != other[1:]


def test_layers_put_in_place_are_those_that_train():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    def prepare(model):
        head = Doubled(128, 65)
        head.load_state_dict(model.head.state_dict())
        model.head = head
        return model

    assert losses(prepare=prepare)[0] != losses()[0]
