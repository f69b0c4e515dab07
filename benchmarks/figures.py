"""The paper's ten figures (Canziani et al., arXiv 1605.07678) with the data of result records, and nothing else.

Every figure is drawn once and kept in three forms: SVG for the page (transparent, its ink the page's own colour, so
that it reads in the light and in the dark), SVG for a file and PNG (dark ink on white).
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.advice import memory
from benchmarks.claims import by_network, imagenet, smallest_batch
from benchmarks.records import Record, measured, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's colours, which the colour-blind tell apart; yellow and black are left out, for they vanish on white
# and on dark. A lineage keeps its colour and its mark in every figure; within it, networks differ in line and label.
LOOKS = {
    "alexnet": ("#E69F00", "o"), "vgg": ("#0072B2", "s"), "googlenet": ("#009E73", "^"), "inception": ("#009E73", "v"),
    "resnet": ("#D55E00", "D"), "densenet": ("#CC79A7", "P"), "squeezenet": ("#56B4E9", "X"), "nin": ("#E69F00", "<"),
    "lenet": ("#56B4E9", "p"), "fractalnet": ("#CC79A7", ">"),
}  # fmt: skip
OTHER = ("#8A8A8A", "h")
LINES = ("-", "--", ":", "-.")

UNTRAINED = "†"  # follows the name of every network whose weights are untrained

# Drawn as they are in PNG, and replaced in SVG by what the page or the file needs: nearly black, nearly white, and
# found nowhere else in a figure.
INK, PAPER = "#010203", "#fdfeff"
DARK, WHITE = "#1b1f24", "#ffffff"

# How lines that guide the eye and bars that show spread are drawn.
GUIDE: dict[str, Any] = {"color": INK, "alpha": 0.45, "linewidth": 1.1, "linestyle": "--", "zorder": 1}
BARS: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 0.8, "alpha": 0.5, "capsize": 2}

WIDTH = 9.6  # inches
PANEL = 3.7  # height in inches
CROWD = 14  # networks from which on a panel takes the whole width


@dataclass(frozen=True)
class Series:
    """Records that may be compared with each other: one machine, engine and precision."""

    label: str
    records: tuple[Record, ...]

    @property
    def good(self) -> list[Record]:
        return [item for item in self.records if measured(item)]


@dataclass(frozen=True)
class Figure:
    name: str  # of its files
    title: str
    caption: str
    inline: str  # SVG for the page
    svg: str
    png: bytes


Panel = tuple["Axes", list[Record]]


class Nothing(Exception):
    """There is nothing to draw; the message says why, and stands in the figure's place."""


def draw(series: Sequence[Series]) -> list[Figure]:
    """The ten figures, in the paper's order; one without data says why in its place. Then the roofline, if there is."""
    drawn = [_figure(*row, series) for row in FIGURES]
    if any(has_roofline(item) for one in series for item in one.good):
        drawn.append(_figure(*ROOFLINE, series))
    return drawn


def _figure(
    name: str, title: str, caption: str, painter: Callable[[Sequence[Series]], Canvas], series: Sequence[Series]
) -> Figure:
    with _style():
        try:
            canvas = painter(series)
        except Nothing as reason:
            canvas = _notice(str(reason))
        return _forms(name, title, caption, canvas)


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


def _panels(series: Sequence[Series], keep: Callable[[Record], bool], why: str) -> tuple[Canvas, list[Panel]]:
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


def shown(item: Record) -> str:
    """The network's name, marked where its weights are untrained."""
    return f"{item['network']}{UNTRAINED}" if item["weights"] == "untrained" else str(item["network"])


def look(item: Record) -> tuple[str, str]:
    return LOOKS.get(item.get("family") or "", OTHER)


def per_image(item: Record) -> float:
    """Median milliseconds per image."""
    return float(item["latency_ms"]["p50"]) / int(item["batch"])


def spread(item: Record) -> tuple[float, float]:
    """How far the 10th and 90th percentile lie below and above the median, in ms per image."""
    low, high = np.percentile(item["latency_ms"]["values"], (10, 90)) / item["batch"]
    middle = per_image(item)
    return max(0.0, middle - float(low)), max(0.0, float(high) - middle)


def dot(axis: Axes, item: Record, x: float, y: float, **more: Any) -> None:
    """A network's mark; hollow where its weights are untrained."""
    colour, mark = look(item)
    filled = colour if item["weights"] != "untrained" else "none"
    axis.plot([x], [y], mark, color=colour, markerfacecolor=filled, markeredgewidth=1.3, zorder=3, **more)


def label_points(axis: Axes, points: Sequence[tuple[float, float, str, float]]) -> None:
    """Name every point (x, y, text, radius of its mark in typographic points) so that no two names overlap.

    Each name takes the first free place around its point, nearest first; one that had to go far gets a line.
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
        # A large ball is an area to write on, a small mark is one to keep clear.
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


def _networks(series: Sequence[Series], keep: Callable[[Record], bool]) -> list[Record]:
    """One record for every network with a record that `keep` keeps, whatever the series."""
    groups = by_network([item for one in series for item in one.records if keep(item)])
    return [items[0] for items in groups.values()]


def accuracy_bars(series: Sequence[Series]) -> Canvas:
    chosen = sorted(_networks(series, imagenet), key=lambda item: (item.get("year") or 0, item["top1"]))
    if not chosen:
        raise Nothing("No record has an accuracy on ImageNet.")
    return _bars(chosen, [item["top1"] for item in chosen], "top-1 accuracy (%)", "{:.1f}")


def information_density(series: Sequence[Series]) -> Canvas:
    chosen = _networks(series, lambda item: imagenet(item) and bool(item["params"]))
    if not chosen:
        raise Nothing("No record has both an accuracy on ImageNet and a number of parameters.")
    chosen.sort(key=lambda item: -item["top1"] / item["params"])
    values = [item["top1"] / (item["params"] / 1e6) for item in chosen]
    return _bars(chosen, values, "top-1 accuracy per million parameters (%)", "{:.2f}")


def _bars(chosen: Sequence[Record], values: Sequence[float], label: str, form: str) -> Canvas:
    canvas, (axis,) = _grid(1, 1.0 + 0.32 * len(chosen))
    for row, (item, value) in enumerate(zip(chosen, values, strict=True)):
        colour, _ = look(item)
        hollow = item["weights"] == "untrained"
        axis.barh(
            row,
            value,
            0.66,
            color="none" if hollow else colour,
            edgecolor=colour,
            linewidth=1.4,
            hatch="///" if hollow else None,
        )
        axis.text(value, row, "  " + form.format(value), va="center", fontsize=8)
    axis.set_yticks(range(len(chosen)), [shown(item) for item in chosen])
    axis.set_xlim(0, max(values) * 1.12)
    axis.set_xlabel(label)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return canvas


def ball_chart(series: Sequence[Series]) -> Canvas:
    chosen = _networks(series, lambda item: imagenet(item) and bool(item["macs"]) and bool(item["params"]))
    if not chosen:
        raise Nothing("No record has an accuracy on ImageNet, operations and parameters.")
    canvas, (axis,) = _grid(1, _height(len(chosen), 5.2))
    # Area, not radius, is proportional to the parameters: 12 square points a million.
    area = {item["network"]: 12 * item["params"] / 1e6 for item in chosen}
    for item in sorted(chosen, key=lambda item: -area[item["network"]]):
        colour, _ = look(item)
        hollow = item["weights"] == "untrained"
        axis.scatter(
            item["macs"] / 1e9, item["top1"], s=area[item["network"]], color=colour, alpha=0.35 if hollow else 0.6,
            edgecolors=colour, linewidths=1.4, linestyle="--" if hollow else "-", zorder=2,
        )  # fmt: skip
        axis.plot(item["macs"] / 1e9, item["top1"], ".", color=INK, markersize=3, zorder=3)
    tops = [item["top1"] for item in chosen]
    axis.set_ylim(min(tops) - 5, max(tops) + 5)
    axis.set_xlim(0, max(item["macs"] for item in chosen) / 1e9 * 1.18)
    axis.set_xlabel("operations (10⁹ multiply-accumulates per image)")
    axis.set_ylabel("top-1 accuracy (%)")
    keys = [axis.scatter([], [], s=12 * m, color=OTHER[0], alpha=0.5, label=f"{m} M") for m in (5, 25, 60, 140)]
    axis.legend(
        handles=keys,
        title="parameters",
        loc="lower right",
        labelspacing=1.6,
        borderpad=1.2,
        handletextpad=1.4,
        ncols=4,
        columnspacing=2.4,
    )
    label_points(axis, [(i["macs"] / 1e9, i["top1"], shown(i), np.sqrt(area[i["network"]] / np.pi)) for i in chosen])
    return canvas


def time_by_batch(series: Sequence[Series]) -> Canvas:
    canvas, panels = _panels(series, lambda _: True, "No record holds a latency.")
    return _by_batch(canvas, panels, per_image, "time per image (ms)", error=spread, log=True)


def power_by_batch(series: Sequence[Series]) -> Canvas:
    canvas, panels = _panels(series, has_power, why_no_power(series))
    return _by_batch(canvas, panels, net_watts, "net power (W)", error=power_spread)


def memory_by_batch(series: Sequence[Series]) -> Canvas:
    canvas, panels = _panels(series, has_memory, "No record holds a peak of memory.")
    return _by_batch(canvas, panels, peak, "peak memory (MB)", log=True)


def _by_batch(
    canvas: Canvas,
    panels: Sequence[Panel],
    value: Callable[[Record], float],
    ylabel: str,
    *,
    error: Callable[[Record], tuple[float, float]] | None = None,
    log: bool = False,
) -> Canvas:
    """A line a network over the batch sizes, named at its end; all panels on the same axes."""
    every = [item for _, items in panels for item in items]
    batches = sorted({int(item["batch"]) for item in every})
    canvas.canvas.draw()
    for axis, items in panels:
        drawn: dict[str, int] = {}
        ends = []
        for group in by_network(items).values():
            ordered = sorted(group, key=lambda item: int(item["batch"]))
            colour, mark = look(ordered[0])
            line = LINES[drawn.get(colour, 0) % len(LINES)]
            drawn[colour] = drawn.get(colour, 0) + 1
            axis.errorbar(
                [item["batch"] for item in ordered],
                [value(item) for item in ordered],
                yerr=np.array([error(item) for item in ordered]).T if error else None,
                color=colour, marker=mark, linestyle=line, capsize=2.5, elinewidth=0.9, linewidth=1.4,
                markerfacecolor="none" if ordered[0]["weights"] == "untrained" else colour,
            )  # fmt: skip
            ends.append((float(ordered[-1]["batch"]), value(ordered[-1]), shown(ordered[0]), colour))
        axis.set_xscale("log", base=2)
        # Room on the right for the names of the lines: so many points of the panel's width.
        room = 20 + 5.2 * max(len(shown(item)) for item in items)
        share = room / (axis.get_window_extent().width * 72 / axis.figure.dpi)
        left = batches[0] / 1.2
        axis.set_xlim(left, left * (max(batches[-1] / batches[0], 2) * 1.2) ** (1 / (1 - share)))
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
        axis.set_xlabel("batch (images)")
        axis.set_ylabel(ylabel)
        if log:
            axis.set_yscale("log")
            _widen(axis, "y", [value(item) for item in every])
            _plain_numbers(axis, "y")
        else:
            axis.set_ylim(0, max(value(item) for item in every) * 1.35)
        label_ends(axis, ends)
    return canvas


def memory_by_parameters(series: Sequence[Series]) -> Canvas:
    def line(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
        if len(set(x)) < 3:
            return
        slope, start = np.polyfit(x, y, 1)
        ends = np.array([0, max(x) * 1.1])
        axis.plot(ends, slope * ends + start, **GUIDE)
        _remark(axis, f"dashed: {slope:.2f} MB per million parameters {'+' if start >= 0 else '-'} {abs(start):.0f} MB")

    return _against(
        series, lambda item: has_memory(item) and bool(item["params"]), "No record holds parameters and peak memory.",
        lambda item: float(item["params"]) / 1e6, peak, "parameters (millions)", "peak memory (MB)", guide=line,
    )  # fmt: skip


def time_by_operations(series: Sequence[Series]) -> Canvas:
    def rate(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
        median = float(np.exp(np.median(np.log(np.array(x) / np.array(y)))))
        ends = np.array(axis.get_xlim())
        axis.plot(ends, ends / median, scaley=False, **GUIDE)
        _remark(axis, f"dashed: {median * 1e3:,.3g} x 10⁹ MACs per second, the median")

    return _against(
        series, lambda item: bool(item["macs"]), "No record holds operations and a latency.",
        giga_macs, per_image, "operations (10⁹ MACs per image)", "time per image (ms)",
        logs="xy", error=spread, guide=rate,
    )  # fmt: skip


def power_by_operations(series: Sequence[Series]) -> Canvas:
    return _against(
        series, lambda item: has_power(item) and bool(item["macs"]), why_no_power(series),
        giga_macs, net_watts, "operations (10⁹ MACs per image)", "net power (W)", logs="x", error=power_spread,
    )  # fmt: skip


def accuracy_by_throughput(series: Sequence[Series]) -> Canvas:
    def front(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
        best = pareto(list(zip(x, y, strict=True)))
        axis.step([p[0] for p in best], [p[1] for p in best], where="pre", **GUIDE)

    return _against(
        series, imagenet, "No record has both a throughput and an accuracy on ImageNet.",
        throughput, lambda item: float(item["top1"]), "images per second, at the best batch", "top-1 accuracy (%)",
        logs="x", from_zero=False, guide=front, fastest=True,
    )  # fmt: skip


def _against(
    series: Sequence[Series],
    keep: Callable[[Record], bool],
    why: str,
    x_of: Callable[[Record], float],
    y_of: Callable[[Record], float],
    xlabel: str,
    ylabel: str,
    *,
    logs: str = "",
    from_zero: bool = True,
    error: Callable[[Record], tuple[float, float]] | None = None,
    guide: Callable[[Axes, Sequence[float], Sequence[float]], None] | None = None,
    fastest: bool = False,
) -> Canvas:
    """A mark a network, named, with a guide through them; all panels on the same axes.

    A network stands with its smallest batch, or with its `fastest` one, whose size then follows its name.
    """
    canvas, panels = _panels(series, keep, why)
    chosen = [smallest_batch(items) if not fastest else best_batch(items) for _, items in panels]
    every = [item for items in chosen for item in items]
    if not fastest:
        ylabel += f" at batch {', '.join(map(str, sorted({item['batch'] for item in every})))}"
    for (axis, _), items in zip(panels, chosen, strict=True):
        x, y = [x_of(item) for item in items], [y_of(item) for item in items]
        if error:
            axis.errorbar(x, y, yerr=np.array([error(item) for item in items]).T, **BARS)
        for item, one, other in zip(items, x, y, strict=True):
            dot(axis, item, one, other)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        for which, value_of in (("x", x_of), ("y", y_of)):
            values = [value_of(item) for item in every]
            if which in logs:
                axis.set(**{f"{which}scale": "log"})
                _widen(axis, which, values)
                _plain_numbers(axis, which)
            elif from_zero:
                axis.set(**{f"{which}lim": (-0.015 * max(values), max(values) * 1.3)})
            else:
                _widen(axis, which, values)
        if guide:
            guide(axis, x, y)
        names = [shown(item) + (f" ({item['batch']})" if fastest else "") for item in items]
        label_points(axis, [(*point, 3.5) for point in zip(x, y, names, strict=True)])
    return canvas


def best_batch(items: Sequence[Record]) -> list[Record]:
    """One record a network: that of its highest throughput."""
    return [max(group, key=throughput) for group in by_network(items).values()]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other is higher in both, from the slowest and most accurate to the fastest."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


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


def roofline(series: Sequence[Series]) -> Canvas:
    """Operations a second against operations per byte: the device's roof, and every network under it, batch by batch.

    More images share one reading of the weights, so that a network moves to the right as its batch grows.
    """
    kept = [(one.label, [item for item in one.good if has_roofline(item)]) for one in series]
    kept = [(label, items) for label, items in kept if items]
    if not kept:
        raise Nothing("No record holds a roofline.")
    # The whole width for every panel: networks lie close together under a roof.
    canvas, axes = _grid(len(kept), 1.2 * PANEL, 1)
    every = [item["roofline"] for _, items in kept for item in items]
    most = max(one["matrix_gop_s"] for one in every)
    unit, name = (1e3, "10¹²") if most >= 1e4 else (1.0, "10⁹")
    rates = [operations(item) / unit for _, items in kept for item in items]
    for axis, (label, items) in zip(axes, kept, strict=True):
        axis.set_title(label)
        axis.set(xscale="log", yscale="log")
        _widen(axis, "x", [one["operations_per_byte"] for one in every])
        low, high = axis.get_xlim()
        ends = []
        for group in by_network(items).values():
            ordered = sorted(group, key=lambda item: int(item["batch"]))
            colour, _ = look(ordered[0])
            points = [(i["roofline"]["operations_per_byte"], operations(i) / unit) for i in ordered]
            axis.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=0.9, alpha=0.6, zorder=2)
            for item, point in zip(ordered, points, strict=True):
                dot(axis, item, *point, markersize=6 if item is ordered[-1] else 3)
            ends.append((*points[-1], f"{shown(ordered[-1])} ({ordered[-1]['batch']})", 3.5))
        peak_rate, copied = items[0]["roofline"]["matrix_gop_s"], items[0]["roofline"]["copy_gb_s"]
        ridge = peak_rate / copied
        corners = [low, *([ridge] if low < ridge < high else []), high]
        axis.plot(corners, [min(peak_rate, copied * x) / unit for x in corners], color=INK, linewidth=1.6, zorder=1)
        _widen(axis, "y", [*rates, most / unit])
        _plain_numbers(axis)
        _remark(
            axis,
            f"roof: {significant(copied)} GB/s copied, {significant(peak_rate / unit)} x {name} operations/s in "
            f"{items[0]['precision']} matrices, both measured",
        )
        axis.set_xlabel("operations per byte of traffic")
        axis.set_ylabel(f"operations per second ({name})")
        label_points(axis, ends)
    return canvas


def has_roofline(item: Record) -> bool:
    return bool(item.get("roofline"))


def operations(item: Record) -> float:
    """10⁹ operations per second that the network did."""
    return float(item["roofline"]["img_s"]) * float(item["roofline"]["operations"]) / 1e9


def has_power(item: Record) -> bool:
    return item["power"]["net_w"] is not None


def has_memory(item: Record) -> bool:
    return memory(item) is not None


def net_watts(item: Record) -> float:
    return float(item["power"]["net_w"])


def throughput(item: Record) -> float:
    return float(item["throughput_img_s"])


def giga_macs(item: Record) -> float:
    return float(item["macs"]) / 1e9


def peak(item: Record) -> float:
    return memory(item) or 0.0


def power_spread(item: Record) -> tuple[float, float]:
    return (float(item["power"].get("std_w") or 0.0),) * 2


def why_no_power(series: Sequence[Series]) -> str:
    reasons = sorted({i["power"]["reason"] for one in series for i in one.good if i["power"]["reason"]})
    return f"Power was not measured: {'; '.join(reasons) or 'no record holds it'}."


FIGURES: tuple[tuple[str, str, str, Callable[[Sequence[Series]], Canvas]], ...] = (
    ("1-accuracy", "Accuracy", "Top-1 accuracy of one network and one crop, by year.", accuracy_bars),
    ("2-ball-chart", "Accuracy, operations, parameters", "A ball's area is the number of parameters.", ball_chart),
    (
        "3-time-by-batch",
        "Time per image against batch",
        "Median; bars from the 10th to the 90th percentile.",
        time_by_batch,
    ),
    (
        "4-power-by-batch",
        "Net power against batch",
        "Above idle; bars are one standard deviation of trials.",
        power_by_batch,
    ),
    ("5-memory-by-batch", "Memory against batch", "Peak above the process without the network.", memory_by_batch),
    (
        "6-memory-by-parameters",
        "Memory against parameters",
        "Peak, with the line of least squares.",
        memory_by_parameters,
    ),
    (
        "7-time-by-operations",
        "Time against operations",
        "Median; bars from the 10th to the 90th percentile.",
        time_by_operations,
    ),
    (
        "8-power-by-operations",
        "Net power against operations",
        "Above idle; bars are one standard deviation.",
        power_by_operations,
    ),
    (
        "9-accuracy-by-throughput",
        "Accuracy against throughput",
        "In brackets the batch; the line is the Pareto front.",
        accuracy_by_throughput,
    ),
    ("10-information-density", "Accuracy per parameter", "How much accuracy a parameter carries.", information_density),
)

# Drawn where records hold it (`benchmarks/gpu.sh` writes it); the paper has none.
ROOFLINE = (
    "11-roofline",
    "Roofline",
    "What the device allows, and how near each network comes; in brackets the batch, smaller marks are smaller ones.",
    roofline,
)
