"""Pictures of a run: samples, their progress, curves, and the witness function of each generator."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import gkfast
from gkfast.gan import objectives
from gkfast.gan.data import Data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of points, generated and real samples
Witness = Callable[[Tensor, Tensor, Tensor], np.ndarray[Any, Any]]
_INK, _GREY = "#1f2933", "#8a94a0"
_REAL, _KERNEL, _CONTROL, _OTHER = "#4a5560", "#0b7285", "#d9480f", "#7048a8"

# samples on each side of the witness function
_WITNESSES = 2500
# an MMD^2 so near to 0 is drawn on a linear axis
_LINEAR = 1e-4


def heading(loss: str) -> str:
    return f"Without the kernel ({loss})" if loss in objectives.ADVERSARIES else f"With the kernel ({loss})"


def samples_figure(
    data: Data,
    samples: Mapping[str, Tensor],
    *,
    real: str = "Real, held out",
    words: Callable[[str], str] = heading,
) -> "Figure":
    """Real samples and those of each run side by side: images, points in the plane, or a histogram."""
    panels = [(real, data.test, _REAL)]
    for name, colour in zip(samples, (_KERNEL, _CONTROL, _OTHER), strict=False):
        panels.append((words(name), samples[name], colour))
    draw = _drawing(data)
    figure = _figure(width=4.2 * len(panels), height=4.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, x, colour) in zip(axes, panels, strict=True):
        draw(axis, x.numpy(), data, colour)
        axis.set_title(title, loc="left", color=colour, fontsize=13, fontweight="bold", pad=10)
    return figure


def curves_figure(histories: Mapping[str, Sequence[Mapping[str, float]]], rows: tuple[int, int]) -> "Figure":
    """Held-out MMD^2 and the losses of each run over the steps, and the kernel means of the first.

    MMD^2 is of so many samples against so many held-out rows. Its axis is logarithmic, and linear around 0, as far
    as the unbiased estimate falls below it.
    """
    figure = _figure(width=12.6, height=3.6)
    distance, losses, means = figure.subplots(1, 3)
    settled: list[float] = []
    for (name, history), colour in zip(histories.items(), (_KERNEL, _CONTROL), strict=False):
        steps = [record["step"] for record in history]
        distance.plot(steps, [record["mmd2"] for record in history], color=colour, label=heading(name), linewidth=1.6)
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
    lowest = min(record["mmd2"] for history in histories.values() for record in history)
    linear = float(f"{max(_LINEAR, -lowest):.0e}")
    distance.set_yscale("symlog", linthresh=linear)
    distance.axhline(0, color="#c5ccd3", linewidth=0.8)
    # the first steps, far from the data, would flatten all that follows
    low, high = min(0.0, *settled), max(0.0, *settled)
    losses.set_ylim(1.1 * low, 1.1 * high if high > low else 1.0)
    for axis, words, unit in (
        (distance, "MMD² to held-out data", f"{rows[0]} samples, {rows[1]} real rows; linear below {linear:g}"),
        (losses, "Losses", "loss of a batch"),
        (means, f"Mean kernel values, {next(iter(histories))}", "mean kernel value"),
    ):
        axis.set_title(words, loc="left", fontsize=11, color=_INK)
        axis.set_xlabel("step", color=_GREY)
        axis.set_ylabel(unit, color=_GREY, fontsize=8.5)
        axis.grid(axis="y", color="#e6e9ed", linewidth=0.8)
        _hide(axis, "top", "right", "left")
        axis.tick_params(which="minor", colors=_GREY, length=0)
        axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        axis.spines["bottom"].set_color("#c5ccd3")
    return figure


def quality_figure(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> "Figure":
    """What was followed while training, over its seconds: FID, or modes and KL of stacked images.

    A line for each of a loss's runs, and a thick one of their means where there are several.
    """
    names = {"fid": "FID", "modes": "Modes of 1000", "reverse_kl": "KL to the real modes"}
    units = {"fid": "in the judge's features", "modes": "of 1000", "reverse_kl": "nats"}
    shown = [name for name in names if all(name in rows[0] for runs in curves.values() for rows in runs)]
    figure = _figure(width=6.3 * len(shown), height=3.6)
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for (loss, runs), colour in zip(curves.items(), (_KERNEL, _CONTROL, _OTHER), strict=False):
            # untrained generators would flatten all that follows; all runs have the same steps
            points = np.array([[(row["seconds"], row[name]) for row in rows if row["step"] > 0] for rows in runs])
            for seconds, values in points.swapaxes(1, 2) if len(runs) > 1 else ():
                axis.plot(seconds, values, color=colour, alpha=0.35, linewidth=0.8)
            axis.plot(*points.mean(0).T, "o-", color=colour, label=heading(loss), linewidth=1.8, markersize=4)
        if name != "modes":
            axis.set_yscale("log")
            # 20 and 30, not powers of ten
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        axis.set_title(names[name], loc="left", fontsize=11, color=_INK)
        axis.set_xlabel("seconds of training, all stages counted", color=_GREY)
        axis.set_ylabel(units[name], color=_GREY, fontsize=8.5)
        axis.set_xlim(left=0)
        axis.grid(axis="y", which="both", color="#e6e9ed", linewidth=0.8)
        _hide(axis, "top", "right", "left")
        axis.tick_params(which="minor", colors=_GREY, length=0)
        axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
    return figure


def progress_figure(data: Data, snapshots: Mapping[str, Sequence[tuple[int, Tensor]]]) -> "Figure":
    """Samples of each run from the same noise, from the first step to the last: a row for each run."""
    columns = max(len(row) for row in snapshots.values())
    figure = _figure(width=1.9 * columns, height=2.3 * len(snapshots))
    grid = figure.subplots(len(snapshots), columns, squeeze=False)
    draw = _drawing(data)
    for axes, (name, row), colour in zip(grid, snapshots.items(), (_KERNEL, _CONTROL), strict=False):
        for axis in axes:
            axis.set_axis_off()
        for axis, (step, x) in zip(axes, row, strict=False):
            draw(axis, x.numpy(), data, colour, side=4)
            axis.set_axis_off()
            axis.set_title(f"{name}, step {step}", loc="left", fontsize=8, color=colour)
    return figure


def witness_figure(
    data: Data,
    samples: Mapping[str, Tensor],
    sigma: Sequence[float],
    *,
    words: Callable[[str], str] = heading,
    see: Callable[[Tensor], Tensor] | None = None,
) -> "Figure":
    """Where each generator puts too much and where too little: the witness function of its MMD (gkfast.witness).

    see : callable, optional
        From samples to what the kernel compares; by default the samples themselves.
    """
    figure = _figure(width=6.3 * len(samples), height=5.4 if not data.is_image else 2.9)
    draw = _witness_images if data.is_image else _witness_line if data.shape == (1,) else _witness_plane
    subfigures = figure.subfigures(1, len(samples), squeeze=False)[0]
    for subfigure, (name, x) in zip(subfigures, samples.items(), strict=True):
        subfigure.suptitle(words(name), x=0.02, ha="left", fontsize=12, fontweight="bold", color=_INK)
        draw(subfigure, data, x[:_WITNESSES], partial(_witness, sigma=list(sigma), see=see or (lambda rows: rows)))
    return figure


def _witness(
    points: Tensor, fake: Tensor, real: Tensor, sigma: list[float], see: Callable[[Tensor], Tensor]
) -> np.ndarray[Any, Any]:
    points, fake, real = map(see, (points, fake, real))
    values: np.ndarray[Any, Any] = gkfast.witness(points, fake, real, sigma, weights="mean").numpy()
    return values


def _witness_plane(subfigure: Any, data: Data, x: Tensor, witness: Witness) -> None:
    """A map of the witness function over the plane of the picture, with the real samples as dots."""
    axis = subfigure.subplots(1, 1)
    plane, centre = _plane(data)
    real, points = (data.test - centre) @ plane, (x - centre) @ plane
    low, high = _frame(((data.train - centre) @ plane).numpy())
    sides = [torch.linspace(float(a), float(b), 160) for a, b in zip(low, high, strict=True)]
    spots = torch.cartesian_prod(*sides)
    values = witness(spots @ plane.T + centre, x, data.test).reshape(160, 160).T
    top = float(np.abs(values).max()) or 1.0
    shown = axis.imshow(
        values, origin="lower", extent=(low[0], high[0], low[1], high[1]), cmap="PuOr_r", vmin=-top, vmax=top
    )
    axis.scatter(*real[:400].T.numpy(), s=1.5, color=_INK, alpha=0.5, linewidths=0)
    axis.scatter(*points[:400].T.numpy(), s=1.5, color=_CONTROL, alpha=0.5, linewidths=0)
    axis.set_xlim(low[0], high[0])
    axis.set_ylim(low[1], high[1])
    _hide(axis, "top", "right", "left", "bottom")
    _name_axes(axis, data)
    axis.set_title("orange: too many generated, purple: too few", loc="left", fontsize=9, color=_GREY)
    bar = subfigure.colorbar(shown, ax=axis, shrink=0.8, format="%.1e")
    bar.set_label("witness", color=_GREY, fontsize=8.5)
    bar.ax.tick_params(labelsize=7, colors=_GREY)


def _witness_line(subfigure: Any, data: Data, x: Tensor, witness: Witness) -> None:
    axis = subfigure.subplots(1, 1)
    spots = torch.linspace(float(data.train.min()), float(data.train.max()), 400)[:, None]
    values = witness(spots, x, data.test)
    axis.fill_between(spots[:, 0].numpy(), values, color=_KERNEL, alpha=0.4, linewidth=0)
    axis.axhline(0, color=_GREY, linewidth=0.8)
    _name_axes(axis, data, "witness")
    axis.set_title("above 0: too many generated, below: too few", loc="left", fontsize=9, color=_GREY)


def _witness_images(subfigure: Any, data: Data, x: Tensor, witness: Witness) -> None:
    """The generated images that are the most too many, and the real ones that are missed most."""
    rows = (
        ("generated, too many like these", x, -witness(x, x, data.test)),
        ("real, too few like these", data.test, witness(data.test, x, data.test)),
    )
    for axis, (words, images, order) in zip(subfigure.subplots(2, 1), rows, strict=True):
        worst = np.argsort(order, kind="stable")[:10]
        axis.imshow(_sheet(images[torch.from_numpy(worst)].numpy(), data, across=10), cmap="gray", vmin=0, vmax=1)
        extreme = abs(float(order[worst[0]]))
        axis.set_title(f"{words} (witness up to {extreme:.1e})", loc="left", fontsize=9, color=_GREY)
        axis.set_axis_off()


def _drawing(data: Data) -> Callable[..., None]:
    return _draw_images if data.is_image else _draw_histogram if data.shape == (1,) else _draw_points


def _draw_images(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str, side: int = 8) -> None:
    """The first samples, in rows, as they come: none is picked."""
    axis.imshow(_sheet(x[: side * side], data, side), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()


def _sheet(x: np.ndarray[Any, Any], data: Data, across: int) -> np.ndarray[Any, Any]:
    """Images side by side, `across` in a row."""
    shape = data.shape[:2] if data.shape[2:] == (1,) else data.shape
    images = x.reshape(-1, *shape)
    low, high = (0.0, 1.0) if data.unit_range else (float(data.train.min()), float(data.train.max()))
    # a generator may leave the range of the data
    images = ((images - low) / (high - low)).clip(0, 1)
    if images.ndim == 3:
        images = 1 - images
    H, W = shape[:2]
    gap = max(1, H // 8)
    down = -(-len(images) // across)
    sheet = np.ones((down * (H + gap) - gap, across * (W + gap) - gap, *shape[2:]))
    for k, image in enumerate(images):
        top, left = k // across * (H + gap), k % across * (W + gap)
        sheet[top : top + H, left : left + W] = image
    return sheet


def _plane(data: Data) -> tuple[Tensor, Tensor]:
    """The plane of the picture, (D, 2), and its origin: the data's own, or where the real data vary most."""
    D = data.train.shape[1]
    if D == 2:
        return torch.eye(2), torch.zeros(2)
    if data.plane is not None:
        return data.plane, torch.zeros(D)
    centre = data.train.mean(0)
    return torch.linalg.svd(data.train[:5000] - centre, full_matrices=False).Vh[:2].T, centre


def _frame(real: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A square around the real points."""
    low, high = real.min(0), real.max(0)
    middle, half = (low + high) / 2, 0.625 * (high - low).max() + 1e-6
    return middle - half, middle + half


def _draw_points(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str, side: int = 8) -> None:
    """Points in the plane; of more dimensions, the two along which the real data vary most."""
    plane, centre = (t.numpy() for t in _plane(data))
    low, high = _frame((data.train.numpy() - centre) @ plane)
    points = (x[:2500] - centre) @ plane
    axis.scatter(points[:, 0], points[:, 1], s=5 if side == 8 else 2, color=colour, alpha=0.35, linewidths=0)
    axis.set_xlim(low[0], high[0])
    axis.set_ylim(low[1], high[1])
    axis.set_aspect("equal")
    _hide(axis, "top", "right", "left", "bottom")
    _name_axes(axis, data)
    axis.grid(color="#eef1f4", linewidth=0.8)
    axis.set_axisbelow(True)


def _draw_histogram(axis: "Axes", x: np.ndarray[Any, Any], data: Data, colour: str, side: int = 8) -> None:
    low, high = float(data.train.min()), float(data.train.max())
    axis.hist(x[:, 0].clip(low, high), bins=60, range=(low, high), density=True, color=colour)
    _hide(axis, "top", "right", "left")
    _name_axes(axis, data, "density")


def _name_axes(axis: "Axes", data: Data, second: str = "") -> None:
    """The names of a table's columns, or what else the axes are; columns are scaled."""
    if data.train.shape[1] > 2:
        names = ["first direction", "second direction"] if data.plane is not None else ["widest direction", "second"]
        names = [f"{name}, of scaled columns" if data.columns is not None else name for name in names]
    elif data.columns is not None:
        # a dollar would begin a formula
        names = [f"{name:.40}, scaled".replace("$", r"\$") for name in data.columns.names]
    else:
        names = ["x", "y"]
    axis.set_xlabel(names[0], color=_GREY, fontsize=8.5)
    axis.set_ylabel(second or names[1], color=_GREY, fontsize=8.5)


def _hide(axis: "Axes", *sides: str) -> None:
    """Leave out the ticks, and these sides of the frame."""
    axis.tick_params(colors=_GREY, length=0)
    axis.spines[list(sides)].set_visible(False)


def _figure(width: float, height: float) -> "Figure":
    # pyplot would keep the figure, and ask for a display
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # wider than the default, which sets sheets of images almost side by side
    layout = ConstrainedLayoutEngine(wspace=0.06, w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def pixels(drawn: bytes) -> np.ndarray[Any, Any]:
    """A picture in PNG as bytes of shape (H, W, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
