"""Save and load a quantized model: packed codes in a safetensors file, geometry in its header.

Book: 4.5
"""

import copy
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qbook import affine
from qbook.models import weights
from qbook.pipeline.layers import QuantizedLayer, quantized_layers

VERSION = 1


def save(quantized, path):
    """Write the model's tensors and the description of its quantized layers; -> the path.

    Whole or not at all: an interrupted call leaves the file of before.
    Raises ValueError for a model without a ``QuantizedLayer``.
    """
    layers = quantized_layers(quantized)
    if not layers:
        raise ValueError("the model holds no quantized layer; pass the one that quantize returned")
    described = {
        name: {
            key: getattr(layer, key)
            for key in ("shape", "qmin", "qmax", "group_axis", "x_bits", "x_qmin", "x_qmax")
        }
        for name, layer in layers.items()
    }
    header = {"qbook": json.dumps({"version": VERSION, "layers": described})}
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    # Clones, because tensors that share memory cannot be saved as they are.
    state = {name: t.detach().clone().contiguous() for name, t in quantized.state_dict().items()}
    try:
        save_file(state, partial, metadata=header)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(model, path):
    """A model of the same architecture, whatever its weights -> a copy with those of the file.

    Raises ValueError for a file that ``save`` did not write, FileNotFoundError where there is none,
    and ValueError where the file's layers are not the model's.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no file {path}; save(quantized, path) writes one")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("qbook")
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if header is None:
        raise ValueError(f"{path} holds no quantized model; save(quantized, path) writes one")
    described = json.loads(header)
    if described["version"] != VERSION:
        raise ValueError(f"{path} has version {described['version']}; this qbook reads {VERSION}")
    loaded = copy.deepcopy(model).eval()
    real = dict(weights.layers(loaded))
    for name, entry in described["layers"].items():
        layer = real.get(name)
        if layer is None or list(layer.weight.shape) != entry["shape"]:
            found = None if layer is None else tuple(layer.weight.shape)
            raise ValueError(
                f"{path} has a layer {name} of shape {tuple(entry['shape'])}, the model {found}; "
                "pass the architecture that was quantized"
            )
        loaded.set_submodule(name, _empty(layer, name, entry, state))
    try:
        loaded.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
    return loaded


def _empty(layer, name, entry, state):
    """A ``QuantizedLayer`` whose buffers have the shapes that the file will fill."""
    scale = torch.ones_like(state[f"{name}.scale"])
    stored = state.get(f"{name}.zero_point")
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    if stored is not None:
        zero_point = stored.int()
    qparams = affine.QParams(scale, zero_point, entry["qmin"], entry["qmax"], entry["group_axis"])
    codes = torch.full((layer.weight.shape[0], layer.weight[0].numel()), 0, dtype=torch.int8)
    x_qparams = entry["x_bits"]
    if f"{name}.x_scale" in state:
        x_qparams = affine.QParams(
            state[f"{name}.x_scale"],
            state[f"{name}.x_zero_point"],
            entry["x_qmin"],
            entry["x_qmax"],
        )
    return QuantizedLayer(layer, codes, qparams, x_qparams)
