"""Layers, blocks and dropped quantization at W2A4 on the project's own networks.

Li et al. 2021, arXiv:2102.05426 (BRECQ), and Wei et al. 2022, arXiv:2203.05740 (QDrop), on models
that their authors did not choose.  ``python -m qbook.experiments.block_methods MODEL`` with MODEL
char_gpt or separable; ResNet-20 has ``block_reconstruction``.  Book: 4.5
"""

import sys
import time

import torch

from qbook.experiments import all_methods, block_reconstruction, recorded

METHODS = ("nearest", "layers", "blocks", "qdrop 0.5")
BLOCKS = {
    "char_gpt": [f"blocks.{i}" for i in range(4)],
    "separable": [f"stages.{i}" for i in range(5)],
}
SCHEDULE = {"steps": 150, "learning_rate": 0.02, "batch_size": 16}


def run(name, *, seeds=(0, 1, 2), methods=METHODS, bits=(2, 4), report=None, **schedule):
    """-> list of rows: method, judged [one a seed], seconds [one a seed, of the processor].

    Nearest rounding meets chance in the calibration data of its activation ranges only, and runs
    for the first seed.
    """
    subject, rows = all_methods.SUBJECTS[name](), []
    for method in methods:
        row = {"method": method, "judged": [], "seconds": []}
        for seed in seeds[:1] if method == "nearest" else seeds:
            (seen,) = subject.draw(seed)
            start = time.process_time()
            quantized = block_reconstruction.quantize(
                method,
                subject.model,
                seen,
                *bits,
                blocks=BLOCKS[name],
                seed=seed,
                **(SCHEDULE | schedule),
            )
            row["seconds"].append(round(time.process_time() - start, 1))
            with torch.no_grad():
                row["judged"].append(round(subject.judge(quantized), 4))
        rows.append(row)
        if report:
            report(row)
    return rows


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BLOCKS:
        sys.exit(f"MODEL={name!r} is unknown; choose from {', '.join(BLOCKS)}")
    start = time.time()
    rows = run(name, report=lambda row: print(row, flush=True))
    subject = all_methods.SUBJECTS[name]()
    recorded.save(
        f"block_methods_{name}",
        {"real": round(subject.judge(subject.model), 4), "unit": subject.unit, "rows": rows},
        command=f"python -m qbook.experiments.block_methods {name}",
        seeds=(0, 1, 2),
        seconds=time.time() - start,
        schedule=SCHEDULE,
    )


if __name__ == "__main__":
    main()
