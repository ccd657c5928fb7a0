import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import lose_one, rank_and_pid, sleep

from qbook.training.communication import processes

HERE = Path(__file__).parent


def gone(pid):
    """Has the process ended?  One that was ended and not yet waited for counts as gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return state.rsplit(")", 1)[1].split()[0] == "Z"


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_every_rank_is_a_process_of_its_own_and_none_stays():
    found = processes.run_processes(2, rank_and_pid)
    assert [rank for rank, _ in found] == [0, 1]
    assert len({pid for _, pid in found} | {os.getpid()}) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(found[0][1], 0)


def test_a_killed_rank_ends_the_others_with_a_message_that_names_it():
    start = time.monotonic()
    with pytest.raises(processes.ProcessesFailed, match=r"rank 2 of 4 ended by SIGKILL") as failure:
        processes.run_processes(4, lose_one, "kill", grace=20)
    # Four starts of torch on a busy machine, and twenty seconds for those left over.
    assert time.monotonic() - start <= 60
    codes, errors = failure.value.returncodes, failure.value.errors
    # 1: ended by their own error; had they been killed for waiting it would be -9.
    assert codes == [1, 1, -signal.SIGKILL, 1]
    for rank in (0, 1, 3):
        # On a machine that stands still for seconds another may not have answered in time.
        message = rf"RankLost: rank {rank} lost the group: rank (\d, )*2(, \d)* of 4 is gone or"
        assert re.search(message, errors[rank]), errors[rank]
        assert "start all ranks again" in errors[rank]


def test_a_bug_of_one_rank_is_what_the_caller_reads():
    with pytest.raises(processes.ProcessesFailed, match="a bug of rank 2") as failure:
        processes.run_processes(3, lose_one, "bug")
    assert failure.value.returncodes == [1, 1, 1]
    assert re.search(r"rank (1, )?2 of 3 is gone", failure.value.errors[0])


def test_a_silent_rank_is_waited_for_no_longer_than_patience():
    with pytest.raises(processes.ProcessesFailed) as failure:
        processes.run_processes(3, lose_one, "stop", patience=4, grace=8)
    # The silent one is ended by its starter, the others by themselves.
    assert failure.value.returncodes == [1, 1, -signal.SIGKILL]
    assert re.search(r"rank (1, )?2 of 3 is gone or does", failure.value.errors[0])


def test_time_up_ends_everything():
    start = time.monotonic()
    with pytest.raises(processes.ProcessesFailed, match=r"time was up \(timeout=5 s\)") as failure:
        processes.run_processes(2, sleep, timeout=5)
    assert time.monotonic() - start <= 20
    assert failure.value.returncodes == [-signal.SIGKILL] * 2


def test_under_torchrun_a_killed_rank_ends_all_within_twenty_seconds(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4"]
    command += ["--master-port", "0", "--standalone", str(HERE / "ranks.py")]
    output = tmp_path / "output"
    with output.open("w") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ)
    try:
        pattern = r"rank (\d) is process (\d+)"
        assert within(90, lambda: len(re.findall(pattern, output.read_text())) == 4)
        pids = {int(r): int(p) for r, p in re.findall(pattern, output.read_text())}
        os.kill(pids[2], signal.SIGKILL)
        killed = time.monotonic()
        assert launcher.wait(timeout=60) != 0
        assert time.monotonic() - killed <= 20
        assert all(within(5, lambda pid=pid: gone(pid)) for pid in pids.values())
    finally:
        launcher.kill()
        launcher.wait()
    said = output.read_text()
    assert re.search(r"rank\s*: 2", said), said[-2000:]
    assert "SIGKILL" in said


def test_ranks_end_when_the_process_that_started_them_is_killed():
    code = (
        "from ranks import sleep; from qbook.training.communication import processes; "
        "processes.run_processes(2, sleep)"
    )
    paths = os.pathsep.join([str(HERE), *(p for p in sys.path if p)])
    starter = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})

    def children():
        listed = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
        return listed.read_text().split() if listed.exists() else []

    try:
        if not within(60, lambda: len(children()) == 2):
            pytest.skip("this system does not list the children of a process in /proc")
        pids = children()
        time.sleep(0.5)
    finally:
        starter.kill()
        starter.wait()
    # They look once a second, but only once they have loaded torch.
    assert within(60, lambda: all(gone(pid) for pid in pids))


def test_what_cannot_be_started_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        processes.run_processes(0, sleep)

    def local(wire):
        return None

    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="can import"):
        processes.run_processes(2, local)
    with pytest.raises(ValueError, match="RANK is not set"), processes.group():
        pass
