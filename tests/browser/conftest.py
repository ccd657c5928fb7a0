"""The built book in a real browser, without a network.  `make test` builds it first."""

import os
import shutil
from pathlib import Path

import pytest

HTML = Path(__file__).parents[2] / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files"
).split()
# Findings of the theme's own frame, which the book does not write.
FRAME = {"landmark-unique", "region"}


def pages():
    """The book's pages, relative to the built HTML."""
    found = [*HTML.glob("book/**/*.html"), *HTML.glob("notebooks/**/*.html")]
    return sorted(path.relative_to(HTML).as_posix() for path in found)


@pytest.fixture(scope="session")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        told = f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt install chromium)"
        if os.environ.get("QBOOK_REQUIRE_BROWSER"):
            pytest.fail(told)
        pytest.skip(told)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page as a reader has it, with what went wrong while it loaded."""

    def __init__(self, browser, address, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.errors = []
        self.outside = []
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(address, wait_until="load")

    def _note(self, request):
        if request.url.startswith(("http://", "https://")) and "127.0.0.1" not in request.url:
            self.outside.append(request.url)

    def wait_for_maths(self):
        """Until MathJax has set every formula, if the page has any."""
        if self.page.locator(".math").count():
            self.page.wait_for_function(
                "window.MathJax && MathJax.startup && MathJax.startup.promise !== undefined"
            )
            self.page.evaluate("MathJax.startup.promise")


class Report:
    """What one visit found out about a page, in both themes and on a phone."""

    def __init__(self, visit):
        from axe_playwright_python.sync_playwright import Axe

        visit.wait_for_maths()
        page = visit.page
        self.errors, self.outside = list(visit.errors), list(visit.outside)
        unset = ".math:not(:has(mjx-container)), mjx-merror, [data-mjx-error]"
        self.unset_formulas = page.locator(unset).all_inner_texts()
        self.images = page.locator("main img").evaluate_all(
            "all => all.map(i => [i.src, i.alt, i.complete && i.naturalWidth > 0])"
        )
        self.violations = {}
        # A colour half-way between two themes is nobody's.
        page.add_style_tag(content="* { transition: none !important; }")
        for theme in ("light", "dark"):
            page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            # Formulas are read through their assistive MathML.
            found = Axe().run(page, context={"exclude": [["mjx-container"]]}).response
            self.violations[theme] = [
                f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:200]}"
                for v in found["violations"]
                if v["impact"] in ("serious", "critical") and v["id"] not in FRAME
            ]
        page.set_viewport_size({"width": 390, "height": 800})
        self.width_on_a_phone = page.evaluate("document.documentElement.scrollWidth")


@pytest.fixture(scope="session")
def report(browser):
    """report(page) -> Report, made once a page."""
    reports = {}

    def of(name):
        if name not in reports:
            visit = Visit(browser, (HTML / name).as_uri())
            reports[name] = Report(visit)
            visit.context.close()
        return reports[name]

    return of


@pytest.fixture
def visit(browser):
    """visit(page, width=..., height=...) -> Visit of a built page, from the file system."""
    visits = []

    def open_page(name, width=1280, height=900, **context):
        viewport = {"width": width, "height": height}
        visits.append(Visit(browser, (HTML / name).as_uri(), viewport=viewport, **context))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.context.close()
