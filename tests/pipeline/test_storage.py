import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qbook
from qbook.pipeline.layers import quantized_layers
from qbook.ranges.minmax import minmax


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    ).eval()


X = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
SETTINGS = [
    {"bits": 3},
    {"bits": 8, "symmetric": False},
    {"bits": 4, "group_size": 3},
    {"bits": 2, "x_bits": 8},
    {"bits": 5, "x_bits": 8, "x_estimate": minmax, "method": "gptq"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_a_loaded_model_computes_what_the_saved_one_did(settings, tmp_path):
    quantized, report = qbook.quantize(build(), [X], **settings)
    path = qbook.save(quantized, tmp_path / "model.safetensors")
    # Another seed: everything must come from the file.
    loaded = qbook.load(build(seed=1), path)
    assert torch.equal(loaded(X), quantized(X))
    for name, layer in quantized_layers(quantized).items():
        assert repr(quantized_layers(loaded)[name]) == repr(layer)
    # The file is the tensors and a header.
    assert report.bytes < path.stat().st_size < report.bytes + 4000


def test_files_that_are_not_ours_are_refused(tmp_path):
    quantized, _ = qbook.quantize(build(), bits=4)
    path = qbook.save(quantized, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="save"):
        qbook.load(build(), tmp_path / "other.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="holds no quantized model"):
        qbook.load(build(), foreign)
    half = tmp_path / "half.safetensors"
    half.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        qbook.load(build(), half)
    with pytest.raises(ValueError, match="no quantized layer"):
        qbook.save(build(), path)


def test_another_architecture_is_refused(tmp_path):
    quantized, _ = qbook.quantize(build(), bits=4)
    path = qbook.save(quantized, tmp_path / "model.safetensors")
    wider = build()
    wider[4] = nn.Linear(4 * 9, 5)
    with pytest.raises(ValueError, match=r"layer 4 of shape \(3, 36\), the model \(5, 36\)"):
        qbook.load(wider, path)
    with pytest.raises(ValueError, match=r"layer 0 of shape .* the model None"):
        qbook.load(nn.Sequential(nn.ReLU()), path)
