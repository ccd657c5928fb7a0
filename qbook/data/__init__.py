"""Data of the book: every file the tests and notebooks read, verified before it is used.

``QBOOK_DATA`` names folders to look in first, ``QBOOK_CACHE`` the folder downloads are kept in.
Book: used throughout.
"""

from qbook.data.files import DataUnavailable, available, fetch, how_to_get
from qbook.data.images import cifar10, digits
from qbook.data.speech import spoken_digits
from qbook.data.text import sst2, survey, tiny_shakespeare, wikitext2

__all__ = [
    "DataUnavailable",
    "available",
    "cifar10",
    "digits",
    "fetch",
    "how_to_get",
    "spoken_digits",
    "sst2",
    "survey",
    "tiny_shakespeare",
    "wikitext2",
]
