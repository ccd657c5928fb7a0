import functools
import http.server
import threading

import pytest
from conftest import HTML, Visit, pages

# A page is opened once and stays with one worker.
each_page = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in pages()]
)
notebooks = [name for name in pages() if name.startswith("notebooks/")]


def test_the_book_is_built():
    assert len(pages()) >= 10, "run `make book` first"


@each_page
def test_a_page_loads_without_errors_and_without_a_network(report, name):
    assert report(name).errors == []
    assert report(name).outside == []


@each_page
def test_equations_are_set(report, name):
    assert report(name).unset_formulas == []


@each_page
def test_every_image_is_there_and_has_alternative_text(report, name):
    for source, alternative, loaded in report(name).images:
        assert loaded, source
        assert alternative, source


@each_page
def test_a_page_fits_a_phone(report, name):
    assert report(name).width_on_a_phone <= 390


@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(report, name, theme):
    assert report(name).violations[theme] == []


def sliders():
    return [name for name in pages() if 'class="qbook-slider"' in (HTML / name).read_text()]


def test_there_are_at_least_three_interactive_figures():
    chapter = [name for name in sliders() if name.startswith("book/02-foundations")]
    figures = sum((HTML / name).read_text().count('class="qbook-slider"') for name in chapter)
    assert figures >= 3


@pytest.mark.parametrize("name", sliders())
def test_every_slider_moves_the_picture(visit, name):
    page = visit(name).page
    for figure in page.locator("figure.qbook-slider").all():
        inputs = figure.locator("input[type=range]")
        for number in range(inputs.count()):
            slider = inputs.nth(number)
            seen = []
            for step in range(int(slider.get_attribute("max")) + 1):
                slider.fill(str(step))
                shown = figure.locator(".frame:not([hidden])")
                assert shown.count() == 1
                assert shown.locator("svg").is_visible()
                values = slider.get_attribute("data-values").split("|")
                assert figure.locator("output").nth(number).inner_text() == values[step]
                seen.append(shown.inner_html())
            assert len(set(seen)) == len(seen), "a step of the slider changes nothing"


def test_a_slider_answers_the_keyboard(visit):
    page = visit(sliders()[0]).page
    slider = page.locator("figure.qbook-slider input[type=range]").first
    slider.focus()
    before = slider.input_value()
    page.keyboard.press("ArrowLeft" if before != "0" else "ArrowRight")
    assert slider.input_value() != before


@pytest.mark.parametrize("name", notebooks)
def test_a_notebook_can_be_launched_on_colab_and_jupyter(visit, name):
    html = (HTML / name).read_text()
    source = name.replace(".html", ".ipynb")
    assert f"colab.research.google.com/github/qbook-org/qbook/blob/main/{source}" in html
    assert "mybinder.org" in html


def test_dark_mode_is_a_click_away_and_stays_readable(visit):
    page = visit(sliders()[0]).page
    colour = "getComputedStyle(document.body).backgroundColor"
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    light = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(colour) != light
    assert page.locator("button.theme-switch-button").count() >= 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def served():
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_search_finds_a_theorem(browser, served):
    opened = Visit(browser, f"{served}/search.html?q=zero-point")
    opened.page.wait_for_selector("ul.search li")
    assert opened.page.locator("ul.search li").count() >= 2
    opened.context.close()


def test_the_first_page_opens_over_http(browser, served):
    opened = Visit(browser, f"{served}/index.html")
    opened.page.wait_for_url("**/book/index.html")
    assert opened.page.locator("article h1").count() == 1
    assert opened.errors == []
    opened.context.close()
