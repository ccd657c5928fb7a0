import matplotlib
import pytest

from qbook.lab import roofline_plot

matplotlib.use("Agg")


def row(group, threads=1, **cases):
    found = {
        name: {"seconds": s, "operations": ops, "bytes": size, "quartiles": [s, s]}
        for name, (s, ops, size) in cases.items()
    }
    return {"operation": "o", "group": group, "threads": threads, "cases": found, "targets": []}


ROWS = [
    row("peak arithmetic", **{"float32 multiply-add": (2.0, 8e9, None)}),
    row("bandwidth, memory", read=(1.0, None, 5e9), copy=(1.0, None, 9e9)),
    row("product", qbook=(0.5, 4e9, 1e9), torch=(1.0, 4e9, 4e9)),
    row("product", 2, qbook=(0.25, 4e9, 1e9)),
    row("search", qbook=(0.5, None, None)),
]


def test_roofs_are_rates_of_the_same_number_of_threads():
    peaks, bandwidths = roofline_plot.roofs(ROWS, 1)
    assert peaks == {"float32 multiply-add": 4e9}
    assert bandwidths == {"memory": 5e9}
    with pytest.raises(ValueError, match="no 'peak arithmetic' with threads=2; record it"):
        roofline_plot.roofs(ROWS, 2)


def test_points_are_the_kernels_whose_work_is_known():
    assert roofline_plot.points(ROWS, 1) == [("product", 4.0, 8e9)]
    assert roofline_plot.points(ROWS, 2) == [("product", 4.0, 16e9)]
    assert roofline_plot.points(ROWS, 1, "torch") == [("product", 1.0, 4e9)]


def test_the_figure_has_a_line_for_each_roof_and_a_point_for_each_kernel():
    fig = roofline_plot.draw(ROWS)
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata()) > 1]
    dots = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(lines) == 1
    assert [(d.get_xdata()[0], d.get_ydata()[0]) for d in dots] == [(4.0, 8.0)]
    # 4 operations a byte times 5 GB/s pass the peak of 4 GOP/s: the line ends flat.
    assert max(lines[0].get_ydata()) == pytest.approx(4.0, rel=1e-12)
