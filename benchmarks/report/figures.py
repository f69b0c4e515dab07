"""The paper's ten figures (Canziani et al., arXiv 1605.07678), drawn from result records alone.

Every figure is drawn once and kept in three forms: SVG for the page (transparent, in the page's own text colour, so
that it can be read in a light and in a dark theme), SVG for a file, and PNG (both dark on white).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.records import Cell, MeasuredCell, Roofline, by_network, imagenet, memory, significant, smallest_batch
from benchmarks.report.drawing import (
    BARS,
    GUIDE,
    INK,
    LINES,
    OTHER,
    PANEL,
    Figure,
    Nothing,
    Panel,
    Series,
    _forms,
    _grid,
    _height,
    _notice,
    _panels,
    _plain_numbers,
    _remark,
    _style,
    _widen,
    dot,
    label_ends,
    label_points,
    look,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def draw(series: Sequence[Series]) -> list[Figure]:
    """The ten figures, in the paper's order; one without data says why instead. Then the roofline, if any."""
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


def per_image(item: MeasuredCell) -> float:
    """Median milliseconds per image."""
    return float(item["latency_ms"]["p50"]) / int(item["batch"])


def spread(item: MeasuredCell) -> tuple[float, float]:
    """How far the 10th and 90th percentile lie below and above the median, in ms per image."""
    low, high = np.percentile(item["latency_ms"]["values"], (10, 90)) / item["batch"]
    middle = per_image(item)
    return max(0.0, middle - float(low)), max(0.0, float(high) - middle)


def _networks(series: Sequence[Series], keep: Callable[[Cell], bool]) -> list[Cell]:
    """One record for every network with a record that `keep` keeps, whatever the series."""
    groups = by_network([item for one in series for item in one.records if keep(item)])
    return [items[0] for items in groups.values()]


def accuracy_bars(series: Sequence[Series]) -> Canvas:
    chosen = sorted(_networks(series, imagenet), key=lambda item: (item.get("year") or 0, top1(item)))
    if not chosen:
        raise Nothing("No record has an accuracy on ImageNet.")
    return _bars(chosen, [top1(item) for item in chosen], "top-1 accuracy (%)", "{:.1f}")


def information_density(series: Sequence[Series]) -> Canvas:
    chosen = _networks(series, lambda item: imagenet(item) and bool(item["params"]))
    if not chosen:
        raise Nothing("No record has both an accuracy on ImageNet and a number of parameters.")
    chosen.sort(key=lambda item: -top1(item) / mega_params(item))
    values = [top1(item) / mega_params(item) for item in chosen]
    return _bars(chosen, values, "top-1 accuracy per million parameters (%)", "{:.2f}")


def _bars(chosen: Sequence[Cell], values: Sequence[float], label: str, form: str) -> Canvas:
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
    area = {item["network"]: 12 * mega_params(item) for item in chosen}
    for item in sorted(chosen, key=lambda item: -area[item["network"]]):
        colour, _ = look(item)
        hollow = item["weights"] == "untrained"
        axis.scatter(
            giga_macs(item), top1(item), s=area[item["network"]], color=colour, alpha=0.35 if hollow else 0.6,
            edgecolors=colour, linewidths=1.4, linestyle="--" if hollow else "-", zorder=2,
        )  # fmt: skip
        axis.plot(giga_macs(item), top1(item), ".", color=INK, markersize=3, zorder=3)
    tops = [top1(item) for item in chosen]
    axis.set_ylim(min(tops) - 5, max(tops) + 5)
    axis.set_xlim(0, max(giga_macs(item) for item in chosen) * 1.18)
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
    label_points(axis, [(giga_macs(i), top1(i), shown(i), np.sqrt(area[i["network"]] / np.pi)) for i in chosen])
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
    value: Callable[[MeasuredCell], float],
    ylabel: str,
    *,
    error: Callable[[MeasuredCell], tuple[float, float]] | None = None,
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
        mega_params, peak, "parameters (millions)", "peak memory (MB)", guide=line,
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
        throughput, top1, "images per second, at the best batch", "top-1 accuracy (%)",
        logs="x", from_zero=False, guide=front, fastest=True,
    )  # fmt: skip


def _against(
    series: Sequence[Series],
    keep: Callable[[MeasuredCell], bool],
    why: str,
    x_of: Callable[[MeasuredCell], float],
    y_of: Callable[[MeasuredCell], float],
    xlabel: str,
    ylabel: str,
    *,
    logs: str = "",
    from_zero: bool = True,
    error: Callable[[MeasuredCell], tuple[float, float]] | None = None,
    guide: Callable[[Axes, Sequence[float], Sequence[float]], None] | None = None,
    fastest: bool = False,
) -> Canvas:
    """A mark a network, named, with a guide through them; all panels on the same axes.

    A network is shown at its smallest batch or, if `fastest`, at its fastest one, whose size then follows its name.
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


def best_batch(items: Sequence[MeasuredCell]) -> list[MeasuredCell]:
    """One record a network: that of its highest throughput."""
    return [max(group, key=throughput) for group in by_network(items).values()]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in both, from the slowest and most accurate to the fastest."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def roofline(series: Sequence[Series]) -> Canvas:
    """Operations a second against operations per byte: the device's roof, and every network under it, batch by batch.

    A batch reads the weights once, so a network moves to the right as its batch grows.
    """
    kept = [(one.label, [item for item in one.good if has_roofline(item)]) for one in series]
    kept = [(label, items) for label, items in kept if items]
    if not kept:
        raise Nothing("No record holds a roofline.")
    # The whole width for every panel: networks lie close together under a roof.
    canvas, axes = _grid(len(kept), 1.2 * PANEL, 1)
    every = [roof(item) for _, items in kept for item in items]
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
            points = [(roof(i)["operations_per_byte"], operations(i) / unit) for i in ordered]
            axis.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=0.9, alpha=0.6, zorder=2)
            for item, point in zip(ordered, points, strict=True):
                dot(axis, item, *point, markersize=6 if item is ordered[-1] else 3)
            ends.append((*points[-1], f"{shown(ordered[-1])} ({ordered[-1]['batch']})", 3.5))
        peak_rate, copied = roof(items[0])["matrix_gop_s"], roof(items[0])["copy_gb_s"]
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


def has_roofline(item: MeasuredCell) -> bool:
    return bool(item.get("roofline"))


def operations(item: MeasuredCell) -> float:
    """10⁹ operations per second that the network did."""
    return roof(item)["img_s"] * roof(item)["operations"] / 1e9


def roof(item: MeasuredCell) -> Roofline:
    found = item.get("roofline")
    assert found is not None  # `has_roofline` kept it
    return found


def has_power(item: MeasuredCell) -> bool:
    return item["power"]["net_w"] is not None


def has_memory(item: MeasuredCell) -> bool:
    return memory(item) is not None


def net_watts(item: MeasuredCell) -> float:
    return item["power"]["net_w"] or 0.0


def throughput(item: MeasuredCell) -> float:
    return item["throughput_img_s"]


# These read records that were kept because they hold the value.


def top1(item: Cell | MeasuredCell) -> float:
    return item["top1"] or 0.0


def giga_macs(item: Cell | MeasuredCell) -> float:
    return (item["macs"] or 0) / 1e9


def mega_params(item: Cell | MeasuredCell) -> float:
    return (item["params"] or 0) / 1e6


def peak(item: MeasuredCell) -> float:
    return memory(item) or 0.0


def power_spread(item: MeasuredCell) -> tuple[float, float]:
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

# Drawn if records hold it (`benchmarks/gpu.sh` writes it); the paper has no such figure.
ROOFLINE = (
    "11-roofline",
    "Roofline",
    "What the device allows, and how near each network comes; in brackets the batch, smaller marks are smaller ones.",
    roofline,
)
