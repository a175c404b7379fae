"""Pictures of a run, and one page with them: real samples beside generated ones, with and without the kernel."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gkfast.gan import checkpoint, checks, pictures
from gkfast.gan.data import Data


@dataclass(frozen=True)
class TrainedGan:
    """A trained GAN of a run: its loss, samples, records, snapshots, and figures while training and at its end."""

    loss: str
    samples: Tensor
    history: list[dict[str, float]]
    snapshots: list[tuple[int, Tensor]]
    quality: list[dict[str, Any]]
    figures: dict[str, Any]


# key in metrics.json: (name, explanation, digits); {features} is what judges images
_METRICS: dict[str, tuple[str, str, str]] = {
    "fid": ("FID", "Fréchet distance to held-out data in {features}", ".4g"),
    "kid": ("KID", "polynomial MMD² to held-out data in {features}", ".4g"),
    "classes": ("Classes", "that make up more than 2 % of the samples", ".0f"),
    "class_kl": ("Class KL", "from the generated to the real class frequencies, in nats", ".4f"),
    "parzen": ("Parzen log-density", "of held-out data under the samples, in nats", ".1f"),
    "strict_modes": ("Strict modes", "with a fifth of their fair share of good samples", ".0f"),
    "modes": ("Modes", "with one good sample or more", ".0f"),
    "high_quality": ("High quality", "fraction of samples within 3 standard deviations of a mode", ".3f"),
    "reverse_kl": ("Reverse KL", "from the generated to the real mode frequencies, in nats", ".4f"),
    "reverse_kl_of_all": ("Reverse KL of all", "the same of 10 000 samples: chance counts for less", ".4f"),
    "recall": ("Recall", "share of the spiral that is covered", ".3f"),
    "median_distance": ("Median distance", "of samples to the spiral", ".4f"),
    "mmd2": ("MMD²", "to held-out data in {raw}, unbiased; 0 where the distributions agree", ".5f"),
    "p_value": ("p-value", "of the permutation test in {raw} that the two distributions agree", ".3f"),
    "mean_error": ("Worst mean", "of a column, in real standard deviations off", ".3f"),
    "deviation_ratio": ("Worst deviation", "of a column: times as wide, or as narrow, as the real one", ".3g"),
    "correlation_error": ("Correlations", "each column's worst, its error, mean over columns", ".3f"),
    "manifold_precision": ("Precision", "share of samples among the real ones, in {features}", ".3f"),
    "manifold_recall": ("Manifold recall", "share of real data among the samples, in {features}", ".3f"),
    "density": ("Density", "of real data around the samples, in {features}", ".3f"),
    "coverage": ("Coverage", "share of real data with a sample beside them, in {features}", ".3f"),
    "raw_precision": ("Precision", "the same in {raw}", ".3f"),
    "raw_recall": ("Manifold recall", "the same in {raw}", ".3f"),
    "nearest_pixels": ("Nearest", "distance to the nearest training image, over held-out ones'; 0 copies", ".2f"),
    "nearest_features": ("Nearest", "the same in {features}", ".2f"),
    "seconds": ("Seconds", "of training, all stages", ".1f"),
    "encoder_seconds": ("Encoder", "seconds of these that trained it", ".1f"),
    "code_seconds": ("Codes", "seconds of these that matched codes", ".1f"),
}
# neither says which samples are better: a large p-value may be that of few rows
_UNRANKED = ("p_value", "nearest_pixels", "nearest_features", "seconds", "encoder_seconds", "code_seconds")
# a difference counts from so many standard errors on
_ERRORS = 2.0
# the level of the test in the verdict
_LEVEL = 0.05
# columns of the table of columns
_COLUMNS = 60


def write(folder: Path, data: Data, gans: Sequence[TrainedGan], summary: Mapping[str, Any]) -> None:
    """The pictures and report.html, of the run's GAN and its control, if there is one; `summary` is metrics.json."""
    checks.require("matplotlib", "the report", "matplotlib")
    samples = {gan.loss: gan.samples for gan in gans}
    figures = {
        "samples.png": pictures.samples_figure(data, samples),
        "witness.png": pictures.witness_figure(data, samples, summary["sigma"]),
        "progress.png": pictures.progress_figure(data, {gan.loss: gan.snapshots for gan in gans}),
        "curves.png": pictures.curves_figure(
            {gan.loss: gan.history for gan in gans}, tuple(summary["rows"]["curves"])
        ),
    }
    if summary["quality"]:
        figures["quality.png"] = pictures.quality_figure({loss: [rows] for loss, rows in summary["quality"].items()})
    drawn = {name: pictures.png(figure) for name, figure in figures.items()}
    for name, picture in drawn.items():
        checkpoint.write(folder / name, picture)
    checkpoint.write(folder / "report.html", page(summary, drawn).encode())


def page(summary: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The report as one HTML page that needs nothing beside it."""
    image = {name: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for name, png in drawn.items()}
    sigma = ", ".join(f"{s:.4g}" for s in summary["sigma"])
    settings = {
        "data": f"{summary['data']}: {summary['note']}" if summary["note"] else summary["data"],
        **({"judged in": summary["judged_by"]} if summary["judged_by"] else {}),
        "loss": summary["loss"],
        "weight of the kernel term": f"{summary['lam']:g}",
        "bandwidths sigma": f"{sigma} (units of {_raw(summary)}, frozen)",
        "mean kernel values at the end": (
            "generated {k_xx:.3f}, real {k_yy:.3f}, between them {k_xy:.3f}".format(**summary)
        ),
        **_encoder(summary),
        "steps": f"{summary['steps']}, batches of {summary['batch']}",
        "learning rates": f"{summary['generator_rate']:g} and {summary['discriminator_rate']:g}, cosine to "
        f"{summary['final_rate']:g} of it"
        + (f", risen to in {summary['warmup']} steps" if summary["warmup"] else ""),
        "seed": summary["seed"],
        "gkfast": summary["gkfast"],
    }
    return _PAGE.format(
        title=html.escape(f"{summary['loss']} on {summary['data']}"),
        seen=html.escape(_seen(summary)),
        samples=image["samples.png"],
        witness=image["witness.png"],
        progress=image["progress.png"],
        curves=image["curves.png"],
        quality=_QUALITY.format(image["quality.png"]) if "quality.png" in image else "",
        table=_table(summary),
        columns=_columns(summary) if "columns" in summary else "",
        rows="{} samples against {} real rows".format(*summary["rows"]["metrics"]),
        features=html.escape(f"\nThe features are those of {summary['judged_by']}." if "fid" in summary else ""),
        settings="".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in settings.items()),
    )


def _encoder(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the encoder, where the kernel compares its outputs."""
    if summary["space"] != "encoder":
        return {}
    layers = zip(summary["compared"], summary["encoder_sigma"], strict=True)
    own = f"an autoencoder with a code of {summary['code']}, trained for {summary['encoder_steps']} steps"
    return {
        "the kernel compares": f"outputs of {summary['encoder'] or own}, frozen",
        "bandwidths there": "; ".join(f"layer {k}: {', '.join(f'{s:.4g}' for s in sigma)}" for k, sigma in layers),
        "codes": "drawn from a Gaussian kernel density of the data's"
        if summary["code_prior"] == "kernel"
        else f"matched by {summary['code_loss']} for {summary['code_steps']} steps of {summary['code_batch']}",
    }


def _raw(summary: Mapping[str, Any]) -> str:
    """What is compared where no features are."""
    return "scaled columns" if "columns" in summary else "the data"


def _runs(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Words for each GAN, and its figures."""
    runs = [(f"with the loss {summary['loss']}", summary)]
    return [*runs, ("without the kernel", summary["control"])] if "control" in summary else runs


def _seen(summary: Mapping[str, Any]) -> str:
    """The figures in a few sentences."""
    runs = _runs(summary)
    clauses = []
    for words, figures in runs:
        if "fid" in figures:
            clauses.append(f"{words} the FID is {figures['fid']:.4g} (coverage {figures['coverage']:.2f})")
        elif "classes" in figures:
            clauses.append(
                f"{words} {figures['classes']} of {summary['real']['classes']} classes are drawn "
                f"(class KL {figures['class_kl']:.3f})"
            )
        elif "strict_modes" in figures:
            share = f"{figures['high_quality']:.0%} of the samples on them"
            clauses.append(f"{words} {figures['strict_modes']} modes are held ({share})")
        elif "modes" in figures:
            clauses.append(f"{words} {figures['modes']} of 1000 modes are drawn (KL {figures['reverse_kl']:.2f})")
        elif "recall" in figures:
            near = f"median distance {figures['median_distance']:.3f}"
            clauses.append(f"{words} {figures['recall']:.0%} of the spiral is covered ({near})")
        elif "columns" in summary:
            clauses.append(
                f"{words} the worst mean of a column is {figures['mean_error']:.2g} standard deviations off, the "
                f"worst deviation {figures['deviation_ratio']:.3g} times off"
            )
        else:
            clauses.append(f"{words} the squared MMD to held-out data is {figures['mmd2']:.2g}")
    text = ", ".join(clauses)
    return f"{text[0].upper()}{text[1:]}. {_test(summary)} {_comparison(summary)}".strip()


def _test(summary: Mapping[str, Any]) -> str:
    """Which generators the test tells from the data; each is named by itself."""
    runs = _runs(summary)
    told = [words for words, figures in runs if figures["p_value"] <= _LEVEL]
    values = " and ".join(f"{figures['p_value']:.2g}" for _, figures in runs)
    if len(told) in (0, len(runs)):
        both = {
            2: "tells both",
            1: "tells the samples",
            0: "tells neither" if len(runs) > 1 else "does not tell the samples",
        }
        return f"The permutation test {both[len(told)]} from held-out data (p = {values})."
    other = next(words for words, _ in runs if words not in told)
    return f"The permutation test tells samples {told[0]} from held-out data, and not those {other} (p = {values})."


def _comparison(summary: Mapping[str, Any]) -> str:
    """What the kernel changes in the main figure, if that is more than the error of the estimate."""
    if "control" not in summary:
        return ""
    control = summary["control"]
    key = "fid" if "fid" in summary else "mmd2"
    name = {"fid": "FID", "mmd2": "squared MMD to held-out data"}[key]
    with_kernel, without = summary[key], control[key]
    values = f"{with_kernel:.3g} with the kernel, {without:.3g} without"
    if not _apart(key, summary, control):
        closer = f"The {name} differs by no more than the error of its estimate: {values}"
    elif min(with_kernel, without) <= 0 or max(with_kernel, without) < 1.1 * min(with_kernel, without):
        closer = f"The {name} is {'smaller' if with_kernel < without else 'larger'} with the kernel: {values}"
    elif with_kernel < without:
        closer = f"The kernel brings the {name} down {without / with_kernel:.1f} times"
    else:
        closer = f"Here the kernel did not help: the {name} is {with_kernel / without:.1f} times larger"
    first, second = (f"{figures['seconds']:.0f} s" for _, figures in _runs(summary))
    same = control["steps"] == summary["steps"]
    return f"{closer}, " + ("at the same number of steps." if same else f"in {first}, all counted, against {second}.")


def _apart(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two figures differ by more than the error of both estimates."""
    errors = (figures.get("errors", {}).get(key, 0.0) for figures in (one, other))
    return bool(abs(one[key] - other[key]) > _ERRORS * math.hypot(*errors))


def _table(summary: Mapping[str, Any]) -> str:
    columns = [(summary["loss"], summary)]
    if "control" in summary:
        columns.append((f"{summary['control']['loss']} (no kernel)", summary["control"]))
    columns.append(("real training data", summary["real"]))
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    raw = "scaled columns" if "columns" in summary else "pixels" if "fid" in summary else "the data"
    spaces = {"features": "the features" if "fid" in summary else raw, "raw": raw}
    rows = []
    for key, (name, explanation, form) in _METRICS.items():
        if key not in summary:
            continue
        marked = _nearer(key, [figures for _, figures in columns])
        cells = []
        for k, (_, figures) in enumerate(columns):
            kind = " class=real" if k == len(columns) - 1 else " class=best" if k == marked else ""
            cells.append(f"<td{kind}>{_cell(key, figures, form)}</td>")
        words = html.escape(explanation.format(**spaces))
        rows.append(f"<tr><th scope=row>{name}<small>{words}</small></th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _nearer(key: str, figures: Sequence[Mapping[str, Any]]) -> int | None:
    """Which of two generators is nearer to the real data, the last figures, by more than the error; or None."""
    *gans, real = figures
    if key in _UNRANKED or len(gans) < 2 or not all(key in each for each in figures):
        return None
    off = [abs(each[key] - real[key]) for each in gans]
    if off[0] == off[1] or not _apart(key, *gans):
        return None
    return off.index(min(off))


def _columns(summary: Mapping[str, Any]) -> str:
    """A table of every column: the real one, and that of each generator below it."""
    names = list(summary["columns"])
    many = len(summary["columns"]["real"])
    # the worst first
    order = sorted(range(many), key=lambda k: -max(summary["columns"][name][k]["mean_error"] for name in names))
    rows = []
    for k in order[:_COLUMNS]:
        for at, name in enumerate(names):
            column = summary["columns"][name][k]
            title = f"<th scope=row>{html.escape(column['name'])}<small>{html.escape(column['kind'])}</small></th>"
            error = "" if at == 0 else f"{column['correlation_error']:.2f} ({html.escape(column['with'])})"
            cells = "".join(f"<td>{column[key]:.4g}</td>" for key in ("mean", "deviation", "least", "greatest"))
            kind = " class=real" if at == 0 else ""
            title = title if at == 0 else "<th></th>"
            rows.append(f"<tr{kind}>{title}<td>{html.escape(name)}</td>{cells}<td>{error}</td></tr>")
    head = (
        "<th></th><th></th><th>mean</th><th>deviation</th><th>least</th><th>greatest</th><th>correlation error</th>"
    )
    shown = "" if many <= _COLUMNS else f" The {_COLUMNS} worst of {many} columns are shown."
    return _COLUMN_TABLE.format(shown=shown, head=head, rows="".join(rows))


def _cell(key: str, figures: Mapping[str, Any], form: str) -> str:
    if key not in figures:
        return ""
    error = figures.get("errors", {}).get(key)
    value = format(figures[key], form)
    return f"{value}<small>± {error:.1g}</small>" if error else value


_COLUMN_TABLE = """<h2>Columns</h2>
<p class="note">Held-out rows of each column, and what was generated. A correlation error is the greatest of the
column's correlations, with the other column in brackets. The worst mean comes first.{shown}</p>
<table class="columns"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>
"""

_QUALITY = """<img src="{}" alt="quality over the seconds of training">
<p class="note">Quality over the seconds of training, all stages counted; measuring it was not.</p>
"""

# of this page, and of that of gkfast eval
HEAD = """<!doctype html>
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
.columns td, .columns th {{ padding: .2rem .6rem; font-size: .86rem; }}
small {{ display: block; font-weight: 400; font-size: .82rem; line-height: 1.35; }}
.best {{ font-weight: 700; color: #0b7285; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .92rem; margin: 0; }}
dd {{ margin: 0; }}
@media (max-width: 40rem) {{ th, td {{ padding: .4rem; }} }}
</style>
</head>
"""

_PAGE = (
    HEAD
    + """<body>
<h1>{title}</h1>
<p class="seen">{seen}</p>
<img src="{samples}" alt="real samples beside generated ones">
<p class="note">The first samples of each, none picked.</p>
<h2>Metrics</h2>
{table}
<p class="note">Training saw none of the data that the samples are compared with: {rows}, fewer where a figure costs
more. The last column is what the real training data themselves score. Bold is what is nearer to it, where two values
differ by more than twice the standard error of both (±, as far as there is an estimate of it).{features}</p>
{columns}<h2>Where there is too much and too little</h2>
<img src="{witness}" alt="witness function between generated and real samples">
<p class="note">The witness function of the MMD: mean kernel to generated less mean kernel to real samples, that were
held out.</p>
<h2>While training</h2>
<img src="{progress}" alt="samples from the same noise at several steps">
{quality}<img src="{curves}" alt="losses and kernel means over the steps">
<h2>Settings</h2>
<dl>{settings}</dl>
</body>
</html>
"""
)
