import pytest

from qbook.experiments import cache_capacity, recorded


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_cache_sizes_are_those_that_the_system_tells(tmp_path):
    write(tmp_path / "index0", level="1", type="Data", size="48K", shared_cpu_list="0")
    write(tmp_path / "index1", level="1", type="Instruction", size="32K", shared_cpu_list="0")
    write(tmp_path / "index2", level="2", type="Unified", size="1024K", shared_cpu_list="0,4")
    write(tmp_path / "index3", level="3", type="Unified", size="260M", shared_cpu_list="0-3,8-11")
    # Some systems name a cache and do not tell its size.
    write(tmp_path / "index4", level="4", type="Unified")
    assert cache_capacity.cache_sizes(tmp_path) == [
        {"level": 1, "bytes": 48 * 1024, "shared_by": 1},
        {"level": 2, "bytes": 2**20, "shared_by": 2},
        {"level": 3, "bytes": 260 * 2**20, "shared_by": 8},
    ]
    assert cache_capacity.cache_sizes(tmp_path / "nowhere") == []


def test_the_sizes_are_whole_blocks_three_an_octave():
    sizes = cache_capacity.SIZES
    assert sizes[0] == 8 * 2**10
    assert sizes[-1] == 512 * 2**20
    assert all(size % 256 == 0 for size in sizes)
    # 256 bytes of 8 KiB are a thirtieth, what rounding down may take.
    for size, double in zip(sizes, sizes[3:], strict=False):
        assert abs(double / size - 2) <= 2 / 30


def test_a_short_run_times_every_case():
    reads = cache_capacity.read_times((8192, 16384), threads=(1, 2), rounds=2, seconds=0.001)
    assert [(r["bytes"], r["threads"]) for r in reads] == [
        (8192, 1),
        (8192, 2),
        (16384, 1),
        (16384, 2),
    ]
    products = cache_capacity.product_times((32,), rounds=3, seconds=0.001)
    assert products[0]["weights"] == 32 * 32
    rows = cache_capacity.row_times((1, 3), side=32, far=2, rounds=3, seconds=0.001)
    assert [r["samples"] for r in rows] == [1, 3]
    seconds = [r["seconds"] for r in reads]
    seconds += [r[name] for r in products for name in ("float32", "int8")]
    seconds += [r[name] for r in rows for name in ("near", "far")]
    assert min(seconds) > 0


@pytest.fixture(scope="module")
def record():
    return recorded.load("cache_capacity")


def test_the_record_has_every_size_product_and_row(record):
    results = record["results"]
    for count in {r["threads"] for r in results["reads"]}:
        found = tuple(r["bytes"] for r in results["reads"] if r["threads"] == count)
        assert found == cache_capacity.SIZES
    assert [r["weights"] for r in results["products"]] == [n * n for n in cache_capacity.SIDES]
    assert [r["samples"] for r in results["rows"]] == list(cache_capacity.ROWS)
    assert all(c.keys() == {"level", "bytes", "shared_by"} for c in results["caches"])
    assert (record["side"], record["far"]) == (cache_capacity.SIDE, cache_capacity.FAR)


def test_more_bytes_take_longer_and_far_bytes_more_so(record):
    reads = [r for r in record["results"]["reads"] if r["threads"] == 1]
    per_byte = [r["seconds"] / r["bytes"] for r in reads]
    assert per_byte[-1] > 2 * min(per_byte)
    assert all(r["seconds"] > 0 for r in record["results"]["reads"])
