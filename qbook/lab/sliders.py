"""Sliders that move a picture: live widgets in a notebook, plain HTML in the built book.

Without a kernel the page holds one SVG frame for each setting and shows one at a time; a few
characters of inline script are all it needs, no library and no network.
"""

import io
import itertools
import os
import re

from qbook.lab import figures


def slider(draw, name, *, caption, alt, rtol=1e-3, tolerances=None, start=None, **settings):
    """Show ``draw(**setting)`` with one slider a parameter.

    draw:     called with one value for each keyword in ``settings``, returns a matplotlib figure
    name:     a label, unique in the book
    settings: parameter -> the list of values its slider takes; all combinations are drawn, so keep
              their product below about 30
    start:    {parameter: value} shown first; default the first of each list

    Every frame is checked as ``figures.show`` checks a figure.  In a live session with ipywidgets
    the sliders call ``draw`` itself.
    """
    from IPython.display import HTML, display

    start = {key: (start or {}).get(key, values[0]) for key, values in settings.items()}
    if os.environ.get("QBOOK_STATIC"):
        html = static_html(draw, name, settings, start, alt, caption, rtol, tolerances)
        return display(HTML(html), metadata={"qbook": {"slider": name}})
    return _live(draw, settings, start)


def _live(draw, settings, start):
    import ipywidgets
    import matplotlib.pyplot as plt
    from IPython.display import display

    def redraw(**setting):
        fig = draw(**setting)
        display(fig)
        plt.close(fig)

    controls = {
        key: ipywidgets.SelectionSlider(options=values, value=start[key], description=_words(key))
        for key, values in settings.items()
    }
    display(ipywidgets.interactive(redraw, **controls))


def static_html(draw, name, settings, start, alt, caption, rtol=1e-3, tolerances=None):
    """The frames of all settings as one self-contained piece of HTML."""
    import matplotlib.pyplot as plt

    keys = list(settings)
    frames, data = [], {}
    for combination in itertools.product(*settings.values()):
        fig = draw(**dict(zip(keys, combination, strict=True)))
        data |= {f"{combination} {key}": found for key, found in figures.extract(fig).items()}
        frames.append(_svg(fig, f"{name}-{len(frames)}"))
        plt.close(fig)
    figures.check(data, name, rtol=rtol, tolerances=tolerances)
    first = 0
    for key in keys:
        first = first * len(settings[key]) + settings[key].index(start[key])
    pictures = "".join(
        f'<div class="frame"{"" if i == first else " hidden"}>{svg}</div>'
        for i, svg in enumerate(frames)
    )
    controls = "".join(_control(name, key, settings[key], start[key]) for key in keys)
    return (
        f'<figure class="qbook-slider" id="{name}"><div role="img" aria-label="{_escape(alt)}" '
        f'style="background:#fff">{pictures}</div><div class="controls">{controls}</div>'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _control(name, key, values, start):
    script = (
        "const f=this.closest('figure');let n=0;"
        "for(const r of f.querySelectorAll('input')){n=n*(+r.max+1)+ +r.value;"
        "r.nextElementSibling.value=r.dataset.values.split('|')[r.value]}"
        "f.querySelectorAll('.frame').forEach((d,i)=>d.hidden=i!==n)"
    )
    shown = "|".join(map(str, values))
    return (
        f'<label>{_words(key)} <input type="range" min="0" max="{len(values) - 1}" step="1" '
        f'value="{values.index(start)}" data-values="{_escape(shown)}" oninput="{script}" '
        f'aria-label="{_words(key)}"> <output>{start}</output></label> '
    )


def _svg(fig, salt):
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    # Text stays text; ids differ from frame to frame and never from run to run.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    # Names of groups are for editors.
    svg = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    svg = re.sub(r'<g id="[a-zA-Z0-9.]+_\d+">', "<g>", svg)
    svg = re.sub(r"stroke-(?:linejoin: miter|linecap: (?:butt|square|projecting));? ?", "", svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _short(tag):
    """Coordinates to a tenth of a point, finer than a screen's pixel; text is no tag."""
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", tag)


def _words(key):
    return key.replace("_", " ")


def _escape(text):
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
