"""One file, verified: a local folder first, then the cache, then its canonical source.

``QBOOK_DATA``   folders to look in first, separated by ``os.pathsep``; only read
``QBOOK_CACHE``  where downloads are kept; default: the user's cache folder for qbook

Every copy is compared with the recorded hash before it is handed out.  The download itself is
pooch's.  Book: used throughout.
"""

import functools
import os
import warnings
import zipfile
from pathlib import Path

import pooch

from qbook.data import catalogue


class DataUnavailable(FileNotFoundError):
    """No verified copy at hand, and none could be downloaded; the message says what to do."""


def fetch(name):
    """-> Path of a verified copy of the file called ``name``, downloaded if need be.

    A copy with the wrong hash is reported by a warning and not used.  An archive has no recorded
    file hash; it only has to be a zip, and its loader verifies what it holds.
    Raises ValueError for an unknown name, DataUnavailable where there is neither copy nor network.
    """
    path = find_local(name)
    return download(name) if path is None else path


def available(name):
    """-> whether a verified copy lies in a local folder or in the cache; never downloads.

    Raises ValueError for an unknown name.
    """
    decoded = [decoded_path(name, part) for part in catalogue.find(name).decoded]
    if decoded and all(path.exists() for path in decoded):
        return True
    return find_local(name) is not None


def how_to_get(name):
    """-> a sentence for the reader who lacks the file: its source, and where to put it."""
    source = catalogue.find(name)
    return (
        f"{name} ({source.size:,} bytes) is not at hand: download {source.url}, save it "
        f"as {name} in a folder of your choice and set QBOOK_DATA to that folder"
    )


def find_local(name):
    """-> Path of the first verified copy without the network, or None; warns of corrupt ones."""
    expected = catalogue.find(name).sha256
    for path in candidates(name):
        if expected is None:
            if zipfile.is_zipfile(path):
                return path
            warn_corrupt(path, "a zip archive", "something else")
        elif (found := hash_file(path)) == expected:
            return path
        else:
            warn_corrupt(path, expected, found)
    return None


def candidates(name):
    """-> existing copies, unverified: those in the folders of QBOOK_DATA, then the cached one."""
    local = [Path(p).expanduser() for p in os.environ.get("QBOOK_DATA", "").split(os.pathsep) if p]
    return [path for folder in (*local, cache_folder()) if (path := folder / name).is_file()]


def cache_folder():
    """-> Path of the cache; it need not exist yet."""
    return Path(os.environ.get("QBOOK_CACHE") or pooch.os_cache("qbook")).expanduser()


def decoded_path(name, part):
    """-> Path in the cache where the decoded arrays of a part of an archive are kept."""
    return cache_folder() / f"{Path(name).stem}-{part}.npz"


def download(name):
    """Fetch the file from its canonical source into the cache, whatever is there -> Path.

    Raises DataUnavailable where the network, the source or the recorded hash says no.
    """
    source = catalogue.find(name)
    cache = cache_folder()
    known_hash = source.sha256 and f"sha256:{source.sha256}"
    try:
        if known_hash is None:
            # Without a hash pooch would take the copy that is already there for a good one.
            (cache / name).unlink(missing_ok=True)
        return Path(pooch.retrieve(source.url, known_hash, fname=name, path=cache))
    except (OSError, ValueError) as error:
        looked = os.environ.get("QBOOK_DATA") or "(not set)"
        raise DataUnavailable(
            f"{how_to_get(name)}. Looked in QBOOK_DATA={looked} and in the cache {cache}; "
            f"the download failed: {error}"
        ) from None


def hash_file(path):
    """-> sha256 of a file, read once in a process as long as its size and time stay the same."""
    stat = Path(path).stat()
    return _hash_file(Path(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_file(path, size, mtime_ns):
    return pooch.file_hash(path)


def warn_corrupt(path, expected, found):
    """Tell the user that a copy is not what was recorded, and that it is left alone."""
    warnings.warn(
        f"{path} is corrupt and is not used: expected {expected}, found {found}", stacklevel=3
    )
