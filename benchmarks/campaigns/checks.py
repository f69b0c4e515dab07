"""What a campaign came to: figures held to bounds, as lines, a table and JSON."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from benchmarks.records import CampaignRecord, CampaignsFile, CheckRecord, significant
from benchmarks.tables import markdown as as_markdown
from models.console import table

SIGNS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


@dataclass(frozen=True)
class Check:
    """One thing that must hold; `found` None is a figure that could not be had, and does not."""

    what: str
    found: float | None
    sign: str
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.found is not None and SIGNS[self.sign](self.found, self.bound)


@dataclass
class Campaign:
    """What one campaign came to."""

    name: str
    checks: list[Check]
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def document(self) -> CampaignRecord:
        checks = [cast(CheckRecord, asdict(check) | {"holds": check.holds}) for check in self.checks]
        return {
            "name": self.name,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "checks": checks,
            "figures": self.figures,
        }


def line(campaign: CampaignRecord) -> str:
    """One campaign in a line."""
    failed = [check for check in campaign["checks"] if not check["holds"]]
    said = "; ".join(f"{c['what']}: {value(c['found'], c['unit'])}, not {bound(c)}" for c in failed)
    if reason := campaign["figures"].get("reason"):
        said = f"{said} ({reason})"
    verdict = f"failed: {said}" if failed else f"passed, {len(campaign['checks'])} checks"
    return f"{campaign['name']:<10}  {campaign['seconds']:6.1f} s  {verdict}"


def value(found: float | None, unit: str) -> str:
    if found is None:
        return "not found out"
    if isinstance(found, bool):
        return "yes" if found else "no"
    text = f"{found:,}" if isinstance(found, int) or found == int(found) else significant(found)
    return f"{text} {unit}".rstrip()


def bound(check: CheckRecord) -> str:
    words = {"<=": "at most ", ">=": "at least ", "=": ""}
    return f"{words[check['sign']]}{value(check['bound'], check['unit'])}"


HEADER = ("campaign", "what was looked at", "found", "must be", "verdict")


def rows(campaigns: Sequence[CampaignRecord]) -> list[tuple[str, ...]]:
    return [
        (
            campaign["name"] if i == 0 else "", check["what"], value(check["found"], check["unit"]), bound(check),
            "holds" if check["holds"] else "FAILS",
        )
        for campaign in campaigns
        for i, check in enumerate(campaign["checks"])
    ]  # fmt: skip


def summary(document: CampaignsFile) -> str:
    """What was found, for the terminal."""
    return table(rows(document["campaigns"]), HEADER, right=(2, 3))


def markdown(document: CampaignsFile) -> str:
    """What was found, for docs/standing.md."""
    here = document["environment"]
    settings = "in brief form" if here["settings"] == "brief" else "in full"
    said = (
        f"{document['network']} {document['engine']} {document['precision']}, {settings}, {here['cores']} cores "
        f"({here['cpu']}), {here['date'][:10]}:"
    )
    return f"{said}\n\n{as_markdown(HEADER, rows(document['campaigns']), left=2)}"
