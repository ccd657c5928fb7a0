"""all-MiniLM-L6-v2: BERT with 6 layers of width 384, made into a sentence encoder.

Devlin et al. 2019, arXiv:1810.04805; Wang et al. 2020, arXiv:2002.10957 (MiniLM); Reimers and
Gurevych 2019, arXiv:1908.10084, section 3 (mean pooling).  Weights: sentence-transformers.
Attribute names are the checkpoint's, so that ``encoder.layer.0.intermediate.dense`` is the same
matrix here and in the literature.  Book: used throughout.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from qbook.data import fetch

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 30522, 384, 1536, 6, 12, 512
EPSILON = 1e-12
# The model card: input longer than 256 word pieces is truncated.  tokenizer.json itself says 128,
# and pads everything to 128; both settings are replaced here.
MAX_TOKENS = 256


class Embeddings(nn.Module):
    """ids [n, t] -> LayerNorm(word + position + sentence type 0) [n, t, 384]"""

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, ids):
        position = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(
            self.word_embeddings(ids) + position + self.token_type_embeddings.weight[0]
        )


class SelfAttention(nn.Module):
    """x [n, t, 384], mask [n, t] bool -> softmax(q k^T / sqrt(32)) v, heads joined, [n, t, 384]"""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)


class Output(nn.Module):
    """h [n, t, in], x [n, t, 384] -> LayerNorm(dense(h) + x): the end of both half-layers"""

    def __init__(self, in_):
        super().__init__()
        self.dense = nn.Linear(in_, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, h, x):
        return self.LayerNorm(self.dense(h) + x)


class Layer(nn.Module):
    """x [n, t, 384], mask [n, t] -> [n, t, 384]: attention, then the GELU network of width 1536"""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Output(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Output(INNER)

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """ids [n, t] int64, mask [n, t] bool -> hidden states [n, t, 384]; 22.6 million parameters"""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, ids, mask):
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x

    @torch.no_grad()
    def encode(self, sentences, batch_size=32):
        """list of n sentences -> [n, 384] of length 1, of the model's float type, on its device.

        The mean of a sentence's hidden states, normalised.  Raises ValueError for a bare string,
        ``qbook.data.DataUnavailable`` without the tokenizer's file.
        """
        weight = self.embeddings.word_embeddings.weight
        device = weight.device
        ids = [torch.tensor(row, device=device) for row in tokenize(sentences)]
        # Neighbours in length share a batch, so that little is padded.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = weight.new_empty(len(ids), WIDTH)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = pad_sequence([ids[i] for i in chosen], batch_first=True)
            lengths = torch.tensor([len(ids[i]) for i in chosen], device=device)
            mask = torch.arange(batch.shape[1], device=device) < lengths[:, None]
            vectors[chosen] = pool(self(batch, mask), mask)
        return vectors


def pool(hidden, mask):
    """hidden [n, t, 384], mask [n, t] bool -> mean over the unmasked t, scaled to length 1"""
    mask = mask.unsqueeze(-1)
    return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def tokenize(sentences):
    """list of sentences -> list of lists of ids: [CLS] 101, word pieces, [SEP] 102; at most 256.

    Lower-cased, accents stripped.  Raises ValueError for a bare string,
    ``qbook.data.DataUnavailable`` without tokenizer.json.
    """
    if isinstance(sentences, str):
        raise ValueError(f"sentences={sentences!r} is one string; pass a list, [{sentences!r}]")
    return [encoding.ids for encoding in _tokenizer().encode_batch(list(sentences))]


def load():
    """-> a fresh MiniLM with the trained weights, on the CPU, in eval mode.

    Raises ``qbook.data.DataUnavailable``.
    """
    from safetensors.torch import load_file

    state = load_file(fetch("all-MiniLM-L6-v2/model.safetensors"))
    # The pooler belongs to BERT's pre-training; the sentence encoder does not use it.
    unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    model = MiniLM()
    model.load_state_dict({name: w for name, w in state.items() if name not in unused})
    return model.eval()


@functools.cache
def _tokenizer():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(fetch("all-MiniLM-L6-v2/tokenizer.json")))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer
