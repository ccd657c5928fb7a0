"""AWQ, GPTQ and both, three and four bits in groups, on two real transformers.

The character GPT as it is and with planted outliers (three channels before each half-layer, twenty
times larger; the same function), and MiniLM with SST-2.  Weights alone are rounded, on asymmetric
grids as in the paper's code; embeddings and the character GPT's head stay real.  Every method sees
the same calibration data, drawn anew for each seed.  Book: 5.5
Run: ``python -m qbook.experiments.awq_int3 MODEL`` with MODEL char_gpt or minilm
"""

import sys
import time

import qbook
from qbook.experiments import all_methods, planted_outliers, recorded
from qbook.llm import awq_layers

SEEDS = (0, 1, 2)
MODELS = ("char_gpt", "minilm")
WINDOWS, CHANNELS, FACTOR = 16, (5, 60, 100), 20.0
# Label -> (what is rounded: the model, scaled, or scaled and clipped; how).
METHODS = {
    "nearest": ("real", "nearest"),
    "AWQ scales": ("scaled", "nearest"),
    "AWQ": ("clipped", "nearest"),
    "GPTQ": ("real", "gptq"),
    "AWQ, then GPTQ": ("clipped", "gptq"),
}
ATTENTION = ("query", "key", "value")


def char_gpt_groups(blocks=4):
    """-> the groups of the character GPT; the GELU before ``down`` takes no factor"""
    groups = []
    for b in range(blocks):
        query, key, value, output = (f"blocks.{b}.attention.{n}" for n in (*ATTENTION, "output"))
        groups += [
            awq_layers.Group(
                f"blocks.{b}.attention_norm", (query, key, value), f"blocks.{b}.attention"
            ),
            awq_layers.Group(value, (output,)),
            awq_layers.Group(f"blocks.{b}.mlp_norm", (f"blocks.{b}.up",)),
            awq_layers.Group(None, (f"blocks.{b}.down",)),
        ]
    return groups


def minilm_groups(layers=6):
    """-> MiniLM's groups: its LayerNorms also feed the residual, so readers divide their input"""
    groups = []
    for b in range(layers):
        layer = f"encoder.layer.{b}."
        query, key, value = (f"{layer}attention.self.{name}" for name in ATTENTION)
        groups += [
            awq_layers.Group(None, (query, key, value), f"{layer}attention.self"),
            awq_layers.Group(value, (f"{layer}attention.output.dense",)),
            awq_layers.Group(None, (f"{layer}intermediate.dense",)),
            awq_layers.Group(None, (f"{layer}output.dense",)),
        ]
    return groups


def run(subject, groups, settings, *, methods=METHODS, skip=(), seeds=SEEDS, every=1, report=None):
    """subject: as ``all_methods.Subject``;  settings: list of (bits, group_size) -> rows, dicts

    Each row: bits, group_size, method, judged [one a seed; to nearest there is no seed], exponents
    [one a group] that the first seed's search found.  every: AWQ searches on each such batch.
    """
    rows = []
    for bits, group_size in settings:
        grid = {"bits": bits, "group_size": group_size, "symmetric": False}
        found = {label: [] for label in methods}
        for seed in seeds:
            batches = subject.draw(seed)
            models, searched = {"real": subject.model}, {}
            if any(model != "real" for model, _ in methods.values()):
                models, searched = prepare(subject.model, groups, batches[::every], grid)
            if seed == seeds[0]:
                exponents = [each.exponent for each in searched.values()]
            for label, (model, method) in methods.items():
                if label == "nearest" and seed != seeds[0]:
                    continue
                # Rounding to nearest needs no data, and would only be slower with them.
                quantized, _ = qbook.quantize(
                    models[model],
                    batches if method == "gptq" else (),
                    method=method,
                    skip=skip,
                    max_samples=subject.max_samples,
                    seed=1000 * seed,
                    **grid,
                )
                found[label].append(round(subject.judge(quantized), 4))
                if report:
                    report((bits, group_size, label, seed, found[label][-1]))
        for label, judged in found.items():
            row = {"bits": bits, "group_size": group_size, "method": label, "judged": judged}
            rows.append(row | ({"exponents": exponents} if label.startswith("AWQ") else {}))
    return rows


def prepare(model, groups, batches, grid):
    """-> dict of models: real, scaled, and scaled and clipped; what the searches found"""

    def calibrate(model):
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)

    scaled, found = awq_layers.scale(model, groups, calibrate, **grid)
    unclipped = ("query", "key")
    names = [
        f"{name}.linear" if group.writer is None else name
        for group in groups
        for name in group.readers
        if not name.endswith(unclipped)
    ]
    clipped = awq_layers.clip(scaled, names, calibrate, **grid)
    return {"real": model, "scaled": scaled, "clipped": clipped}, found


def settings(name):
    """-> keywords of ``run``, by the label of what is quantized, for this model's name"""
    from qbook.models import char_gpt

    if name == "minilm":
        # GPTQ on 36 wide layers takes minutes for each draw: only rounding to nearest.
        minilm = {"subject": all_methods.minilm(), "groups": minilm_groups(), "every": 4}
        methods = {label: METHODS[label] for label in ("nearest", "AWQ")}
        return {"minilm": minilm | {"settings": [(3, 64)], "methods": methods}}
    real = all_methods.char_gpt()._replace(
        draw=lambda seed: [char_gpt.windows("train", WINDOWS, seed=seed)[:, :-1]]
    )
    outliers = planted_outliers.in_norms(real.model, CHANNELS, FACTOR)
    shared = {"groups": char_gpt_groups(), "settings": [(3, 64), (3, 128), (4, 128)]}
    shared["skip"] = ("head",)
    return {
        "real": shared | {"subject": real},
        "outliers": shared | {"subject": real._replace(model=outliers)},
    }


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in MODELS:
        sys.exit(f"MODEL={name!r} is unknown; choose from {', '.join(MODELS)}")
    start, results = time.time(), {}
    chosen = {
        "char_gpt": {"windows": WINDOWS, "channels": CHANNELS, "factor": FACTOR},
        "minilm": {"sentences": 160},
    }
    for label, keywords in settings(name).items():
        subject = keywords["subject"]
        real = round(subject.judge(subject.model), 4)
        rows = run(**keywords, report=lambda row: print(*row, flush=True))
        results[label] = {"real": real, "unit": subject.unit, "rows": rows}
        path = recorded.save(
            f"awq_int3_{name}",
            results,
            command=f"python -m qbook.experiments.awq_int3 {name}",
            seeds=SEEDS,
            seconds=time.time() - start,
            **chosen[name],
        )
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
