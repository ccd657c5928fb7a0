import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from qbook.lab import figures, sliders

mpl.use("agg")


def draw(slope=1.0, label="measured", bars=(1, 2, 3), image=0.0):
    fig, (left, right) = plt.subplots(1, 2)
    x = np.linspace(0, 1, 50)
    left.plot(x, slope * x**2, label=label)
    left.scatter(x, x)
    left.set(xlabel="x", yscale="log")
    right.bar([0, 1, 2], bars)
    right.imshow(np.eye(3) + image)
    plt.close(fig)
    return fig


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QBOOK_FIGURES", "update")
    figures.check(figures.extract(draw()), "fig-test")
    monkeypatch.setenv("QBOOK_FIGURES", "check")


def test_the_same_figure_passes(baseline):
    figures.check(figures.extract(draw()), "fig-test")


@pytest.mark.parametrize("factor", [1 + 1e-7, 1 + 5e-4, 1 - 5e-4])
def test_a_change_below_the_tolerance_passes(baseline, factor):
    figures.check(figures.extract(draw(factor)), "fig-test")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"slope": 1.01}, r"line 0 measured y \(log\): off by 0.01"),
        ({"slope": np.nan}, "line 0 measured y"),
        ({"label": "other"}, "line 0 measured x is missing"),
        ({"bars": (1, 2, 3.1)}, "bars height: off by 0.1"),
        ({"image": 0.1}, "image 0: off by 0.1"),
    ],
    ids=["curve", "nan", "label", "bar", "image"],
)
def test_a_changed_quantity_is_named(baseline, change, told):
    with pytest.raises(figures.FigureChanged, match=told):
        figures.check(figures.extract(draw(**change)), "fig-test")


def test_each_quantity_can_have_its_own_tolerance(baseline):
    changed = figures.extract(draw(1.01, bars=(1, 2, 3.1)))
    with pytest.raises(figures.FigureChanged, match="bars height"):
        figures.check(changed, "fig-test", tolerances={"measured": 0.02})
    figures.check(changed, "fig-test", tolerances={"measured": 0.02, "bars": 0.05})


def test_small_values_count_on_a_logarithmic_axis_and_not_on_a_linear_one():
    expected = {"y": [1.0, 1e-6], "y (log)": [1.0, 1e-6]}
    found = {"y": [1.0, 2e-6], "y (log)": [1.0, 2e-6]}
    [told] = figures.differences(expected, found, 1e-3, {})
    assert told.startswith("y (log)")


def test_a_missing_baseline_fails(baseline):
    with pytest.raises(figures.FigureChanged, match="make notebooks"):
        figures.check(figures.extract(draw()), "fig-other")


def test_long_arrays_are_stored_short_and_a_shift_is_still_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def points(shift):
        fig, ax = plt.subplots()
        ax.plot(np.random.default_rng(0).normal(size=100_000) + shift)
        plt.close(fig)
        return figures.extract(fig)

    monkeypatch.setenv("QBOOK_FIGURES", "update")
    figures.check(points(0), "fig-long")
    assert (tmp_path / "figures/fig-long.json").stat().st_size <= 10_000
    monkeypatch.setenv("QBOOK_FIGURES", "check")
    with pytest.raises(figures.FigureChanged):
        figures.check(points(0.1), "fig-long")


def test_a_reader_who_changes_a_figure_is_left_in_peace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QBOOK_FIGURES", raising=False)
    figures.check(figures.extract(draw()), "fig-test")
    assert not list(tmp_path.iterdir())


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("QBOOK_FIGURES", "maybe")
    with pytest.raises(ValueError, match="check or update"):
        figures.check({}, "fig-test")


def frame(bits, clip):
    fig, ax = plt.subplots()
    ax.plot([0, bits], [0, clip])
    ax.set(title=f"{bits} and {clip}")
    return fig


def static(**change):
    settings = {"bits": [2, 3], "clip": [1.0, 2.0, 3.0]}
    arguments = {"start": {"bits": 3, "clip": 2.0}, "alt": 'a "picture"', "caption": "c"} | change
    return sliders.static_html(frame, "fig-slider", settings, **arguments)


def test_a_slider_holds_a_frame_for_each_setting_and_shows_the_first_chosen():
    html = static()
    assert html.count('class="frame"') == 6
    assert html.count('class="frame" hidden') == 5
    shown = html.split('<div class="frame">')[1].split("</svg>")[0]
    assert "3 and 2.0" in shown
    assert html.count('type="range"') == 2
    assert "a &quot;picture&quot;" in html


def test_a_slider_is_the_same_from_run_to_run_and_its_ids_are_unique():
    import re

    assert static() == static()
    ids = re.findall(r'\bid="([^"]+)"', static())
    drawn = [i for i in ids if not re.fullmatch(r"[a-z0-9.]+_\d+", i, re.I)]
    assert len(drawn) == len(set(drawn))


def test_numbers_in_a_slider_s_text_are_not_rounded(monkeypatch):
    html = sliders.static_html(
        lambda bits: frame(bits, 0.991), "fig-s", {"bits": [2]}, {"bits": 2}, "a", "c"
    )
    assert "2 and 0.991" in html


def test_a_slider_s_frames_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QBOOK_FIGURES", "update")
    static()
    stored = json.loads((tmp_path / "figures/fig-slider.json").read_text())
    stored["(3, 2.0) axes 0 line 0 _child0 y"] = [0.0, 2.1]
    (tmp_path / "figures/fig-slider.json").write_text(json.dumps(stored))
    monkeypatch.setenv("QBOOK_FIGURES", "check")
    with pytest.raises(figures.FigureChanged, match=r"\(3, 2.0\)"):
        static()
