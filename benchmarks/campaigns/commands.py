"""The commands `stand` and `replicas`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import records
from benchmarks.environment import warn_if_busy
from benchmarks.options import of_one_artifact
from models import console
from models.console import Commands, Failure, Usage, natural, positive


def add(commands: Commands) -> None:
    replicas_ = commands.add(
        "replicas",
        replicas,
        "Put two replicas behind HAProxy; kill, restart and stop them under load; count the requests that are lost.",
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

    stand_ = commands.add(
        "stand",
        stand,
        "Attack, overload, kill, soak and misconfigure the service, with a verdict and figures for each; exits 1 if "
        "one fails.",
        "resnet50 --engine openvino --precision int8 --out standing.json",
    )
    of_one_artifact(stand_, "TAG|FILE", "an artifact, or a file of this command, to show its table again")
    stand_.add_argument("--images", type=Path, metavar="DIR", help="photographs to send (default: a synthetic one)")
    stand_.add_argument("--only", nargs="+", metavar="NAME", help="these campaigns alone; the others in --out are kept")
    stand_.add_argument("--brief", action="store_true", help="each campaign in some seconds")
    stand_.add_argument("--out", type=Path, metavar="FILE", help="also write every figure to this file")
    stand_.add_argument("--into", type=Path, metavar="PAGE", help="renew the table of this page")


def replicas(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks.campaigns import replicas as pair
    from benchmarks.load.bodies import chosen

    here: records.Environment = {**environment.describe(), "settings": "replicas"}
    bodies = chosen(options.images)
    settings = {"ENGINE": options.engine, "PRECISION": options.precision, "THREADS": str(options.threads)}
    variables = {f"PODIUM_{name}": value for name, value in settings.items()}
    items = pair.measure(
        options.tag, bodies, options.rate, options.duration, options.pause, variables,
        lambda phases: console.progress(phases, "two replicas"),
    )  # fmt: skip
    print(pair.summary(items))
    if options.out:
        records.write(options.out, records.document(here, items))
        print(options.out)
    if lost := sum(item["lost"] for item in items):
        raise Failure(f"{lost} of {sum(item['sent'] for item in items)} requests were lost")
    return 0


def stand(options: argparse.Namespace) -> int:
    from benchmarks.campaigns import checks

    if options.into and "<!-- standing -->" not in (options.into.read_text("utf-8") if options.into.is_file() else ""):
        raise Usage(f"{options.into} is not a page with `<!-- standing -->` in it; --into renews the table after that")
    document = records.read_campaigns(Path(options.tag)) if options.tag.endswith(".json") else run_campaigns(options)
    print(checks.summary(document))
    if options.into:
        from benchmarks import tables

        renewed = tables.insert(options.into.read_text("utf-8"), {"standing": checks.markdown(document)})
        options.into.write_text(renewed, "utf-8")
        print(options.into)
    if failed := [campaign["name"] for campaign in document["campaigns"] if not campaign["passed"]]:
        raise Failure(f"{len(failed)} of {len(document['campaigns'])} campaigns failed: {', '.join(failed)}")
    return 0


def run_campaigns(options: argparse.Namespace) -> records.CampaignsFile:
    """Run the campaigns that were asked for; their results are written after each."""
    from benchmarks import environment
    from benchmarks.campaigns import all as campaigns
    from benchmarks.campaigns import checks
    from benchmarks.load.bodies import chosen
    from serving.artifact import find
    from serving.runtime import choose

    names = options.only or list(campaigns.CAMPAIGNS)
    for name in names:
        if name not in campaigns.CAMPAIGNS:
            raise Usage(f"no campaign is called {name!r}; there are {', '.join(campaigns.CAMPAIGNS)}")
    artifact = find(options.tag)
    choice = choose(artifact, options.engine, options.precision)
    bodies = chosen(options.images)
    here: records.Environment = {**environment.describe(), "settings": "brief" if options.brief else "full"}
    warn_if_busy(here)
    document: records.CampaignsFile = {
        "environment": here,
        "network": artifact.network,
        "version": artifact.version,
        "engine": choice.engine,
        "precision": choice.precision,
        "campaigns": [],
    }
    done: dict[str, records.CampaignRecord] = {}
    if options.only and options.out and options.out.exists():
        before = records.read_campaigns(options.out)
        differs = environment.differences(before, document, ("network", "version", "engine", "precision"))
        if differs or environment.differences(before["environment"], here):
            raise Usage(f"{options.out} is of another network or machine; give another --out")
        done = {campaign["name"]: campaign for campaign in before["campaigns"]}
    with console.Bar("standing", len(names)) as bar:
        for campaign in campaigns.run(
            names, artifact.tag, choice.engine, choice.precision, bodies, options.brief, bar.describe
        ):
            done[campaign.name] = campaign.document()
            document["campaigns"] = [done[name] for name in campaigns.CAMPAIGNS if name in done]
            if options.out:
                records.write(options.out, document)
            print(checks.line(done[campaign.name]), flush=True)
            bar.advance()
    if options.out:
        print(options.out)
    return document
