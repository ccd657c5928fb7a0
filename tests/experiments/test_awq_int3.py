import numpy as np
import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import awq_int3, planted_outliers, recorded
from qbook.llm import scaling
from qbook.models import char_gpt, minilm

IDS = torch.randint(65, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt"))
def test_scales_undo_planted_outliers_at_toy_size():
    settings = awq_int3.settings("char_gpt")
    judged = {}
    for label, keywords in settings.items():
        subject = keywords["subject"]._replace(
            draw=lambda seed: [char_gpt.windows("train", 5, seed=seed)[:, :-1]],
            judge=lambda model: char_gpt.cross_entropy(model, char_gpt.windows("validation", 8)),
        )
        methods = {m: awq_int3.METHODS[m] for m in ("nearest", "AWQ scales", "AWQ, then GPTQ")}
        rows = awq_int3.run(
            **(keywords | {"subject": subject, "settings": [(3, 64)], "methods": methods}),
            seeds=(0,),
        )
        assert [row["method"] for row in rows] == list(methods)
        assert len(rows[1]["exponents"]) == len(keywords["groups"]) == 16
        judged[label] = {row["method"]: row["judged"][0] for row in rows}
    real, planted = judged["real"], judged["outliers"]
    # Most of what the outliers cost comes back, and nothing comes back where there are none.
    assert planted["nearest"] - planted["AWQ scales"] >= 0.5 * (
        planted["nearest"] - real["nearest"]
    )
    assert planted["AWQ, then GPTQ"] < planted["nearest"]
    assert np.isfinite(list(real.values())).all()


@torch.no_grad()
def test_outliers_are_planted_in_every_block_and_the_function_stays():
    model = char_gpt.load().double()
    planted = planted_outliers.in_norms(model, awq_int3.CHANNELS, awq_int3.FACTOR)
    # float64, logits of about 10.
    assert float((planted(IDS) - model(IDS)).abs().max()) <= 1e-10
    for block, own in zip(planted.blocks, model.blocks, strict=True):
        for norm in ("attention_norm", "mlp_norm"):
            ratio = getattr(block, norm).weight / getattr(own, norm).weight
            expected = torch.ones(128, dtype=torch.float64)
            expected[list(awq_int3.CHANNELS)] = awq_int3.FACTOR
            assert float((ratio - expected).abs().max()) <= 1e-12


@torch.no_grad()
def test_minilms_groups_cover_its_layers_and_keep_its_function():
    """With untrained weights, which need no file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = minilm.MiniLM().double().eval()
    ids, mask = torch.arange(1000, 1006)[None], torch.ones(1, 6, dtype=torch.bool)
    groups = awq_int3.minilm_groups()
    grid = {"bits": 3, "group_size": 64, "symmetric": False}
    models, found = awq_int3.prepare(model, groups[:4], [(ids, mask)], grid)
    # float64, hidden states of about 1 after a LayerNorm.
    assert float((models["scaled"](ids, mask) - model(ids, mask)).abs().max()) <= 1e-11
    assert len(found) == 4
    names = [name for group in groups for name in group.readers]
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(names) == sorted(linears)
    own = models["clipped"].encoder["layer"][0].attention["self"]
    assert isinstance(own.value, scaling.ScaledLinear)
    scaled = models["scaled"].encoder["layer"][0].attention["self"]
    assert torch.equal(own.query.linear.weight, scaled.query.linear.weight)
    assert not torch.equal(own.value.linear.weight, scaled.value.linear.weight)


@pytest.mark.parametrize("name", awq_int3.MODELS)
def test_records_hold_every_method_with_its_seeds(name):
    results = recorded.load(f"awq_int3_{name}")["results"]
    labels = {"char_gpt": ["real", "outliers"], "minilm": ["minilm"]}
    assert list(results) == labels[name]
    for part in results.values():
        for row in part["rows"]:
            assert len(row["judged"]) == (1 if row["method"] == "nearest" else 3)
            assert np.isfinite(row["judged"]).all()
