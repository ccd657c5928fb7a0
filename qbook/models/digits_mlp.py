"""A 64-64-10 network for scikit-learn's digits: the model that needs no download.

Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0; Adam: Kingma and Ba 2015,
arXiv:1412.6980.  Book: used throughout.

The trained weights lie beside this file, so that every reader's numbers are the same: training
repeats to the bit on one machine and not on another.  ``python -m qbook.models.digits_mlp`` trains
them anew, which takes a second.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from qbook.data import digits

WEIGHTS = Path(__file__).with_suffix(".safetensors")
STEPS = 200
LEARNING_RATE = 0.01


def build():
    """-> the untrained network: images [n, 64] in 0..1 -> logits [n, 10]"""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load():
    """-> the trained network, a fresh copy, on the CPU, in eval mode."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def train():
    """-> a network after 200 steps of full-batch Adam on the training images, from a fixed seed.

    The global random state is left as it was.
    """
    # A caller's no_grad() or inference_mode() ends here.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        (images, labels), _ = digits()
        images, labels = torch.from_numpy(images), torch.from_numpy(labels)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


if __name__ == "__main__":
    save_file(train().state_dict(), WEIGHTS)
