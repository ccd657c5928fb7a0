"""The first line of every notebook: seeds, plot style, and what it runs on."""

import os
import platform
import random
from importlib.metadata import PackageNotFoundError, version

import numpy as np

STYLE = {
    "figure.figsize": (6.4, 3.4),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.6,
    # Okabe-Ito: told apart by readers with any colour vision.
    "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', "
    "'#E69F00', '#000000'])",
}


def setup(seed=0):
    """Seed Python, NumPy and torch, set the plot style and print versions, device and seed."""
    import matplotlib.pyplot as plt
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that still draw from the global state)
    torch.manual_seed(seed)
    plt.rcParams.update(STYLE)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    packages = " · ".join(f"{name} {_version(name)}" for name in ("qbook", "numpy", "torch"))
    print(f"Python {platform.python_version()} · {packages} · {device} · seed {seed}")


def cpu_name():
    """The processor's name as the operating system tells it, with its number of cores."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
