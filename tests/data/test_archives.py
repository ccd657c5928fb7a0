import warnings
import zipfile

import numpy as np
import pooch
import pytest
from numpy.testing import assert_array_equal

from qbook import data
from qbook.data import archives, catalogue, files

NAME = "numbers.zip"
ROWS = [[1, 2, 3], [4, 5, 6], [250, 251, 252]]


def decode(archive, part):
    """The arrays of a part are the bytes of its members."""
    members = [m for m in archive.namelist() if m.startswith(part)]
    return {"rows": np.array([list(archive.read(m)) for m in sorted(members)], np.uint8)}


def write_zip(path, rows=ROWS, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, row in enumerate(rows):
            archive.writestr(f"all/{i}", bytes(row))
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A catalogue with one archive; the download is a copy of tmp_path/remote.zip."""
    expected = archives.hash_arrays({"rows": np.array(ROWS, np.uint8)})
    source = catalogue.Source(
        "https://example.org/numbers.zip", "none", 1, decoded={"all": expected}
    )
    monkeypatch.setattr(catalogue, "FILES", {NAME: source})
    monkeypatch.setenv("QBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QBOOK_DATA", str(tmp_path / "local"))

    def copy(url, known_hash, fname, path):
        assert (url, known_hash) == (url, None)
        path.mkdir(exist_ok=True)
        # As pooch does: without a known hash an existing file counts as good.
        if not (path / fname).exists():
            (path / fname).write_bytes((tmp_path / "remote.zip").read_bytes())
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", copy)
    return tmp_path


def load():
    return archives.load_arrays(NAME, "all", decode)["rows"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_known_by_its_content_however_it_was_packed(site, compression):
    write_zip(site / "local" / NAME, compression=compression)
    assert data.available(NAME)
    assert_array_equal(load(), ROWS)


def test_the_second_load_does_not_decode(site):
    local = write_zip(site / "local" / NAME)
    assert_array_equal(load(), ROWS)
    local.unlink()
    assert data.available(NAME)
    assert_array_equal(archives.load_arrays(NAME, "all", decode=None)["rows"], ROWS)


def test_every_load_returns_arrays_of_its_own(site):
    write_zip(site / "local" / NAME)
    load()[:] = 0
    load()[:] = 0
    assert_array_equal(load(), ROWS)


def test_an_archive_with_other_content_is_told_and_downloaded(site):
    write_zip(site / "local" / NAME, [[1, 2, 3], [4, 5, 7], [250, 251, 252]])
    write_zip(site / "remote.zip")
    with pytest.warns(UserWarning, match=r"local.*numbers\.zip is corrupt.*expected .* found "):
        assert_array_equal(load(), ROWS)


def test_a_corrupt_download_of_an_earlier_day_is_replaced(site):
    (site / "cache").mkdir()
    (site / "cache" / NAME).write_bytes(b"half of a zip")
    write_zip(site / "remote.zip")
    with pytest.warns(UserWarning, match="is corrupt.*BadZipFile"):
        assert_array_equal(load(), ROWS)


def test_corrupt_decoded_arrays_are_told_and_decoded_again(site):
    write_zip(site / "local" / NAME)
    load()
    decoded = files.decoded_path(NAME, "all")
    np.savez(decoded, rows=np.zeros((3, 3), np.uint8))
    with pytest.warns(UserWarning, match=r"numbers-all\.npz is corrupt"):
        assert_array_equal(load(), ROWS)
    decoded.write_bytes(b"not an npz")
    with pytest.warns(UserWarning, match="while reading"):
        assert_array_equal(load(), ROWS)


def test_a_source_that_changed_is_an_error_not_data(site):
    write_zip(site / "remote.zip", [[0, 0, 0]])
    with pytest.raises(data.DataUnavailable, match=r"example\.org.*is not what was recorded"):
        load()
    assert not files.decoded_path(NAME, "all").exists()


def test_no_single_flipped_byte_gets_through(site):
    # Every byte of the zip: the arrays are right, or a warning was given and the good copy used.
    good = write_zip(site / "remote.zip").read_bytes()
    local = site / "local" / NAME
    local.parent.mkdir()
    told = 0
    for i in range(len(good)):
        local.write_bytes(good[:i] + bytes([good[i] ^ 0x41]) + good[i + 1 :])
        files.decoded_path(NAME, "all").unlink(missing_ok=True)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            assert_array_equal(load(), ROWS)
        told += bool(record)
    # At least the payload: 3 members of 3 bytes.  Times and attributes may go unnoticed.
    assert told >= 9


def test_a_cache_that_cannot_be_written_is_no_error(site, monkeypatch):
    write_zip(site / "local" / NAME)
    (site / "file").write_bytes(b"")
    monkeypatch.setenv("QBOOK_CACHE", str(site / "file" / "cache"))
    assert_array_equal(load(), ROWS)


def test_something_that_is_no_zip_is_not_available(site):
    (site / "local").mkdir()
    (site / "local" / NAME).write_bytes(b"text")
    with pytest.warns(UserWarning, match="is corrupt"):
        assert not data.available(NAME)


def test_an_unknown_part_is_answered_with_the_known_ones(site):
    with pytest.raises(ValueError, match="no part 'some'; choose one of all"):
        archives.load_arrays(NAME, "some", decode)


def test_the_hash_sees_name_type_shape_and_every_value():
    base = {"a": np.arange(6, dtype=np.int16), "b": np.zeros(2)}
    changed = base["a"].copy()
    changed[5] ^= 1
    others = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].view(np.uint16), "b": base["b"]},
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": changed, "b": base["b"]},
        {"a": base["a"]},
    ]
    hashes = {archives.hash_arrays(arrays) for arrays in (base, *others)}
    assert len(hashes) == 6
    # The order of the names and the layout in memory do not matter.
    strided = {"b": base["b"], "a": np.repeat(base["a"], 2)[::2]}
    assert archives.hash_arrays(strided) == archives.hash_arrays(base)
