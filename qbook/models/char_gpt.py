"""A character GPT on tiny Shakespeare: 4 layers of width 128, trained by the project itself.

Radford et al. 2019 ("Language models are unsupervised multitask learners": LayerNorm first, GELU,
learned positions) at the size of Karpathy's char-rnn data.  0.83 million parameters.
Book: used throughout.

The trained weights (float16) and the log of their training lie beside this file;
``python -m qbook.models.char_gpt`` trains them anew, which takes about half an hour on two cores.
"""

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from qbook.data import tiny_shakespeare

WEIGHTS = Path(__file__).with_suffix(".safetensors")
LOG = Path(__file__).with_suffix(".json")
# The 65 characters of the text, in the order of their codes.
ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTEXT, WIDTH, LAYERS, HEADS = 128, 128, 4, 4
# Karpathy's split: the last tenth of the text is held out.
TRAINED_SHARE = 0.9
STEPS, BATCH, WARMUP, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 3000, 32, 100, 2e-3, 0.1, 0.1


class Attention(nn.Module):
    """x [n, t, 128] -> causal self-attention, heads joined and projected, [n, t, 128]"""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """x [n, t, 128] -> x + attention(norm(x)), then x + down(gelu(up(norm(x))))"""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))))


class CharGPT(nn.Module):
    """ids [n, t] int64, t <= 128 -> logits [n, t, 65] of the character that follows each"""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(dropout) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET))

    def forward(self, ids):
        if ids.shape[1] > CONTEXT:
            raise ValueError(f"{ids.shape[1]} characters exceed the context of {CONTEXT}")
        return self.head(self.norm(self.blocks(self.embed(ids))))

    def embed(self, ids):
        """ids [n, t] -> character + position [n, t, 128], the input of the first block"""
        return self.embedding(ids) + self.position.weight[: ids.shape[1]]


def load():
    """-> a fresh CharGPT with the trained weights in float32, on the CPU, in eval mode."""
    model = CharGPT()
    model.load_state_dict({name: w.float() for name, w in load_file(WEIGHTS).items()})
    return model.eval()


def encode(text):
    """text -> ids [len(text)] int64.  Raises ValueError for a character outside ``ALPHABET``."""
    code = {character: i for i, character in enumerate(ALPHABET)}
    unknown = sorted(set(text) - code.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not among the 65 characters of tiny Shakespeare")
    return torch.tensor([code[character] for character in text])


def decode(ids):
    """ids [n] -> text of n characters"""
    return "".join(ALPHABET[i] for i in ids)


def windows(split, count=None, *, seed=None):
    """-> ids [count, 129] of "train" or "validation" text: 128 inputs, and targets one further on.

    Without a seed the windows follow each other from the start of the split, without overlap;
    count=None takes all of them.  With one, count random places are drawn.
    Raises ValueError for another split, for a count without end and ``DataUnavailable``.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r} does not exist; choose 'train' or 'validation'")
    text = tiny_shakespeare()
    border = int(TRAINED_SHARE * len(text))
    ids = encode(text[:border] if split == "train" else text[border:])
    if seed is None:
        found = ids.unfold(0, CONTEXT + 1, CONTEXT)
        return found if count is None else found[:count]
    if count is None:
        raise ValueError("random windows have no end; pass a count")
    places = torch.randint(
        len(ids) - CONTEXT, (count,), generator=torch.Generator().manual_seed(seed)
    )
    return ids[places[:, None] + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def cross_entropy(model, ids, batch_size=64):
    """ids [n, t + 1] -> mean of -log p(next character), in nats"""
    total = 0.0
    for batch in ids.split(batch_size):
        logits = model(batch[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
    return float(total) / ids[:, 1:].numel()


@torch.no_grad()
def losses(model, ids, batch_size=32):
    """ids [n, t + 1] -> nats a character of each window, [n] float64: for differences of models"""
    found = []
    for batch in ids.split(batch_size):
        logits = model(batch[:, :-1]).transpose(1, 2)
        found.append(F.cross_entropy(logits, batch[:, 1:], reduction="none").double().mean(dim=1))
    return torch.cat(found)


@torch.no_grad()
def sample(model, prompt, count, *, seed=0):
    """prompt, a text -> the text continued by ``count`` characters drawn from the model"""
    generator = torch.Generator().manual_seed(seed)
    ids = encode(prompt)
    for _ in range(count):
        p = model(ids[None, -CONTEXT:])[0, -1].softmax(dim=-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)])
    return decode(ids)


def train(
    seed=0,
    *,
    steps=STEPS,
    batch_size=BATCH,
    learning_rate=LEARNING_RATE,
    dropout=DROPOUT,
    prepare=None,
    make_optimizer=None,
    report=None,
):
    """-> the model after ``steps`` of AdamW with warm-up and cosine decay, in eval mode.

    prepare:        function model -> model, applied to the untrained model: other layers in place
                    of its own start from the same numbers and see the same batches
    make_optimizer: function model -> optimizer; None: ``adamw``.  Its learning rate is set here
    report(step, loss): called every hundredth of the way with the mean training loss since then.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharGPT(dropout)
        # Drawn before prepare, which may draw numbers too.
        text = encode(tiny_shakespeare())
        text = text[: int(TRAINED_SHARE * len(text))]
        places = torch.randint(len(text) - CONTEXT, (steps, batch_size))
        model = model if prepare is None else prepare(model)
        optimizer = (make_optimizer or adamw)(model)
        total, every = 0.0, max(steps // 100, 1)
        for step in range(steps):
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min((step + 1) / WARMUP, 0.02 + 0.98 * cosine)
            ids = text[places[step][:, None] + torch.arange(CONTEXT + 1)]
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            if report and (step + 1) % every == 0:
                report(step + 1, total / every)
                total = 0.0
    return model.eval()


def adamw(model):
    """-> AdamW as the model was trained with: weight decay on matrices only"""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}],
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )


def main():
    """Train, store the weights in float16 and the log with seed, versions and losses."""
    from qbook.lab.session import cpu_name

    start, losses = time.time(), []

    def report(step, loss):
        losses.append([step, round(loss, 4)])
        print(f"step {step}  training loss {loss:.4f}  {time.time() - start:.0f} s", flush=True)

    model = train(report=report)
    # A checkpoint holds the model without its dropout layers, which have no weights.
    state = {name: w.half().contiguous() for name, w in model.state_dict().items()}
    partial = WEIGHTS.with_suffix(".partial")
    save_file(state, partial)
    partial.replace(WEIGHTS)
    log = {
        "command": "python -m qbook.models.char_gpt",
        "seed": 0,
        "steps": STEPS,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seconds": round(time.time() - start),
        "validation_cross_entropy": round(cross_entropy(load(), windows("validation")), 4),
        "training_loss": losses,
    }
    LOG.write_text(json.dumps(log) + "\n")
    print(log["validation_cross_entropy"])


if __name__ == "__main__":
    main()
