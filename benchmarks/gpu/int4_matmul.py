"""W4A16, groups of 128 with stored zero-points, against 16 bits, gemlite and tinygemm.

One row of x waits for the weight, a quarter of its bytes; with many rows arithmetic is the limit,
and packed weights can only lose: the seven row counts are there to show the crossing.
"""

from benchmarks.gpu import peers, weights

GROUP_SIZE = 128
SIZE, LONG = 8192, 28672
GEMLITE, TINYGEMM = "gemlite", "torch int4pack (tinygemm)"
# Rows of x -> (against, at least) on an H200.
TARGETS = {
    1: ((weights.BF16, 2.2), (GEMLITE, 1.0)),
    4: (),
    16: ((weights.BF16, 1.9), (GEMLITE, 1.0)),
    64: ((weights.BF16, 1.3), (GEMLITE, 1.0)),
    256: (),
    1024: ((weights.BF16, 0.75),),
    4096: ((weights.BF16, 0.9),),
}


def checks(device):
    return weights.checks("int4", (16, 32, 128, None), device, stored_zeros=(False, True))


def groups(device, quick=False):
    for m, targets in TARGETS.items():
        if not quick or m in (1, 16):
            yield group(m, SIZE, SIZE, device, targets, quick)
    yield group(1, SIZE, LONG, device, ((weights.BF16, 2.8),), quick)


def group(m, in_, out, device, targets, quick):
    if quick:
        in_, out = in_ // 32, out // 128
    others = {TINYGEMM: ("bf16", tinygemm)}
    # gemlite tries a score of tiles for each shape: only where a target asks for it.
    if any(against == GEMLITE for against, _ in targets):
        others[GEMLITE] = ("fp16", gemlite)
    return weights.group(
        "int4",
        f"W4A16 g{GROUP_SIZE}",
        m,
        in_,
        out,
        GROUP_SIZE,
        device,
        targets,
        stored_zeros=True,
        peers=others,
    )


def gemlite(weight, x):
    layer = peers.gemlite(weight.codes, weight.scale, weight.zero_point, GROUP_SIZE, 4)
    return weights.turns(layer, weight, x)


def tinygemm(weight, x):
    call = peers.int4_tinygemm(weight.codes, weight.scale, weight.zero_point, GROUP_SIZE)
    return weights.turns(call, weight, x)


def tunings(device, quick=False):
    shapes = [(m, SIZE, SIZE) for m in TARGETS] + [(1, SIZE, LONG)]
    if quick:
        shapes = [(1, 256, 64), (16, 256, 64)]
    return weights.tunings("int4", "W4A16", shapes, GROUP_SIZE, device, stored_zeros=True)
