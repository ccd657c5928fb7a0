import pytest
import torch

from qbook.experiments import kv_cache
from qbook.models import char_gpt

# The model predicts it far better than chance, so that errors cost.
TEXT = """To be, or not to be: that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them? To die: to sleep;
No more; and by a sleep to say we end"""
IDS = char_gpt.encode(TEXT)[:243].view(3, 81)


def test_every_arm_is_run_and_kivis_axes_are_what_the_others_are_compared_with():
    plants = {name: kv_cache.PLANTS[name] for name in ("none", "keys")}
    rows = kv_cache.run(IDS, plants=plants, widths=(2,), group_sizes=(32,), residuals=(0, 64))
    # The real cache; a plant: four axes, two rotations, three ends; two windows.
    assert len(rows) == 1 + 2 * (4 + 2 + 3) + 2
    axes = {(r["plant"], r["axes"]): r for r in rows if r["what"] == "axes"}
    for plant in plants:
        assert axes[plant, "channel, token"]["versus"] == 0
    planted = axes["keys", "token, token"]
    assert planted["versus"] > 5 * planted["versus_error"] > 0
    # A factor of a channel does not reach its own range.  1e-5 is the rounding of the rows.
    kivis = [axes[plant, "channel, token"]["loss"] for plant in plants]
    assert abs(kivis[0] - kivis[1]) <= 3e-5


@pytest.mark.parametrize(
    "change", [*kv_cache.PLANTS.values(), kv_cache.rotated_keys], ids=lambda f: f.__name__
)
@torch.no_grad()
def test_nothing_that_is_planted_changes_the_function(change):
    model = char_gpt.load().double()
    # float64, logits of about 10, factors of 20 in four blocks.
    assert float((change(model)(IDS[:, :-1]) - model(IDS[:, :-1])).abs().max()) <= 1e-9


def test_losses_are_those_of_the_model():
    model = char_gpt.load()
    found = char_gpt.losses(model, IDS, batch_size=2)
    assert found.shape == (3,)
    # float32 sums.
    assert abs(float(found.mean()) - char_gpt.cross_entropy(model, IDS)) <= 1e-5
