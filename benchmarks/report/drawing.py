"""How a figure is drawn: colours, panels, labels that keep apart."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.records import Cell, Identity, InProcess, MeasuredCell, by_network, measured_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


# Okabe and Ito's colours, which colour-blind readers can tell apart, without yellow and black, which vanish on white
# and on dark. A lineage keeps its colour and mark in every figure; networks within it differ in line and label.
LOOKS = {
    "alexnet": ("#E69F00", "o"), "vgg": ("#0072B2", "s"), "googlenet": ("#009E73", "^"), "inception": ("#009E73", "v"),
    "resnet": ("#D55E00", "D"), "densenet": ("#CC79A7", "P"), "squeezenet": ("#56B4E9", "X"), "nin": ("#E69F00", "<"),
    "lenet": ("#56B4E9", "p"), "fractalnet": ("#CC79A7", ">"),
}  # fmt: skip
OTHER = ("#8A8A8A", "h")
LINES = ("-", "--", ":", "-.")

UNTRAINED = "†"  # follows the name of every network whose weights are untrained

# Nearly black and nearly white, and used for nothing else in a figure: SVG replaces them by the colours that the page
# or the file needs.
INK, PAPER = "#010203", "#fdfeff"
DARK, WHITE = "#1b1f24", "#ffffff"

# How lines that guide the eye and bars that show spread are drawn.
GUIDE: dict[str, Any] = {"color": INK, "alpha": 0.45, "linewidth": 1.1, "linestyle": "--", "zorder": 1}
BARS: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 0.8, "alpha": 0.5, "capsize": 2}

WIDTH = 9.6  # inches
PANEL = 3.7  # height in inches
CROWD = 14  # with more networks than this, a panel takes the whole width


@dataclass(frozen=True)
class Series:
    """Records that may be compared with each other: one machine, engine and precision."""

    label: str
    records: tuple[Cell, ...]

    @property
    def good(self) -> list[MeasuredCell]:
        return measured_cells(self.records)


@dataclass(frozen=True)
class Figure:
    name: str  # of its files
    title: str
    caption: str
    inline: str  # SVG for the page
    svg: str
    png: bytes


Panel = tuple["Axes", list[MeasuredCell]]


class Nothing(Exception):
    """There is nothing to draw; the message says why and is shown instead of the figure."""


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = dict.fromkeys(ink, INK)
    with mpl.rc_context(
        settings
        | {
            "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "font.size": 9,
            "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "grid.alpha": 0.15, "grid.linewidth": 0.6, "axes.titlesize": 10, "axes.titlelocation": "left",
            "legend.frameon": False, "svg.fonttype": "path", "svg.hashsalt": "podium", "lines.markersize": 6,
            "axes.axisbelow": True,
        }
    ):  # fmt: skip
        yield


def _forms(name: str, title: str, caption: str, canvas: Canvas) -> Figure:
    svg = io.StringIO()
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg.getvalue(), flags=re.DOTALL).strip()
    # Two figures on one page must not share the names of their parts.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    inline = text.replace(INK, "currentColor").replace(PAPER, "var(--card, none)")
    inline = re.sub(r'<svg ([^>]*?)\bwidth="[^"]*"', r"<svg \1", inline, count=1)
    inline = re.sub(r'<svg ([^>]*?)\bheight="[^"]*"', r"<svg \1", inline, count=1)
    inline = inline.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    png = io.BytesIO()
    canvas.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Figure(name, title, caption, inline, text.replace(INK, DARK).replace(PAPER, WHITE), png.getvalue())


def _grid(count: int, height: float = PANEL, columns: int = 2) -> tuple[Canvas, list[Axes]]:
    """A figure of `count` panels, each `height` inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(count, columns)
    rows = -(-count // columns)
    canvas = Canvas(figsize=(WIDTH, height * rows), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = [canvas.add_subplot(rows, columns, index + 1) for index in range(count)]
    return canvas, axes


def _height(networks: int, least: float = PANEL) -> float:
    """Inches in which so many names fit one above the other."""
    return max(least, 0.8 + 0.16 * networks)


def _panels(series: Sequence[Series], keep: Callable[[MeasuredCell], bool], why: str) -> tuple[Canvas, list[Panel]]:
    """A panel for every series with records that `keep` keeps, titled and with those records."""
    kept = [(one.label, [item for item in one.good if keep(item)]) for one in series]
    kept = [(label, items) for label, items in kept if items]
    if not kept:
        raise Nothing(why)
    most = max(len(by_network(items)) for _, items in kept)
    alone = len(kept) == 1 or most > CROWD
    canvas, axes = _grid(len(kept), _height(most) * (1.2 if alone else 1), 1 if alone else 2)
    for axis, (label, _) in zip(axes, kept, strict=True):
        axis.set_title(label)
    return canvas, [(axis, items) for axis, (_, items) in zip(axes, kept, strict=True)]


def _notice(reason: str) -> Canvas:
    from textwrap import fill

    canvas, (axis,) = _grid(1, 1.6)
    axis.set_axis_off()
    axis.text(0.5, 0.5, fill(reason, 80), ha="center", va="center", fontsize=11, transform=axis.transAxes)
    return canvas


def shown(item: Identity) -> str:
    """The network's name, marked if its weights are untrained."""
    return f"{item['network']}{UNTRAINED}" if item["weights"] == "untrained" else str(item["network"])


def look(item: InProcess) -> tuple[str, str]:
    return LOOKS.get(item.get("family") or "", OTHER)


def dot(axis: Axes, item: MeasuredCell, x: float, y: float, **more: Any) -> None:
    """A network's mark; hollow if its weights are untrained."""
    colour, mark = look(item)
    filled = colour if item["weights"] != "untrained" else "none"
    axis.plot([x], [y], mark, color=colour, markerfacecolor=filled, markeredgewidth=1.3, zorder=3, **more)


def label_points(axis: Axes, points: Sequence[tuple[float, float, str, float]]) -> None:
    """Name every point (x, y, text, radius of its mark in typographic points) so that no two names overlap.

    Each name takes the nearest free place around its point; a name that is far from its point gets a line to it.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    canvas = axis.figure.canvas
    canvas.draw()
    renderer = canvas.get_renderer()  # type: ignore[attr-defined]
    scale = axis.figure.dpi / 72
    frame = axis.get_window_extent(renderer)
    centres = [axis.transData.transform((x, y)) for x, y, _, _ in points]
    halo = withStroke(linewidth=2.5, foreground=PAPER)
    leader = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "lw": 0.6, "shrinkB": 2}
    taken = []
    for (cx, cy), (_, _, _, radius) in zip(centres, points, strict=True):
        # A name may lie on a large ball, but not on a small mark.
        reach = min(radius, 6) * scale
        taken.append(Bbox.from_extents(cx - reach, cy - reach, cx + reach, cy + reach))
    for (x, y, text, radius), _ in sorted(zip(points, centres, strict=True), key=lambda pair: -pair[1][1]):
        best = None
        for gap, angle in itertools.product((3, 9, 16, 26, 40, 60), (0, 45, -45, 90, -90, 135, -135, 180)):
            across, up = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            made = axis.annotate(
                text, (x, y), ((radius + gap) * across, (radius + gap) * up), textcoords="offset points", fontsize=8,
                ha="left" if across > 0.1 else "right" if across < -0.1 else "center",
                va="bottom" if up > 0.1 else "top" if up < -0.1 else "center",
                arrowprops=leader if gap > 3 else None,
            )  # fmt: skip
            made.set_in_layout(False)
            made.set_path_effects([halo])
            box = made.get_window_extent(renderer) if gap <= 3 else _text_only(made, renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            clashes = sum(box.overlaps(other) for other in taken) + (0 if inside else 2)
            if best is None or clashes < best[0]:
                if best:
                    best[1].remove()
                best = (clashes, made, box)
            else:
                made.remove()
            if clashes == 0:
                break
        if best:
            taken.append(best[2])


def _text_only(made: Any, renderer: Any) -> Any:
    """The extent of an annotation's words, without its line."""
    from matplotlib.text import Text

    made.update_positions(renderer)
    return Text.get_window_extent(made, renderer)


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name every line (x, y, text, colour) to the right of its end, names pushed apart until none overlap."""
    scale = axis.figure.dpi / 72
    ordered = sorted(ends, key=lambda end: end[1])
    pixels = [float(axis.transData.transform((x, y))[1]) for x, y, _, _ in ordered]
    for (x, y, text, colour), pixel, target in zip(ordered, pixels, apart(pixels, 10.5 * scale), strict=True):
        axis.annotate(
            text, (x, y), (12, (target - pixel) / scale), textcoords="offset points", fontsize=8,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.6, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        ).set_in_layout(False)  # fmt: skip


def apart(places: Sequence[float], step: float) -> list[float]:
    """`places`, rising, moved as little as may be so that each lies `step` above the one before."""
    # Groups of touching names, each centred on where its members belong; groups that touch become one.
    groups: list[tuple[float, int]] = []
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < step * (groups[-1][1] + groups[-2][1]) / 2:
            (one, m), (other, n) = groups.pop(), groups.pop()
            groups.append(((one * m + other * n) / (m + n), m + n))
    return [middle + step * (i - (size - 1) / 2) for middle, size in groups for i in range(size)]


def _plain_numbers(axis: Axes, which: str = "xy") -> None:
    """Plain decimal ticks on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in which:
        one = axis.xaxis if name == "x" else axis.yaxis
        low, high = sorted(axis.get_xlim() if name == "x" else axis.get_ylim())
        one.set_major_locator(LogLocator(subs=(1, 2, 5) if high / max(low, 1e-12) < 2000 else (1,)))
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        one.set_minor_formatter(NullFormatter())


def _widen(axis: Axes, which: str, values: Sequence[float]) -> None:
    """Room at the edges for names: on a logarithmic axis a share of its decades, on a linear one of its length."""
    low, high = min(values), max(values)
    if (axis.get_xscale() if which == "x" else axis.get_yscale()) == "log":
        room = max(high / low, 2) ** 0.22
        axis.set(**{f"{which}lim": (low / room, high * room)})
    else:
        room = max(high - low, abs(high) * 0.05) * 0.18
        axis.set(**{f"{which}lim": (low - room, high + room)})


def _remark(axis: Axes, text: str) -> None:
    axis.text(0.03, 0.97, text, transform=axis.transAxes, va="top", fontsize=8)
