"""What the weight-only modules share: weights to draw, checks, groups and tunings of one format.

Their reconstructed weight is computed here from what was drawn, in float64: neither the packing nor
the formats of the package take part.
"""

import functools
from dataclasses import dataclass

import torch

from benchmarks.gpu import clock, compare, peers, tune
from benchmarks.gpu.group import Group
from qbook.formats import NF4
from qbook.kernels.gpu import device as gpu
from qbook.kernels.weight_only import configs, packed
from qbook.kernels.weight_only import matmul as weight_only
from qbook.lab.timing import Target

E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)
LEVELS = {"mxfp4": E2M1, "nvfp4": E2M1, "nf4": tuple(NF4.values.tolist())}
CODES = {"ternary": 3}
TENSOR_SCALE = 0.03125
# Rows of x, rows of w, for every way that a shape may take.
ODD = ((1, 33), (3, 130), (17, 65), (70, 129), (300, 40))
BF16, FP16 = "torch.mm bf16", "torch.mm fp16"


@dataclass(frozen=True)
class Weight:
    """A drawn weight: what the package packed, and w_hat float64 [out, in] as the formats define it

    codes uint8 [out, in]; scale float64, zero_point or None [out, groups]
    """

    packed: packed.PackedWeight
    w_hat: torch.Tensor
    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None


def draw(name, out, in_, group_size, device, *, stored_zeros=False, codes=None):
    """Codes and scales at random, seeded, those of the format -> ``Weight``"""
    groups = 1 if group_size is None else in_ // group_size
    integers = functools.partial(
        torch.randint, device=device, generator=torch.Generator(device).manual_seed(0)
    )
    if codes is None:
        codes = integers(0, CODES.get(name, 16), (out, in_), dtype=torch.uint8)
    # From 1 to 2, in steps that every type of scale holds.
    mantissa = integers(8, 16, (out, groups)).double() / 8
    zero_point = tensor_scale = None
    if name == "mxfp4":
        stored = integers(119, 124, (out, groups), dtype=torch.uint8)
        scale = torch.exp2(stored.double() - 127)
    elif name == "nvfp4":
        # Exponent field 7 of E4M3 is 2^0; its three bits of mantissa are eighths.
        stored = ((mantissa * 8).to(torch.uint8) - 8) | (7 << 3)
        scale, tensor_scale = mantissa * TENSOR_SCALE, TENSOR_SCALE
    else:
        stored = (mantissa / 64).to(torch.float32 if name == "nf4" else torch.float16)
        scale = stored.double()
    if stored_zeros:
        zero_point = integers(0, 16, (out, groups), dtype=torch.uint8)
    group = torch.arange(in_, device=device) // (group_size or in_)
    if name in LEVELS:
        values = torch.tensor(LEVELS[name], dtype=torch.float64, device=device)[codes.long()]
    elif stored_zeros:
        values = codes.double() - zero_point.double()[:, group]
    else:
        values = codes.double() - {"int4": 8, "ternary": 1}[name]
    found = packed.pack(
        name, codes, stored, zero_point, group_size=group_size, tensor_scale=tensor_scale
    )
    return Weight(found, values * scale[:, group], codes, scale, zero_point)


def activations(m, in_, dtype, device):
    generator = torch.Generator(device).manual_seed(m)
    return torch.randn(m, in_, dtype=torch.float32, device=device, generator=generator).to(dtype)


def half_types(device):
    """-> types of x that are native on the device: a T4 has no bfloat16"""
    return (torch.float16, torch.bfloat16) if _architecture(device) >= 80 else (torch.float16,)


def _architecture(device):
    return gpu.architecture(torch.empty(0, device=device))


def checks(name, group_sizes, device, *, stored_zeros=(False,)):
    """-> pairs of a name and a call that raises ValueError: odd shapes, and every code

    Each type of x, with and without stored zero-points and bias, but not all with all: a kernel
    compiles for seconds.
    """
    types = half_types(device)
    for group_size in group_sizes:
        for index in range(max(len(types), len(stored_zeros))):
            dtype, zeros = types[index % len(types)], stored_zeros[index % len(stored_zeros)]
            label = f"{name}, groups of {group_size}, {dtype}{', zero-points' * zeros}"
            yield (
                f"every code of {label}",
                functools.partial(every_code, name, group_size, dtype, device, zeros),
            )
            for number, (m, out) in enumerate(ODD):
                in_ = 3 * group_size if group_size else 208
                has_bias = (number + index) % 2 == 1
                yield (
                    f"{m}x{in_}x{out} {label}{', bias' * has_bias}",
                    functools.partial(
                        odd_shape, name, m, in_, out, group_size, dtype, device, zeros, has_bias
                    ),
                )


def odd_shape(name, m, in_, out, group_size, dtype, device, zeros, has_bias):
    weight = draw(name, out, in_, group_size, device, stored_zeros=zeros)
    x = activations(m, in_, dtype, device)
    bias = activations(1, out, dtype, device)[0] if has_bias else None
    with compare.poisoned():
        found = weight_only.matmul(x, weight.packed, bias)
    compare.product("product", found, x, weight.w_hat, bias)


def every_code(name, group_size, dtype, device, zeros):
    """The identity times w: each number of w_hat by itself, to the bit, in every way there is."""
    in_ = group_size or 64
    codes = torch.arange(in_, device=device) % CODES.get(name, 16)
    codes = codes.to(torch.uint8).repeat(16, 1)
    weight = draw(name, 16, in_, group_size, device, stored_zeros=zeros, codes=codes)
    plane = weight.packed.plane
    ways = [
        configs.Config("row", block_n=8, tiles=1, num_warps=4),
        configs.Config("dequantize", block_n=8, tiles=1),
    ]
    if _architecture(device) >= 80:
        ways.append(configs.Config("tile", 32, 64, 1))
        ways.append(configs.Config("tile", 32, 64, max(1, 64 // plane), 2))
    x = torch.eye(in_, dtype=dtype, device=device)
    tensor_scale = 1 if weight.packed.tensor_scale is None else TENSOR_SCALE
    # The tensor's scale is a power of two here: it moves no bit.
    expected = ((weight.w_hat / tensor_scale).to(dtype).double() * tensor_scale).T
    for config in ways:
        with compare.poisoned():
            found = weight_only.run(x, weight.packed, None, config)
        compare.within(f"w_hat by {config.way}", found, expected, 0)


def group(name, label, m, in_, out, group_size, device, targets, **options):
    """One shape of a format against 16 bits, and against what others have -> ``Group``

    targets:  (name of another case, at least) pairs for "qbook", which has float16 x
    options:  stored_zeros, and peers: name -> build(weight, x) -> call over copies of the weight
    """
    weight = draw(
        name, out, in_, group_size, device, stored_zeros=options.get("stored_zeros", False)
    )
    halves = {
        {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]: dtype
        for dtype in reversed(half_types(device))
    }
    x = {unit: activations(m, in_, dtype, device) for unit, dtype in halves.items()}
    cases, units, moved, absent = {}, {}, {}, {}
    ends = 2 * m * (in_ + out)
    for unit, dtype in halves.items():
        w = weight.w_hat.to(dtype)
        cases[f"torch.mm {unit}"] = clock.rotate(
            lambda w, x=x[unit]: torch.mm(x, w.t()), clock.copies(w, w.nbytes, device)
        )
        moved[f"torch.mm {unit}"], units[f"torch.mm {unit}"] = w.nbytes + ends, unit
    copies = clock.copies(weight.packed, weight.packed.nbytes, device)
    for unit in reversed(halves):
        case = "qbook" if unit == "fp16" else f"qbook, {unit}"
        cases[case] = clock.rotate(lambda w, x=x[unit]: weight_only.matmul(x, w), copies)
        moved[case], units[case] = weight.packed.nbytes + ends, unit
    expected = x["fp16"].double() @ weight.w_hat.T
    for case, (unit, build) in options.get("peers", {}).items():
        if unit not in x:
            absent[case] = f"no {unit} on this GPU"
            continue
        found = peers.attempt(case, absent, lambda b=build, u=unit: b(weight, x[u]), expected)
        if found is not None:
            cases[case], units[case] = found, unit
            moved[case] = weight.packed.nbytes + ends

    def check():
        for case, call in cases.items():
            if case.startswith("qbook"):
                with compare.poisoned():
                    y = call()
                compare.product(case, y, x[units[case]], weight.w_hat)

    found = tuple(Target("qbook", against, least) for against, least in targets)
    shape = f"{label} {m}x{in_}x{out}"
    work = 2 * m * in_ * out
    return Group(shape, cases, work, moved, found, units=units, absent=absent, check=check)


def turns(layer, weight, x):
    """call of a library's layer on x, over copies of the layer, which is about as large as ours"""
    copies = clock.copies(layer, weight.packed.nbytes, x.device)
    return clock.rotate(lambda layer: layer(x), copies)


def tunings(name, label, shapes, group_size, device, **options):
    """-> ``tune.Problem`` for each (m, in, out): every candidate, by x in float16"""
    for m, in_, out in shapes:
        weight = draw(name, out, in_, group_size, device, **options)
        x = activations(m, in_, torch.float16, device)
        copies = clock.copies(weight.packed, weight.packed.nbytes, device)
        chosen = weight_only.choose(x, weight.packed)
        cases = {
            config: clock.rotate(
                lambda w, x=x, config=config: weight_only.run(x, w, None, config), copies
            )
            for config in dict.fromkeys((chosen, *configs.candidates(m, weight.packed.plane)))
        }
        yield tune.Problem(
            f"{label} {m}x{in_}x{out}",
            cases,
            functools.partial(compare.product, label, x=x, w_hat=weight.w_hat),
        )
