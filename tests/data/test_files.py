import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import warnings

import pooch
import pytest

from qbook import data
from qbook.data import catalogue, files

NAME = "folder/thing.txt"
GOOD = b"the recorded content\n" * 50
BAD = GOOD[:-1] + b"!"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A catalogue whose one file is served by this process; site.content is what it delivers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            self.send_response(404 if self.server.content is None else 200)
            self.send_header("Content-Length", str(len(self.server.content or b"")))
            self.end_headers()
            self.wfile.write(self.server.content or b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests = GOOD, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/thing.txt"
        source = catalogue.Source(url, "none", len(GOOD), sha256(GOOD))
        monkeypatch.setattr(catalogue, "FILES", {NAME: source})
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("QBOOK_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("QBOOK_DATA", raising=False)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network(site, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(pooch, "retrieve", refuse)


def put(folder, content):
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_missing_file_is_downloaded_once_and_then_read_from_the_cache(site, tmp_path):
    path = data.fetch(NAME)
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == GOOD
    assert data.fetch(NAME) == path
    assert site.requests == ["/thing.txt"]


def test_the_folders_of_qbook_data_are_looked_at_in_order_and_before_the_cache(
    site, tmp_path, monkeypatch
):
    first, second, third = (tmp_path / n for n in ("first", "second", "third"))
    paths = [put(folder, GOOD) for folder in (second, third, tmp_path / "cache")]
    monkeypatch.setenv("QBOOK_DATA", os.pathsep.join(map(str, (first, second, third))))
    for path in paths:
        assert data.fetch(NAME) == path
        path.unlink()
    assert site.requests == []


def test_a_corrupt_local_file_is_told_left_alone_and_fetched_again(site, tmp_path, monkeypatch):
    local = put(tmp_path / "local", BAD)
    monkeypatch.setenv("QBOOK_DATA", str(tmp_path / "local"))
    told = f"{local} is corrupt.*expected {sha256(GOOD)}, found {sha256(BAD)}"
    with pytest.warns(UserWarning, match=told):
        path = data.fetch(NAME)
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == GOOD
    assert local.read_bytes() == BAD


def test_a_corrupt_local_file_is_passed_over_for_the_next_good_one(site, tmp_path, monkeypatch):
    put(tmp_path / "first", BAD)
    good = put(tmp_path / "second", GOOD)
    monkeypatch.setenv("QBOOK_DATA", f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'second'}")
    with pytest.warns(UserWarning, match="first.*is corrupt"):
        assert data.fetch(NAME) == good
    assert site.requests == []


def test_a_corrupt_cached_file_is_told_and_replaced(site, tmp_path):
    cached = put(tmp_path / "cache", BAD)
    with pytest.warns(UserWarning, match="is corrupt"):
        assert data.fetch(NAME) == cached
    assert cached.read_bytes() == GOOD


def test_without_copy_and_network_the_error_says_what_to_do(site, no_network, monkeypatch):
    monkeypatch.setenv("QBOOK_DATA", "/nowhere")
    with pytest.raises(data.DataUnavailable) as raised:
        data.fetch(NAME)
    url = catalogue.FILES[NAME].url
    for part in (NAME, url, "set QBOOK_DATA", "QBOOK_DATA=/nowhere", "network is unreachable"):
        assert part in str(raised.value)
    assert isinstance(raised.value, FileNotFoundError)


def test_a_corrupt_file_is_not_used_even_without_a_network(site, no_network, tmp_path):
    put(tmp_path / "cache", BAD)
    with pytest.warns(UserWarning, match="is corrupt"), pytest.raises(data.DataUnavailable):
        data.fetch(NAME)


@pytest.mark.parametrize(("delivered", "reason"), [(BAD, "hash"), (None, "404")])
def test_a_source_that_delivers_something_else_leaves_nothing_behind(
    site, tmp_path, delivered, reason
):
    site.content = delivered
    with pytest.raises(data.DataUnavailable, match=reason):
        data.fetch(NAME)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_available_looks_without_downloading(site, no_network, tmp_path, monkeypatch):
    assert not data.available(NAME)
    put(tmp_path / "local", GOOD)
    monkeypatch.setenv("QBOOK_DATA", str(tmp_path / "local"))
    assert data.available(NAME)


def test_available_tells_of_a_corrupt_file_and_says_no(site, no_network, tmp_path):
    put(tmp_path / "cache", BAD)
    with pytest.warns(UserWarning, match="is corrupt"):
        assert not data.available(NAME)


def test_a_file_is_hashed_once_until_it_changes(site, tmp_path, monkeypatch):
    hashed = []
    file_hash = pooch.file_hash
    monkeypatch.setattr(pooch, "file_hash", lambda p: hashed.append(p) or file_hash(p))
    path = put(tmp_path / "cache", GOOD)
    for _ in range(3):
        data.fetch(NAME)
    assert hashed == [path]
    path.write_bytes(BAD)
    # The same size in the same tick of a coarse clock would look unchanged.
    os.utime(path, ns=(0, 1))
    with pytest.warns(UserWarning, match="is corrupt"):
        assert not data.available(NAME)


@pytest.mark.parametrize("ask", [data.fetch, data.available, data.how_to_get, files.download])
def test_an_unknown_name_is_answered_with_the_known_ones(ask):
    with pytest.raises(ValueError, match=r"'nothing\.txt'.*tinyshakespeare\.txt.*survey\.md"):
        ask("nothing.txt")


@pytest.mark.parametrize("name", catalogue.FILES)
def test_every_source_is_pinned_to_a_commit_and_has_a_hash(name):
    source = catalogue.find(name)
    assert re.search(r"/[0-9a-f]{40}(/|\.zip$)", source.url)
    hashes = [source.sha256] if source.sha256 else list(source.decoded.values())
    assert hashes
    assert all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes)


@pytest.mark.parametrize("name", [n for n, s in catalogue.FILES.items() if s.sha256])
def test_the_copy_at_hand_has_the_recorded_size_and_hash(name):
    if not data.available(name):
        pytest.skip(data.how_to_get(name))
    content = data.fetch(name).read_bytes()
    assert (len(content), sha256(content)) == (
        catalogue.FILES[name].size,
        catalogue.FILES[name].sha256,
    )


def test_a_flipped_byte_in_a_real_file_is_noticed(tmp_path, monkeypatch):
    name = "sst2-dev.tsv"
    if not data.available(name):
        pytest.skip(data.how_to_get(name))
    content = bytearray(data.fetch(name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("QBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("QBOOK_CACHE", str(tmp_path / "empty"))
    with pytest.warns(
        UserWarning, match=f"{catalogue.FILES[name].sha256}, found {sha256(content)}"
    ):
        assert not data.available(name)


def test_the_loaders_do_not_import_torch_or_scipy():
    code = (
        "import sys, qbook.data; "
        "print(sorted({'torch', 'scipy', 'sklearn', 'matplotlib', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_good_files_cause_no_warning(site):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.fetch(NAME)
        data.fetch(NAME)
