"""The character GPT with outliers planted where its norms write: the same function.

Book: 5.1, 5.5, 5.8, 5.9
"""

from qbook.llm import quarot, scaling


def in_norms(model, channels, factor):
    """-> a copy: these channels of what every norm before a half-layer writes are ``factor`` larger

    The norm before the head stays as it is.
    """
    readers = quarot.char_gpt_stream().readers
    for writer in (name for name in readers if name != "norm"):
        model = scaling.plant(model, writer, readers[writer], channels, factor)
    return model
