"""A viewer of the page: a tab of a real browser, actions in it, and answers for it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect

from tests.conftest import ROOT

CAT = ROOT / "examples/photographs/cat.jpg"
SEVEN = ((0.25, 0.2), (0.75, 0.2), (0.45, 0.85))  # a stroke; 0 to 1 is the width or height of the pad

expect.set_options(timeout=30_000)  # on a busy machine an answer is late, not wrong


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
        self.page.on("console", self._listen)
        # No result file, whatever the folder of the tests holds.
        self.answer("**/ui/results.json", {"results": None})

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def answer(self, url: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """From now on, requests of `url` get `body` instead of the answer of the service."""

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


def choose(page: Page, name: str = "cat.jpg", body: bytes | None = None, kind: str = "image/jpeg") -> None:
    content = CAT.read_bytes() if body is None else body
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def card(page: Page, network: str) -> Any:
    return page.locator("article.card").filter(has=page.get_by_role("heading", name=network, exact=True))


def draw(page: Page, *points: tuple[float, float]) -> None:
    """One stroke of the mouse through `points`, in fractions of the pad."""
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def said(model: str, label: str, probability: float = 0.6, inference: float = 5.0, **more: Any) -> dict[str, Any]:
    rest = [{"class_id": 2, "synset": None, "label": "tabby", "probability": 0.1}]
    return {
        "model": model, "version": "1", "engine": "openvino", "precision": "int8", "weights": "pretrained",
        "predictions": [{"class_id": 1, "synset": None, "label": label, "probability": probability}, *rest],
        "timing_ms": {"decode": 1, "queue": 2, "inference": inference, "total": inference + 3}, "batch_size": 1, **more,
    }  # fmt: skip


def measured() -> dict[str, Any]:
    """Records, with power, in the form that the page gets."""

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
