"""Pictures of a run, and one page with them: real samples beside generated ones, with and without the kernel."""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gkfast.gan import checks
from gkfast.gan.data import Data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY = "#1f2933", "#8a94a0"
_REAL, _KERNEL, _CONTROL = "#4a5560", "#0b7285", "#d9480f"

# key in metrics.json: (name, what it says, whether smaller is better, digits)
_METRICS: dict[str, tuple[str, str, bool, str]] = {
    "classes": ("Classes", "digits that make up more than 2 % of the samples, of 10", False, ".0f"),
    "class_kl": ("Class KL", "from the generated to the real class frequencies, in nats", True, ".4f"),
    "parzen": ("Parzen log-density", "of held-out data under the samples, in nats", False, ".1f"),
    "strict_modes": ("Strict modes", "with a fifth of their fair share of good samples, of 8", False, ".0f"),
    "modes": ("Modes", "with one good sample or more, of 8", False, ".0f"),
    "high_quality": (
        "High quality",
        "fraction of samples within 3 standard deviations of a mode",
        False,
        ".3f",
    ),
    "reverse_kl": ("Reverse KL", "from the generated to the real mode frequencies, in nats", True, ".4f"),
    "mmd2": ("MMD²", "to held-out data, unbiased; 0 where the distributions agree", True, ".5f"),
    "seconds": ("Seconds", "of training", True, ".1f"),
}


def write(
    folder: Path,
    data: Data,
    samples: Mapping[str, Tensor],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    summary: Mapping[str, Any],
) -> None:
    """samples.png, curves.png and report.html.

    `samples` and `histories` are by loss: first the run's, then, if there is one, the control's. `summary` is
    what metrics.json holds.
    """
    try:
        import matplotlib  # noqa: F401 - asked for here, so that what is missing is named once
    except ImportError as error:
        raise checks.missing("the report", "matplotlib") from error
    pictures = {
        "samples.png": _png(samples_figure(data, samples)),
        "curves.png": _png(curves_figure(histories)),
    }
    for name, picture in pictures.items():
        _replace(folder / name, picture)
    _replace(folder / "report.html", page(summary, pictures).encode())


def samples_figure(data: Data, samples: Mapping[str, Tensor]) -> "Figure":
    """Real samples and those of each run side by side: images, points in the plane, or a histogram."""
    panels = [("Real, held out", data.test, _REAL)]
    for name, colour in zip(samples, (_KERNEL, _CONTROL), strict=False):
        panels.append((_title(name), samples[name], colour))
    draw = _draw_images if _is_image(data.shape) else _draw_histogram if data.shape == (1,) else _draw_points
    figure = _figure(width=4.2 * len(panels), height=4.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, x, colour) in zip(axes, panels, strict=True):
        draw(axis, x.numpy(), data, colour)
        axis.set_title(title, loc="left", color=colour, fontsize=13, fontweight="bold", pad=10)
    return figure


def curves_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> "Figure":
    """Held-out MMD^2 and the losses of each run over the steps, and the kernel means of the first."""
    figure = _figure(width=12.6, height=3.6)
    distance, losses, means = figure.subplots(1, 3)
    settled: list[float] = []
    for (name, history), colour in zip(histories.items(), (_KERNEL, _CONTROL), strict=False):
        steps = [record["step"] for record in history]
        # unbiased, so it may fall below zero, where a logarithmic axis has no place
        mmd2 = [max(record["mmd2"], 1e-5) for record in history]
        distance.plot(steps, mmd2, color=colour, label=_title(name), linewidth=1.6)
        for key, label, dash in (("d_loss", "D", "-"), ("g_loss", "G", ":")):
            if key in history[-1]:
                values = [record[key] for record in history]
                settled += values[len(values) // 20 :]
                losses.plot(steps, values, dash, color=colour, label=f"{label}, {name}", linewidth=1.4)
    first = next(iter(histories.values()))
    for key, label, colour, dash in (
        ("k_xx", "generated, generated", _KERNEL, "-"),
        ("k_yy", "real, real", _REAL, "--"),
        ("k_xy", "generated, real", _GREY, "-"),
    ):
        steps = [record["step"] for record in first]
        means.plot(steps, [record[key] for record in first], dash, color=colour, label=label, linewidth=1.4)
    distance.set_yscale("log")
    # the first steps, far from the data, would flatten all that follows
    low, high = min(0.0, *settled), max(0.0, *settled)
    losses.set_ylim(1.1 * low, 1.1 * high if high > low else 1.0)
    for axis, title in (
        (distance, "MMD² to held-out data"),
        (losses, "Losses"),
        (means, f"Mean kernel values, {next(iter(histories))}"),
    ):
        axis.set_title(title, loc="left", fontsize=11, color=_INK)
        axis.set_xlabel("step", color=_GREY)
        axis.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        axis.tick_params(colors=_GREY, length=0)
        axis.tick_params(which="minor", length=0)
        axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color("#c5ccd3")
    return figure


def page(summary: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page that needs nothing beside it."""
    image = {name: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for name, png in pictures.items()}
    sigma = ", ".join(f"{s:.4g}" for s in summary["sigma"])
    settings = {
        "data": summary["data"],
        "loss": summary["loss"],
        "weight of the kernel term": f"{summary['lam']:g}",
        "bandwidths sigma": f"{sigma} (units of the data, frozen)",
        "steps": f"{summary['steps']}, batches of {summary['batch_size']}",
        "learning rate": f"{summary['learning_rate']:g}, cosine",
        "seed": summary["seed"],
        "gkfast": summary["gkfast"],
    }
    return _PAGE.format(
        title=html.escape(f"{summary['loss']} on {summary['data']}"),
        seen=html.escape(_seen(summary)),
        samples=image["samples.png"],
        curves=image["curves.png"],
        table=_table(summary),
        settings="".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in settings.items()),
    )


def _seen(summary: Mapping[str, Any]) -> str:
    """What the figures say, in a sentence or two."""
    runs = [(f"with the loss {summary['loss']}", summary)]
    if "control" in summary:
        runs.append(("without the kernel", summary["control"]))
    said = []
    for words, figures in runs:
        if "classes" in figures:
            said.append(f"{words} {figures['classes']} of 10 digits are drawn (class KL {figures['class_kl']:.3f})")
        elif "strict_modes" in figures:
            share = f"{figures['high_quality']:.0%} of the samples on them"
            said.append(f"{words} {figures['strict_modes']} of 8 modes are held ({share})")
        else:
            said.append(f"{words} the squared MMD to held-out data is {figures['mmd2']:.2g}")
    text = ", ".join(said)
    text = text[0].upper() + text[1:] + "."
    if "control" in summary:
        here, there = summary["mmd2"], summary["control"]["mmd2"]
        if here <= 0 or there <= 0:
            closer = "The two are too near to the data for their squared MMD to be told apart from zero"
        elif abs(here - there) < 0.1 * max(here, there):
            closer = "The squared MMD to held-out data is about the same with and without it"
        elif here < there:
            closer = f"The kernel brings the squared MMD to held-out data down {there / here:.1f} times"
        else:
            closer = (
                f"Here the kernel did not help: the squared MMD to held-out data is {here / there:.1f} times larger"
            )
        text += f" {closer}, at the same number of steps."
    return text


def _table(summary: Mapping[str, Any]) -> str:
    columns = [(summary["loss"], summary)]
    if "control" in summary:
        columns.append(("gan (no kernel)", summary["control"]))
    columns.append(("real training data", summary["real"]))
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    rows = []
    for key, (name, says, smaller, form) in _METRICS.items():
        if key not in summary:
            continue
        # of the generators only: the real data are a yardstick, not a rival
        values = [figures[key] for _, figures in columns[:-1]]
        best = min(values) if smaller else max(values)
        marked = len(values) > 1 and len(set(values)) > 1
        cells = "".join(
            f"<td{' class=best' if marked and value == best else ''}>{value:{form}}</td>" for value in values
        )
        real = columns[-1][1].get(key)
        cells += f"<td class=real>{'' if real is None else format(real, form)}</td>"
        rows.append(f"<tr><th scope=row>{name}<small>{says}</small></th>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _title(loss: str) -> str:
    return "Without the kernel (gan)" if loss == "gan" else f"With the kernel ({loss})"


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))


def _draw_images(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str) -> None:
    """The first samples, in rows, as they come: none is picked."""
    side = 8
    images = x[: side * side].reshape(-1, *data.shape)
    low, high = (0.0, 1.0) if data.unit_range else (float(data.train.min()), float(data.train.max()))
    # scaled for the eye; a generator may leave the range of the data
    images = ((images - low) / (high - low)).clip(0, 1)
    if images.ndim == 3:
        images = 1 - images
    H, W = data.shape[:2]
    gap = max(1, H // 8)
    sheet = np.ones((side * (H + gap) - gap, side * (W + gap) - gap, *data.shape[2:]))
    for k, image in enumerate(images):
        top, left = k // side * (H + gap), k % side * (W + gap)
        sheet[top : top + H, left : left + W] = image
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()


def _draw_points(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str) -> None:
    """Points in the plane; of more dimensions, the two along which the real data vary most."""
    train = data.train.numpy()
    centre = train.mean(0)
    if data.train.shape[1] == 2:
        plane, centre = np.eye(2), np.zeros(2)
    else:
        plane = np.linalg.svd(train[:5000] - centre, full_matrices=False)[2][:2].T
    real = (train - centre) @ plane
    points = (x[:2500] - centre) @ plane
    axis.scatter(points[:, 0], points[:, 1], s=5, color=colour, alpha=0.35, linewidths=0)
    low, high = real.min(0), real.max(0)
    margin = 0.25 * (high - low).max() + 1e-6
    axis.set_xlim(low[0] - margin, high[0] + margin)
    axis.set_ylim(low[1] - margin, high[1] + margin)
    axis.set_aspect("equal")
    axis.tick_params(colors=_GREY, length=0)
    axis.grid(color="#eef1f4", linewidth=0.8)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_histogram(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str) -> None:
    low, high = float(data.train.min()), float(data.train.max())
    axis.hist(x[:, 0].clip(low, high), bins=60, range=(low, high), density=True, color=colour)
    axis.tick_params(colors=_GREY, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _figure(width: float, height: float) -> "Figure":
    # no pyplot: it would keep the figure, and ask for a display
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # wider than the default, which sets sheets of images almost side by side
    layout = ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1f2933; background: #fff;
  max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem;
}}
h1 {{ font-size: 1.7rem; font-weight: 650; letter-spacing: -.01em; margin: 0 0 .4rem; }}
h2 {{ font-size: 1.05rem; font-weight: 600; margin: 2.6rem 0 .6rem; }}
p {{ max-width: 46rem; margin: .4rem 0 1.2rem; }}
img {{ width: 100%; height: auto; display: block; }}
small, dt, .note, .real {{ color: #66717d; }}
.seen {{ font-size: 1.1rem; }}
.note {{ font-size: .9rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{
  text-align: right; vertical-align: baseline; padding: .5rem .8rem; border-bottom: 1px solid #e6e9ed;
}}
th:first-child {{ text-align: left; padding-left: 0; }}
thead th {{ font-size: .9rem; font-weight: 600; border-bottom: 2px solid #c5ccd3; }}
tbody th {{ font-weight: 500; }}
small {{ display: block; font-weight: 400; font-size: .82rem; line-height: 1.35; }}
.best {{ font-weight: 700; color: #0b7285; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .92rem; margin: 0; }}
dd {{ margin: 0; }}
@media (max-width: 40rem) {{ th, td {{ padding: .4rem; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="seen">{seen}</p>
<img src="{samples}" alt="real samples beside generated ones">
<p class="note">The first samples of each, none picked.</p>
<h2>Metrics</h2>
{table}
<p class="note">Training saw none of the data that the samples are compared with. The better values are in bold; the
last column is what the real training data themselves score.</p>
<h2>While training</h2>
<img src="{curves}" alt="losses and kernel means over the steps">
<h2>Settings</h2>
<dl>{settings}</dl>
</body>
</html>
"""
