"""The page as its viewers meet it: in a real browser, from a real service; and how its files are served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bentoml
import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

from export.store import manifest_of, save
from models.preprocess import Label, Preprocess
from serving import pages
from serving.artifact import Artifact
from serving.pages import Results
from tests.conftest import ROOT, tiny_onnx
from tests.test_api import client_of, started
from tests.test_service import Server, serve

CAT = ROOT / "examples/photographs/cat.jpg"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TABS = ("picture", "digit", "time")
WIDTHS = {"phone": (360, 740), "laptop": (1280, 800), "projector": (1920, 1080)}

# A label, and a file's name, that would run if either were ever taken for markup.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

MOST_BYTES = 200_000

expect.set_options(timeout=30_000)  # on a busy machine an answer is late, not wrong


# The files; first, because the browser's driver keeps an event loop of its own until the module's end


def measured() -> dict[str, Any]:
    """Records as the page gets them, with power."""

    def one(network: str, batch: int, p50: float, **more: Any) -> dict[str, Any]:
        return {
            "network": network, "year": 2015, "classes": 1000, "engine": "tensorrt", "precision": "fp16",
            "batch": batch, "weights": "pretrained", "status": "ok", "throughput_img_s": 1e3 * batch / p50,
            "macs": 4_089_184_256, "params": 25_557_032, "top1": 76.13, "top5": 92.9, "accuracy_source": "published",
            "latency_ms": {"p50": p50, "p90": p50 * 1.1, "p99": p50 * 1.2, "count": 9, "interval": [p50, p50]},
            "memory_mb": {"weights": 51.0, "peak_rss": 900.0, "peak_gpu": 300.0},
            "power": {"source": "nvml", "reason": None, "idle_w": 70.0, "mean_w": 312.5, "net_w": 242.5,
                      "joules_per_image": 0.61, "net_joules_per_image": 0.4},
            **more,
        }  # fmt: skip

    failed = one("vgg19", 64, 1.0, status="failed: memory ended", latency_ms=None)
    small = {"params": 61_100_840, "macs": 714_188_480, "top1": 56.52, "weights": "untrained"}
    return {
        "file": "benchmarks/results/a.json",
        "environment": {
            "cpu": "A CPU",
            "cores": 8,
            "gpus": [],
            "date": "2026-11-20T08:00:00+00:00",
            "settings": "full",
        },
        "records": [one("resnet50", 1, 2.0), one("resnet50", 8, 9.5), one("alexnet", 1, 0.9, **small), failed],
    }


def test_files_carry_their_type_a_strict_policy_and_an_etag(tiny: Artifact) -> None:
    async def test() -> None:
        async with started(tiny, PODIUM_TOKEN="secret") as serving, client_of(serving) as client:
            page = await client.get("/ui/")
            assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
                file = await client.get(f"/ui/{name}")
                assert file.headers["content-type"].startswith(kind)
                assert file.headers["x-content-type-options"] == "nosniff"
                assert file.headers["referrer-policy"] == "no-referrer"
                again = await client.get(f"/ui/{name}", headers={"if-none-match": f'"other", W/{file.headers["etag"]}'})
                assert (again.status_code, again.content) == (304, b"")
                changed = await client.get(f"/ui/{name}", headers={"if-none-match": '"other"'})
                assert changed.content == file.content
            head = await client.head("/ui/")
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) == len(page.content)
            onward = await client.get("/ui")
            assert (onward.status_code, onward.headers["location"]) == (308, "ui/")
            for path in (
                "/ui/index.html",
                "/ui/../api.py",
                "/ui/..%2fapi.py",
                "/ui//etc/passwd",
                "/ui/samples/",
                "/uix",
            ):
                assert (await client.get(path)).status_code == 404
            assert (await client.get("/ui/results.json")).status_code == 401
            assert (await client.post("/ui/results.json")).status_code == 405

    asyncio.run(test())


def result_file(date: str, **changes: Any) -> str:
    record = measured()["records"][0] | {"latency_ms": {"p50": 1.0, "values": [1.0] * 1000}} | changes
    return json.dumps({"schema": 1, "environment": {"date": date, "command": "c"}, "records": [record]})


def test_the_newest_whole_result_file_is_the_one_shown(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.latest() is None
    (tmp_path / ".podium/demo").mkdir(parents=True)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    older = tmp_path / "benchmarks/results/older.json"
    older.write_text(result_file("2026-01-01T00:00:00+00:00"))
    newer = tmp_path / ".podium/demo/results.json"
    newer.write_text(result_file("2026-02-01T00:00:00+00:00", scenario=None))
    for name, text in {
        "half": newer.read_text()[:200],
        "schema": newer.read_text().replace('"schema": 1', '"schema": 2'),
        "nan": result_file("2027", throughput_img_s=float("nan")),
        "failed": result_file("2027", status="failed: of memory"),
        "load": result_file("2027", scenario="closed loop, 4 in flight"),
        "other": '{"schema": 1, "environment": {}, "records": [{"network": 1}]}',
        "list": "[]",
        "deep": "[" * 100_000,
    }.items():
        (tmp_path / f".podium/{name}.json").write_text(text)
    latest = results.latest()
    assert latest is not None and latest["file"] == ".podium/demo/results.json"
    assert latest["records"][0]["latency_ms"] == {"p50": 1.0, "p90": None, "p99": None, "count": None, "interval": None}
    assert "command" not in latest["environment"]
    assert results.latest() is latest  # not read again
    newer.unlink()
    latest = results.latest()
    assert latest is not None and latest["file"] == "benchmarks/results/older.json"


def test_results_are_null_or_a_document_over_http(tiny: Artifact, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    async def ask() -> Any:
        async with started(tiny) as serving, client_of(serving) as client:
            response: httpx.Response = await client.get("/ui/results.json")
            return response.json()

    assert asyncio.run(ask()) == {"results": None}
    (tmp_path / ".podium").mkdir()
    (tmp_path / ".podium/bench.json").write_text(result_file("2026-02-01T00:00:00+00:00"))
    assert asyncio.run(ask())["results"]["file"] == ".podium/bench.json"


# The browser and what it looks at


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        assert "CI" not in os.environ, f"none of {', '.join(BROWSERS)} is installed; `.ci/run` installs one"
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed; on Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


def save_hostile(folder: Path) -> Artifact:
    """A network that was never trained, and whose labels are markup."""
    untrained = {"kind": "untrained", "origin": "seed 0", "sha256": None, "license": None}
    manifest = manifest_of("hostile", untrained, Preprocess(resize=36, crop=32), 10, max_batch=64)
    manifest["files"] = {"fp32.onnx": {"engines": ["onnxruntime", "openvino"], "precision": "fp32"}}
    labels = tuple(Label(f"{HOSTILE}{i}") for i in range(10))
    return save(manifest, {"fp32.onnx": tiny_onnx(folder / "fp32.onnx")}, labels)


EXPORT = """
from export.__main__ import main
own = ["--module", "examples/efficientnet_lite0.py:network", "--no-tune"]
raise SystemExit(main(["lenet5", "--no-tune"]) or main(own))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with a trained network, one that was never trained, and one for digits, in a store of their own."""
    folder = tmp_path_factory.mktemp("web")
    home = folder / "bentoml"
    done = subprocess.run(
        [sys.executable, "-c", EXPORT],
        cwd=ROOT, env={**os.environ, "BENTOML_HOME": str(home)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hostile = save_hostile(folder)
    shutil.copytree(hostile.folder.parent, home / "models/hostile")
    bentoml.models.delete(hostile.tag)
    models = "efficientnet_lite0,hostile,lenet5"
    with serve(folder / "log", BENTOML_HOME=str(home), PODIUM_MODELS=models) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that asks for a token."""
    environment = {"PODIUM_MODELS": tiny.tag, "PODIUM_TOKEN": "opensesame"}
    with serve(tmp_path_factory.mktemp("locked") / "log", **environment) as running:
        yield running


class Viewer:
    """A tab of the browser, and everything that went wrong in it."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(reduced_motion="reduce", **context)
        self.page = self.context.new_page()
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        # Without a result file, whatever the folder that the tests run in holds.
        self.answer("**/ui/results.json", {"results": None})

    def answer(self, url: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """From now on, requests of `url` get `body` in place of the service's answer."""

        def fulfill(route: Route) -> None:
            route.fulfill(status=status, json=body, headers={"content-type": "application/json", **(headers or {})})

        self.page.unroute(url)
        self.page.route(url, fulfill)

    def open(self, tab: str = "picture") -> Page:
        self.page.goto(f"{self.url}/ui/#{tab}")
        return self.page

    def close(self, allowed: str = "\0") -> None:
        hosts = {urlsplit(request.url).netloc for request in self.requests if not request.url.startswith("blob:")}
        self.context.close()
        assert hosts <= {urlsplit(self.url).netloc}
        assert not [complaint for complaint in self.complaints if allowed not in complaint]


@pytest.fixture
def viewer(browser: Browser, server: Server) -> Iterator[Viewer]:
    opened = Viewer(browser, server.url)
    yield opened
    opened.close()


def choose(page: Page, name: str = "cat.jpg", body: bytes | None = None, kind: str = "image/jpeg") -> None:
    content = CAT.read_bytes() if body is None else body
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def card(page: Page, network: str) -> Any:
    return page.locator("article.card").filter(has=page.get_by_role("heading", name=network, exact=True))


def draw(page: Page, *points: tuple[float, float]) -> None:
    """One stroke of the mouse through `points`, 0 to 1 of the pad."""
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


SEVEN = ((0.25, 0.2), (0.75, 0.2), (0.45, 0.85))


# A picture


def test_a_chosen_cat_is_named_by_every_network_side_by_side(viewer: Viewer) -> None:
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


def test_a_sample_pasted_and_dropped_pictures_are_taken_too(viewer: Viewer) -> None:
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
    # The browser's own remark on a status of 400 and above.
    viewer.complaints = [said for said in viewer.complaints if "Failed to load resource" not in said]


def test_an_overloaded_service_is_asked_again_on_request(browser: Browser, server: Server) -> None:
    viewer = Viewer(browser, server.url)
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


def said(model: str, label: str, probability: float = 0.6, inference: float = 5.0, **more: Any) -> dict[str, Any]:
    rest = [{"class_id": 2, "synset": None, "label": "tabby", "probability": 0.1}]
    return {
        "model": model, "version": "1", "engine": "openvino", "precision": "int8", "weights": "pretrained",
        "predictions": [{"class_id": 1, "synset": None, "label": label, "probability": probability}, *rest],
        "timing_ms": {"decode": 1, "queue": 2, "inference": inference, "total": inference + 3}, "batch_size": 1, **more,
    }  # fmt: skip


def test_agreement_and_disagreement_are_said_and_seen(viewer: Viewer) -> None:
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


def test_the_commands_shown_do_the_same(viewer: Viewer, tmp_path: Path) -> None:
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


# What is hostile, and what is kept


@pytest.mark.parametrize("name", [HOSTILE.replace("/", "") + ".jpg", "cat\u202egpj.exe", "a\nb.jpg", "-o.jpg", "--"])
def test_no_name_and_no_label_runs(viewer: Viewer, name: str) -> None:
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


def test_inline_scripts_and_other_hosts_are_refused_by_the_policy(browser: Browser, server: Server) -> None:
    viewer = Viewer(browser, server.url)
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


def test_a_token_is_asked_for_and_kept_in_memory_only(browser: Browser, locked: Server) -> None:
    viewer = Viewer(browser, locked.url)
    page = viewer.open()
    field = page.get_by_label("This service asks for its token")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#token-hint")).to_contain_text("That was not it")
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
    """What axe-core finds that is serious or critical, each with the elements it concerns."""
    report = Axe().run(page).response
    assert len(report["passes"]) > 10
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']]}"
        for one in report["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_state(browser: Browser, server: Server, scheme: Any) -> None:
    viewer = Viewer(browser, server.url, color_scheme=scheme)
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
def test_no_width_scrolls_sideways(browser: Browser, server: Server, size: tuple[int, int]) -> None:
    width, height = size
    viewer = Viewer(browser, server.url, viewport={"width": width, "height": height}, has_touch=width < 500)
    viewer.answer("**/ui/results.json", {"results": measured()})
    page = viewer.open()
    wide = {}
    choose(page, "a-name-without-a-space-" * 8 + ".jpg")
    expect(card(page, "hostile")).to_be_visible()
    for tab, ready in zip(TABS, ("#cards .card", "#digit .card", "#measured table"), strict=True):
        page.goto(f"{server.url}/ui/#{tab}")
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


def test_power_that_was_not_measured_is_said_so(viewer: Viewer) -> None:
    document = measured()
    for record in document["records"]:
        record["power"] = {"source": "none", "reason": "this machine has no counter", "joules_per_image": None}
    viewer.answer("**/ui/results.json", {"results": document})
    page = viewer.open("time")
    expect(page.locator("#measured")).to_contain_text("Power and energy were not measured: this machine has no counter")


def test_without_a_result_file_the_numbers_are_live(viewer: Viewer, server: Server) -> None:
    for _ in range(3):
        server.classify(CAT.read_bytes())
    page = viewer.open("time")
    row = page.locator("#live tbody tr").filter(has_text="efficientnet_lite0")
    expect(row).to_contain_text("ms")
    expect(page.locator("#live")).to_contain_text("python -m benchmarks run")
    expect(page.locator("#live .tiles")).to_contain_text("no sensor reports here")
    answered = int(row.locator("td").first.text_content() or "")
    assert answered >= 3
    server.classify(CAT.read_bytes())
    expect(row.locator("td").first).to_have_text(str(answered + 1))  # without the viewer doing anything


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
