"""The report and the page of a search in headless Chromium, as on a desktop and on a phone."""

import base64
import json
import shutil
import time
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="needs Chromium and chromedriver, as in: apt-get install chromium chromium-driver",
)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install hdc-keras[test]")

_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


class Browser:
    """A Chromium with one page open at a time."""

    def __init__(self, profile):
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*_FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        # Leaves Chromium's start page, whose requests must not be counted.
        self.driver.get("about:blank")
        self.run = self.driver.execute_script

    def open(self, page, width=1280, height=900, touch=False, **media):
        """Open a page with the size of a device and the media features that its user has set."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.command("Emulation.setEmulatedMedia", features=features)
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setTouchEmulationEnabled", enabled=touch)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(Path(page).as_uri())
        # On a busy machine `get` has returned while the page was still being read, before its script had run.
        until = time.monotonic() + 60
        while (state := self.run("return document.readyState")) != "complete":
            assert time.monotonic() < until, f"the page is {state} after 60 s"
            time.sleep(0.05)

    def command(self, name, **arguments):
        return self.driver.execute_cdp_cmd(name, arguments)

    def style(self, selector, name):
        return self.run("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)

    def positions(self, selector, seconds, enough=9):
        """Positions of the strip behind a thumbnail, watched for some seconds or until `enough` have been seen."""
        until = time.monotonic() + seconds
        found = set()
        while time.monotonic() < until and len(found) < enough:
            found.add(self.style(selector, "backgroundPositionX"))
        return found

    def mouse(self, kind, x, y):
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def place_of(self, number):
        """Scroll to a point of the map and return its position on the screen."""
        return self.run(
            "const point = document.querySelectorAll('.point')[arguments[0]];"
            "point.scrollIntoView({block: 'center'});"
            "const box = point.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]",
            number,
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def test_it_loads_without_an_error_or_a_request(
    browser, two_label_report, one_label_report, search_page, classifier_page
):
    for page in (two_label_report, one_label_report, search_page, classifier_page):
        browser.open(page)

        assert browser.driver.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_it_loads_within_seconds(browser, two_label_report):
    browser.open(two_label_report)

    loaded = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < loaded < 5000


def test_the_content_security_policy_blocks_requests(browser, two_label_report):
    browser.open(two_label_report)

    blocked = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
    )
    assert blocked == "connect-src"


def test_thumbnails_play_and_can_be_paused(browser, two_label_report):
    browser.open(two_label_report)

    playing = browser.positions("#retrieval .thumb", 20, enough=5)
    browser.run("document.querySelector('#motion').click()")
    paused = browser.positions("#retrieval .thumb", 0.5)

    # Eight frames, a seventh of the strip apart.
    steps = [float(position.rstrip("%")) * 7 / 100 for position in playing]
    assert len(steps) == 5 and all(abs(step - round(step)) < 1e-3 for step in steps)
    assert len(paused) == 1 and browser.run("return document.querySelector('#motion').innerText") == "Play thumbnails"


def test_thumbnails_respect_reduced_motion_until_they_are_played(browser, two_label_report):
    browser.open(two_label_report, prefers_reduced_motion="reduce")

    still = browser.positions("#retrieval .thumb", 0.5)
    browser.run("document.querySelector('#motion').click()")
    playing = browser.positions("#retrieval .thumb", 20, enough=4)

    assert len(still) == 1 and len(playing) == 4


def test_a_point_under_the_mouse_shows_its_thumbnail(browser, two_label_report):
    browser.open(two_label_report)
    x, y = browser.place_of(7)
    assert browser.run("return document.querySelector('#map-card').hidden")

    browser.mouse("mouseMoved", x, y)

    shown = browser.run(
        "const card = document.querySelector('#map-card'), thumb = card.querySelector('.thumb');"
        "return [card.hidden, card.querySelector('b').innerText, thumb.className, thumb.offsetWidth,"
        "        getComputedStyle(thumb).backgroundImage.slice(0, 27)]"
    )
    point = browser.run("const p = document.querySelector('.chosen'); return {...p.dataset}")
    assert shown == [False, point["name"], f"thumb {point['picture']}", shown[3], 'url("data:image/webp;base64']
    assert shown[3] > 50
    browser.mouse("mouseMoved", 5, 5)
    assert browser.run("return document.querySelector('#map-card').hidden")


def test_a_tapped_point_shows_its_thumbnail(browser, two_label_report):
    browser.open(two_label_report, 390, 844, touch=True)
    x, y = browser.place_of(3)

    browser.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    card, frame = browser.run(
        "return [document.querySelector('#map-card').getBoundingClientRect().toJSON(),"
        "        document.querySelector('.map-frame').getBoundingClientRect().toJSON()]"
    )
    assert card["width"] > 50 and frame["left"] <= card["left"] and card["right"] <= frame["right"]


def test_arrow_keys_move_over_the_map(browser, two_label_report):
    browser.open(two_label_report)
    browser.run("document.querySelector('.point[tabindex=\"0\"]').focus()")
    first = browser.run("return document.activeElement.dataset.name")
    shown_first = browser.run("return document.querySelector('#map-card b').innerText")

    seen = {first}
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        browser.key(key)
        seen.add(browser.run("return document.activeElement.dataset.name"))

    now = browser.run("return [document.activeElement.dataset.name, document.querySelector('#map-card b').innerText]")
    assert shown_first == first and len(seen) > 1 and now[0] == now[1]
    assert browser.run("return document.querySelectorAll('.point[tabindex=\"0\"]').length") == 1


def test_points_move_with_the_source_and_change_with_the_label(browser, two_label_report):
    browser.open(two_label_report)
    look = (
        "return [...document.querySelectorAll('.point')].map((p) =>"
        "  [p.style.transform, p.firstElementChild.className.baseVal, p.classList.contains('dim')])"
    )
    choose = (
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    before = browser.run(look)

    browser.run(choose, "#map-source", "temporal embeddings")
    moved = browser.run(look)
    browser.run(choose, "#map-column", "motion")
    marked = browser.run(look)
    browser.run("document.querySelector('.legend:not([hidden]) button').click()")
    dimmed = browser.run(look)

    assert [p[1] for p in moved] == [p[1] for p in before] and [p[0] for p in moved] != [p[0] for p in before]
    assert [p[0] for p in marked] == [p[0] for p in moved] and [p[1] for p in marked] != [p[1] for p in moved]
    assert sum(not dim for *_, dim in dimmed) == 6  # of 36 videos of 6 motions
    assert browser.run("return [...document.querySelectorAll('.legend')].filter((l) => !l.hidden).length") == 1


def test_one_panel_is_shown_at_a_time_and_each_can_be_chosen(browser, two_label_report):
    browser.open(two_label_report)
    visible = (
        "return [...document.querySelectorAll('.class-panel')].filter((p) => p.offsetHeight).map((p) => p.innerText)"
    )

    first = browser.run(visible)
    browser.run(
        "const s = document.querySelector('#class-choice'); s.selectedIndex = 3; s.dispatchEvent(new Event('change'))"
    )
    other = browser.run(visible)

    assert len(first) == len(other) == 1 and first != other
    assert first[0].startswith("Fine-tuning as in VCOP, appearance") and other[0].startswith("Linear probe, motion")


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_light_and_dark(browser, two_label_report, scheme):
    browser.open(two_label_report, prefers_color_scheme=scheme)
    background = luminance(browser.style("body", "backgroundColor"))

    texts = ("body", ".lead", ".kicker", "nav a", ".about", "summary", ".verdict.right", ".verdict.wrong", ".flag")
    colours = {selector: browser.style(selector, "color") for selector in texts}
    colours |= {s: browser.style(s, "fill") for s in (".task-spatial .name", ".task-temporal .name", ".tick")}
    for selector, colour in colours.items():
        lighter, darker = sorted([luminance(colour), background], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (selector, colour)
    assert (background > 0.8) == (scheme == "light")


def test_the_theme_button_overrides_the_system(browser, two_label_report):
    browser.open(two_label_report, prefers_color_scheme="dark")
    backgrounds = [browser.style("body", "backgroundColor")]
    for _ in range(3):
        browser.run("document.querySelector('#theme').click()")
        backgrounds.append(browser.style("body", "backgroundColor"))

    dark, light, dark_again, auto = backgrounds
    assert luminance(dark) < 0.1 < 0.8 < luminance(light) and dark == dark_again == auto


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_overflows_sideways(browser, two_label_report, one_label_report, width):
    for page in (two_label_report, one_label_report):
        browser.open(page, width, 844)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")

        assert browser.run("return document.documentElement.scrollWidth") <= width


def test_odd_names_are_shown_and_not_executed(browser, one_label_report):
    browser.open(one_label_report)

    assert "<b>&\"'</script><script>alert(1)</script>" in browser.run(
        "return document.querySelector('#classes').innerText"
    )
    assert "moving-shapes <test>" in browser.driver.title
    assert browser.run("return document.querySelectorAll('#classes b b, main script').length") == 0


def test_a_printed_report_is_still_and_on_white(browser, two_label_report):
    browser.open(two_label_report, prefers_color_scheme="dark")
    browser.command("Emulation.setEmulatedMedia", media="print")

    assert browser.style(".thumb", "animationName") == "none" and browser.style("nav", "display") == "none"
    assert browser.style("body", "backgroundColor") == "rgb(255, 255, 255)"
    browser.command("Emulation.setEmulatedMedia", media="")
    pdf = base64.b64decode(browser.command("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 20


def test_without_scripts_everything_can_be_read(browser, two_label_report):
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(two_label_report)
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)

    panels = "return [...document.querySelectorAll('.class-panel, .gallery')].map((p) => p.offsetHeight > 0)"
    assert all(browser.run(panels)) and browser.run("return document.querySelector('#theme').hidden")


def test_the_page_of_a_search_fits_a_phone_and_its_thumbnails_play(browser, search_page):
    for width in (320, 390, 1280):
        browser.open(search_page, width, 844)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        boxes = browser.run("return [...document.querySelectorAll('.found .thumb')].map((t) => t.offsetWidth)")
        assert len(boxes) == 4 * 12 and min(boxes) >= 50

    assert len(browser.positions(".found li .thumb", 20, enough=5)) == 5
    assert browser.run("return [...document.querySelectorAll('h2')].map((h) => h.innerText)") == ["one", "two"]


def test_the_page_of_a_classifier_fits_a_phone_and_shows_the_mistakes(browser, classifier_page):
    for width in (320, 390, 1280):
        browser.open(classifier_page, width, 844)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run("return document.querySelector('.lead').innerText").startswith("75.0 % of 4 test videos")
        (mistake,) = browser.run(
            "return [...document.querySelectorAll('#mistakes figcaption b')].map((b) => b.innerText)"
        )[::2]
        assert mistake == "a"

    assert len(browser.positions("#mistakes .thumb", 20, enough=3)) == 3
    titles = browser.run("return [...document.querySelectorAll('h2')].map((h) => h.innerText)")
    assert titles == ["How it was made", "Classes", "Mistakes", "Training of the whole network"]
    assert browser.run("return document.querySelectorAll('#training svg path.line').length") == 4
