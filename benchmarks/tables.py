"""Tables in Markdown, and the table of two replicas, which two rooms show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks import records
from models.console import Failure


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    marks = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *rows))


def insert(page: str, tables: Mapping[str, str]) -> str:
    """`page` with the tables of `tables` between `<!-- NAME -->` and `<!-- /NAME -->`, if it has such a place."""
    for name, text in tables.items():
        opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if opening in page:
            before, _, rest = page.partition(opening)
            _, closed, after = rest.partition(closing)
            if not closed:
                raise Failure(f"the page has `<!-- {name} -->` and no `<!-- /{name} -->` after it")
            page = f"{before}{opening}{text}\n{closing}{after}"
    return page


REPLICAS_HEADER = ("phase", "sent", "refused", "lost", "sent twice", "p50 ms", "p99 ms", "slowest ms", "by replica")


def replicas_rows(items: Sequence[records.Replicas]) -> list[tuple[str, ...]]:
    s = records.significant
    return [
        (
            str(item["scenario"]).partition(": ")[2],
            *map(str, (item["sent"], item["refused"], item["lost"], item["retried"])),
            *((s(latency["p50"]), s(latency["p99"])) if (latency := item["latency_ms"]) else (s(None), s(None))),
            s(item["slowest_ms"]),
            " + ".join(map(str, item["by_replica"])),
        )
        for item in items
    ]


def replicas_title(items: Sequence[records.Replicas]) -> str:
    first = items[0]
    return (
        f"{first['network']} {first['engine']} {first['precision']}, {first['rate']:g} requests a second at random, "
        "two replicas behind HAProxy, one retry:"
    )
