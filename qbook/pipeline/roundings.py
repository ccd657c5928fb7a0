"""The book's rounding methods behind one signature: (w, x, qparams, y) -> codes.

w [out, in], x [samples, in] from the quantized prefix, y [samples, out] wanted; torch tensors, or x
and y None for "nearest".  Nothing is computed here.  Book: 4.5
"""

from dataclasses import replace

import numpy as np
import torch

from qbook import affine
from qbook.ptq import adaround, gptq, obq


def nearest(w, x, qparams, y):
    return affine.quantize(w, qparams)


def learn(w, x, qparams, y, **schedule):
    """AdaRound; schedule: keywords of ``adaround.descend``"""
    return adaround.optimise(w, x, qparams, y=y, **schedule)


def absorb(w, x, qparams, y, *, damping=0.01, act_order=True, block_size=128):
    """GPTQ, blocks of ``block_size`` columns, inputs of largest energy first unless told"""
    w, h, own = _in_numpy(w, x, qparams, damping)
    order = gptq.act_order(h) if act_order else None
    codes = gptq.quantize_blocks(w, h, own, order=order, block_size=block_size)
    return torch.from_numpy(codes).to(qparams.scale.device)


def absorb_greedily(w, x, qparams, y, *, damping=0.01):
    """OBQ: each row in its own greedy order"""
    w, h, own = _in_numpy(w, x, qparams, damping)
    return torch.from_numpy(obq.quantize(w, h, own)).to(qparams.scale.device)


ROUNDINGS = {"nearest": nearest, "adaround": learn, "gptq": absorb, "obq": absorb_greedily}


def _in_numpy(w, x, qparams, damping):
    if len(x) < x.shape[1]:
        raise ValueError(
            f"{len(x)} samples leave the {x.shape[1]} x {x.shape[1]} Hessian singular; calibrate "
            f"on at least {x.shape[1]}, by more batches or a larger max_samples"
        )
    h = obq.hessian(x.double().cpu().numpy())
    if not np.any(h):
        # No input was ever active: nothing to absorb, every order is nearest rounding.
        h = np.eye(len(h))
    own = replace(
        qparams,
        scale=qparams.scale.double().cpu().numpy(),
        zero_point=qparams.zero_point.cpu().numpy(),
    )
    return w.double().cpu().numpy(), obq.dampen(h, damping), own
