"""Whole models on packed layers: tokens a second of the character GPT and of MiniLM.

Only the Linear layers are packed; attention, norms and GELU stay torch's in float32 for all.
torch's own dynamic INT8 (oneDNN or FBGEMM below) is what a user would pick instead.
"""

import warnings

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from qbook import data
from qbook.inference.convert import convert
from qbook.inference.int4_linear import Int4Linear
from qbook.inference.int8_linear import Int8Linear
from qbook.inference.ternary_linear import TernaryLinear
from qbook.lab.timing import Group
from qbook.models import char_gpt, minilm

PROMPT = "ROMEO:\nBut soft, what light through yonder window breaks? It is the east."
SENTENCES = 32


def groups():
    gpt = versions(char_gpt.load())
    window = char_gpt.encode((PROMPT * 2)[: char_gpt.CONTEXT])[None]
    many = window.repeat(32, 1)
    for rows, name in ((window[:, :1], "1 token"), (window, "128 tokens"), (many, "4096 tokens")):
        yield forward(f"character GPT, {name}", gpt, lambda m, ids=rows: m(ids), rows.numel())
    try:
        encoder = minilm.load()
        ids = [torch.tensor(row) for row in minilm.tokenize(data.sst2("dev")[0][:SENTENCES])]
    except data.DataUnavailable:
        return
    batch = pad_sequence(ids, batch_first=True)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    yield forward(
        f"MiniLM, {SENTENCES} sentences of SST-2",
        versions(encoder),
        lambda m: m(batch, mask),
        int(mask.sum()),
    )


def versions(model):
    """-> name -> the model with its Linear layers in that format"""
    layers = {
        "qbook int8": (Int8Linear, {}),
        "qbook int4": (Int4Linear, {"group_size": 32}),
        "qbook ternary": (TernaryLinear, {}),
    }
    found = {"torch fp32": model.eval()}
    found |= {name: convert(model, layer, **options) for name, (layer, options) in layers.items()}
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, and still what torch itself brings.
        warnings.simplefilter("ignore")
        found["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    return found


def forward(name, models, run, tokens):
    def case(model):
        def call():
            with torch.no_grad():
                run(model)

        return call

    return Group(name, {n: case(m) for n, m in models.items()}, operations=tokens, unit="tokens")
