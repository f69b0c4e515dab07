"""The page when an answer comes before or after what its viewer does: every order, one at a time.

The test plays the service. It holds each answer back until that answer's turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from serving import pages
from tests.fakes.viewer import SEVEN, card, choose, draw, measured, said

URL = "http://podium.test"
FILES = {path: file for path, file in pages.files().items() if isinstance(file, pages.File)}
PATIENCE = 60.0  # seconds to wait for a request before the test fails

# Counts the drawings that became a PNG, and holds back the JSON of a response while `held` is set.
INSTRUMENTS = """
window.drawings = 0;
const toBlob = HTMLCanvasElement.prototype.toBlob;
HTMLCanvasElement.prototype.toBlob = function (done, ...rest) {
  toBlob.call(this, (blob) => { done(blob); setTimeout(() => window.drawings++); }, ...rest);
};
window.held = window.reading = null;
const json = Response.prototype.json;
Response.prototype.json = async function () {
  window.reading = this.url;
  await window.held;
  return json.call(this);
};
window.hold = () => { window.held = new Promise((done) => (window.release = done)); };
"""


def network(name: str, mode: str = "RGB", version: str = "1") -> dict[str, Any]:
    return {
        "model": name, "version": version, "engine": "openvino", "precision": "fp32", "weights": "pretrained",
        "input": {"mode": mode}, "classes": 10 if mode == "L" else 1000, "year": 2015, "params": 25_557_032,
    }  # fmt: skip


RESNET, LENET = network("resnet50"), network("lenet5", "L")
RETRY = {"error": {"code": "overloaded", "message": "64 images wait"}}


class Stage:
    """A tab of the browser, and its requests that the service has not answered yet."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context(reduced_motion="reduce")
        self.page: Page = self.context.new_page()
        self.page.add_init_script(INSTRUMENTS)
        self.waiting: list[Route] = []
        self.broken: list[str] = []
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.route("**/*", self._take)

    def _take(self, route: Route) -> None:
        path = urlsplit(route.request.url).path
        if route.request.resource_type != "fetch" and path in FILES:
            whole = FILES[path].whole
            route.fulfill(body=whole.body, content_type=whole.content_type.decode())
        else:
            self.waiting.append(route)

    def open(self, tab: str = "picture") -> Page:
        self.page.goto(f"{URL}/ui/#{tab}")
        return self.page

    def asked(self, path: str) -> Route:
        """Wait for a request of `path` without an answer, and return the oldest."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            for route in self.waiting:
                if urlsplit(route.request.url).path == path:
                    self.waiting.remove(route)
                    return route
            self.page.evaluate("0")  # lets messages from the browser arrive
        pytest.fail(f"{path} is not asked for; only {[route.request.url for route in self.waiting]}")

    def idle(self) -> bool:
        """Let the page finish what it has begun; whether it then waits for no answer."""
        self.page.evaluate("new Promise((done) => setTimeout(() => setTimeout(done)))")
        return not self.waiting

    def models(self, *networks: dict[str, Any]) -> None:
        give(self.asked("/models"), {"default": None, "models": networks})

    def read(self, digit: str, model: str = "lenet5") -> None:
        give(self.asked("/classify"), said(model, digit))

    def drawn(self, drawings: int) -> None:
        """Draw a seven, and wait until the page has its `drawings`th picture in hand."""
        draw(self.page, *SEVEN)
        self.page.wait_for_function(f"window.drawings >= {drawings}")


def give(route: Route, answer: Any, status: int = 200) -> None:
    route.fulfill(status=status, body=answer if isinstance(answer, str) else json.dumps(answer))


@pytest.fixture
def stage(browser: Browser) -> Iterator[Stage]:
    opened = Stage(browser)
    yield opened
    opened.context.close()
    assert not opened.broken


def headline(page: Page, text: str, of: str = "digit-answer") -> None:
    expect(page.locator(f"#{of} h2").first).to_have_text(text)


# A digit


def test_a_digit_drawn_before_the_networks_are_known_is_read(stage: Stage) -> None:
    page = stage.open("digit")
    held = stage.asked("/models")
    stage.drawn(1)
    assert stage.idle()  # there is no network to ask yet
    expect(page.locator("#digit-answer")).to_have_text("Asking the networks …")
    give(held, {"models": [RESNET, LENET]})
    stage.read("7")
    headline(page, "7")


def test_a_digit_drawn_after_the_networks_are_known_is_read(stage: Stage) -> None:
    page = stage.open("digit")
    stage.models(RESNET, LENET)
    headline(page, "Any digit, 0 to 9")
    stage.drawn(1)
    stage.read("7")
    headline(page, "7")


def test_a_digit_cleared_before_the_networks_are_known_is_not_sent(stage: Stage) -> None:
    page = stage.open("digit")
    held = stage.asked("/models")
    stage.drawn(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit-answer")).to_have_text("")  # the page does not know either whether there is a network
    give(held, {"models": [LENET]})
    headline(page, "Any digit, 0 to 9")
    assert stage.idle()


@pytest.mark.parametrize("where", ["#trouble", "#digit-trouble"])
def test_a_digit_waits_for_networks_that_the_service_names_at_the_second_try(stage: Stage, where: str) -> None:
    page = stage.open("digit")
    held = stage.asked("/models")
    stage.drawn(1)
    held.abort()
    expect(page.locator("#digit-trouble")).to_contain_text("No answer came from the service")
    page.locator(f"{where} button").click()
    stage.models(LENET)
    stage.read("7")
    headline(page, "7")
    expect(page.get_by_role("alert").filter(has_text="No answer")).to_have_count(0)


def test_the_answer_to_the_second_of_two_strokes_stays(stage: Stage) -> None:
    page = stage.open("digit")
    stage.models(LENET)
    stage.drawn(1)
    first = stage.asked("/classify")
    stage.drawn(2)
    stage.read("4")
    headline(page, "4")
    give(first, said("lenet5", "7"))
    assert stage.idle()
    headline(page, "4")


def test_an_error_that_comes_after_the_pad_was_cleared_is_not_shown(stage: Stage) -> None:
    page = stage.open("digit")
    stage.models(LENET)
    headline(page, "Any digit, 0 to 9")
    stage.drawn(1)
    page.evaluate("hold()")
    give(stage.asked("/classify"), RETRY, 429)
    page.wait_for_function("window.reading?.includes('/classify')")
    page.get_by_role("button", name="Clear").click()
    page.evaluate("release()")
    assert stage.idle()
    headline(page, "Any digit, 0 to 9")
    expect(page.locator("#digit-trouble")).to_have_text("")


def test_the_networks_of_a_restarted_service_read_a_digit(stage: Stage) -> None:
    page = stage.open("digit")
    stage.models(LENET)
    stage.drawn(1)
    give(stage.asked("/classify"), {"error": {"code": "unknown_model", "message": "no lenet5"}}, 404)
    stage.models(network("other", "L"))
    stage.read("7", "other")
    headline(page, "7")
    expect(card(page, "other")).to_be_visible()
    stage.drawn(2)
    give(stage.asked("/classify"), {"error": {"code": "unknown_model", "message": "no other"}}, 404)
    stage.models(RESNET)
    headline(page, "No network for digits is loaded")
    stage.drawn(3)
    stage.models(LENET)  # asked for again, and answered
    stage.read("1")
    headline(page, "1")


def test_an_error_removes_the_answer_to_an_earlier_drawing(stage: Stage) -> None:
    page = stage.open("digit")
    stage.models(LENET)
    stage.drawn(1)
    stage.read("7")
    headline(page, "7")
    stage.drawn(2)
    give(stage.asked("/classify"), RETRY, 429)
    expect(page.locator("#digit-trouble")).to_contain_text("more to do than it can take")
    expect(page.locator("#digit-answer")).to_have_text("")
    expect(page.locator("#digit-commands")).to_have_text("")
    page.get_by_role("button", name="Try again").click()
    stage.read("7")
    headline(page, "7")


# A picture


def both() -> dict[str, Any]:
    return {"results": {"resnet50": said("resnet50", "lynx"), "lenet5": said("lenet5", "7")}}


def compared(page: Page) -> None:
    """One network says what is on the picture; the one for digits has no voice in it."""
    headline(page, "lynx", "verdict")
    expect(page.locator("#verdict")).to_contain_text("says resnet50.")
    expect(page.locator("#cards article")).to_have_count(1)
    expect(page.locator("#apart article")).to_have_count(1)


@pytest.mark.parametrize("first", ["models", "compare"])
def test_a_picture_chosen_before_the_networks_are_known_is_compared(stage: Stage, first: str) -> None:
    page = stage.open()
    held = stage.asked("/models")
    choose(page)
    asked = stage.asked("/compare")
    if first == "compare":
        give(asked, both())
        page.wait_for_function("window.reading?.includes('/compare')")
        assert stage.idle()
        expect(page.locator("#verdict h2")).to_have_count(0)
    give(held, {"models": [RESNET, LENET]})
    expect(page.locator("#loaded")).to_contain_text("2 networks look")
    if first == "models":
        give(asked, both())
    compared(page)


def test_a_picture_is_compared_if_the_service_names_its_networks_at_the_second_try(stage: Stage) -> None:
    page = stage.open()
    stage.asked("/models").abort()
    expect(page.locator("#trouble")).to_contain_text("No answer came")
    choose(page)
    give(stage.asked("/compare"), both())
    stage.models(RESNET, LENET)
    compared(page)
    expect(page.locator("#trouble")).to_have_text("")


def test_the_networks_of_a_restarted_service_compare_a_picture(stage: Stage) -> None:
    page = stage.open()
    stage.models(RESNET)
    expect(page.locator("#loaded")).to_contain_text("1 network looks")
    choose(page)
    give(stage.asked("/compare"), both())
    stage.models(RESNET, LENET)
    compared(page)
    expect(page.locator("#loaded")).to_contain_text("2 networks look")
    # The same networks: nothing more is asked. Another version: its description may differ, so it is asked for.
    choose(page)
    give(stage.asked("/compare"), both())
    compared(page)
    assert stage.idle()
    choose(page)
    newer = both()
    newer["results"]["lenet5"]["version"] = "2"
    give(stage.asked("/compare"), newer)
    stage.models(RESNET, network("lenet5", "L", version="2"))
    compared(page)


@pytest.mark.parametrize("good", [True, False], ids=["picture", "error"])
def test_a_sample_that_arrives_after_another_picture_was_chosen_is_dropped(stage: Stage, good: bool) -> None:
    page = stage.open()
    stage.models(RESNET, LENET)
    page.get_by_role("button", name="Cat").click()
    sample = stage.asked("/ui/samples/cat.jpg")
    choose(page, "mine.jpg")
    give(stage.asked("/compare"), both())
    compared(page)
    give(sample, "" if good else "gone", 200 if good else 404)
    assert stage.idle()
    compared(page)
    expect(page.locator("#chosen")).to_contain_text("mine.jpg")
    expect(page.locator("#picture-trouble")).to_have_text("")


def test_the_error_of_a_picture_is_dropped_once_another_was_chosen(stage: Stage) -> None:
    page = stage.open()
    stage.models(RESNET, LENET)
    choose(page, "first.jpg")
    page.evaluate("hold()")
    give(stage.asked("/compare"), RETRY, 429)
    page.wait_for_function("window.reading?.includes('/compare')")
    choose(page, "second.jpg")
    second = stage.asked("/compare")
    page.evaluate("release()")
    assert stage.idle()
    expect(page.locator("#picture-trouble")).to_have_text("")
    give(second, both())
    compared(page)


def test_an_answer_that_is_cut_off_is_asked_for_again(stage: Stage) -> None:
    page = stage.open()
    stage.models(RESNET, LENET)
    choose(page)
    give(stage.asked("/compare"), json.dumps(both())[:-20])
    expect(page.locator("#picture-trouble")).to_contain_text("No answer came from the service")
    page.locator("#picture-trouble button").click()
    give(stage.asked("/compare"), both())
    compared(page)


# Time and power


def test_metrics_that_were_asked_for_earlier_do_not_replace_later_ones(stage: Stage) -> None:
    page = stage.open("time")
    stage.models(RESNET)
    early = stage.asked("/ui/results.json")
    page.get_by_role("tab", name="A picture").click()
    page.get_by_role("tab", name="Time and power").click()
    give(stage.asked("/ui/results.json"), {"results": measured()})
    expect(page.locator("#measured table")).to_be_visible()
    give(early, {"results": None})
    assert stage.idle()
    expect(page.locator("#measured table")).to_be_visible()


def counted(images: int) -> str:
    return f'podium_requests_total{{model="a",outcome="ok"}} {images}\npodium_queue_depth{{model="a"}} 0\n'


def test_a_restarted_service_never_shows_a_negative_rate(stage: Stage) -> None:
    stage.page.clock.install()
    page = stage.open("time")
    stage.models(RESNET)
    give(stage.asked("/ui/results.json"), {"results": None})
    rate = page.locator("#live .tiles dd").first
    for images, shown in ((500, "\u2013"), (520, "[1-9]"), (8, "\u2013"), (12, "[0-9]")):
        give(stage.asked("/metrics"), counted(images))
        expect(page.locator("#live tbody td").first).to_have_text(str(images))
        expect(rate).to_have_text(re.compile(f"^{shown}"))
        page.clock.run_for(2000)


def test_the_question_for_the_token_stays_until_it_is_answered(stage: Stage) -> None:
    stage.page.clock.install()
    page = stage.open("time")
    held = stage.asked("/models")
    give(stage.asked("/ui/results.json"), {"results": None})
    give(stage.asked("/metrics"), counted(1))  # which takes no token
    give(held, {"error": {"code": "unauthorized", "message": "send the token"}}, 401)
    field = page.get_by_label("This service asks for its token")
    expect(field).to_be_visible()
    page.clock.run_for(2000)
    give(stage.asked("/metrics"), counted(2))
    expect(page.locator("#live tbody td").first).to_have_text("2")
    expect(field).to_be_visible()
    field.fill("opensesame")
    field.press("Enter")
    again = stage.asked("/models")
    assert again.request.headers["authorization"] == "Bearer opensesame"
    give(again, {"models": [RESNET]})
    expect(page.locator("#loaded")).to_contain_text("1 network looks")
    expect(field).to_be_hidden()
