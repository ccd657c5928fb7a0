"""MXFP4, NVFP4 and NF4 weights under 16-bit activations, against 16 bits and bitsandbytes."""

from benchmarks.gpu import peers, weights

SIZE = 8192
GROUP_SIZES = {"mxfp4": 32, "nvfp4": 16, "nf4": 64}
BITSANDBYTES, GEMLITE = "bitsandbytes NF4", "gemlite MXFP4"
ROWS = (1, 4, 16, 64)


def checks(device):
    for name, group_size in GROUP_SIZES.items():
        yield from weights.checks(name, (group_size,), device)


def groups(device, quick=False):
    size = 256 if quick else SIZE
    for name, group_size in GROUP_SIZES.items():
        for m in ROWS[:1] if quick else ROWS:
            targets, others = (), {}
            if name == "nf4":
                targets = ((BITSANDBYTES, 1.0),) if m == 1 else ()
                others = {BITSANDBYTES: ("fp16", bitsandbytes)}
            elif m <= 16:
                targets = ((weights.BF16, 1.8),)
            if name == "mxfp4" and m == 1:
                others = {GEMLITE: ("fp16", gemlite)}
            label = f"W4A16 {name.upper()}"
            yield weights.group(
                name, label, m, size, size, group_size, device, targets, peers=others
            )


def bitsandbytes(weight, x):
    """Its codes and scales are its own, from w_hat: ours where a block has the largest code."""
    call = peers.bitsandbytes_nf4(weight.w_hat.half(), GROUP_SIZES["nf4"])
    return weights.turns(call, weight, x)


def gemlite(weight, x):
    layer = peers.gemlite_fp4(weight.codes, weight.scale.float())
    return weights.turns(layer, weight, x)


def tunings(device, quick=False):
    size = 256 if quick else SIZE
    for name, group_size in GROUP_SIZES.items():
        shapes = [(m, size, size) for m in ROWS]
        yield from weights.tunings(name, name.upper(), shapes, group_size, device)
