"""The report: what it says is what the records say."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import intervals, records
from benchmarks.__main__ import main
from benchmarks.engine import roofline
from benchmarks.report import claims, drawing, figures, renderers, sections
from tests.conftest import ROOT

# A result file or a record as it is in JSON, which the tests change at will.
Json = Any

#           family        year  params     MACs    top-1  MACs per second, 10^9
NETWORKS = {
    "alexnet": ("alexnet", 2014, 61.1e6, 0.714e9, 56.52, 55),
    "vgg16": ("vgg", 2014, 138.4e6, 15.47e9, 71.59, 95),
    "vgg19": ("vgg", 2014, 143.7e6, 19.63e9, 72.38, 96),
    "googlenet": ("googlenet", 2014, 6.6e6, 1.498e9, 69.78, 62),
    "inception_v3": ("inception", 2015, 23.8e6, 5.713e9, 77.29, 70),
    "resnet18": ("resnet", 2015, 11.7e6, 1.814e9, 69.76, 80),
    "resnet50": ("resnet", 2015, 25.6e6, 4.089e9, 76.13, 72),
    "resnet152": ("resnet", 2015, 60.2e6, 11.514e9, 78.31, 70),
    "resnext50_32x4d": ("resnet", 2016, 25.0e6, 4.230e9, 77.62, 48),
    "wide_resnet50_2": ("resnet", 2016, 68.9e6, 11.398e9, 78.47, 92),
    "squeezenet1_1": ("squeezenet", 2016, 1.24e6, 0.349e9, 58.18, 50),
    "densenet121": ("densenet", 2016, 7.98e6, 2.834e9, 74.43, 40),
}


def document(
    networks: tuple[str, ...] = tuple(NETWORKS),
    engines: tuple[tuple[str, str], ...] = (("onnxruntime", "fp32"),),
    batches: tuple[int, ...] = (1, 2, 4, 8, 16),
    watts: float | None = None,
    untrained: tuple[str, ...] = (),
    cpu: str = "Imaginary CPU @ 2.00GHz",
) -> Json:
    """A result file of a machine that does not exist, by a simple law with seeded noise."""
    generator, items = np.random.default_rng(1), []
    for number, (engine, precision) in enumerate(engines):
        for name in networks:
            family, year, params, macs, top1, rate = NETWORKS[name]
            for batch in batches:
                middle = macs * batch / (rate * 1e6) / (1 + 0.3 * math.log2(batch) / 4) / (1 + number)
                values = generator.normal(middle, middle / 25, 40).clip(middle / 2)
                power = records.no_power("there is no sensor")
                if watts is not None:
                    mean = watts * float(generator.normal(1, 0.02))
                    power |= {"source": "rapl", "reason": None, "idle_w": 10.0, "mean_w": mean + 10, "net_w": mean}
                    power |= {"std_w": 0.1, "window_s": 5.0, "trials": 3}
                    power |= {"joules_per_image": (mean + 10) * middle / 1e3 / batch}
                    power |= {"net_joules_per_image": mean * middle / 1e3 / batch}
                items.append(
                    {
                        "kind": "cell", "network": name, "version": "1", "family": family, "year": year,
                        "classes": 1000, "engine": engine, "precision": precision, "batch": batch, "scenario": None,
                        "threads": 2, "settings": "full", "status": "ok", "failure": None,
                        "weights": "untrained" if name in untrained else "pretrained",
                        "latency_ms": intervals.latency([values[:20].tolist(), values[20:].tolist()]),
                        "throughput_img_s": 1e3 * batch / middle, "cpu_seconds_per_image": 2 * middle / 1e3 / batch,
                        "memory_mb": {
                            "weights": params * 4e-6, "peak_gpu": None, "activations": 4.0 * batch,
                            "peak_rss": params * 5.2e-6 + 60 + max(16.0, 4.0 * batch),
                        },
                        "power": power, "macs": int(macs), "params": int(params), "top1": top1, "top5": None,
                        "accuracy_source": "published" + " (weights here are untrained)" * (name in untrained),
                    }
                )  # fmt: skip
    environment = {"cpu": cpu, "cores": 2, "memory_mb": 8000, "gpus": [], "date": "2026-01-02T03:04:05+00:00"}
    environment |= {"command": "python -m benchmarks run", "limits": {"cpus": None, "memory_mb": 4000}}
    return records.validate({"schema": 1, "environment": environment, "records": items})


def written(tmp_path: Path, *documents: Json) -> Path:
    """The report of `documents`, by the command, in a folder."""
    files = []
    for index, one in enumerate(documents):
        files.append(tmp_path / f"run{index}.json")
        files[-1].write_text(json.dumps(one), "utf-8")
    assert main(["report", *map(str, files), "--out", str(tmp_path / "report")]) == 0
    return tmp_path / "report"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one = document(networks=("alexnet", "googlenet", "resnet50"), batches=(1, 4), untrained=("alexnet",))
    one["records"].append(
        one["records"][0] | {"network": "vgg16", "status": "failed: memory ended at batch 1", "latency_ms": None}
    )
    return written(tmp_path_factory.mktemp("report"), one)


def test_the_page_asks_the_network_for_nothing(folder: Path) -> None:
    page = (folder / renderers.PAGE).read_text("utf-8")
    assert not re.findall(r"""(?:src|href|action|data)\s*=\s*["']?(?!#)[^"'\s>]+""", re.sub(r"data-\w+", "", page))
    assert "@import" not in page and not re.findall(r"url\((?!#)", page)
    assert "<script" not in page and "<link" not in page
    assert page.count("<svg ") == len(figures.FIGURES)


def test_the_page_has_no_two_parts_of_one_name(folder: Path) -> None:
    names = re.findall(r'\bid="([^"]+)"', (folder / renderers.PAGE).read_text("utf-8"))
    assert len(names) == len(set(names))


def test_the_page_and_the_markdown_say_the_same(folder: Path) -> None:
    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text)

    page = re.sub(
        r"<svg.*?</svg>|<style.*?</style>|<title.*?</title>",
        "",
        (folder / renderers.PAGE).read_text("utf-8"),
        flags=re.DOTALL,
    )
    page = html.unescape(re.sub(r"<[^>]+>", " ", page))
    text = re.sub(r"!\[.*?\]\(.*?\)", "", (folder / renderers.MARKDOWN).read_text("utf-8"))
    assert words(page) == words(text)


def test_csv_gives_back_the_records(folder: Path) -> None:
    items = json.loads((folder.parent / "run0.json").read_text("utf-8"))["records"]
    rows = list(csv.DictReader((folder / renderers.CSV).read_text("utf-8").splitlines()))
    assert len(rows) == len(items)
    for row, item in zip(rows, items, strict=True):
        assert (row["network"], row["engine"], int(row["batch"])) == (item["network"], item["engine"], item["batch"])
        assert row["net_w"] == "" and row["power_reason"] == "there is no sensor"
        if item["status"] == "ok":
            values = item["latency_ms"]["values"]
            assert float(row["p50_ms"]) == pytest.approx(np.percentile(values, 50))
            assert float(row["p99_ms"]) == pytest.approx(np.percentile(values, 99))
            assert int(row["count"]) == len(values)


def test_the_table_is_computed_from_the_records(folder: Path) -> None:
    one = json.loads((folder.parent / "run0.json").read_text("utf-8"))
    text = (folder / renderers.MARKDOWN).read_text("utf-8")
    head = [cell.strip() for cell in next(line for line in text.splitlines() if "p50 (ms)" in line).split("|")]
    for name in ("googlenet", "resnet50"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        cells = dict(zip(head, (cell.strip() for cell in row.split("|")), strict=True))
        mine = [item for item in one["records"] if item["network"] == name]
        assert cells["p50 (ms)"].split()[0] == records.significant(float(np.median(mine[0]["latency_ms"]["values"])))
        fastest = max(mine, key=lambda item: float(item["throughput_img_s"]))
        assert cells["best throughput (img/s)"].startswith(records.significant(fastest["throughput_img_s"]))
        assert cells["calls"] == "40" and cells["p99 (ms)"].endswith("*")
        assert cells["net energy (J/img)"] == records.significant(None)


def test_untrained_weights_are_marked_wherever_they_show(folder: Path) -> None:
    for name in (renderers.MARKDOWN, renderers.PAGE):
        text = re.sub(r"<svg.*?</svg>", "", (folder / name).read_text("utf-8"), flags=re.DOTALL)
        table = text.split("Networks", 1)[1].split("The paper's claims", 1)[0].split("The paper&#x27;s claims", 1)[0]
        assert "alexnet†" in table and "56.52†" in table and not re.search(r"alexnet(?!†)", table)
        assert "The weights measured here are untrained" in text and "resnet50†" not in text
        assert "published (weights here are untrained)" in text
    svg = (folder / "figures" / "1-accuracy.svg").read_text("utf-8")
    assert "<!-- alexnet† -->" in svg and "<!-- resnet50 -->" in svg


def test_failures_and_what_was_not_measured_say_why(folder: Path) -> None:
    for name in (renderers.MARKDOWN, renderers.PAGE):
        text = (folder / name).read_text("utf-8")
        assert "vgg16 onnxruntime fp32, batch 1 failed: memory ended at batch 1" in text
        assert "Power was not measured: there is no sensor" in text
    assert "<!-- Power was not measured: there is no sensor. -->" in (
        folder / "figures" / "4-power-by-batch.svg"
    ).read_text("utf-8")


def test_every_figure_is_written_twice_and_takes_the_page_s_ink(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{row[0]}.{form}" for row in figures.FIGURES for form in ("svg", "png")}
    for path in (folder / "figures").glob("*.svg"):
        assert drawing.INK not in path.read_text("utf-8") and "currentColor" not in path.read_text("utf-8")
    page = (folder / renderers.PAGE).read_text("utf-8")
    assert "currentColor" in page and drawing.INK not in page and drawing.DARK not in page.split("</style>")[1]


def test_figures_plot_the_records() -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 4), watts=50.0)
    [series] = sections.series_of([("one", one)])
    measure: Callable[[Json], float]
    for painter, measure in (
        (figures.time_by_batch, lambda i: float(np.median(i["latency_ms"]["values"])) / i["batch"]),
        (figures.power_by_batch, lambda i: i["power"]["net_w"]),
        (figures.memory_by_batch, lambda i: i["memory_mb"]["peak_rss"]),
    ):
        [axis] = painter([series]).axes
        drawn = [list(bars.lines[0].get_ydata()) for bars in axis.containers]  # type: ignore[attr-defined]
        groups = records.by_network(one["records"]).values()
        assert drawn == [pytest.approx([measure(item) for item in group]) for group in groups]
    [axis] = figures.ball_chart([series]).axes
    balls: list[Any] = [ball for ball in axis.collections if np.size(ball.get_offsets())]
    # Area, not radius, carries the parameters.
    areas = [float(ball.get_sizes()[0]) for ball in balls]
    assert areas[0] / areas[1] == pytest.approx(61.1 / 25.6)


def test_several_runs_are_told_apart() -> None:
    documents = [(f"run{i}", document(networks=("alexnet",), batches=(1,), cpu=f"CPU {i}")) for i in range(2)]
    assert [one.label for one in sections.series_of(documents)] == [f"ONNX Runtime fp32, run{i}" for i in range(2)]
    assert "CPU 0, CPU 1" in sections.report(documents, sections.series_of(documents), []).title


def on_gpu(**more: Any) -> Json:
    """`document` as benchmarks/gpu.sh would write it on a GPU that does not exist."""
    one = document(engines=(("torch-cuda", "fp16"),), batches=(1, 8, 16, 64, 256), watts=400.0, **more)
    one["environment"] |= {"gpus": [{"name": "Synthetic GPU"}], "settings": "gpu", "rates": {"copy_gb_s": 4000.0}}
    one["environment"] |= {"power": {"source": "nvml", "mig": None, "other_processes": {"count": 0}}}
    for item in one["records"]:
        work = roofline.Work(2 * item["macs"], 2 * item["params"], 50_000_000)
        limit, share = roofline.bound(work, item["batch"], 4000.0, 800_000.0), 0.2 + 0.1 * math.log10(item["batch"])
        item["memory_mb"] |= {"peak_rss": None, "peak_gpu": 100.0 + max(30, 2 * item["batch"])}
        item["power"]["source"] = "nvml"
        item |= {"kind": "gpu_cell", "parity": {"verdict": "pass"}}
        item["roofline"] = {
            "operations": work.operations, "weight_bytes": work.weight_bytes, "image_bytes": work.image_bytes,
            "operations_per_byte": limit.intensity, "copy_gb_s": 4000.0, "matrix_gop_s": 800_000.0,
            "attainable_img_s": limit.img_s, "bound_by": limit.by, "img_s": share * limit.img_s, "share": share,
            "timed": "device",
        }  # fmt: skip
    return records.validate(one)


def test_cpu_and_gpu_stand_side_by_side() -> None:
    cpu, gpu = document(networks=("alexnet", "resnet50", "vgg16")), on_gpu()
    documents = [("cpu", cpu), ("gpu", gpu)]
    told = sections.report(documents, sections.series_of(documents), [])
    text = renderers.as_markdown(told)
    assert text.startswith("# Time and power on Synthetic GPU, Imaginary CPU")
    section = text.split("## Machines side by side")[1].split("##")[0]
    head = [cell.strip() for cell in section.split("|", 8)[1:8]]
    assert head == [
        "network", "Imaginary CPU @ 2.00GHz: best (img/s)", "with", "one image (ms)", "Synthetic GPU: best (img/s)",
        "with", "one image (ms)",
    ]  # fmt: skip
    rows = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in section.splitlines()[4:] if row
    }
    best = max(i["throughput_img_s"] for i in gpu["records"] if i["network"] == "resnet50")
    assert rows["resnet50"][3:5] == [records.significant(best), "PyTorch CUDA fp16, batch 256"]
    one = next(i for i in cpu["records"] if i["network"] == "resnet50" and i["batch"] == 1)
    assert rows["resnet50"][2] == records.significant(one["latency_ms"]["p50"])
    assert rows["densenet121"][:3] == [records.significant(None)] * 3
    assert "<h2>Machines side by side</h2>" in renderers.as_html(told)
    assert sections.together([("one", cpu), ("two", document())]) is None


def test_the_roofline_is_drawn_and_told_where_records_hold_it(tmp_path: Path) -> None:
    gpu = on_gpu(networks=("alexnet", "resnet50"), untrained=("alexnet",))
    folder = written(tmp_path, gpu)
    text, page = ((folder / name).read_text("utf-8") for name in (renderers.MARKDOWN, renderers.PAGE))
    table = text.split("\n## Roofline")[1].split("\n## ")[0]
    row = next(line for line in table.splitlines() if line.startswith("| resnet50 |") and "| 256 |" in line)
    assert [cell.strip() for cell in row.split("|")][7:9] == ["44.1", "memory"]
    assert table.count("| alexnet† |") == 2  # the smallest and the largest batch
    assert page.count("<svg ") == len(figures.FIGURES) + 1 and "Roofline" in page
    svg = (folder / "figures" / "11-roofline.svg").read_text("utf-8")
    assert "<!-- operations per second (10¹²) -->" in svg and "800 x 10¹² operations/s in fp16 matrices" in svg
    assert "every map is written and read once" in text and "Memory of a network on a GPU" in text
    assert "was measured by benchmarks/gpu.sh" in text and "mig not known" in text and "cpus no limit" in text
    # Records without one are reported as before.
    plain = [("one", document())]
    assert "Roofline" not in [part.title for part in sections.report(plain, sections.series_of(plain), []).sections]


def test_the_roofline_s_points_and_roof_are_the_records() -> None:
    gpu = on_gpu(networks=("alexnet", "resnet50"))
    [axis] = figures.roofline(sections.series_of([("one", gpu)])).axes
    lines: list[Any] = list(axis.lines)
    roof = next(line for line in lines if len(line.get_xdata()) > 1 and line.get_linewidth() == 1.6)
    for x, y in zip(roof.get_xdata(), roof.get_ydata(), strict=True):
        assert y == pytest.approx(min(800_000.0, 4000.0 * x) / 1e3)
    seen = {tuple(np.round([*line.get_xdata(), *line.get_ydata()], 6)) for line in lines}
    for item in gpu["records"]:
        held = item["roofline"]
        point = (held["operations_per_byte"], held["img_s"] * held["operations"] / 1e12)
        assert tuple(np.round(point, 6)) in seen
    assert [text.get_text() for text in axis.texts][1:] == ["resnet50 (256)", "alexnet (256)"]


def test_claims_advice_and_plans_take_a_gpu_s_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = on_gpu()
    told = {claim.number: claim for claim in claims.test(gpu["records"])}
    assert {number: claim.verdict for number, claim in told.items()} | {2: "", 3: "", 4: ""} == {
        1: claims.HOLDS, 2: "", 3: "", 4: "", 5: claims.HOLDS,
    }  # fmt: skip
    assert all(claim.value is not None for claim in told.values())
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(gpu), "utf-8")
    assert main(["recommend", str(path), "--min-top1", "70", "--max-watts", "500", "--max-memory-mb", "200"]) == 0
    out = capsys.readouterr().out
    assert "torch-cuda" in out.split("\n")[1] and "at most 500 W" in out
    # The queueing model's work grows with the square of the batch and more; a few networks and small batches show it.
    few = [i for i in gpu["records"] if i["batch"] <= 16 and i["network"] in ("alexnet", "resnet50")]
    path.write_text(json.dumps(gpu | {"records": few}), "utf-8")
    assert main(["plan", str(path), "--rate", "100", "--slo-ms", "2000"]) == 0
    assert "torch-cuda" in capsys.readouterr().out


def test_a_busy_machine_is_mentioned() -> None:
    one = document(networks=("alexnet",), batches=(1,))
    assert len(sections.how([("one", one)])) == len(sections.HOW)
    one["environment"]["load_at_start"] = [1.5, 0, 0]
    assert "a load of 1.5 on 2 cores" in sections.how([("one", one)])[-1]


def test_labels_are_moved_apart_and_no_further() -> None:
    assert drawing.apart([1.0, 5.0, 9.0], 2.0) == [1.0, 5.0, 9.0]
    assert drawing.apart([4.0, 4.0, 4.0], 2.0) == [2.0, 4.0, 6.0]
    assert drawing.apart([1.0, 1.5, 3.0], 2.0) == pytest.approx([-1 / 6, 11 / 6, 23 / 6])


def test_the_pareto_front_has_nothing_above_it() -> None:
    points = [(10.0, 70.0), (20.0, 60.0), (15.0, 65.0), (9.0, 69.0), (20.0, 55.0)]
    assert figures.pareto(points) == [(10.0, 70.0), (15.0, 65.0), (20.0, 60.0)]


def verdicts(one: Json) -> dict[int, str]:
    return {claim.number: claim.verdict for claim in claims.test(one["records"])}


def test_claims_without_power_or_networks_cannot_be_told() -> None:
    told = claims.test(document(networks=("alexnet", "vgg16", "resnet50"))["records"])
    assert {claim.verdict for claim in told} == {claims.UNKNOWN}
    assert "there is no sensor" in told[0].statistic and told[3].statistic.startswith("3 networks")


def test_claim_1_follows_the_watts() -> None:
    assert verdicts(document(watts=60.0))[1] == claims.HOLDS
    varied = document(watts=60.0)
    for item in varied["records"]:
        item["power"]["net_w"] *= item["batch"] ** 0.5
    assert verdicts(varied)[1] == claims.FAILS


def with_times(law: Any) -> Json:
    made = document(batches=(1,))
    for item in made["records"]:
        item["latency_ms"] = intervals.latency([[law(item)] * 5])
    return made


def test_claim_2_tells_a_hyperbola_from_a_line() -> None:
    assert verdicts(with_times(lambda item: 400 / (82 - item["top1"])))[2] == claims.HOLDS
    assert verdicts(with_times(lambda item: item["top1"] - 50))[2] == claims.FAILS
    assert verdicts(with_times(lambda item: 100 - item["top1"]))[2] == claims.FAILS


def test_claim_3_follows_the_joules() -> None:
    one = document(watts=60.0)
    for item in one["records"]:
        item["power"]["net_joules_per_image"] = item["top1"] / 100
    assert verdicts(one)[3] == claims.HOLDS
    for item in one["records"]:
        item["power"]["net_joules_per_image"] = 1 - item["top1"] / 100
    assert verdicts(one)[3] == claims.FAILS


def test_claim_4_follows_the_operations() -> None:
    assert verdicts(with_times(lambda item: item["macs"] / 1e8))[4] == claims.HOLDS
    assert verdicts(with_times(lambda item: 1e10 / item["macs"]))[4] == claims.FAILS


def test_claim_5_wants_a_level_and_then_a_line() -> None:
    one = document()
    assert verdicts(one)[5] == claims.HOLDS
    for item in one["records"]:
        item["memory_mb"]["peak_rss"] = 50.0 + 30 * item["batch"]
    [claim] = [c for c in claims.test(one["records"]) if c.number == 5]
    assert claim.verdict == claims.FAILS and "not constant first" in claim.note
    for item in one["records"]:
        item["memory_mb"]["peak_rss"] = 50.0 + 10 * item["batch"] ** 2 * (1 + item["batch"] % 3)
    assert verdicts(one)[5] == claims.FAILS


def test_a_claim_on_borrowed_accuracy_says_so() -> None:
    told = claims.test(document(untrained=("vgg16",))["records"])
    assert "vgg16" in told[1].note and "untrained" in told[1].note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2, expected 1"),
        ({"records": None}, "environment and records"),
        ({"records": [{"network": "x"}]}, "record 0: status is missing"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Json, message: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document(networks=("alexnet",)) | change), "utf-8")
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["report", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 2


def test_zero_for_unmeasured_power_is_no_record() -> None:
    one = document(networks=("alexnet",), batches=(1,))
    one["records"][0]["power"]["reason"] = None
    assert list(records.problems(one["records"][0])) == ["power is not measured and gives no reason"]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_report_is_what_its_records_give(path: Path) -> None:
    """If a change of the report makes this fail, `python -m benchmarks report NAME.json --out NAME` makes it again. Its
    page and its SVG files are not committed.
    """
    documents = [(path.stem, records.read(path))]
    series, folder = sections.series_of(documents), path.with_suffix("")
    # The text names the figures; that they can be drawn takes longer to see.
    named = [drawing.Figure(name, title, caption, "", "", b"") for name, title, caption, _ in figures.FIGURES]
    told = sections.report(documents, series, named)
    assert renderers.as_markdown(told) == (folder / renderers.MARKDOWN).read_text("utf-8")
    assert renderers.as_csv(documents) == (folder / renderers.CSV).read_text("utf-8")
    assert {figure.name for figure in named} == {picture.stem for picture in (folder / "figures").glob("*.png")}
    for item in documents[0][1]["records"]:
        if records.is_measured_cell(item):
            latency = item["latency_ms"]
            again = np.percentile(latency["values"], (50, 90, 99))
            assert [latency["p50"], latency["p90"], latency["p99"]] == pytest.approx(again.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_the_figures_of_committed_records_are_drawn(path: Path) -> None:
    drawn = figures.draw(sections.series_of([(path.stem, records.read(path))]))
    assert [figure.name for figure in drawn] == [name for name, *_ in figures.FIGURES]
    assert all(figure.png.startswith(b"\x89PNG") and "<svg" in figure.inline for figure in drawn)
