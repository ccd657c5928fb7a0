import pytest

from qbook.theory import in_flight

KIB = 1024


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "architecture", "expected"),
    [
        # Registers: 64 a thread fill half of 128 threads' share of 65536: 8 programs of 4 warps.
        (64, 0, 4, 90, 8),
        # 65 are rounded up to 72, in pieces of 256 a warp: 65536 / (72 * 128) = 7.1.
        (65, 0, 4, 90, 7),
        # Shared memory: 100 KiB and the reserved one, twice, of 228.
        (32, 100 * KIB, 4, 90, 2),
        (32, 100 * KIB, 4, 89, 0),
        # Warps: 16 to a program, 64 or 32 to a multiprocessor.
        (32, KIB, 16, 90, 4),
        (32, KIB, 16, 75, 2),
        # Programs: one warp each.
        (16, 0, 1, 75, 16),
        (16, 0, 1, 80, 32),
    ],
)
def test_the_scarcest_resource_decides(registers, shared, num_warps, architecture, expected):
    assert in_flight.resident(registers, shared, num_warps, architecture) == expected


def test_shared_memory_is_that_of_the_contracts_and_what_each_program_costs_besides():
    from qbook.kernels.gpu import device

    for architecture, limit in in_flight.MULTIPROCESSORS.items():
        one = limit.shared - limit.reserved
        assert one == device.SHARED_MEMORY[architecture] * KIB


def test_littles_law():
    # 4.8 TB/s for 600 ns are 2.88 MB, over 132.
    assert in_flight.bytes_needed(4.8e12, 600e-9, 132) == pytest.approx(2.88e6 / 132)


def test_an_unknown_architecture_is_told():
    with pytest.raises(ValueError, match=r"architecture=70.*75, 80"):
        in_flight.resident(32, 0, 4, 70)
