"""The result of a campaign: figures held against bounds, as lines, a table and JSON."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from benchmarks.records import CampaignRecord, CampaignsFile, CheckRecord, significant
from benchmarks.tables import markdown as as_markdown
from models.console import table

SIGNS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


@dataclass(frozen=True)
class Check:
    """One thing that must hold. If `found` is None, it was not measured and does not hold."""

    what: str
    found: float | None
    sign: str
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.found is not None and SIGNS[self.sign](self.found, self.bound)


@dataclass(frozen=True)
class Campaign:
    """The result of one campaign."""

    name: str
    checks: Sequence[Check]
    figures: Mapping[str, Any] = field(default_factory=dict)
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
            "figures": dict(self.figures),
        }


def line(campaign: CampaignRecord) -> str:
    """One campaign on one line."""
    failed = [check for check in campaign["checks"] if not check["holds"]]
    reasons = "; ".join(f"{c['what']}: {value(c['found'], c['unit'])}, not {bound(c)}" for c in failed)
    if reason := campaign["figures"].get("reason"):
        reasons = f"{reasons} ({reason})"
    verdict = f"failed: {reasons}" if failed else f"passed, {len(campaign['checks'])} checks"
    return f"{campaign['name']:<10}  {campaign['seconds']:6.1f} s  {verdict}"


def value(found: float | None, unit: str) -> str:
    if found is None:
        return "not measured"
    if isinstance(found, bool):
        return "yes" if found else "no"
    text = f"{found:,}" if isinstance(found, int) or found == int(found) else significant(found)
    return f"{text} {unit}".rstrip()


def bound(check: CheckRecord) -> str:
    words = {"<=": "at most ", ">=": "at least ", "=": ""}
    return f"{words[check['sign']]}{value(check['bound'], check['unit'])}"


HEADER = ("campaign", "check", "found", "must be", "verdict")


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
    """The table of every check, for the terminal."""
    return table(rows(document["campaigns"]), HEADER, right=(2, 3))


def markdown(document: CampaignsFile) -> str:
    """The table of every check, for docs/standing.md."""
    here = document["environment"]
    settings = "in brief form" if here["settings"] == "brief" else "in full"
    title = (
        f"{document['network']} {document['engine']} {document['precision']}, {settings}, {here['cores']} cores "
        f"({here['cpu']}), {here['date'][:10]}:"
    )
    return f"{title}\n\n{as_markdown(HEADER, rows(document['campaigns']), left=2)}"
