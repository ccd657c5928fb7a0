"""The roofline of a machine that was measured, and where each kernel stands under it.

rows: of ``python -m benchmarks.cpu --record``, see ``qbook.experiments.recorded``.  Book: 6.2
"""

import numpy as np

from qbook import roofline

OURS = "qbook"


def roofs(rows, threads):
    """-> (name -> operations a second, name -> bytes a second), as measured in the same run

    Raises ValueError where the run did not measure them.
    """
    cases = {r["group"]: r["cases"] for r in rows if r["threads"] == threads}
    try:
        peaks = {
            name: case["operations"] / case["seconds"]
            for name, case in cases["peak arithmetic"].items()
        }
        bandwidths = {
            group.removeprefix("bandwidth, "): found["read"]["bytes"] / found["read"]["seconds"]
            for group, found in cases.items()
            if group.startswith("bandwidth, ")
        }
    except KeyError as missing:
        raise ValueError(
            f"no {missing} with threads={threads}; record it: python -m benchmarks.cpu"
        ) from None
    return peaks, bandwidths


def points(rows, threads, case=OURS):
    """-> list of (group, operations a byte, operations a second) of a case, where both are known"""
    found = []
    for row in rows:
        entry = row["cases"].get(case)
        if row["threads"] == threads and entry and entry["operations"] and entry["bytes"]:
            intensity = entry["operations"] / entry["bytes"]
            found.append((row["group"], intensity, entry["operations"] / entry["seconds"]))
    return found


def draw(rows, threads=1):
    """-> figure: the roofs as lines, each kernel a numbered point with its name in the legend

    Kernels of less than one operation a byte are left out: casts, which are copies.
    """
    import matplotlib.pyplot as plt

    peaks, bandwidths = roofs(rows, threads)
    shown = [point for point in points(rows, threads) if point[1] >= 1]
    fig, ax = plt.subplots(figsize=(6.4, 5.2))
    intensity = np.geomspace(1, 4096, 200)
    for style, (place, bandwidth) in zip(("-", "--"), bandwidths.items(), strict=False):
        for color, (name, peak) in zip(("C0", "C1"), peaks.items(), strict=False):
            line = [roofline.attainable(i, peak=peak, bandwidth=bandwidth) / 1e9 for i in intensity]
            ax.plot(intensity, line, style, color=color, label=f"{name}, {place}")
    for number, (group, x, y) in enumerate(shown, 1):
        ax.plot(x, y / 1e9, "o", color="C2", markersize=5)
        ax.annotate(
            str(number), (x, y / 1e9), textcoords="offset points", xytext=(4, 4), fontsize=8
        )
        ax.plot([], [], " ", label=f"{number}  {group}")
    ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="10⁹ operations a second")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False)
    return fig
