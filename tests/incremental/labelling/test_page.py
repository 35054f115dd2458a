# SPDX-License-Identifier: Apache-2.0
"""The labelling page in a real browser: by keyboard, on a phone, and when things are not as they should be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from solar_corona.incremental.hub.hub import LabelSpace
from solar_corona.incremental.hub.labels import LabelBook
from solar_corona.incremental.labelling.desk import Desk
from solar_corona.incremental.labelling.page import Page
from solar_corona.incremental.labelling.page_routes import Labelling
from solar_corona.incremental.labelling.source import Setting
from solar_corona.incremental.tables import Sample
from solar_corona.lib.sample_coding import SampleForm, encode_sample

from ..hub.conftest import ADMIN, Samples, png, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DIGITS = LabelSpace(classes=tuple("0123456789"))
ANIMALS = LabelSpace(classes=("cat", "dog", "owl"))

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A person with a browser."""

    def __init__(self, browser, url, name="ann", **more):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **more})
        self.page, self.errors = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.goto(f"{url}/login?key={ADMIN}&name={name}")

    def ready(self):
        self.page.wait_for_selector("#stage[data-state=ready]")
        return self

    def press(self, key):
        before = self.text("#last")
        self.page.keyboard.press(key)
        end = 0
        while self.text("#last") == before and end < 100:
            self.page.wait_for_timeout(20)
            end += 1
        return self

    def text(self, selector):
        return self.page.inner_text(selector)

    def close(self):
        self.context.close()


@pytest.fixture
def open_page(browser, make_hub):
    closing = []

    def make(fill=None, *, people=("ann",), before=None, **settings):
        hub = make_hub(**{"labels": DIGITS, **settings})
        if fill is not None:
            fill(Samples(hub))
        desk = Desk(hub, "page", Page(Setting("test", hub.settings.labels)))
        desk.step()
        serving = served(hub, Labelling(hub, desk))
        url = serving.__enter__()
        closing.append(lambda: serving.__exit__(None, None, None))
        visitors = []
        for name in people:
            visitor = Visitor(browser, url, name, **(before or {}))
            closing.append(visitor.close)
            visitors.append(visitor)
        return hub, *visitors

    yield make
    for close in reversed(closing):
        close()


def images(count, **more):
    contents = [png(10 * number) for number in range(count)]
    return lambda samples: samples.add(*contents, media_type="image/png", prediction=3, confidence=0.62, **more)


def labels(hub):
    rows = hub.database.read(lambda session: list(session.query(Sample)))
    return sorted((row.state, row.label) for row in rows if row.state != "out")


def test_a_person_labels_by_keyboard_sees_the_models_answer_after_and_takes_back(open_page):
    hub, ann = open_page(images(4))
    ann.ready()
    page = ann.page
    assert page.locator("img").evaluate("e => [e.naturalWidth, getComputedStyle(e).imageRendering]") == [8, "pixelated"]
    assert page.locator("img").evaluate("e => e.getBoundingClientRect().width") > 300
    assert "3" not in ann.text("#last"), "what the model says is not shown before"
    assert "The model" not in ann.text("#stage")
    ann.press("7").ready()
    assert ann.text("#last") == "7 — saved. The model said 3 (62 %)."
    assert labels(hub) == [("labelled", 7)]
    ann.press("3").ready()
    assert ann.text("#last") == "3 — saved. The model says so, too (62 %)."
    assert ann.text("#counts") == "2 of 4 labelled · 2 by you"
    page.keyboard.press("?")
    page.wait_for_selector("#hint:not([hidden])")
    assert ann.text("#hint") == "The model says: 3, 62 % sure"
    ann.press("z").ready()
    assert (ann.text("#last"), labels(hub)) == ("Taken back.", [("labelled", 7), ("waiting", None)])
    ann.press("5").ready()
    assert labels(hub) == [("labelled", 5), ("labelled", 7)], "what was taken back is shown again"
    ann.press(" ").ready()
    assert ("skipped", None) in labels(hub)
    page.keyboard.press("ArrowRight")
    ann.ready()
    ann.press("1")
    page.wait_for_selector("#stage[data-state=empty]")
    assert "All done for now" in ann.text("#notice")
    assert ann.errors == []


def test_two_people_disagree_and_a_third_decides(open_page):
    hub, ann, bob, eve = open_page(images(1), people=("ann", "bob", "eve"), labels=ANIMALS, agreement=2)
    ann.ready().press("1")
    assert "A second person looks at it, too" in ann.text("#last")
    ann.page.wait_for_selector("#stage[data-state=empty]")
    bob.page.reload()
    bob.ready().press("2")
    assert "disagree: a third person decides" in bob.text("#last")
    eve.page.reload()
    eve.ready()
    assert "your answer decides" in eve.text("#tag")
    eve.press("2")
    assert labels(hub) == [("labelled", 1)]
    (sample,) = [row.id for row in hub.database.read(lambda session: list(session.query(Sample)))]
    assert [event.by for event in LabelBook(hub).history(sample) if event.by] == ["ann", "bob", "eve"]


def test_each_form_of_sample_is_shown(open_page):
    forms = {
        "audio": encode_sample(np.zeros(800, np.int16), SampleForm(format="wav")),
        ".reading": encode_sample("read me <b>not bold</b>"),
        "svg": encode_sample(np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)),
        "table": encode_sample(np.arange(6.0)),
        "img": encode_sample(np.random.default_rng(0).random((12, 12)).astype(np.float32)),
    }

    def fill(samples):
        for place, each in enumerate(forms.values()):
            samples.add(each.content, media_type=each.media_type, hardness=float(place))

    _, ann = open_page(fill, before={"color_scheme": "dark"})
    seen = set()
    for key in "12345":
        ann.ready()
        seen |= {form for form in forms if ann.page.locator(f"#view {form}").count()}
        if ann.page.locator(".reading").count():
            assert ann.text(".reading") == "read me <b>not bold</b>"
        ann.press(key)
    assert seen == set(forms)
    assert ann.errors == []


def test_on_a_phone_all_is_within_reach_of_a_thumb_and_nothing_is_cut_off(open_page):
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    hub, ann = open_page(images(2), before=phone)
    ann.ready()
    assert ann.page.evaluate("() => document.documentElement.scrollWidth") == 390
    for box in (each.bounding_box() for each in ann.page.locator("button:visible").all()):
        assert box["height"] >= 40
        assert box["y"] + box["height"] <= 844
    right = ann.page.locator(".class").nth(1).bounding_box()
    assert right["x"] + right["width"] == pytest.approx(390 - 16, abs=2), "the whole width is used"
    ann.page.locator(".class").nth(4).tap()
    ann.page.wait_for_selector("#last strong")
    assert labels(hub) == [("labelled", 4)]


def test_many_classes_are_found_by_typing(open_page):
    species = LabelSpace(classes=tuple(f"species {number}" for number in range(60)))
    hub, ann = open_page(images(1), labels=species)
    ann.ready()
    ann.page.keyboard.press("/")
    ann.page.keyboard.type("es 47")
    ann.press("Enter")
    assert labels(hub) == [("labelled", 47)]


def test_while_the_hub_is_away_the_page_says_so_and_goes_on_by_itself(open_page):
    hub, ann = open_page(images(2))
    ann.ready()
    ann.page.route("**/label/labels", lambda route: route.abort())
    ann.press("1")
    assert "not saved" in ann.text("#last")
    assert labels(hub) == []
    ann.page.unroute("**/label/labels")
    ann.page.route("**/label/next**", lambda route: route.abort())
    ann.press("1")
    ann.page.wait_for_selector("#stage[data-state=error]")
    assert "The hub does not answer" in ann.text("#notice")
    ann.page.unroute("**/label/next**")
    ann.page.click("#again")
    ann.ready()
    assert labels(hub) == [("labelled", 1)]


def test_without_a_link_there_is_a_page_that_says_what_to_do(open_page):
    _, ann = open_page(images(1))
    ann.context.clear_cookies()
    answer = ann.page.goto(ann.page.url)
    assert answer.status == 401
    assert "You are not logged in" in ann.text("main")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
