"""Draws panels with matplotlib, each where and roughly how Grafana would."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from grafana.pictures import legend_of

PALETTE: Final = ("#3274d9", "#e0752d", "#299c46", "#a352cc", "#e02f44", "#1f9aa8", "#c9a000", "#705da0", "#8f3bb8", "#7b8087")
NAMED: Final[Mapping[str, str]] = {"green": "#299c46", "orange": "#e0752d", "red": "#d0303f", "text": "#24292e", "transparent": "#24292e"}
GREY: Final = "#6a737b"
COLUMN_INCHES: Final = 0.58
ROW_INCHES: Final = 0.34
COLOURS: Final = 160
"""Of the palette that the files are reduced to: the pictures stay small, and small patches keep their colour."""
Json = dict[str, Any]
Series = list[tuple[str, list[float], list[float]]]


def draw(rows: Sequence[tuple[str, list[Json]]], data: Mapping[str, Any], file: Path) -> None:
    """Draw rows of panels, as they lie in the grid, into one PNG."""
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 7.5, "axes.linewidth": 0.5})
    heights = [1 + max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) - top(panels) for _, panels in rows]
    total = sum(heights)
    figure = pyplot.figure(figsize=(24 * COLUMN_INCHES, total * ROW_INCHES), facecolor="#f4f5f5")
    above = 0.0
    for (title, panels), height in zip(rows, heights, strict=True):
        figure.text(0.006, 1 - (above + 0.62) / total, title, fontsize=10, weight="bold", color="#24292e", va="center")
        for panel in panels:
            place = panel["gridPos"]
            y = above + 1 + place["y"] - top(panels)
            box = (place["x"] / 24, 1 - (y + place["h"]) / total, place["w"] / 24, place["h"] / total)
            draw_panel(figure, panel, box, {target["refId"]: data[f"{panel['title']}/{target['refId']}"] for target in panel["targets"]})
        above += height
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
    with Image.open(file) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def top(panels: list[Json]) -> int:
    """Return the first line of a row's panels."""
    return min(int(panel["gridPos"]["y"]) for panel in panels)


def draw_panel(figure: Figure, panel: Json, box: tuple[float, float, float, float], answers: Mapping[str, Any]) -> None:
    """Draw one panel on a white card."""
    x, y, width, height = box
    inch_x, inch_y = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    card = figure.add_axes((x + 0.04 * inch_x, y + 0.04 * inch_y, width - 0.08 * inch_x, height - 0.08 * inch_y))
    card.set_xticks([])
    card.set_yticks([])
    for spine in card.spines.values():
        spine.set_color("#d8dadc")
    figure.text(x + 0.14 * inch_x, y + height - 0.19 * inch_y, panel["title"], fontsize=8.5, color="#24292e", va="center", weight="bold")
    series = named_series(panel, answers)
    if panel["type"] == "stat":
        draw_stat(figure, card, panel, series, box)
        return
    if panel["type"] == "table":
        draw_table(card, answers)
        return
    is_timeline = panel["type"] in ("state-timeline", "bargauge")
    left = (1.65 if is_timeline else 0.72) * inch_x
    axes = figure.add_axes((x + left, y + 0.72 * inch_y, width - left - 0.2 * inch_x, height - 1.12 * inch_y))
    axes.tick_params(length=0, colors=GREY, labelsize=7)
    axes.grid(color="#e6e8ea", linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    match panel["type"]:
        case "timeseries":
            draw_lines(axes, panel, series)
        case "heatmap":
            draw_heatmap(axes, panel, series)
        case "state-timeline":
            draw_states(axes, series)
        case "bargauge":
            draw_bars(axes, panel, series)


def named_series(panel: Json, answers: Mapping[str, Any]) -> Series:
    """Return every series with its legend, times and values, the largest first."""
    found: Series = []
    for target in panel["targets"]:
        for each in answers[target["refId"]]:
            times = [float(at) for at, _ in each["values"]]
            values = [float(value) for _, value in each["values"]]
            if any(math.isfinite(value) for value in values):
                found.append((legend_of(target, each["metric"]), times, values))
    return found


def draw_stat(figure: Figure, card: Axes, panel: Json, series: Series, box: tuple[float, float, float, float]) -> None:
    """Draw the last value large, its course small."""
    x, y, width, height = box
    if not series:
        card.text(0.5, 0.45, "No traffic", ha="center", va="center", color=GREY, fontsize=12)
        return
    _, times, values = series[0]
    finite = [value for value in values if math.isfinite(value)]
    colour = stepped(panel, finite[-1])
    card.text(
        0.5, 0.52, written(finite[-1], unit(panel), decimals(panel)), ha="center", va="center", color=colour, fontsize=18, weight="bold"
    )
    spark = figure.add_axes((x + width * 0.02, y + height * 0.05, width * 0.96, height * 0.22))
    spark.axis("off")
    spark.fill_between(times, values, color=colour, alpha=0.18, linewidth=0)
    spark.plot(times, values, color=colour, linewidth=0.8)
    spark.set_xlim(times[0], times[-1])
    spark.set_ylim(min(0, *finite), max(*finite, 1e-9) * 1.1)


def draw_lines(axes: Axes, panel: Json, series: Series) -> None:
    """Draw lines, one upon the other where the panel says so."""
    custom = panel["fieldConfig"]["defaults"]["custom"]
    is_stacked = custom["stacking"]["mode"] == "normal"
    series = sorted(series, key=lambda each: -sum(value for value in each[2] if math.isfinite(value)))
    grid = sorted({at for _, times, _ in series for at in times})
    below = [0.0] * len(grid)
    for index, (label, times, values) in enumerate(series):
        colour = PALETTE[index % len(PALETTE)]
        known = dict(zip(times, values, strict=True))
        line = [known.get(at, math.nan) for at in grid]
        if is_stacked:
            upper = [low + (value if math.isfinite(value) else 0.0) for low, value in zip(below, line, strict=True)]
            axes.fill_between(dates(grid), below, upper, color=colour, alpha=0.3, linewidth=0)
            axes.plot(dates(grid), upper, color=colour, linewidth=0.9, label=label)
            below = upper
        else:
            axes.plot(dates(grid), line, color=colour, linewidth=2.0 if label == "p95" else 1.0, label=label)
    highest = max([value for _, _, values in series for value in values if math.isfinite(value)] + below + [0.0])
    ceiling = panel["fieldConfig"]["defaults"].get("max")
    axes.set_ylim(0, ceiling or highest * 1.12 or 1)
    if custom["thresholdsStyle"]["mode"] == "line":
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]:
            if step["value"] <= axes.get_ylim()[1]:
                axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=0.8, linestyle=(0, (4, 3)))
    finish(axes, panel, grid)
    if series:
        write_legend(axes)


def write_legend(axes: Axes) -> None:
    """Write up to eight names below the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = handles[:8], labels[:8]
    inches = axes.get_position().width * axes.figure.get_figwidth() + 0.6
    columns = max(1, min(len(labels), int(inches / (0.32 + 0.062 * max(map(len, labels))))))
    rows = -(-len(labels) // columns)
    if rows > 2:
        handles, labels = handles[: 2 * columns], labels[: 2 * columns]
    axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(-0.6 / (inches - 0.6), -0.115),
        ncols=columns,
        frameon=False,
        fontsize=6.8,
        labelcolor="#3b4147",
        handlelength=1.1,
        columnspacing=1.0,
        labelspacing=0.25,
        borderpad=0,
    )


def draw_heatmap(axes: Axes, panel: Json, series: Series) -> None:
    """Draw how many fell into each bucket at each time."""
    bounds = sorted(((float(label), times, values) for label, times, values in series if label != "+Inf"), key=lambda each: each[0])
    grid = sorted({at for _, times, _ in bounds for at in times})
    before = [0.0] * len(grid)
    rows = []
    for _, times, values in bounds:
        known = dict(zip(times, values, strict=True))
        line = [known.get(at, 0.0) for at in grid]
        rows.append([max(value - low, 0.0) or math.nan for value, low in zip(line, before, strict=True)])
        before = line
    shown = [index for index, row in enumerate(rows) if any(math.isfinite(value) for value in row)]
    first, last = max(min(shown) - 1, 0), min(max(shown) + 1, len(rows) - 1)
    axes.pcolormesh(dates(grid), range(last - first + 1), rows[first : last + 1], cmap="Blues", vmin=0, shading="nearest")
    axes.set_yticks(
        [index - first + 0.5 for index in range(first, last + 1)], [f"{bounds[index][0]:g} s" for index in range(first, last + 1)]
    )
    axes.set_ylim(-0.5, last - first + 0.5)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    del panel


def draw_states(axes: Axes, series: Series) -> None:
    """Draw a bar per target, coloured by its state."""
    colours = {0: NAMED["green"], 1: NAMED["orange"]}
    series = sorted(series, reverse=True)
    grid = [at for _, times, _ in series for at in times]
    for index, (_, times, values) in enumerate(series):
        days = dates(times)
        width = days[1] - days[0] if len(days) > 1 else None
        axes.barh(
            [index] * len(days), [width] * len(days), left=days, height=0.62, color=[colours.get(int(v), NAMED["red"]) for v in values]
        )
    axes.set_yticks(range(len(series)), [label for label, _, _ in series])
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(*dates([min(grid), max(grid)]))
    for index, (state, colour) in enumerate((("healthy", "green"), ("probing", "orange"), ("cooling", "red"))):
        axes.text(0.22 * index, -0.24, f"■ {state}", transform=axes.transAxes, color=NAMED[colour], fontsize=7)


def draw_bars(axes: Axes, panel: Json, series: Series) -> None:
    """Draw the last value of each series as a bar."""
    series = sorted(series, key=lambda each: each[2][-1])
    values = [values[-1] for _, _, values in series]
    axes.barh(range(len(series)), values, height=0.5, color=[stepped(panel, value) for value in values])
    axes.set_yticks(range(len(series)), [label for label, _, _ in series])
    axes.set_ylim(-0.6, max(len(series), 3) - 0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit(panel), None)))


def draw_table(card: Axes, answers: Mapping[str, Any]) -> None:
    """Write one line per relay."""
    builds, ages = answers["A"], answers["B"]
    lines = [["instance", "version", "python", "configuration age"]]
    for build in builds:
        labels = build["metric"]
        age = next((each["values"][-1][1] for each in ages if each["metric"]["instance"] == labels["instance"]), "nan")
        lines.append([labels["instance"], labels["version"], labels["python"], written(float(age), "s", 0)])
    for row, cells in enumerate(lines):
        for column, cell in enumerate(cells):
            card.text(0.01 + 0.25 * column, 0.62 - 0.22 * row, cell, color=GREY if row == 0 else "#24292e", fontsize=8, va="center")


def finish(axes: Axes, panel: Json, grid: list[float]) -> None:
    """Set the axes' scales and formats."""
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit(panel), None)))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if len(grid) > 1:
        axes.set_xlim(*dates([grid[0], grid[-1]]))


def stepped(panel: Json, value: float) -> str:
    """Return the colour that the thresholds give a value."""
    colour = "text"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return NAMED[colour]


def unit(panel: Json) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


def decimals(panel: Json) -> int | None:
    found = panel["fieldConfig"]["defaults"].get("decimals")
    return None if found is None else int(found)


def written(value: float, kind: str, places: int | None) -> str:
    """Write a value with its unit, about as Grafana does."""

    def number(shown: float) -> str:
        return f"{shown:.{places}f}" if places is not None else f"{shown:.3g}"

    match kind:
        case "percentunit":
            return f"{number(value * 100)} %"
        case "s":
            return f"{value * 1000:.3g} ms" if abs(value) < 1 and value else f"{number(value)} s"
        case "bytes":
            return f"{value / 2**20:.4g} MiB"
        case "reqps":
            return f"{number(value)} req/s"
        case "ops":
            return f"{number(value)} /s"
        case "currencyUSD":
            return f"${number(value)}"
        case _:
            suffix = f" {kind.removeprefix('suffix:').strip()}" if kind.startswith("suffix:") else ""
            for power, letter in ((1e6, " M"), (1e3, " K")):
                if abs(value) >= power:
                    return f"{value / power:.3g}{letter}{suffix}"
            return f"{number(value)}{suffix}"


def dates(times: Sequence[float]) -> list[float]:
    """Return matplotlib's dates of Unix times, in UTC."""
    from matplotlib.dates import date2num

    return [float(date2num(datetime.fromtimestamp(at))) for at in times]
