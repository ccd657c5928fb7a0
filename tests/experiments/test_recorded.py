import json
import re

import pytest

from qbook.experiments import recorded


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_saved_record_says_how_to_repeat_it(folder):
    path = recorded.save(
        "a", [1, 2.5], command="python -m x", seeds=range(3), seconds=61.4, steps=7
    )
    record = recorded.load("a")
    assert path == folder / "a.json"
    assert record["results"] == [1, 2.5]
    assert record["seeds"] == [0, 1, 2]
    assert (record["seconds"], record["steps"]) == (61, 7)
    line = recorded.provenance(record)
    for part in (record["date"], record["device"], "torch", "[0, 1, 2]", "python -m x"):
        assert part in line


def test_a_result_that_is_not_a_number_leaves_the_old_file(folder):
    recorded.save("a", 1.0, command="c", seeds=[0], seconds=1)
    with pytest.raises(ValueError, match="JSON"):
        recorded.save("a", float("nan"), command="c", seeds=[0], seconds=1)
    assert recorded.load("a")["results"] == 1.0


def test_an_unknown_name_lists_what_is_recorded(folder):
    recorded.save("known", 0, command="c", seeds=[0], seconds=1)
    with pytest.raises(ValueError, match=r"'other'.*known"):
        recorded.load("other")


@pytest.mark.parametrize("path", sorted(recorded.RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_every_record_of_the_package_is_complete(path):
    record = json.loads(path.read_text())
    wanted = {"command", "date", "device", "threads", "versions", "seeds", "seconds", "results"}
    assert wanted <= record.keys()
    # Also behind a launcher, such as python -m torch.distributed.run.
    assert re.match(r"python (-m .* )?-m (qbook\.experiments|benchmarks)\.", record["command"])
