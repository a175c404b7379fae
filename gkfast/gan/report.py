"""Pictures of a run, and one page with them: real samples beside generated ones, with and without the kernel."""

import base64
import html
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


# key in metrics.json: (name, explanation, whether smaller is better or neither, digits)
_METRICS: dict[str, tuple[str, str, bool | None, str]] = {
    "fid": ("FID", "Fréchet distance to held-out data in the classifier's features", True, ".1f"),
    "kid": ("KID", "polynomial MMD² to held-out data in those features", True, ".1f"),
    "classes": ("Classes", "digits that make up more than 2 % of the samples, of 10", False, ".0f"),
    "class_kl": ("Class KL", "from the generated to the real class frequencies, in nats", True, ".4f"),
    "parzen": ("Parzen log-density", "of held-out data under the samples, in nats", False, ".1f"),
    "strict_modes": ("Strict modes", "with a fifth of their fair share of good samples", False, ".0f"),
    "modes": ("Modes", "with one good sample or more", False, ".0f"),
    "high_quality": (
        "High quality",
        "fraction of samples within 3 standard deviations of a mode",
        False,
        ".3f",
    ),
    "reverse_kl": ("Reverse KL", "from the generated to the real mode frequencies, in nats", True, ".4f"),
    "recall": ("Recall", "share of the spiral that is covered", False, ".3f"),
    "median_distance": ("Median distance", "of samples to the spiral", True, ".4f"),
    "mmd2": ("MMD²", "to held-out data, unbiased; 0 where the distributions agree", True, ".5f"),
    "p_value": ("p-value", "of the permutation test that the two distributions agree", False, ".3f"),
    "manifold_precision": ("Precision", "share of samples among the real ones", False, ".3f"),
    "manifold_recall": ("Manifold recall", "share of real data among the samples", False, ".3f"),
    "density": ("Density", "of real data around the samples", False, ".3f"),
    "coverage": ("Coverage", "share of real data with a sample beside them", False, ".3f"),
    "nearest_pixels": (
        "Nearest",
        "distance to the nearest training image, over held-out ones'; 0 copies",
        None,
        ".2f",
    ),
    "nearest_features": ("Nearest in features", "the same of the classifier", None, ".2f"),
    "seconds": ("Seconds", "of training, all stages", True, ".1f"),
    "encoder_seconds": ("Encoder", "seconds of these that trained it", True, ".1f"),
    "code_seconds": ("Codes", "seconds of these that matched codes", True, ".1f"),
}


def write(folder: Path, data: Data, gans: Sequence[TrainedGan], summary: Mapping[str, Any]) -> None:
    """The pictures and report.html, of the run's GAN and its control, if there is one; `summary` is metrics.json."""
    checks.require("matplotlib", "the report", "matplotlib")
    samples = {gan.loss: gan.samples for gan in gans}
    figures = {
        "samples.png": pictures.samples_figure(data, samples),
        "witness.png": pictures.witness_figure(data, samples, summary["sigma"]),
        "progress.png": pictures.progress_figure(data, {gan.loss: gan.snapshots for gan in gans}),
        "curves.png": pictures.curves_figure({gan.loss: gan.history for gan in gans}),
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
        "data": summary["data"],
        "loss": summary["loss"],
        "weight of the kernel term": f"{summary['lam']:g}",
        "bandwidths sigma": f"{sigma} (units of the data, frozen)",
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
        settings="".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in settings.items()),
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


def _seen(summary: Mapping[str, Any]) -> str:
    """The figures in a sentence or two."""
    runs = [(f"with the loss {summary['loss']}", summary)]
    if "control" in summary:
        runs.append(("without the kernel", summary["control"]))
    clauses = []
    for words, figures in runs:
        if "fid" in figures:
            clauses.append(f"{words} the FID is {figures['fid']:.1f} (coverage {figures['coverage']:.2f})")
        elif "classes" in figures:
            clauses.append(
                f"{words} {figures['classes']} of 10 digits are drawn (class KL {figures['class_kl']:.3f})"
            )
        elif "strict_modes" in figures:
            share = f"{figures['high_quality']:.0%} of the samples on them"
            clauses.append(f"{words} {figures['strict_modes']} modes are held ({share})")
        elif "modes" in figures:
            clauses.append(f"{words} {figures['modes']} of 1000 modes are drawn (KL {figures['reverse_kl']:.2f})")
        elif "recall" in figures:
            near = f"median distance {figures['median_distance']:.3f}"
            clauses.append(f"{words} {figures['recall']:.0%} of the spiral is covered ({near})")
        else:
            clauses.append(f"{words} the squared MMD to held-out data is {figures['mmd2']:.2g}")
    text = ", ".join(clauses)
    text = text[0].upper() + text[1:] + "."
    if "control" in summary:
        figure = "FID" if "fid" in summary else "squared MMD to held-out data"
        with_kernel, without = (figures["fid" if "fid" in summary else "mmd2"] for _, figures in runs)
        if with_kernel <= 0 or without <= 0:
            closer = "The two are too near to the data for their squared MMD to be told apart from zero"
        elif abs(with_kernel - without) < 0.1 * max(with_kernel, without):
            closer = f"The {figure} is about the same with and without it"
        elif with_kernel < without:
            closer = f"The kernel brings the {figure} down {without / with_kernel:.1f} times"
        else:
            closer = f"Here the kernel did not help: the {figure} is {with_kernel / without:.1f} times larger"
        same = summary["control"]["steps"] == summary["steps"]
        first, second = (f"{figures['seconds']:.0f} s" for _, figures in runs)
        text += f" {closer}, " + (
            "at the same number of steps." if same else f"in {first}, all counted, against {second}."
        )
    return text


def _table(summary: Mapping[str, Any]) -> str:
    columns = [(summary["loss"], summary)]
    if "control" in summary:
        columns.append((f"{summary['control']['loss']} (no kernel)", summary["control"]))
    columns.append(("real training data", summary["real"]))
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    rows = []
    for key, (name, explanation, smaller, form) in _METRICS.items():
        if key not in summary:
            continue
        # the best of the generators: the real data are a yardstick, not a rival
        values = [figures.get(key) for _, figures in columns[:-1]]
        known = [value for value in values if value is not None]
        best = min(known) if smaller else max(known)
        marked = smaller is not None and len(known) > 1 and len(set(known)) > 1
        cells = "".join(
            f"<td{' class=best' if marked and value == best else ''}>{_cell(value, form)}</td>" for value in values
        )
        real = columns[-1][1].get(key)
        cells += f"<td class=real>{_cell(real, form)}</td>"
        rows.append(f"<tr><th scope=row>{name}<small>{explanation}</small></th>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


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
<p class="note">Training saw none of the data that the samples are compared with. The better values are in bold; the
last column is what the real training data themselves score.</p>
<h2>Where there is too much and too little</h2>
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
