"""Every kernel compiled for every architecture, without a GPU."""

import pytest

from qbook.kernels.gpu import contract, device

# sm_86 and sm_120 have the instructions of sm_80 and sm_89, and less shared memory; 86 stands for
# both here, `python -m qbook.kernels.gpu.contract` compiles for all.
ARCHITECTURES = (75, 80, 86, 89, 90, 100)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("room", contract.ROOMS)
def test_every_kernel_keeps_its_contract(room, architecture):
    reports = contract.read([room], [architecture])
    assert reports
    assert [contract.line(row) for row in reports if row.broken] == []


@pytest.mark.parametrize("architecture", [90, 100, 120])
def test_a_product_that_must_be_rounded_is_not_fused_with_the_addition_behind_it(architecture):
    reports = contract.read(["rowwise"], [architecture], only="int8")
    counts = {
        row.name: sum(row.instructions.get(name, 0) for name in ("FFMA", "FFMA2"))
        for row in reports
    }
    # A thread rounds 16 numbers of these rows or more; the few that remain are of the divisions.
    assert counts
    assert max(counts.values()) <= 22, counts


def test_a_broken_contract_is_told(monkeypatch):
    report = contract.Report("room", "kernel", 80, 200, 8, 4, 200 * 1024, 16, {"LDL": 1}, [])
    told = list(contract._broken(report, ("fp16 tensor core",)))
    assert len(told) == 4, told
    monkeypatch.setitem(device.SHARED_MEMORY, 80, 300)
    assert len(list(contract._broken(report, ()))) == 2
