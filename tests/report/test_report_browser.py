"""The report in a real browser: Debian's chromium, driven by playwright. Skipped where one of them is absent."""

import shutil

import pytest

from tests.metrics.test_comparison import FOUND, MISSES, write
from tests.report.test_report import collect, page
from upsnet.categories import CategorySet
from upsnet.data.shapes import CATEGORIES
from upsnet.engine.compare import compare_evaluations

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")

CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (color) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : color;
  };
  const texts = [...document.querySelectorAll("h1, h2, h3, p, th, td, dt, dd, a, li, summary, label, output, caption")];
  return Math.min(...texts.filter((e) => e.offsetParent && e.textContent.trim()).map((e) => {
    const pair = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => a - b);
    return (pair[1] + 0.05) / (pair[0] + 0.05);
  }));
}
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report with names that are hard to lay out and hard to escape."""
    rows = [{**row, "name": f"{row['name']} <b>&amp;</b> {'long' * 15}"} for row in CATEGORIES.to_json()]
    rows += [{"id": 900 + i, "name": f"never seen {i}", "isthing": i % 2} for i in range(126)]
    categories = CategorySet.from_json(rows, source="test")
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(*collect(categories=categories), config=f"key: {'x' * 400}"))
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """Opens the report at a width; the test fails if the page complains or asks for anything but itself."""
    complaints, pages = [], []

    def open_at(width=1280, scheme="light"):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("dialog", lambda d: (complaints.append(d.message), d.dismiss()))
        tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("data:", address)) else None)
        tab.goto(address)
        pages.append(tab)
        return tab

    yield open_at
    for tab in pages:
        tab.close()
    assert not complaints


def column(tab, number):
    rows = tab.locator("#class-table tbody tr:visible")
    return [float(rows.nth(i).locator("td").nth(number).get_attribute("data-value")) for i in range(rows.count())]


def test_a_click_or_the_enter_key_on_a_title_sorts(visit):
    tab = visit()
    title = tab.locator("#class-table th", has_text="PQ").first
    assert title.get_attribute("aria-sort") == "none"
    title.locator("button").click()
    assert title.get_attribute("aria-sort") == "descending"
    values = column(tab, 1)
    assert len(values) == 7
    assert values == sorted(values, reverse=True)
    tab.keyboard.press("Enter")
    assert title.get_attribute("aria-sort") == "ascending"
    assert column(tab, 1) == sorted(values)
    name = tab.locator("#class-table th", has_text="Class").first
    name.locator("button").click()
    assert (name.get_attribute("aria-sort"), title.get_attribute("aria-sort")) == ("ascending", "none")
    names = tab.locator("#class-table tbody th:visible").all_inner_texts()
    assert names == sorted(names)


def test_classes_are_found_by_name_and_kind(visit):
    tab = visit()
    count = tab.locator("output")
    assert count.inner_text() == "7 of 133 classes"
    tab.get_by_label("hide classes without segments").uncheck()
    assert count.inner_text() == "133 of 133 classes"
    tab.get_by_label("Search").fill("SEEN 1")
    assert count.inner_text() == "37 of 133 classes"
    tab.get_by_label("Kind").select_option("stuff")
    assert count.inner_text() == "18 of 133 classes"
    assert tab.locator("#class-table tbody tr:visible").count() == 18


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_screen_and_texts_stand_out(visit, width, scheme):
    tab = visit(width, scheme)
    tab.get_by_text("Resolved config").click()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.querySelector('#class-table').offsetWidth") <= width or (
        tab.evaluate("document.querySelector('.scroll').scrollWidth") > width
    )
    assert tab.evaluate(CONTRAST) >= 4.5


@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_enlarge_and_the_arrow_keys_go_through_those_of_an_image(visit, width):
    tab = visit(width)
    panel = tab.locator(".panel").first
    small = panel.locator("img").bounding_box()
    panel.click()
    viewer, image = tab.locator("dialog"), tab.locator("#viewer-image")
    assert viewer.is_visible()
    assert image.bounding_box()["width"] > 1.5 * small["width"]
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") >= 512
    shown = [tab.locator("#viewer-caption").inner_text()]
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
        shown.append(tab.locator("#viewer-caption").inner_text())
    assert [text.partition(":")[0] for text in shown] == ["Photograph", "Prediction", "Truth", "Errors", "Photograph"]
    tab.get_by_label("Previous picture").click()
    assert tab.locator("#viewer-caption").inner_text().startswith("Errors")
    tab.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert tab.evaluate("document.activeElement.className") == "panel"


def test_the_tables_are_there_without_scripts(browser, address):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address)
    assert tab.locator("#class-table tbody tr").count() == 133
    assert tab.locator("#cause-table tbody tr").count() == 7
    context.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_comparison_stays_on_the_screen(browser, tmp_path, width, scheme):
    folders = [write(tmp_path / name, FOUND, FOUND, images) for name, images in (("a", FOUND), ("b" * 200, MISSES))]
    compare_evaluations(*folders, output=tmp_path)
    complaints = []
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.on("console", lambda m: complaints.append(m.text))
    tab.on("pageerror", lambda e: complaints.append(str(e)))
    tab.goto((tmp_path / "compare.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CONTRAST) >= 4.5
    tab.locator("#class-table th", has_text="Class").locator("button").click()
    names = tab.locator("#class-table tbody th").all_inner_texts()
    assert names == sorted(names)
    tab.close()
    assert not complaints
