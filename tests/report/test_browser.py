"""The report in a real Chromium, headless: it renders, sorts, fetches nothing, and fits a phone and a dark room."""

import json
import shutil

import pytest

from gyges.report.page import write_report

from .folders import ablation_folder

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(ablation_folder(tmp_path_factory.mktemp("browser") / "ablation")).as_uri()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page, as a desktop or a phone shows it, in light or dark."""

    def go(width: int = 1200, scheme: str = "light"):
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        about = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", about)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page)
        return browser

    return go


def column(browser, index: int) -> list[str]:
    script = "return [...document.querySelector('table').tBodies[0].rows].map(r => r.cells[arguments[0]].textContent)"
    return browser.execute_script(script, index)


def test_it_renders_without_a_complaint_and_fetches_nothing(opened, page):
    browser = opened()
    assert browser.find_element("tag name", "h1").text == "Ablation"
    images = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 100)")
    assert images == [True] * 4
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page}


def test_a_click_sorts_and_a_second_one_turns_it_round(opened):
    browser = opened()
    heads = browser.execute_script(
        "return [...document.querySelector('table').tHead.rows[0].cells].map(c => c.textContent)"
    )
    index = next(i for i, head in enumerate(heads) if head.startswith("short TTFT p50"))
    button = browser.find_elements("css selector", "table:first-of-type thead button")[index]
    before = column(browser, index)
    button.click()
    up = [float(text) for text in column(browser, index)]
    assert up == sorted(map(float, before))
    assert len(set(up)) > 1
    button.click()
    assert [float(text) for text in column(browser, index)] == up[::-1]
    names = browser.find_elements("css selector", "table:first-of-type thead button")[0]
    names.click()
    assert column(browser, 0) == sorted(column(browser, 0))


def test_what_is_infinite_comes_after_numbers_and_what_is_missing_last(opened):
    browser = opened()
    heads = browser.execute_script(
        "return [...document.querySelector('table').tHead.rows[0].cells].map(c => c.textContent)"
    )
    for start, last in (("long TTFT p99", "inf"), ("transformations longest pause", "-")):
        index = next(i for i, head in enumerate(heads) if head.startswith(start))
        button = browser.find_elements("css selector", "table:first-of-type thead button")[index]
        browser.execute_script("arguments[0].click()", button)
        assert column(browser, index)[-1] == last
    browser.execute_script("arguments[0].click()", button)
    assert column(browser, index)[-1] == "-"


def test_the_page_never_scrolls_sideways_on_a_phone(opened):
    browser = opened(width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    font = browser.execute_script("return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
    assert font >= 12
    widths = browser.execute_script("return [...document.images].map(i => i.getBoundingClientRect().width)")
    assert min(widths) >= 700, "a plot that narrow cannot be read; it must scroll in its frame"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(opened, scheme):
    browser = opened(scheme=scheme)
    script = """
        const shade = (name, of) => getComputedStyle(document.querySelector(of))[name].match(/[0-9.]+/g).slice(0, 3).map(Number);
        return [shade("color", "body"), shade("backgroundColor", "body"), shade("color", ".note")];
    """
    text, back, faint = (sum(rgb) / 3 for rgb in browser.execute_script(script))
    assert (back < 60) == (scheme == "dark")
    assert abs(text - back) > 150
    assert abs(faint - back) > 80
