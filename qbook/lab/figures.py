"""Figures whose data are checked: a changed curve fails, a renderer's noise does not.

``show`` is the only way a notebook of the book displays a figure.  It reads the arrays behind the
plot (lines, bars, points, images) out of the figure and, under QBOOK_FIGURES=check, compares them
with ``figures/<name>.json`` beside the notebook.
"""

import io
import json
import os
from pathlib import Path

import numpy as np

# Enough digits to notice a change of 1e-5, few enough to keep baselines small.
DIGITS = 6
# Longer arrays are stored as their moments and this many evenly spaced values.
KEEP = 200
# Marks a quantity on a logarithmic axis.
LOG = " (log)"


class FigureChanged(AssertionError):
    """The data behind a figure differ from its stored baseline."""


def show(fig, name, *, caption, alt, rtol=1e-3, tolerances=None):
    """Check the data behind ``fig``, display it and close it.

    name:       a label, unique in the book: ``fig-...``; pages refer to it with {numref}
    caption:    the sentence under the figure
    alt:        what the picture shows, for readers who cannot see it
    rtol:       tolerance, relative to the largest absolute value of each array
    tolerances: {part of a quantity's name: rtol} for quantities that need their own

    Raises FigureChanged under QBOOK_FIGURES=check.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    check(extract(fig), name, rtol=rtol, tolerances=tolerances)
    about = {"qbook": {"name": name, "caption": caption, "alt": alt}}
    display(Image(data=_png(fig)), metadata=about)
    plt.close(fig)


def check(data, name, *, rtol=1e-3, tolerances=None, folder="figures"):
    """Compare extracted data with the stored baseline, or store them (QBOOK_FIGURES=update)."""
    mode = os.environ.get("QBOOK_FIGURES")
    if mode not in (None, "check", "update"):
        raise ValueError(f"QBOOK_FIGURES={mode!r}; choose check or update, or leave it unset")
    if mode is None:
        return
    path = Path(folder) / f"{name}.json"
    if mode == "update":
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(key)}: {json.dumps(data[key])}" for key in sorted(data)]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    if not path.exists():
        raise FigureChanged(f"{name}: no baseline at {path}; run `make notebooks`")
    changes = differences(json.loads(path.read_text()), data, rtol, tolerances or {})
    if changes:
        raise FigureChanged(f"{name}: " + "; ".join(changes[:5]))


def extract(fig):
    """fig -> {quantity: text, or list of numbers}; a quantity is named after axes and label."""
    data = {}
    for number, ax in enumerate(fig.axes):
        prefix = f"axes {number}"
        data[f"{prefix} text"] = " | ".join(
            [ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), ax.get_yscale()]
        )
        x = f"x{LOG}" if ax.get_xscale() == "log" else "x"
        y = f"y{LOG}" if ax.get_yscale() == "log" else "y"
        for i, line in enumerate(ax.lines):
            _store(data, f"{prefix} line {i} {line.get_label()} {x}", line.get_xdata())
            _store(data, f"{prefix} line {i} {line.get_label()} {y}", line.get_ydata())
        bars = [p for p in ax.patches if hasattr(p, "get_height")]
        if bars:
            _store(data, f"{prefix} bars x", [b.get_x() for b in bars])
            _store(data, f"{prefix} bars width", [b.get_width() for b in bars])
            _store(data, f"{prefix} bars height", [b.get_height() for b in bars])
        for i, shape in enumerate(p for p in ax.patches if not hasattr(p, "get_height")):
            _store_points(
                data, f"{prefix} shape {i} {shape.get_label()}", shape.get_path().vertices
            )
        for i, points in enumerate(ax.collections):
            offsets = np.ma.getdata(points.get_offsets())
            if points.get_paths() and len(offsets) <= 1:
                offsets = np.concatenate([p.vertices for p in points.get_paths()])
            _store_points(data, f"{prefix} points {i} {points.get_label()}", offsets)
            if points.get_array() is not None:
                _store(data, f"{prefix} points {i} {points.get_label()} colour", points.get_array())
        for i, image in enumerate(ax.images):
            _store(data, f"{prefix} image {i}", image.get_array())
        for i, text in enumerate(ax.texts):
            data[f"{prefix} note {i}"] = text.get_text()
    return data


def differences(expected, found, rtol, tolerances):
    """Readable sentences, one for each quantity that is missing, new or outside its tolerance."""
    changes = [f"{key} is missing" for key in expected if key not in found]
    changes += [f"{key} is new" for key in found if key not in expected]
    for key in sorted(expected.keys() & found.keys()):
        if isinstance(expected[key], str) or isinstance(found[key], str):
            if expected[key] != found[key]:
                changes.append(f"{key}: {found[key]!r} where {expected[key]!r} was expected")
            continue
        limit = next((tol for part, tol in tolerances.items() if part in key), rtol)
        changes += _number_difference(key, np.array(expected[key]), np.array(found[key]), limit)
    return changes


def _number_difference(key, expected, found, rtol):
    if expected.shape != found.shape:
        return [f"{key}: {found.size} values where {expected.size} were expected"]
    if expected.size == 0:
        return []
    finite = np.isfinite(expected)
    same_holes = np.array_equal(expected[~finite], found[~finite], equal_nan=True)
    size = np.abs(expected[finite])
    # On a linear axis the largest value sets the scale; on a logarithmic one each has its own.
    scale = size if LOG in key else np.full_like(size, size.max(initial=0))
    off = np.abs(found[finite] - expected[finite])
    # Half a unit in the last stored digit is the storage's own error.
    if same_holes and (off <= scale * (rtol + 10.0 ** (1 - DIGITS))).all():
        return []
    return [
        f"{key}: off by {off.max(initial=0):.3g} of {size.max(initial=0):.3g}, tolerance {rtol:g}"
    ]


def _png(fig):
    """The picture with a palette of 256 colours, a third of the bytes for lines and text."""
    from PIL import Image

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def _store_points(data, key, points):
    """Points [n, 2] as two quantities, so that each coordinate has its own scale."""
    points = np.reshape(points, (-1, 2))
    _store(data, f"{key} x", points[:, 0])
    _store(data, f"{key} y", points[:, 1])


def _store(data, key, values):
    try:
        array = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    except (TypeError, ValueError):
        # Categories: names of bars, dates.
        data[key] = " ".join(str(v) for v in np.asarray(values).ravel())
        return
    if array.size > KEEP:
        finite = array[np.isfinite(array)]
        moments = {"mean": finite.mean(), "rms": np.sqrt(np.mean(finite**2))}
        for name, moment in {"size": array.size, **moments}.items():
            data[f"{key} {name}"] = [_round(moment)]
        array = array[np.linspace(0, array.size - 1, KEEP).astype(int)]
    data[key] = [_round(value) for value in array]


def _round(value):
    return float(f"{value:.{DIGITS}g}")
