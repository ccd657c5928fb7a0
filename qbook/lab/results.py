"""Results that the chapters quote: printed for the reader, stored for the prose.

A page injects one with the role ``{measured}`` and never types it.  The stored form is MyST-NB's
("glue"), written here so that a notebook needs no book software to run.
"""

PREFIX = "application/papermill.record/"


def result(name, value, spec=""):
    """Print ``name = value`` and store the text for the page that quotes it.

    spec: format specification of Python's ``format``; the text is all that is stored, so that a
    number is compared at the precision that readers see.
    """
    # Here, so that timings can be taken on a machine without notebooks.
    from IPython.display import display

    text = format(value, spec)
    print(f"{name} = {text}")
    display(
        {f"{PREFIX}text/plain": repr(text)},
        metadata={"scrapbook": {"name": name, "mime_prefix": PREFIX}},
        raw=True,
    )
