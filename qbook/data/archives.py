"""Archives: decode once, verify what was decoded, keep the arrays.

A zip that GitHub packs on demand has no stable hash, its content has.  The arrays of a part (a
split) are hashed after decoding; an uncompressed .npz of them in the cache spares the next process
the decoding, and is held to the same hash.  Book: used throughout.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from qbook.data import catalogue, files


def load_arrays(name, part, decode):
    """-> dict of verified arrays: one part of the archive called ``name``.

    decode(archive, part) -> dict of arrays, from an open ``zipfile.ZipFile``.
    A copy whose arrays hash to something else is reported by a warning, not used, and downloaded
    again.  Raises ValueError for an unknown part, ``files.DataUnavailable`` where no good copy can
    be had.
    """
    parts = catalogue.find(name).decoded
    if part not in parts:
        raise ValueError(f"{name} has no part {part!r}; choose one of {', '.join(parts)}")
    expected = parts[part]
    cached = files.decoded_path(name, part)
    if cached.is_file():
        found = _hash_npz(cached)
        if found == expected:
            return _read_npz(cached)
        files.warn_corrupt(cached, expected, found)
    for path in files.candidates(name):
        arrays, found = _decode(path, part, decode)
        if found == expected:
            _save_npz(cached, arrays)
            return arrays
        files.warn_corrupt(path, expected, found)
    path = files.download(name)
    arrays, found = _decode(path, part, decode)
    if found != expected:
        raise files.DataUnavailable(
            f"what {catalogue.find(name).url} delivers is not what was recorded: the arrays of "
            f"{part} should hash to {expected}, found {found}. {files.how_to_get(name)}"
        )
    _save_npz(cached, arrays)
    return arrays


def hash_arrays(arrays):
    """dict of arrays -> sha256 over their names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _decode(path, part, decode):
    """-> (arrays, their hash), or (None, the error) for an archive that cannot be decoded."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = decode(archive, part)
    except Exception as error:
        # Nearly anything: a flipped byte raises BadZipFile, zlib.error, KeyError, RuntimeError, ...
        return None, f"{type(error).__name__} while decoding ({error})"
    return arrays, hash_arrays(arrays)


def _hash_npz(path):
    stat = path.stat()
    return _hash_npz_once(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_npz_once(path, size, mtime_ns):
    try:
        return hash_arrays(_read_npz(path))
    except Exception as error:
        return f"{type(error).__name__} while reading ({error})"


def _read_npz(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _save_npz(path, arrays):
    # A cache that cannot be written costs the next process the decoding, no more.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and moved: another process never sees half a file.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.savez(Path(folder) / path.name, **arrays)
            os.replace(Path(folder) / path.name, path)
