"""`python -m benchmarks`: measure what is exported, load a running service, and write the report."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from models import SETS, console
from models.console import Failure, Usage

RESULTS = Path(".podium") / "results"


def main(argv: Sequence[str] | None = None) -> int:
    return console.run(parser(), argv)


def of_one_artifact(
    command: argparse.ArgumentParser, tag: str = "TAG", what: str = "an artifact, as `python -m export list` shows it"
) -> None:
    """What a command asks for that measures one artifact, with one engine and precision."""
    command.add_argument("tag", metavar=tag, help=what)
    command.add_argument("--engine", default="auto", metavar="E", help="default: what serving would choose")
    command.add_argument("--precision", default="auto", metavar="P", help="default: what serving would choose")


def parser() -> argparse.ArgumentParser:
    made = console.parser(
        "python -m benchmarks",
        "Measure the exported networks for time, memory and power, load a running service, and report.",
        "python -m benchmarks run --set five --batch 1,4,16",
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], about: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  python -m benchmarks {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(call=call)
        return sub

    run_ = command(
        "run",
        run,
        "Measure networks x engines x precisions x batches, each pass in a fresh process.",
        "--set five --engine onnxruntime,openvino --batch 1,4,16",
    )
    what = run_.add_mutually_exclusive_group()
    what.add_argument(
        "--set", choices=sorted(SETS), help="the exported networks of a set (default: every exported network)"
    )
    what.add_argument("--models", nargs="+", metavar="TAG", help="artifacts, as `python -m export list` shows them")
    run_.add_argument("--engine", type=words, metavar="E,...", help="default: every installed engine the artifact has")
    run_.add_argument("--precision", type=words, metavar="P,...", help="default: every precision the artifact has")
    run_.add_argument(
        "--batch", type=positive_integers, metavar="N,...", help="default: 1,2,4,8,16 (with --quick: 1,4)"
    )
    run_.add_argument(
        "--scenario",
        type=words,
        metavar="S,...",
        help="instead of batches, MLPerf-style single-stream, multi-stream, server, offline",
    )
    run_.add_argument(
        "--slo-ms", type=positive, default=100.0, metavar="MS", help="of the server scenario's p99 (default: 100)"
    )
    run_.add_argument("--threads", type=natural, default=0, metavar="N", help="for the engine (default: every core)")
    short = run_.add_mutually_exclusive_group()
    short.add_argument("--brief", action="store_true", help="three starts of about a second each")
    short.add_argument(
        "--quick", action="store_true", help="a short look: one start, one engine and precision a network"
    )
    run_.add_argument("--fresh", action="store_true", help="measure again what --out already holds")
    run_.add_argument("--out", type=Path, metavar="FILE", help=f"default: {RESULTS}/<machine>-<date>.json")

    engines_ = command(
        "engines",
        engines,
        "Time networks in PyTorch and in every engine they have here, side by side in interleaved rounds.",
        "resnet50 --batch 1,8",
    )
    engines_.add_argument("tags", nargs="+", metavar="TAG", help="artifacts, as `python -m export list` shows them")
    engines_.add_argument("--weights", metavar="PATH", help="the file an artifact was exported from, for PyTorch")
    engines_.add_argument("--batch", type=positive_integers, default=[1, 8], metavar="N,...", help="default: 1,8")
    engines_.add_argument("--rounds", type=natural, default=7, metavar="N", help="default: 7")
    engines_.add_argument("--threads", type=natural, default=0, metavar="N", help="of each (default: every core)")
    engines_.add_argument("--compile", action="store_true", help="torch.compile too, where there is a C++ compiler")
    engines_.add_argument("--out", type=Path, metavar="FILE", help="also write every value to this file")

    peers_ = command(
        "peers",
        peers,
        "Load Podium, FastAPI, LitServe, BentoML and Ray Serve side by side with one network, in interleaved rounds.",
        "--model resnet50 --engine openvino --precision int8",
    )
    peers_.add_argument("--model", default="resnet50", metavar="TAG", help="an artifact (default: resnet50)")
    peers_.add_argument("--engine", default="auto", metavar="E", help="ours (default: what serving would choose)")
    peers_.add_argument("--precision", default="auto", metavar="P", help="of all (default: what serving would choose)")
    peers_.add_argument("--connections", type=positive_integers, default=[1, 16], metavar="N,...", help="default: 1,16")
    peers_.add_argument("--rounds", type=positive_integer, default=3, metavar="N", help="default: 3")
    peers_.add_argument("--seconds", type=positive, default=2.0, metavar="S", help="of each look (default: 2)")
    peers_.add_argument("--images", type=Path, metavar="DIR", help="JPEG or PNG files (default: examples/photographs)")
    peers_.add_argument("--empty", action="store_true", help="what the servers cost without decoding and engine")
    peers_.add_argument("--out", type=Path, metavar="FILE", help="also write every round to this file")

    bulk_ = command(
        "bulk",
        bulk,
        "Bulk beside its limit in one process and beside a loop over HTTP, in interleaved rounds.",
        "squeezenet1_1 --engine openvino --precision int8 --images photographs/",
    )
    of_one_artifact(bulk_)
    bulk_.add_argument("--images", type=Path, metavar="DIR", help="photographs (default: examples/photographs)")
    bulk_.add_argument(
        "--count", type=positive_integer, default=20_000, metavar="N", help="images of a bulk run (default: 20,000)"
    )
    bulk_.add_argument("--rounds", type=positive_integer, default=3, metavar="N", help="default: 3")
    bulk_.add_argument("--seconds", type=positive, default=10.0, metavar="S", help="of the other looks (default: 10)")
    bulk_.add_argument("--out", type=Path, metavar="FILE", help="also write every round to this file")

    load_ = command(
        "load",
        load,
        "Send requests to a running service: closed loop over concurrencies, or open loop at a rate.",
        "http://127.0.0.1:3000 --concurrency 1,4,16 --duration 10",
    )
    load_.add_argument("url", help="the service's address, as http://HOST:PORT")
    load_.add_argument("--model", metavar="NETWORK", help="which network to ask for (default: the service's first)")
    load_.add_argument(
        "--concurrency", type=positive_integers, metavar="N,...", help="requests in flight (default: 1,4,16)"
    )
    load_.add_argument(
        "--rate",
        type=positives,
        metavar="R,...",
        help="requests per second, Poisson arrivals, timed from the intended send",
    )
    load_.add_argument("--duration", type=positive, default=10.0, metavar="S", help="of each measurement (default: 10)")
    load_.add_argument("--slo-ms", type=positive, metavar="MS", help="state the share of requests answered within this")
    load_.add_argument(
        "--search", action="store_true", help="find the highest rate that keeps the 99th percentile within --slo-ms"
    )
    load_.add_argument("--images", type=Path, metavar="DIR", help="photographs to send (default: a synthetic one)")
    load_.add_argument("--out", type=Path, metavar="FILE", help=f"default: {RESULTS}/<machine>-<date>-load.json")

    report_ = command(
        "report",
        report,
        "Write one HTML page, Markdown, CSV and figures from result files.",
        "benchmarks/results/*.json --out report",
    )
    report_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` and `load` wrote")
    report_.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the report")

    recommend_ = command(
        "recommend",
        recommend,
        "Name the network, engine, precision and batch to deploy within bounds, the runners-up, and why not the rest.",
        "benchmarks/results/*.json --p99-ms 100 --min-top1 75",
    )
    recommend_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` wrote")
    recommend_.add_argument("--p99-ms", type=positive, metavar="MS", help="99th percentile of one call, at most")
    recommend_.add_argument("--min-top1", type=positive, metavar="PCT", help="top-1 accuracy on ImageNet, at least")
    recommend_.add_argument("--max-watts", type=positive, metavar="W", help="mean power, idle included, at most")
    recommend_.add_argument("--max-memory-mb", type=positive, metavar="MB", help="peak memory, at most")

    plan_ = command(
        "plan",
        plan,
        "Say how many replicas of which choice keep a bound on the 99th percentile at a rate, by a queueing model.",
        "benchmarks/results/*.json --rate 200 --slo-ms 100",
    )
    plan_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` and `load` wrote")
    plan_.add_argument("--rate", type=positive, required=True, metavar="IMG_S", help="images per second, at random")
    plan_.add_argument("--slo-ms", type=positive, required=True, metavar="MS", help="the bound, arrival to answer")
    plan_.add_argument("--min-top1", type=positive, metavar="PCT", help="top-1 accuracy on ImageNet, at least")

    replicas_ = command(
        "replicas",
        replicas,
        "Put two replicas behind HAProxy, kill, restart and stop them under load, and count what is lost.",
        "resnet50 --rate 40",
    )
    of_one_artifact(replicas_)
    replicas_.add_argument("--threads", type=natural, default=1, metavar="N", help="of each replica (default: 1)")
    replicas_.add_argument("--rate", type=positive, default=20.0, metavar="R", help="requests per second (default: 20)")
    replicas_.add_argument(
        "--duration", type=positive, default=20.0, metavar="S", help="of the phase without events (default: 20)"
    )
    replicas_.add_argument("--pause", type=positive, default=3.0, metavar="S", help="of the slow replica (default: 3)")
    replicas_.add_argument("--images", type=Path, metavar="DIR", help="photographs to send (default: a synthetic one)")
    replicas_.add_argument("--out", type=Path, metavar="FILE", help="also write the records to this file")

    stand_ = command(
        "stand",
        stand,
        "Attack, overload, kill, soak and misconfigure the service, with a verdict and figures for each; exits 1 where "
        "one fails.",
        "resnet50 --engine openvino --precision int8 --out standing.json",
    )
    of_one_artifact(stand_, "TAG|FILE", "an artifact, or a file this wrote, to show its table again")
    stand_.add_argument("--images", type=Path, metavar="DIR", help="photographs to send (default: a synthetic one)")
    stand_.add_argument("--only", nargs="+", metavar="NAME", help="these campaigns alone, beside those --out holds")
    stand_.add_argument("--brief", action="store_true", help="each campaign in some seconds")
    stand_.add_argument("--out", type=Path, metavar="FILE", help="also write every figure to this file")
    stand_.add_argument("--into", type=Path, metavar="PAGE", help="renew the table of this page")

    scale_ = command(
        "scale",
        scale,
        "Say what 1,000, 100,000 and 10,000,000 images a second take, by network and precision.",
        "benchmarks/results/*.json benchmarks/results/replicas/*.json --into docs/scale.md",
    )
    scale_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files of `run` and of `replicas`")
    scale_.add_argument("--slo-ms", type=positive, default=100.0, metavar="MS", help="bound on the p99 (default: 100)")
    scale_.add_argument("--watts-per-replica", type=positive, metavar="W", help="as you measured them; adds a column")
    scale_.add_argument("--price-per-hour", type=positive, metavar="P", help="of one replica; adds a column")
    scale_.add_argument("--into", nargs="+", type=Path, metavar="PAGE", help="renew the tables of these pages instead")

    compare_ = command(
        "compare",
        compare,
        "Tell what became slower or faster between two result files of one machine; exits 1 beyond a floor.",
        "before.json after.json --floor 5",
    )
    compare_.add_argument("old", type=Path, metavar="OLD", help="a file that `run` or `load` wrote")
    compare_.add_argument("new", type=Path, metavar="NEW", help="another, of the same machine")
    compare_.add_argument(
        "--floor", type=positive, default=5.0, metavar="PCT", help="how much slower fails (default: 5)"
    )
    return made


def words(text: str) -> list[str]:
    found = [word for word in text.split(",") if word]
    if not found:
        raise argparse.ArgumentTypeError("expected a comma-separated list")
    return found


def positives(text: str) -> list[float]:
    return [positive(word) for word in words(text)]


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def positive_integers(text: str) -> list[int]:
    found = [natural(word) for word in words(text)]
    if 0 in found:
        raise argparse.ArgumentTypeError("expected integers from 1")
    return found


def positive_integer(text: str) -> int:
    [found] = positive_integers(text) if "," not in text else [0]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1")
    return found


def natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer")
    return int(text)


def run(options: argparse.Namespace) -> int:
    from benchmarks import environment, measure, scenarios
    from serving.runtime import ENGINES, cores

    for engine in options.engine or ():
        if engine not in ENGINES:
            raise Usage(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    for name in options.scenario or ():
        if name not in scenarios.NAMES:
            raise Usage(f"no scenario is called {name!r}; there are {', '.join(scenarios.NAMES)}")
    settings = measure.QUICK if options.quick else measure.BRIEF if options.brief else measure.FULL
    wanted = measure.cells(
        chosen(options),
        options.engine,
        options.precision,
        options.batch or ([1, 4] if options.quick else [1, 2, 4, 8, 16]),
        first_only=options.quick and options.engine is None and options.precision is None,
        shapes=[measure.Shape(name, options.slo_ms) for name in options.scenario or ()],
    )
    if not wanted:
        raise Usage("no exported file fits --engine and --precision here; `python -m export list` shows what there is")
    here = environment.describe(options.threads) | {"settings": settings.name}
    path = options.out or default_path(environment.machine(here), "-quick" if options.quick else "")
    warn_if_busy(here)
    done = [] if options.fresh else earlier(path, here)
    seen = {records.key(item) for item in done if records.measured(item)}
    ours = {records.key(measure.describe(cell, options.threads or cores(), settings)) for cell in wanted}
    if already := len(ours & seen):
        print(f"{already} of {len(wanted)} are in {path} already; --fresh measures them again", file=sys.stderr)
    todo = len(ours - seen)
    # The file exists from the start: what cannot be written is known before an hour of measuring, not after.
    records.write(path, here, done)
    try:
        with console.Bar("measuring", todo) as bar:
            for item in measure.measure_all(wanted, settings, options.threads or cores(), seen):
                done = [old for old in done if records.key(old) != records.key(item)] + [item]
                records.write(path, here, done)
                bar.describe(f"{item['network']} {item['engine']} {item['precision']}")
                bar.advance()
    finally:
        mine = [item for item in done if records.key(item) in ours]
        if mine:
            print(scenarios.summary(mine) if options.scenario else summary(mine))
        print(path)
    failed = [item for item in mine if not records.measured(item)]
    if failed and len(failed) == len(mine):
        raise Failure(f"nothing could be measured; the first reason: {failed[0]['status'].removeprefix('failed: ')}")
    return 0


def chosen(options: argparse.Namespace) -> list[Any]:
    """The artifacts to measure: those named, or the newest of each network in the store."""
    from export.store import artifacts
    from serving.runtime import find

    if options.models:
        return [find(tag) for tag in options.models]
    newest: dict[str, Any] = {}
    for artifact in artifacts():
        newest.setdefault(artifact.network, artifact)
    if not newest:
        raise Usage("nothing is exported yet; `python -m export --set five` makes something to measure")
    if not options.set:
        return list(newest.values())
    missing = [name for name in SETS[options.set] if name not in newest]
    if missing:
        print(f"not exported, so not measured: {', '.join(missing)}", file=sys.stderr)
    if len(missing) == len(SETS[options.set]):
        raise Usage(f"nothing of the set is exported yet; `python -m export --set {options.set}` does it")
    return [newest[name] for name in SETS[options.set] if name in newest]


def default_path(machine: str, suffix: str) -> Path:
    from datetime import datetime

    return RESULTS / f"{machine}-{datetime.now().astimezone():%Y-%m-%d}{suffix}.json"


def earlier(path: Path, here: dict[str, Any]) -> list[records.Record]:
    """What `path` already holds, to go on from; `Usage` when it was measured under other conditions."""
    from benchmarks import environment

    if not path.exists():
        return []
    document = records.read(path)
    there = document["environment"]
    other = environment.differences(there, here)
    for name in ("settings", "threads"):
        if there.get(name) != here.get(name):
            other.append(f"{name} {there.get(name)!r} and {here.get(name)!r}")
    if other:
        raise Usage(f"{path} was measured under other conditions ({'; '.join(other)}); give another --out, or --fresh")
    kept: list[records.Record] = document["records"]
    return kept


def summary(items: Sequence[records.Record]) -> str:
    """What was measured, for the terminal."""
    header = ("network", "weights", "engine", "precision", "batch", "p50 ms", "p99 ms", "calls", "img/s", "MB", "W net")
    rows, notes = [], []
    for item in items:
        first = (item["network"], item["weights"], item["engine"], item["precision"], item["batch"])
        if records.measured(item):
            latency, s = item["latency_ms"], records.significant
            power = item["power"]["net_w"]
            rows.append(
                (*first, s(latency["p50"]), s(latency["p99"]), latency["count"], s(item["throughput_img_s"]),
                 s(item["memory_mb"]["peak_rss"]), s(power) if power is not None else "not measured")
            )  # fmt: skip
        else:
            rows.append((*first, "failed", "", "", "", "", ""))
            notes.append(
                f"{item['network']} {item['engine']} {item['precision']} batch {item['batch']} {item['status']}"
            )
    reasons = sorted({item["power"]["reason"] for item in items if records.measured(item) and item["power"]["reason"]})
    return "\n".join(
        [console.table(rows, header, right=range(4, 11)), *notes, *(f"Power: {reason}." for reason in reasons)]
    )


def keep(path: Path, document: Mapping[str, Any]) -> None:
    """`document` as the result file at `path`."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def warn_if_busy(here: Mapping[str, Any]) -> None:
    from benchmarks import environment

    if warning := environment.busy(here):
        print(f"python -m benchmarks: {warning}", file=sys.stderr)


def engines(options: argparse.Namespace) -> int:
    from benchmarks import engines as sides
    from benchmarks import environment
    from serving.runtime import cores, find

    rows: list[dict[str, Any]] = []
    reason = sides.no_compiler()
    for tag in options.tags:
        threads = options.threads or cores()
        rows += sides.compare(
            find(tag),
            options.weights,
            options.batch,
            max(1, options.rounds),
            0.5,
            threads,
            options.compile and not reason,
        )
    print(sides.summary(rows))
    if options.compile and reason:
        print(f"not run: {reason}")
    if options.out:
        keep(options.out, {"environment": environment.describe(options.threads), "rows": rows})
        print(options.out)
    return 0


def peers(options: argparse.Namespace) -> int:
    from benchmarks import environment, measure
    from benchmarks.peers import compare as sides
    from serving.runtime import choose, find

    artifact = find(options.model)
    choice = choose(artifact, options.engine, options.precision)
    if ("onnxruntime", choice.precision) not in artifact.graphs():
        raise Usage(
            f"{artifact.tag} has no {choice.precision} file for ONNX Runtime, which the peers run; --precision?"
        )
    folder = options.images or measure.ROOT / "examples" / "photographs"
    photographs = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not photographs:
        raise Usage(f"{folder} holds no JPEG or PNG files; give a folder of photographs to --images")
    there = sides.EMPTY if options.empty else [peer for peer in sides.PEERS if not peer.missing]
    here = environment.describe() | {"client": sides.client()}
    warn_if_busy(here)
    rows = sides.compare(
        artifact, choice, photographs, options.connections, options.rounds, options.seconds, there, console.progress
    )
    print(sides.summary(rows))
    if found := sides.alone(rows):
        print(found)
    for reason in dict.fromkeys(peer.missing for peer in sides.PEERS if peer.missing):
        print(f"not run: {reason}")
    if options.out:
        keep(options.out, {"environment": here, "rows": rows})
        print(options.out)
    if failed := [row["server"] for row in rows if not row["rate"]]:
        raise Failure(f"no request was answered by {', '.join(dict.fromkeys(failed))}")
    return 0


def bulk(options: argparse.Namespace) -> int:
    from benchmarks import bulk as sides
    from benchmarks import environment, measure
    from benchmarks.peers.compare import client
    from export.parity import photographs
    from serving.runtime import choose, find

    artifact = find(options.tag)
    choice = choose(artifact, options.engine, options.precision)
    found = photographs(options.images or measure.ROOT / "examples" / "photographs")
    here = environment.describe() | {"client": client(), "images": options.count, "photographs": len(found)}
    warn_if_busy(here)
    with console.Bar("measuring in turn", 4 * options.rounds) as bar:
        rows = sides.measure(artifact, choice, found, options.count, options.rounds, options.seconds, bar.advance)
    print(sides.summary(rows))
    if options.out:
        keep(options.out, {"environment": here, "rows": rows})
        print(options.out)
    return 0


def load(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks import load as loads

    here = environment.describe() | {"settings": "load", "target": options.url}
    path = options.out or default_path(environment.machine(here), "-load")
    bodies = loads.photographs(options.images) if options.images else [loads.synthetic_photograph()]
    if options.search and options.slo_ms is None:
        raise Usage("--search needs the bound to search for; give --slo-ms")
    concurrencies = options.concurrency or ([] if options.rate or options.search else [1, 4, 16])
    plan = [loads.Scenario(concurrency=n) for n in concurrencies] + [loads.Scenario(rate=r) for r in options.rate or ()]
    made: list[records.Record] = []
    try:
        for scenario in console.progress(plan, "loading"):
            made.append(loads.drive(options.url, scenario, bodies, options.duration, options.model, options.slo_ms))
            records.write(path, here, made)
        if options.search:
            with console.Bar("searching") as bar:
                made += loads.search(
                    options.url, bodies, options.duration, options.model, options.slo_ms, progress=bar.advance
                )
            records.write(path, here, made)
    finally:
        if made:
            print(loads.summary(made))
            print(path)
    if not any(records.measured(item) for item in made):
        raise Failure(f"no request was answered: {made[0]['status'].removeprefix('failed: ')}")
    return 0


def report(options: argparse.Namespace) -> int:
    from benchmarks import report as reports

    print(reports.write(documents(options), options.out))
    return 0


def documents(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, records.read(path)) for path in options.results]


def recommend(options: argparse.Namespace) -> int:
    from benchmarks import advice

    bounds = advice.Bounds(options.p99_ms, options.min_top1, options.max_watts, options.max_memory_mb)
    found = advice.recommend(documents(options), bounds)
    if found.fitting or found.others:
        print(advice.text(found))
    if found.choice is None:
        raise Failure(advice.nearest(found))
    return 0


def plan(options: argparse.Namespace) -> int:
    from benchmarks import capacity

    found, refused = capacity.plan(
        documents(options),
        options.rate,
        options.slo_ms,
        options.min_top1,
        lambda items: console.progress(items, "plan"),
    )
    if not found and not refused:
        raise Usage("the result files hold no in-process records; `python -m benchmarks run` measures some")
    print(capacity.text(found, refused, options.rate, options.slo_ms))
    if not found:
        raise Failure(f"nothing measured keeps {options.slo_ms:g} ms; relax --slo-ms or --min-top1, or measure more")
    return 0


def replicas(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks import load as loads
    from benchmarks import replicas as pair

    here = environment.describe() | {"settings": "replicas"}
    bodies = loads.photographs(options.images) if options.images else [loads.synthetic_photograph()]
    wish = {"ENGINE": options.engine, "PRECISION": options.precision, "THREADS": str(options.threads)}
    made = pair.measure(
        options.tag,
        bodies,
        options.rate,
        options.duration,
        options.pause,
        {f"PODIUM_{name}": value for name, value in wish.items()},
        lambda phases: console.progress(phases, "two replicas"),
    )
    print(pair.summary(made))
    if options.out:
        records.write(options.out, here, made)
        print(options.out)
    if lost := sum(item["lost"] for item in made):
        raise Failure(f"{lost} of {sum(item['sent'] for item in made)} requests were lost")
    return 0


def stand(options: argparse.Namespace) -> int:
    from benchmarks.campaigns import checks

    if options.into and "<!-- standing -->" not in (options.into.read_text("utf-8") if options.into.is_file() else ""):
        raise Usage(f"{options.into} is no page with `<!-- standing -->` in it; --into renews the table after that")
    document = checks.read(Path(options.tag)) if options.tag.endswith(".json") else stood(options)
    print(checks.summary(document))
    if options.into:
        from benchmarks import scale as scales

        made = {"standing": checks.markdown(document)}
        options.into.write_text(scales.insert(options.into.read_text("utf-8"), made), "utf-8")
        print(options.into)
    if failed := [campaign["name"] for campaign in document["campaigns"] if not campaign["passed"]]:
        raise Failure(f"{len(failed)} of {len(document['campaigns'])} campaigns failed: {', '.join(failed)}")
    return 0


def stood(options: argparse.Namespace) -> dict[str, Any]:
    """What the campaigns that were asked for came to, written after each."""
    from benchmarks import environment
    from benchmarks import load as loads
    from benchmarks.campaigns import all as campaigns
    from benchmarks.campaigns import checks
    from serving.runtime import choose, find

    names = options.only or list(campaigns.CAMPAIGNS)
    for name in names:
        if name not in campaigns.CAMPAIGNS:
            raise Usage(f"no campaign is called {name!r}; there are {', '.join(campaigns.CAMPAIGNS)}")
    artifact = find(options.tag)
    choice = choose(artifact, options.engine, options.precision)
    bodies = loads.photographs(options.images) if options.images else [loads.synthetic_photograph()]
    here = environment.describe() | {"settings": "brief" if options.brief else "full"}
    warn_if_busy(here)
    document = {
        "environment": here,
        "network": artifact.network,
        "version": artifact.version,
        "engine": choice.engine,
        "precision": choice.precision,
        "campaigns": [],
    }
    done: dict[str, Any] = {}
    if options.only and options.out and options.out.exists():
        before = checks.read(options.out)
        same = all(before.get(name) == document[name] for name in ("network", "version", "engine", "precision"))
        if not same or environment.differences(before["environment"], here):
            raise Usage(f"{options.out} is of another network or machine; give another --out")
        done = {campaign["name"]: campaign for campaign in before["campaigns"]}
    with console.Bar("standing", len(names)) as bar:
        for found in campaigns.run(
            names, artifact.tag, choice.engine, choice.precision, bodies, options.brief, bar.describe
        ):
            done[found.name] = found.document()
            document["campaigns"] = [done[name] for name in campaigns.CAMPAIGNS if name in done]
            if options.out:
                keep(options.out, document)
            print(checks.line(done[found.name]), flush=True)
            bar.advance()
    if options.out:
        print(options.out)
    return document


def scale(options: argparse.Namespace) -> int:
    from benchmarks import scale as scales

    try:
        pages = {page: page.read_text("utf-8") for page in options.into or ()}
    except OSError as error:
        raise Usage(f"cannot read {error.filename} ({error.strerror}); --into takes pages that are there") from error
    made = scales.blocks(
        documents(options),
        options.slo_ms,
        options.watts_per_replica,
        options.price_per_hour,
        lambda items: console.progress(items, "scale"),
    )
    for page, text in pages.items():
        page.write_text(scales.insert(text, made), "utf-8")
        print(page)
    if not pages:
        print("\n\n".join(made.values()))
    return 0


def compare(options: argparse.Namespace) -> int:
    from benchmarks import regression

    old, new = records.read(options.old), records.read(options.new)
    changes = regression.compare(old, new, options.floor)
    if not any(change.ratio is not None or change.fails for change in changes):
        raise Usage("the files have no measured cell in common; measure the same networks, engines and batches")
    print(regression.text(changes, (old["environment"], new["environment"]), options.floor))
    if failed := [change for change in changes if change.fails]:
        raise Failure(
            f"{len(failed)} of {len(changes)} beyond the floor of {options.floor:g} % or failed, "
            f"first {failed[0].name}; see those marked !"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
