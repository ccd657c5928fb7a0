"""The wrong thing typed: each call is refused in words that say what would work."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import qbook
from qbook import ranges
from qbook.pipeline import storage
from qbook.ranges.minmax import minmax


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(6, 4),
        nn.ConvTranspose2d(2, 2, 3),
        nn.MultiheadAttention(6, 2),
        nn.Conv3d(1, 1, 3),
        nn.GRUCell(4, 4),
    ],
)
def test_layers_that_cannot_be_quantized_are_named(layer):
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "odd": layer})
    with pytest.raises(ValueError, match=rf"odd is a {type(layer).__name__}.*skip=\['odd'\]"):
        qbook.quantize(model)
    quantized, _ = qbook.quantize(model, skip=["odd"])
    assert type(quantized["odd"]) is type(layer)


@pytest.mark.parametrize(
    ("model", "skip", "message"),
    [
        (nn.Sequential(nn.ReLU()), (), "no Linear, Conv1d or Conv2d layer"),
        (network(), ["0", "2"], "no Linear, Conv1d or Conv2d layer that is not skipped"),
        ("model", (), "model is a str; pass a torch.nn.Module"),
        (nn.Linear(3, 3), (), r"wrap it in torch.nn.Sequential"),
        (network(), ["3"], r"skip='3' names no module; the model has 0, 1, 2"),
        (nn.Sequential(weight_norm(nn.Linear(3, 3))), (), "remove_parametrizations first"),
    ],
)
def test_models_without_anything_to_quantize_are_refused(model, skip, message):
    with pytest.raises(ValueError, match=message):
        qbook.quantize(model, skip=skip)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "best"}, "method='best' is unknown; choose from nearest, adaround, gptq, obq"),
        ({"bits": 9}, "choose 1 to 8"),
        ({"bits": 0}, "choose 1 to 8"),
        ({"bits": {"0": 4}}, "bits names no width for 2"),
        ({"group_size": 4}, "layer 0: group_size=4 does not divide the 6.* 1, 2, 3, 6"),
        ({"clip": "best"}, "choose 'minmax', or 'mse' without groups"),
        ({"max_samples": 0}, "max_samples=0 leaves a method nothing"),
        ({"batches": X}, r"batches is one tensor of shape \(20, 6\); pass a list"),
        ({"method": "gptq"}, "method='gptq' needs calibration data"),
        ({"x_bits": 8, "x_estimate": ranges}, "cannot be called; pass a function"),
        ({"x_bits": 8, "x_estimate": minmax}, "a static input range needs calibration data"),
    ],
)
def test_settings_that_do_not_work_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        qbook.quantize(network(), **keywords)


@pytest.mark.parametrize("method", ["gptq", "obq", "adaround"])
def test_an_empty_and_a_too_small_calibration_set_are_refused(method):
    with pytest.raises(ValueError, match="needs calibration data; pass batches"):
        qbook.quantize(network(), iter([]), method=method)
    with pytest.raises(ValueError, match=r"layer 0: 4 samples .* at least 6"):
        qbook.quantize(network(), [X[:4]], method=method)


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_nan_in_data_and_between_layers_is_found_where_it_arises(method):
    x = X.clone()
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="the input of 0 holds NaN or infinity"):
        qbook.quantize(network(), [x], method=method)

    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    model = nn.Sequential(nn.Linear(6, 5), Log(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="the input of 2 holds NaN or infinity"):
        qbook.quantize(model, [X], method=method)


def test_nan_in_a_weight_is_refused():
    model = network()
    model[2].weight.data[1, 1] = torch.nan
    with pytest.raises(ValueError, match="layer 2: the range holds NaN or infinity"):
        qbook.quantize(model)


@pytest.mark.parametrize("method", ["gptq", "obq"])
def test_dead_and_dependent_inputs_do_not_stop_gptq(method):
    """A singular Hessian is dampened, as the paper does."""
    x = X.clone()
    x[:, 0], x[:, 2] = 0, x[:, 1]
    quantized, _ = qbook.quantize(network(), [x], method=method, bits=3)
    assert torch.isfinite(quantized(x)).all()
    with pytest.raises(ValueError, match=r"layer 0: h is singular.*dampen"):
        qbook.quantize(network(), [x], method=method, bits=3, damping=0.0)
    # A layer whose inputs were never active at all.
    quantized, _ = qbook.quantize(network(), [0 * x], method=method, bits=3)
    nearest, _ = qbook.quantize(network(), bits=3)
    assert torch.equal(quantized[0].packed, nearest[0].packed)


def test_a_layer_that_the_batches_never_reach_is_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="never calls unused; name them in skip"):
        qbook.quantize(Half(), [X])


def test_an_interrupted_run_leaves_the_model_and_no_hook():
    model = network()

    def interrupt(w, x, qparams, y):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qbook.quantize(model, [X], method=interrupt)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    quantized, _ = qbook.quantize(network())
    path = qbook.save(quantized, tmp_path / "model.safetensors")
    before = path.read_bytes()

    def half(state, partial, metadata):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        qbook.save(quantized, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
