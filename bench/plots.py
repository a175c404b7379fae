"""Plots of a run: time against N and D, ratios to rivals, error against time.

What a file lacks is left out; a plot never fails for want of a rival.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import rows
from bench.rows import ONE_THREAD, Row

# 8.3 inches are the width of a page
_DPI = 180
_GKFAST = "#c8102e"
_BOUND = "#8a8a8a"
# one hue for everything in plain torch, one for each library
_COLOURS = {
    "eager": "#4a90c2",
    "eager in place": "#1f4e79",
    "chunked torch": "#1f4e79",
    "torch.compile": "#e08a00",
    "gpytorch": "#3a8f5c",
    "scikit-learn": "#7d55a0",
    "numpy": "#b04a8a",
    "torch.mm": "#555555",
    "one by one": "#8a6d3b",
}
_NAMES = {
    "torch.mm": "torch.mm alone",
    "eager": "eager torch",
    "eager in place": "torch in place",
    "gpytorch": "GPyTorch",
    "numpy": "NumPy",
}


# rivals that do the same in different operations stand in one column, in one colour
LEGEND = {
    "torch.mm alone": ("torch.mm",),
    "eager torch": ("eager",),
    "in place or chunked": ("eager in place", "chunked torch"),
    "torch.compile": ("torch.compile",),
    "GPyTorch": ("gpytorch",),
    "scikit-learn": ("scikit-learn",),
    "NumPy": ("numpy",),
    "one by one": ("one by one",),
}


def label(rival: str) -> str:
    return _NAMES.get(rival, rival)


def title(row: Row) -> str:
    """The case as tables name it."""
    # "out" is said in words; what is float32, M = N, one column or one bandwidth is not said
    parts = [row["op"].replace(" out", ", output given").replace(" gradient", ", value and gradient")]
    if row["op"] == "rbf gradient":
        parts = ["rbf, forward and backward"]
    if row["dtype"] == "float64":
        parts.append("float64")
    size = f"N = {row['N']}" if row["N"] == row["M"] else f"{row['N']} x {row['M']}"
    parts += [size, f"D = {row['D']}"]
    if (row["E"] or 1) > 1:
        parts.append(f"{row['E']} columns")
    if row["bandwidths"] not in ("one", "1", None):
        parts.append({"sigma x2": "sigma 1 to 16", "variance x2": "variance ladder"}.get(row["bandwidths"], ""))
    return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Panel:
    """Times of the cases of one operation along one axis, everything else fixed."""

    name: str
    along: str
    op: str
    fixed: dict[str, object]

    def rows(self, measured: list[Row]) -> list[Row]:
        fixed = {"op": self.op, "dtype": "float32", **self.fixed}
        fits = [r for r in measured if r["N"] == r["M"] and all(r[k] == v for k, v in fixed.items())]
        return sorted(fits, key=lambda row: row[self.along])


_PANELS = (
    Panel("kernel matrix, output given, N = 4096", "D", "rbf out", {"N": 4096}),
    Panel("kernel matrix, D = 64", "N", "rbf", {"D": 64}),
    Panel("kernel matrix, N = 4096", "D", "rbf", {"N": 4096}),
    Panel("K @ v, D = 64", "N", "rbf_matmul", {"D": 64, "E": 1}),
    Panel("K @ v, N = 8192", "D", "rbf_matmul", {"N": 8192, "E": 1}),
    Panel("MMD² and gradient, 5 bandwidths, D = 128", "N", "mmd2 gradient", {"D": 128, "bandwidths": "sigma x2"}),
)


def plot_times(measured: list[Row], path: Path) -> None:
    """Time against D (left) and against N (right), with rivals and bounds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(8.3, 9.6), layout="constrained")
    for axis, panel in zip(axes.flat, _PANELS, strict=True):
        of_panel = panel.rows(measured)
        axis.set_title(panel.name, loc="left")
        lines = _lines(of_panel, panel.along)
        for points, style in lines.values():
            axis.plot(*zip(*points, strict=True), **style)
        axis.set(xscale="log", yscale="log", xlabel=panel.along, ylabel="ms")
        _plain_ticks(axis, sorted({row[panel.along] for row in of_panel}))
        _label_ends(axis, {name: (points[-1], style["color"]) for name, (points, style) in lines.items()})
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _lines(of_panel: list[Row], along: str) -> dict[str, tuple[list[tuple[float, float]], dict[str, object]]]:
    """Points and style of each line: the bound, rivals, gkfast on top."""
    lines = {}

    def add(name: str, points: Iterable[tuple[float, float | None]], **style: object) -> None:
        known = [(x, y) for x, y in points if y is not None]
        # one point is no line
        if len(known) > 1:
            lines[name] = (known, {"lw": 1.4, "marker": "o", "ms": 3, **style})

    own = [row for row in of_panel if not row["rival"]]
    bound = ((row[along], row["bound_ms"]) for row in own)
    add("bound", bound, color=_BOUND, ls=(0, (1, 1.5)), marker="")
    for rival in dict.fromkeys(row["rival"] for row in of_panel):
        # where the bound is a fill, "bound" has said so
        if rival and rival not in (ONE_THREAD, "fill"):
            times = ((row[along], row["rival_ms"]) for row in of_panel if row["rival"] == rival)
            add(label(rival), times, color=_COLOURS.get(rival, "#999999"))
    add("gkfast", ((row[along], row["gkfast_ms"]) for row in own), color=_GKFAST, lw=2.4, ms=4, zorder=3)
    return lines


def _plain_ticks(axis, values: list[int]) -> None:
    """The sizes that were measured, or those of them that have room."""
    from matplotlib.ticker import NullLocator

    ticks: list[int] = []
    for value in reversed(values):
        if not ticks or math.log(ticks[-1] / value) > math.log(values[-1] / values[0]) / 6.5:
            ticks.append(value)
    axis.set_xticks(ticks)
    axis.xaxis.set_minor_locator(NullLocator())
    _numbers_below(axis.xaxis)
    _numbers_below(axis.yaxis)


def _numbers_below(axis) -> None:
    """100 for 10^2, and nothing between the decades."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_ends(axis, ends: dict[str, tuple[tuple[float, float], str]]) -> None:
    """Each line's name at its right end, moved apart where lines meet."""
    if not ends:
        return
    right = max(x for (x, _), _ in ends.values())
    low, high = (math.log(limit) for limit in axis.get_ylim())
    # as a share of the axis: a line of text and a little
    gap, order = 0.075, sorted(ends, key=lambda name: ends[name][0][1])
    heights = [(math.log(ends[name][0][1]) - low) / (high - low) for name in order]
    for name, height in zip(order, _apart(heights, gap), strict=True):
        (x, y), colour = ends[name]
        axis.annotate(
            name,
            xy=(x, y),
            xycoords="data",
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            weight="bold" if name == "gkfast" else "normal",
            annotation_clip=False,
            # a line to the label of a curve that ends before the others
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6} if x < right else None,
        )


def _apart(heights: list[float], gap: float) -> list[float]:
    """The least moved of ascending numbers whose neighbours are `gap` apart."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        # a block of touching labels sits where its members' wishes average
        while len(blocks) > 1 and _first(blocks[-1], gap) < _first(blocks[-2], gap) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_first(block, gap) + gap * k for block in blocks for k in range(len(block))]


def _first(wishes: list[float], gap: float) -> float:
    return sum(wish - gap * k for k, wish in enumerate(wishes)) / len(wishes)


def _in_ratios(row: Row) -> bool:
    named = rows.against_rival(row) or row["rival"] == "torch.mm"
    return named and row["ratio"] is not None and not row["sweep"]


def plot_ratios(measured: list[Row], path: Path) -> None:
    """Time of each rival over gkfast's, one line per case, losses left of 1."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    shown = [r for r in measured if _in_ratios(r)]
    cases = list({row["case"]: row for row in shown}.values())
    height = {row["case"]: -k for k, row in enumerate(cases)}
    figure, axis = plt.subplots(figsize=(8.3, 1.2 + 0.19 * max(len(cases), 4)), layout="constrained")
    axis.axvspan(1e-9, 1, color="#f3dede", lw=0)
    for k in range(0, len(cases), 2):
        axis.axhspan(-k - 0.5, -k + 0.5, color="black", alpha=0.03, lw=0)
    axis.axvline(1, color=_GKFAST, lw=1.4)
    for name, rivals in LEGEND.items():
        points = [(row["ratio"], height[row["case"]]) for row in shown if row["rival"] in rivals]
        if points:
            style = {"color": _COLOURS[rivals[0]], "ms": 5, "mec": "white", "mew": 0.5, "label": name}
            axis.plot(*zip(*points, strict=True), "o", **style)
    ratios = [row["ratio"] for row in shown] or [1.0]
    axis.set(
        xscale="log",
        xlim=(min(0.5, *ratios) / 1.3, max(2.0, *ratios) * 1.3),
        ylim=(0.5 - max(len(cases), 1), 0.5),
        yticks=list(height.values()),
        yticklabels=[title(row) for row in cases],
        xlabel="time of the rival / time of gkfast",
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _numbers_below(axis.xaxis)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    for text, side in (("gkfast slower ", "right"), (" faster", "left")):
        axis.text(1, 1.002, text, transform=axis.get_xaxis_transform(), ha=side, va="bottom", color=_GKFAST)
    if shown:
        figure.legend(loc="outside upper right", ncols=6, frameon=False, handletextpad=0.1, columnspacing=1.2)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


_ACCURACY = (
    ("kernel matrix\nN = 4096, D = 64", {"op": "rbf", "N": 4096, "D": 64, "dtype": "float32"}),
    ("K @ v\nN = 8192, D = 64", {"op": "rbf_matmul", "N": 8192, "D": 64, "E": 1, "dtype": "float32"}),
    ("MMD² and gradient\nN = 1024, D = 128", {"op": "mmd2 gradient", "N": 1024, "D": 128, "bandwidths": "sigma x2"}),
)


def plot_accuracy(measured: list[Row], path: Path) -> None:
    """Error against time, gkfast among its rivals: low and left is good."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(8.3, 3.1), layout="constrained")
    for axis, (heading, fixed) in zip(axes, _ACCURACY, strict=True):
        of_case = [row for row in measured if all(row[k] == v for k, v in fixed.items())]
        points = {}
        for row in of_case:
            whose = "rival" if row["rival"] else "gkfast"
            if row["rival"] != ONE_THREAD and row[f"{whose}_ms"] and row[f"{whose}_error"]:
                colour = _COLOURS.get(row["rival"], "#999999") if row["rival"] else _GKFAST
                points[label(row["rival"]) or "gkfast"] = (row[f"{whose}_ms"], row[f"{whose}_error"]), colour
        for name, (point, colour) in points.items():
            axis.plot(*point, "o", color=colour, ms=9 if name == "gkfast" else 6)
        axis.set(xscale="log", yscale="log", xlabel="ms")
        axis.set_title(heading, loc="left")
        _whole_decades(axis, [point for point, _ in points.values()])
        _numbers_below(axis.xaxis)
        _label_ends(axis, points)
    axes[0].set_ylabel("greatest error against float64")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _whole_decades(axis, points: list[tuple[float, float]]) -> None:
    for values, limit in zip(zip(*points, strict=True), (axis.set_xlim, axis.set_ylim), strict=False):
        limit(10 ** math.floor(math.log10(min(values) / 1.1)), 10 ** math.ceil(math.log10(max(values) * 1.1)))


STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.3,
}
PLOTS = {"times": plot_times, "ratios": plot_ratios, "accuracy": plot_accuracy}


def plot(measured: list[Row], stem: Path) -> list[Path]:
    """Every plot, as STEM-times.png and so on."""
    import matplotlib

    matplotlib.use("Agg")
    paths = {name: stem.with_name(f"{stem.name}-{name}.png") for name in PLOTS}
    with matplotlib.rc_context(STYLE):
        for name, draw in PLOTS.items():
            draw(measured, paths[name])
    return list(paths.values())
