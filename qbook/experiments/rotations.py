"""W4A4 of the character GPT: as it is, fused, smoothed, and rotated in its stream or inside.

Subjects that compute the same: the model as trained; outliers in the gains of its norms; outliers
in the values of its heads; and its stream in the basis of principal axes, the rotation that does
most harm.  Ashkboos et al. 2024, arXiv:2404.00456.  Book: 5.9
Run: ``python -m qbook.experiments.rotations``

Windows of the train split calibrate the smoothing; the validation split is judged once an arm.  The
head stays real, as in the paper.
"""

import time

import torch

import qbook
from qbook.experiments import awq_int3, planted_outliers, recorded
from qbook.llm import hadamard, quarot, scaling, smoothquant
from qbook.models import char_gpt
from qbook.ptq import simulate

STREAM = quarot.char_gpt_stream()
# Its Linears inside RotatedLinear are what writes to the stream then.
ONLINE = STREAM._replace(
    writers=tuple(f"{n}.linear" if n.endswith("down") else n for n in STREAM.writers)
)
BLOCKS = range(char_gpt.LAYERS)
HEAD = char_gpt.WIDTH // char_gpt.HEADS
GAINS, VALUES, FACTOR = (5, 60, 100), (3, 40, 77, 120), 30.0
WINDOWS = 100


def subjects():
    """-> dict: name -> the character GPT, the same function with its numbers elsewhere"""
    trained = values = char_gpt.load()
    gains = planted_outliers.in_norms(trained, GAINS, FACTOR)
    for block in BLOCKS:
        attention = f"blocks.{block}.attention"
        values = scaling.plant(
            values, f"{attention}.value", [f"{attention}.output"], VALUES, FACTOR
        )
    flat = fused(trained)
    axes = quarot.rotate(flat, STREAM, principal_axes(flat))
    return {"trained": trained, "gains": gains, "values": values, "axes": axes}


def fused(model):
    """-> a copy of the same function, centred and without gains; computed in float64"""
    return quarot.fuse(quarot.center(doubled(model), STREAM), STREAM).float()


def principal_axes(flat, windows=8):
    """A fused model -> q [128, 128]: axes of what its norms read, the largest first"""
    ids = char_gpt.windows("train", windows, seed=99)[:, :-1]
    seen = simulate.record(flat, lambda m: m(ids))
    x = torch.cat([seen[names[0]][0].flatten(0, 1) for names in STREAM.readers.values()]).double()
    return torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)


def inside(flat, seed=0):
    """-> a copy: values of each head rotated, and the input of ``down``, at run time"""
    model = doubled(flat)
    for block in BLOCKS:
        attention, down = f"blocks.{block}.attention", f"blocks.{block}.down"
        q = hadamard.matrix(HEAD, seed=seed)
        model = quarot.rotate_heads(model, f"{attention}.value", f"{attention}.output", q)
        layer = quarot.RotatedLinear(model.get_submodule(down), seed=seed)
        model.set_submodule(down, layer)
    return model.float()


def smoothed(model, alpha=0.5, windows=16):
    """-> a copy smoothed: norms, values, and the input of ``down``, at run time"""
    groups = [(group.writer, list(group.readers)) for group in awq_int3.char_gpt_groups()]
    ids = char_gpt.windows("train", windows, seed=98)[:, :-1]
    return smoothquant.smooth(model, groups, smoothquant.maxima(model, lambda m: m(ids)), alpha)


def arms(model, seed=0):
    """-> generator of (name, model of the same function) to be rounded"""
    has_gains = model.norm.weight is not None
    yield "nearest", model
    flat = fused(model) if has_gains else model
    if has_gains:
        yield "fused", flat
        yield "smoothed", smoothed(model)
    q = hadamard.matrix(char_gpt.WIDTH, seed=seed)
    yield "stream", quarot.rotate(doubled(flat), STREAM, q).float()
    everywhere = inside(flat, seed)
    yield "inside", everywhere
    yield "everywhere", quarot.rotate(doubled(everywhere), ONLINE, q).float()


def rounded(model, bits):
    """-> the model with weights and inputs of these bits, rounded to nearest"""
    return qbook.quantize(model, bits=bits, x_bits=bits, skip=("head",), progress=False)[0]


@torch.no_grad()
def predictions(model, ids):
    """-> log p of every character [windows, 128, 65]"""
    return torch.cat([model(batch[:, :-1]).log_softmax(dim=-1) for batch in ids.split(20)])


def compare(real, found, ids):
    """predictions of the real model and of another -> dict, in nats a character

    loss:    of the other;  change: what it lost, with its standard error over windows, "error"
    kl:      of p(real) to p(other), which text does not make noisy, and "kl_error"
    """
    nats = [-p.gather(-1, ids[:, 1:, None])[..., 0].double().mean(dim=1) for p in (real, found)]
    kl = (real.exp() * (real - found)).sum(dim=-1).double().mean(dim=1)
    change, root = nats[1] - nats[0], len(ids) ** 0.5
    values = {"loss": nats[1].mean(), "change": change.mean(), "error": change.std() / root}
    values |= {"kl": kl.mean(), "kl_error": kl.std() / root}
    return {name: round(float(value), 5) for name, value in values.items()}


def planted(ids, *, bits=4, names=("trained", "gains", "values", "axes"), report=None):
    """-> list of dicts: subject, arm and ``compare``"""
    rows = []
    for name, model in subjects().items():
        if name in names:
            real = predictions(model, ids)
            for arm, changed in arms(model):
                row = {"subject": name, "arm": arm, "bits": bits}
                rows.append(row | compare(real, predictions(rounded(changed, bits), ids), ids))
                if report:
                    report(rows[-1])
    return rows


def doubled(model):
    """-> a copy in float64, in which rotations are computed"""
    return quarot.replace(model, {}).double()


def main():
    torch.set_num_threads(1)
    start = time.time()
    ids = char_gpt.windows("validation", WINDOWS)

    def report(row):
        print(round(time.time() - start), row, flush=True)

    results = {"planted": planted(ids, report=report)}
    results["planted"] += planted(ids, bits=8, names=("trained",), report=report)
    path = recorded.save(
        "rotations",
        results,
        command="python -m qbook.experiments.rotations",
        seeds=[0],
        seconds=time.time() - start,
        windows=WINDOWS,
        factor=FACTOR,
    )
    print(path.name)


if __name__ == "__main__":
    main()
