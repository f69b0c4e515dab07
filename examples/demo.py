"""`make demo`: export, verify, classify a photograph and a digit through the server, measure, report.

Every step is a command that a user could type, and it is printed before it runs. What is done and unchanged is kept, so
the demo can be interrupted at any point and run again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / ".podium" / "demo"
OWN = "examples/efficientnet_lite0.py:network"
FIVE = ("alexnet", "vgg16", "googlenet", "resnet50", "resnext50_32x4d")
READY_WITHIN_S = 180


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str) -> None:
    """Run a command of ours. If it fails it has said why, and the demo stops."""
    print("$ python -m", *command, flush=True)
    status = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(models: str) -> Iterator[str]:
    """`bentoml serve` on a free port of this machine; yields its address when every model is loaded and warm."""
    address, log = f"http://127.0.0.1:{(port := free_port())}", OUT / "server.log"
    bentoml = Path(sys.executable).with_name("bentoml")
    print(f"$ PODIUM_MODELS={models} bentoml serve --host 127.0.0.1 --port {port}", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [bentoml, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "PODIUM_MODELS": models},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches only the demo, which then ends the server
        )
    try:
        started = time.monotonic()
        while not ready(address):
            if process.poll() is not None or time.monotonic() - started > READY_WITHIN_S:
                raise SystemExit(f"the server did not start; the end of its log:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
        yield address
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def classify(address: str, image: Path, model: str) -> dict[str, Any]:
    url = f"{address}/classify?model={model}&top_k=3"
    kind = {".jpg": "image/jpeg", ".png": "image/png"}[image.suffix]
    print(f"$ curl --data-binary @{image.relative_to(ROOT)} -H 'Content-Type: {kind}' '{url}'")
    request = urllib.request.Request(url, data=image.read_bytes(), headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def show(image: str, answer: dict[str, Any]) -> None:
    best = answer["predictions"][0]
    rest = ", ".join(f"{p['label']} {p['probability']:.0%}" for p in answer["predictions"][1:])
    print(
        f"  {image}: {best['label']} ({best['probability']:.0%}; then {rest})  "
        f"[{answer['model']}, {answer['engine']} {answer['precision']}, {answer['weights']} weights, "
        f"{answer['timing_ms']['total']:.1f} ms]",
        flush=True,
    )


def main() -> None:
    started = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    say("1. Export the lecture's five, LeNet-5 and a network of your own, and compare each with PyTorch")
    run("export", *FIVE)
    run("export", "lenet5", "--precision", "fp32,int8", "--calibration", "examples/digits")
    run("export", "--module", OWN)

    say("2. Verify what was saved")
    run("export", "verify", "efficientnet_lite0")

    say("3. Serve them, and classify a photograph and a digit")
    models = ",".join(("efficientnet_lite0", "lenet5", *FIVE))
    with server(models) as address:
        cat, seven = ROOT / "examples/photographs/cat.jpg", ROOT / "examples/digits/7.png"
        show("the cat", classify(address, cat, "efficientnet_lite0"))
        show("the digit", classify(address, seven, "lenet5"))

    say("4. Measure time, memory and, if there is a sensor, power")
    results = OUT / "results.json"
    results.unlink(missing_ok=True)
    run("benchmarks", "run", "--quick", "--out", str(results.relative_to(ROOT)))

    say("5. Report")
    run("benchmarks", "report", str(results.relative_to(ROOT)), "--out", str((OUT / "report").relative_to(ROOT)))
    say(f"Done in {time.monotonic() - started:.0f} s. The report: {(OUT / 'report' / 'report.html').relative_to(ROOT)}")


if __name__ == "__main__":
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; `make demo` continues after what is finished") from None
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the server answered {error.code}: {error.read().decode()}") from error
