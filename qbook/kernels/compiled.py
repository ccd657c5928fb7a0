"""``kernel``: Numba's compiler, with a cache on disk that notices every change of a source.

Numba itself looks at one file, that of the function; a change in a function that was inlined from
another file would go unnoticed and old machine code would go on running.  Here the stamp is a hash
of every source in this folder.  Book: 6.2
"""

import functools
import hashlib
from pathlib import Path

import numba

ROOM = Path(__file__).parent


def kernel(function=None, **options):
    """Decorate a function for lazy compilation, cached on disk; options as of ``numba.njit``.

    Nothing is compiled before the first call.  Where no folder can be written, nothing is cached.
    The lock of the interpreter is released while the kernel runs.
    """
    if function is None:
        return functools.partial(kernel, **options)
    dispatcher = numba.njit(cache=True, nogil=True, **options)(function)
    # Private to Numba, and the only way to say what a cached function depends on.
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if file is not None:
        file._source_stamp = source_stamp()
    return dispatcher


@functools.cache
def source_stamp():
    """Hash of the sources of all kernels: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(ROOM.rglob("*.py")):
        digest.update(str(path.relative_to(ROOM)).encode() + path.read_bytes())
    return digest.hexdigest()
