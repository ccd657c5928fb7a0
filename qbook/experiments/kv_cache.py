"""The axes of KIVI, all four, on a character GPT with and without planted outliers.

Every position reads its keys and values from a quantized cache, in every layer.  Judged by the
cross-entropy on held-out text, as the difference to the real cache, with the standard error of
that difference over windows.  Book: 5, the KV cache.
Run: ``python -m qbook.experiments.kv_cache``
"""

import functools
import itertools
import time

import torch

from qbook.experiments import recorded
from qbook.llm import cached_attention, hadamard, key_transform, kivi, scaling
from qbook.models import char_gpt

# Of every head of 32 channels these are made FACTOR times larger.
CHANNELS, FACTOR = (5, 20), 20.0
BLOCKS = [f"blocks.{i}.attention" for i in range(char_gpt.LAYERS)]
HEAD = char_gpt.WIDTH // char_gpt.HEADS
# Axes of keys and values; -2: tokens share a range, a channel has its own; -1: the other way round.
AXES = {
    "channel, token": (-2, -1),
    "channel, channel": (-2, -2),
    "token, token": (-1, -1),
    "token, channel": (-1, -2),
}
ENDS = {"own ends": kivi.own_ends, "zero inside": kivi.with_zero, "symmetric": kivi.symmetric}


def large_keys(model, factor=FACTOR):
    """-> the same function with outliers in the keys, paid for by the queries"""
    for name in BLOCKS:
        model = key_transform.plant(
            model, f"{name}.query", f"{name}.key", CHANNELS, factor, head_size=HEAD
        )
    return model


def large_values(model, factor=FACTOR):
    """-> the same function with outliers in the values, paid for by the layer behind attention"""
    channels = [head * HEAD + c for head in range(char_gpt.HEADS) for c in CHANNELS]
    for name in BLOCKS:
        model = scaling.plant(model, f"{name}.value", [f"{name}.output"], channels, factor)
    return model


def shifted_keys(model, factor=FACTOR):
    """-> the same function with ``factor`` added to the same key channels of every token"""
    offset = torch.zeros(char_gpt.HEADS, HEAD)
    offset[:, list(CHANNELS)] = factor
    for name in BLOCKS:
        model = key_transform.shift(model, f"{name}.key", offset.flatten())
    return model


def rotated_keys(model, seed=0):
    """-> the same function with every head's queries and keys rotated by a Hadamard matrix"""
    q = hadamard.matrix(HEAD, seed=seed)
    for name in BLOCKS:
        model = key_transform.transform(model, f"{name}.query", f"{name}.key", q)
    return model


PLANTS = {
    "none": lambda model: model,
    "keys": large_keys,
    "offset": shifted_keys,
    "values": large_values,
}


def arms(plants=PLANTS, widths=(2, 4), group_sizes=(32, 8), residuals=(0, 32, 64)):
    """-> list of (description, function that changes the model, keywords of kivi.Cache)

    The description is a dict; "what" in it is "axes", "rotation", "ends" or "window".
    """
    found = []
    fair = {"residual": 32, "in_blocks": True}
    for plant, bits in itertools.product(plants, widths):
        change, known = plants[plant], {"plant": plant, "bits": bits}
        for size, (axes, (key_axis, value_axis)) in itertools.product(group_sizes, AXES.items()):
            settings = {"bits": bits, "key_axis": key_axis, "value_axis": value_axis}
            settings |= fair | {"group_size": size}
            found.append(({"what": "axes", "axes": axes, "group": size} | known, change, settings))
            if size == 32 and value_axis == -1:
                turned = functools.partial(_after, change, rotated_keys)
                found.append(({"what": "rotation", "axes": axes} | known, turned, settings))
        for ends, of in ENDS.items():
            settings = {"bits": bits, "ends": of} | fair
            found.append(({"what": "ends", "ends": ends} | known, change, settings))
    for bits, residual in itertools.product(widths, residuals):
        description = {"what": "window", "plant": "none", "bits": bits, "residual": residual}
        found.append((description, PLANTS["none"], {"bits": bits, "residual": residual}))
    return found


def _after(first, second, model):
    return second(first(model))


def run(ids, *, report=None, **which):
    """ids [n, t + 1] -> list of rows: the description of each of ``arms(**which)`` and

    loss, loss_error:      nats a character above the real cache, and the standard error of this
                           difference over windows
    versus, versus_error:  of axes: the same above KIVI's axes, all else being equal
    First comes a row {"what": "real"} with the loss itself.
    """
    model, kivis = char_gpt.load(), {}
    real = char_gpt.losses(model, ids)
    rows = [{"what": "real", "loss": round(float(real.mean()), 5)}]
    for description, change, settings in arms(**which):
        cached = cached_attention.with_cache(change(model), BLOCKS, char_gpt.HEADS, **settings)
        found = char_gpt.losses(cached, ids)
        row = description | _difference("loss", found, real)
        if description["what"] == "axes":
            setting = tuple(description[key] for key in ("plant", "bits", "group"))
            # The first of AXES.
            row |= _difference("versus", found, kivis.setdefault(setting, found))
        rows.append(row)
        if report:
            report(row)
    return rows


def _difference(name, a, b):
    """a, b [n] -> dict: mean of a - b and its standard error"""
    values = (a - b).mean(), (a - b).std() / len(a) ** 0.5
    return {key: round(float(v), 5) for key, v in zip((name, f"{name}_error"), values, strict=True)}


def main():
    start = time.time()
    windows = 128
    path = recorded.save(
        "kv_cache",
        run(char_gpt.windows("validation", windows), report=functools.partial(print, flush=True)),
        command="python -m qbook.experiments.kv_cache",
        seeds=[0],
        seconds=time.time() - start,
        windows=windows,
        channels=list(CHANNELS),
        factor=FACTOR,
    )
    print(path.name)


if __name__ == "__main__":
    main()
