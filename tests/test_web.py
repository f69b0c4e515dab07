"""The page in a real browser, served by a real service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from export.store import manifest_of, save
from models.preprocess import Label, Preprocess
from serving import pages
from serving.artifact import Artifact
from tests.conftest import tiny_onnx
from tests.fakes.server import Server, serve
from tests.fakes.viewer import CAT, SEVEN, Viewer, card, choose, draw, measured, said

TABS = ("picture", "digit", "time")
WIDTHS = {"phone": (360, 740), "laptop": (1280, 800), "projector": (1920, 1080)}

# As a label or the name of a file: it would run if the page ever inserted it as markup.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

MOST_BYTES = 200_000


# What the browser opens


def save_hostile(folder: Path) -> Artifact:
    """An untrained network whose labels are markup."""
    untrained = {"kind": "untrained", "origin": "seed 0", "sha256": None, "license": None}
    manifest = manifest_of("hostile", untrained, Preprocess(resize=36, crop=32), 10, max_batch=64)
    manifest["files"] = {"fp32.onnx": {"engines": ["onnxruntime", "openvino"], "precision": "fp32"}}
    labels = tuple(Label(f"{HOSTILE}{i}") for i in range(10))
    return save(manifest, {"fp32.onnx": tiny_onnx(folder / "fp32.onnx")}, labels)


@pytest.fixture(scope="module")
def page_server(
    lenet5: Artifact, efficientnet_lite0: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A service with a trained network, an untrained one, and one for digits."""
    folder = tmp_path_factory.mktemp("web")
    hostile = save_hostile(folder)
    models = ",".join(artifact.tag for artifact in (efficientnet_lite0, hostile, lenet5))
    with serve(folder / "log", PODIUM_MODELS=models) as running:
        yield running
    bentoml.models.delete(hostile.tag)


@pytest.fixture(scope="module")
def locked(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that requires a token."""
    log = tmp_path_factory.mktemp("locked") / "log"
    with serve(log, PODIUM_MODELS=tiny.tag, PODIUM_TOKEN="opensesame") as running:
        yield running


@pytest.fixture
def viewer(browser: Browser, page_server: Server) -> Iterator[Viewer]:
    opened = Viewer(browser, page_server.url)
    yield opened
    opened.close()


# A picture


def test_every_network_classifies_a_chosen_picture_side_by_side(viewer: Viewer) -> None:
    page = viewer.open()
    expect(card(page, "hostile")).to_contain_text("untrained")
    with page.expect_request("**/compare") as asked:
        choose(page)
    assert asked.value.post_data_buffer == CAT.read_bytes()  # what is sent is what was chosen
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    expect(page.locator("#status")).to_contain_text("Egyptian cat")
    trained = card(page, "efficientnet_lite0")
    expect(trained.locator(".bars li")).to_have_count(5)
    expect(trained.locator(".bars li").first).to_contain_text("Egyptian cat")
    for word in ("decode", "queue", "inference", "total", "fp32", "trained"):
        expect(trained).to_contain_text(word)
    expect(card(page, "hostile")).to_contain_text("Never trained: these answers are noise")
    expect(page.locator("#apart")).to_contain_text("lenet5")
    expect(page.locator("#cards article")).to_have_count(2)


def test_samples_and_pasted_and_dropped_pictures_are_classified_too(viewer: Viewer) -> None:
    page = viewer.open()
    page.get_by_role("button", name="Cat").click()
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    for event, field in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        with page.expect_response("**/compare"):
            page.evaluate(
                """async ([kind, field]) => {
                    const data = new DataTransfer();
                    const blob = await (await fetch("samples/rocket.jpg")).blob();
                    data.items.add(new File([blob], `${kind}.jpg`, { type: "image/jpeg" }));
                    const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
                    document.body.dispatchEvent(new Kind(kind, { [field]: data, bubbles: true, cancelable: true }));
                }""",
                [event, field],
            )
        expect(page.locator("#chosen")).to_contain_text(f"{event}.jpg")
        expect(page.locator("#cards article")).to_have_count(2)


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (CAT.read_bytes()[:9000], "image/jpeg", "The picture is damaged or cut off"),
        (b"no picture at all", "image/jpeg", "This is not a picture that the service reads"),
        (b"%PDF-1.7", "application/pdf", "This is not a picture that the service reads"),
        (b"", "image/jpeg", "The service could not read the request"),
    ],
)
def test_a_broken_file_gets_a_sentence(viewer: Viewer, body: bytes, kind: str, sentence: str) -> None:
    page = viewer.open()
    viewer.complaints.clear()
    choose(page, "broken.jpg", body, kind)
    alert = page.get_by_role("alert").filter(has_text=sentence)
    expect(alert).to_be_visible()
    expect(page.locator("#cards article")).to_have_count(0)
    choose(page)
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    expect(alert).to_have_count(0)
    # The browser's own message about a status of 400 and above.
    viewer.complaints = [said for said in viewer.complaints if "Failed to load resource" not in said]


def test_the_viewer_can_ask_an_overloaded_service_again(browser: Browser, page_server: Server) -> None:
    viewer = Viewer(browser, page_server.url)
    error = {"error": {"code": "overloaded", "message": "64 images wait"}}
    viewer.answer("**/compare", error, 429, {"retry-after": "3"})
    page = viewer.open()
    choose(page)
    alert = page.get_by_role("alert").filter(has_text="more to do than it can take. Try again in 3 s.")
    expect(alert).to_contain_text("64 images wait")
    page.unroute("**/compare")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    viewer.close(allowed="429")


def test_agreement_and_disagreement_are_stated_and_shown(viewer: Viewer) -> None:
    three = {"a": said("a", "lynx", 0.5), "b": said("b", "lynx", 0.7, 2), "c": said("c", "tiger", 0.9, 9)}
    viewer.answer("**/compare", {"results": {**three, "d": said("d", "boat", weights="untrained")}})
    page = viewer.open()
    choose(page)
    expect(page.locator("#verdict h2")).to_have_text("lynx")
    expect(page.locator("#verdict")).to_contain_text("2 of 3 trained networks say so; c differs.")
    expect(page.get_by_role("list", name="Who says what").get_by_role("listitem")).to_have_count(2)
    expect(card(page, "c")).to_contain_text("Differs: tiger")
    expect(card(page, "a")).not_to_contain_text("Differs")
    expect(card(page, "d")).to_contain_text("noise")
    names = page.locator("#cards h3")
    for order, want in (("sure", "cbda"), ("fast", "badc"), ("name", "abcd"), ("loaded", "abcd")):
        page.get_by_label("Sort by").select_option(order)
        expect(names).to_have_text(list(want))
    viewer.answer("**/compare", {"results": {"a": said("a", "lynx"), "c": said("c", "tiger")}})
    choose(page)
    expect(page.locator("#verdict h2")).to_have_text("They disagree")
    failed = {"error": {"code": "deadline_passed", "message": "late"}}
    viewer.answer("**/compare", {"results": {"a": said("a", "lynx"), "c": failed}})
    choose(page)
    expect(card(page, "c")).to_contain_text("too much to do to answer in time")
    expect(card(page, "a")).to_contain_text("lynx")


def test_the_commands_that_the_page_shows_give_the_same_answer(viewer: Viewer, tmp_path: Path) -> None:
    page = viewer.open()
    name = "it's a cat $(touch owned).jpg"
    (tmp_path / name).write_bytes(CAT.read_bytes())
    choose(page, name)
    expect(page.locator("#picture-commands code")).to_have_count(3)
    curl, python, triton = page.locator("#picture-commands code").all_text_contents()
    answer = subprocess.run(["sh", "-c", curl], cwd=tmp_path, capture_output=True, check=True).stdout
    assert set(json.loads(answer)["results"]) == {"efficientnet_lite0", "hostile", "lenet5"}
    printed = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert "Egyptian cat" in printed.stdout and printed.stdout.count("timing_ms") == 3
    printed = subprocess.run([sys.executable, "-c", triton], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert "Egyptian cat" in printed.stdout and printed.stdout.count("\n") >= 3
    assert [path.name for path in tmp_path.iterdir()] == [name]
    viewer.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy: curl").click()
    expect(page.locator("#status")).to_have_text("Copied: curl.")
    assert page.evaluate("navigator.clipboard.readText()") == curl


# Hostile content, and what the browser keeps


@pytest.mark.parametrize("name", [HOSTILE.replace("/", "") + ".jpg", "cat\u202egpj.exe", "a\nb.jpg", "-o.jpg", "--"])
def test_markup_in_a_name_or_a_label_never_runs(viewer: Viewer, name: str) -> None:
    page = viewer.open()
    choose(page, name)
    expect(card(page, "hostile").locator(".bars .label").first).to_contain_text(HOSTILE)
    assert page.title() == "Podium" and page.locator("main img[src=x], main script").count() == 0
    shown = page.locator("#picture-commands code").first.text_content() or ""
    assert shown.count("\n") == 2 and "\u202e" not in shown


def test_nothing_is_kept_in_the_browser(viewer: Viewer) -> None:
    page = viewer.open()
    choose(page)
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    kept = "[localStorage.length, sessionStorage.length, document.cookie, indexedDB.databases().then((d) => d.length)]"
    assert page.evaluate(f"Promise.all({kept})") == [0, 0, "", 0]


def test_inline_scripts_and_other_hosts_are_refused_by_the_policy(browser: Browser, page_server: Server) -> None:
    viewer = Viewer(browser, page_server.url)
    page = viewer.open()
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("fetch('http://example.invalid/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.title() == "Podium"
    refused = [said for said in viewer.complaints if "Content Security Policy" in said]
    assert any("inline script" in said for said in refused) and any("example.invalid" in said for said in refused)
    viewer.requests.clear()
    viewer.close(allowed="Content Security Policy")


def test_the_page_asks_for_a_token_and_keeps_it_in_memory_only(browser: Browser, locked: Server) -> None:
    viewer = Viewer(browser, locked.url)
    page = viewer.open()
    field = page.get_by_label("This service asks for its token")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#token-hint")).to_contain_text("That is not the token")
    field.fill("opensesame")
    page.get_by_role("button", name="Use it").click()
    expect(card(page, "tiny")).to_be_visible()
    choose(page)
    expect(page.locator("#verdict h2")).to_have_text("Noise")
    expect(page.locator("#picture-commands code").first).to_contain_text("Bearer $PODIUM_TOKEN")
    assert "opensesame" not in page.content()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    expect(field).to_be_visible()
    viewer.close(allowed="401")


# A digit


def test_a_drawn_digit_is_read(viewer: Viewer) -> None:
    page = viewer.open("digit")
    expect(card(page, "lenet5")).to_be_visible()
    draw(page, *SEVEN)
    expect(page.locator("#digit-answer h2")).to_have_text("7")
    expect(page.locator("#digit-answer .bars li")).to_have_count(10)
    expect(page.locator("#digit-commands")).to_contain_text("classify?model=lenet5&top_k=10")
    # Small and in a corner: centred and scaled before it is sent, and the page says so.
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit-answer h2")).to_have_text("Any digit, 0 to 9")
    draw(page, *((0.05 + x / 4, 0.7 + y / 4) for x, y in SEVEN))
    expect(page.locator("#digit-answer h2")).to_have_text("7")
    expect(page.locator("#digit-answer")).to_contain_text(re.compile("28 . 28 pixels, white on black"))
    sent = page.locator(".sent img").evaluate("(image) => image.decode().then(() => image.naturalWidth)")
    assert sent == 28


# Keyboard, screen reader, colours, widths


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until what `selector` names has the focus."""
    for _ in range(40):
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab never comes to {selector}")


def test_everything_can_be_done_with_the_keyboard_alone(viewer: Viewer) -> None:
    page = viewer.open()
    expect(card(page, "hostile")).to_be_visible()
    tab_to(page, "#file")
    outline = "getComputedStyle(document.querySelector('#drop')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    tab_to(page, "[data-sample='cat.jpg']")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict h2")).to_have_text("Egyptian cat")
    tab_to(page, "#sort")
    page.keyboard.type("name")
    expect(page.locator("#sort")).to_have_value("name")
    tab_to(page, "#picture-commands pre")

    page.reload()
    tab_to(page, "#tab-picture")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#digit")).to_be_visible()
    tab_to(page, "#pad")
    page.keyboard.press("Space")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator("#digit-answer h2")).to_have_text("1")
    expect(page.locator("#status")).to_contain_text("lenet5 reads 1")
    page.keyboard.press("Backspace")
    expect(page.locator("#digit-answer h2")).to_have_text("Any digit, 0 to 9")
    tab_to(page, "body")
    tab_to(page, "#tab-digit")
    page.keyboard.press("End")
    expect(page.locator("#live table")).to_be_visible()


def serious(page: Page) -> list[str]:
    """The serious and critical findings of axe-core, each with its elements."""
    report = Axe().run(page).response
    assert len(report["passes"]) > 10
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']]}"
        for one in report["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_any_state(browser: Browser, page_server: Server, scheme: Any) -> None:
    viewer = Viewer(browser, page_server.url, color_scheme=scheme)
    page = viewer.open()
    expect(card(page, "hostile")).to_be_visible()
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    red = int(paper.removeprefix("rgb(").split(",")[0])
    assert red < 64 if scheme == "dark" else red > 192
    found = {"waiting": serious(page)}
    three = {name: said(name, label) for name, label in (("a", "lynx"), ("b", "lynx"), ("c", "tiger"))}
    viewer.answer("**/compare", {"results": {**three, "d": said("d", "boat", weights="untrained")}})
    choose(page)
    expect(card(page, "c")).to_be_visible()
    found["answers"] = serious(page)
    page.unroute("**/compare")
    choose(page, "broken.jpg", b"broken")
    expect(page.get_by_role("alert").filter(has_text="not a picture")).to_be_visible()
    found["error"] = serious(page)
    page.get_by_role("tab", name="A digit").click()
    draw(page, *SEVEN)
    expect(page.locator("#digit-answer h2")).to_have_text("7")
    found["digit"] = serious(page)
    page.get_by_role("tab", name="Time and power").click()
    expect(page.locator("#live table")).to_be_visible()
    found["live"] = serious(page)
    viewer.answer("**/ui/results.json", {"results": measured()})
    page.get_by_role("tab", name="A picture").click()
    page.get_by_role("tab", name="Time and power").click()
    expect(page.locator("#measured table")).to_be_visible()
    found["measured"] = serious(page)
    assert not any(found.values()), found
    viewer.close()


@pytest.mark.parametrize("size", WIDTHS.values(), ids=WIDTHS)
def test_no_width_scrolls_sideways(browser: Browser, page_server: Server, size: tuple[int, int]) -> None:
    width, height = size
    viewer = Viewer(browser, page_server.url, viewport={"width": width, "height": height}, has_touch=width < 500)
    viewer.answer("**/ui/results.json", {"results": measured()})
    page = viewer.open()
    wide = {}
    choose(page, "a-name-without-a-space-" * 8 + ".jpg")
    expect(card(page, "hostile")).to_be_visible()
    for tab, ready in zip(TABS, ("#cards .card", "#digit .card", "#measured table"), strict=True):
        page.goto(f"{page_server.url}/ui/#{tab}")
        expect(page.locator(ready).first).to_be_visible()
        wide[tab] = page.evaluate("document.documentElement.scrollWidth")
        small = "[...document.querySelectorAll('button, select')].filter((b) => b.offsetHeight && b.offsetHeight < 24)"
        assert page.evaluate(f"{small}.length") == 0
    assert wide == dict.fromkeys(TABS, width)
    viewer.close()


# Time and power


def test_a_result_file_is_shown_and_live_numbers_on_request(viewer: Viewer) -> None:
    viewer.answer("**/ui/results.json", {"results": measured()})
    page = viewer.open("time")
    shown = page.locator("#measured")
    expect(shown).to_contain_text("A CPU, 8 cores")
    for figure in ("Time for one picture", "Pictures per second", "Energy per picture", "Memory", "Accuracy over"):
        expect(shown.locator("figure").filter(has_text=figure)).to_be_visible()
    expect(shown).to_contain_text("0.610 J, 313 W")
    expect(shown).to_contain_text("alexnet†")
    expect(shown).to_contain_text("vgg19, tensorrt fp16, batch 64: failed: memory ended")
    page.get_by_label("Live, from this service").check()
    expect(page.locator("#live")).to_be_visible()
    expect(shown).to_be_hidden()


def test_the_page_says_that_power_was_not_measured(viewer: Viewer) -> None:
    document = measured()
    for record in document["records"]:
        record["power"] = {"source": "none", "reason": "this machine has no counter", "joules_per_image": None}
    viewer.answer("**/ui/results.json", {"results": document})
    page = viewer.open("time")
    expect(page.locator("#measured")).to_contain_text("Power and energy were not measured: this machine has no counter")


def test_without_a_result_file_the_numbers_are_live(viewer: Viewer, page_server: Server) -> None:
    for _ in range(3):
        page_server.classify(CAT.read_bytes())
    page = viewer.open("time")
    row = page.locator("#live tbody tr").filter(has_text="efficientnet_lite0")
    expect(row).to_contain_text("ms")
    expect(page.locator("#live")).to_contain_text("python -m benchmarks run")
    expect(page.locator("#live .tiles")).to_contain_text("no sensor reports here")
    answered = int(row.locator("td").first.text_content() or "")
    assert answered >= 3
    page_server.classify(CAT.read_bytes())
    expect(row.locator("td").first).to_have_text(str(answered + 1))  # without any action by the viewer


def test_watts_and_quantiles_come_from_the_metrics(viewer: Viewer) -> None:
    buckets = {"0.01": 50, "0.02": 90, "10.0": 98, "+Inf": 100}
    text = "".join(
        f'podium_stage_seconds_bucket{{le="{le}",model="a",stage="total"}} {count}\n' for le, count in buckets.items()
    )
    text += 'podium_requests_total{model="a",outcome="ok"} 100.0\npodium_queue_depth{model="a"} 4\n'
    text += 'podium_power_watts{device="0"} 250.5\npodium_energy_joules_total{device="0"} 9000\n'
    viewer.page.route("**/metrics", lambda route: route.fulfill(body=text, content_type="text/plain"))
    page = viewer.open("time")
    tiles = page.locator("#live .tiles")
    for shown in ("251 W", "9,000 J", "10.0 ms", "over 10 s"):
        expect(tiles).to_contain_text(shown.replace(" ", "\u00a0") if "over" not in shown else shown)


def test_the_whole_page_is_light(viewer: Viewer) -> None:
    page = viewer.open()
    expect(card(page, "hostile")).to_be_visible()
    got = [request for request in viewer.requests if "/ui/" in request.url]
    assert len(got) >= 10
    files = pages.files().values()
    assert len(files) >= 10 and sum(len(file.whole.body) for file in files) < MOST_BYTES
