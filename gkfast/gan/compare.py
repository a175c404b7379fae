"""Two sets of samples compared: `gkfast eval`, its figures, pictures and page."""

import base64
import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gkfast
from gkfast.gan import checkpoint, checks, files, metrics, own, pictures, report
from gkfast.gan.data import Data
from gkfast.gan.files import Samples
from gkfast.gan.networks import Channels

# of each sample that MMD^2, its variance and KID look at
_ROWS = 2_500
# of a normal distribution, for 95 %
_DEVIATIONS = 1.96
See = Callable[[Tensor], Tensor]


def matched(real: Samples, fake: Samples) -> Samples:
    """The fake samples with the columns in the order of the real ones; refused if they are not of one kind."""
    if real.columns and fake.columns and real.columns != fake.columns:
        missing = [name for name in real.columns if name not in fake.columns]
        if missing or len(real.columns) != len(fake.columns):
            named = f"without {missing[0]!r}" if missing else f"{len(fake.columns)} columns"
            raise ValueError(
                f"FAKE must have the {len(real.columns)} columns of REAL, got {named}; leave other columns out"
            )
        order = [fake.columns.index(name) for name in real.columns]
        return Samples(fake.name, fake.rows[:, order], fake.shape, columns=real.columns)
    if real.rows.shape[1] != fake.rows.shape[1] or (real.image and fake.image and real.shape[:2] != fake.shape[:2]):
        raise ValueError(
            f"FAKE must have samples of the shape of REAL's, {real.shape}, got {fake.shape}; save or scale them alike"
        )
    return fake


def features(text: str, real: Samples) -> See:
    """What module:function makes of samples: a function of a batch, or one without arguments that returns a module.

    It gets images as (N, C, H, W) and other samples as (N, D).
    """
    network = own.network("--features", text).eval()
    shaped: Any = Channels(real.shape) if real.image else nn.Identity()

    @torch.no_grad()
    def see(rows: Tensor) -> Tensor:
        parts = []
        for some in rows.split(500):
            try:
                found = network(shaped(some))
                found = found[-1] if isinstance(found, list | tuple) else found
                parts.append(found.flatten(1).float())
            # it may raise anything
            except Exception as error:
                raise ValueError(
                    f"--features must give a tensor (N, F) of a batch {tuple(shaped(some).shape)}, got "
                    f"{own.reason(error)} from {text!r}; mend it"
                ) from error
            if len(parts[-1]) != len(some) or not parts[-1].isfinite().all():
                got = f"shape {tuple(found.shape)}" if len(parts[-1]) != len(some) else "NaN or infinity"
                raise ValueError(f"--features must give a row of finite numbers for each sample, got {got}; mend it")
        return torch.cat(parts)

    return see


def compare(real: Samples, fake: Samples, *, named: str | None = None, seed: int = 0) -> tuple[dict[str, Any], See]:
    """The figures, and what the kernel compares: features, pixels, or columns in units of the real deviation."""
    if named is not None:
        see, words = features(named, real), f"features of {named}"
    elif real.image:
        see, words = lambda rows: rows, "pixels"
    else:
        mean, deviation = real.rows.mean(0), real.rows.std(0)
        # a constant column stays in its own units
        unit = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        see, words = lambda rows: (rows - mean) / unit, "columns, less the real mean and over the real deviation"
    order = torch.Generator().manual_seed(seed)
    picked = [rows[torch.randperm(len(rows), generator=order)[:_ROWS]] for rows in (real.rows, fake.rows)]
    x, y = map(see, picked)
    sigma = metrics.sigma_by_rule(x, "median", metrics._LADDER)
    value, error, p_value = _mmd2(y, x, sigma, seed)
    least = min(len(x), len(y))
    # subsets that are no more than half of the rows differ from each other
    neighbours, subset = min(least, metrics._NEIGHBOURS_OF), min(least // 2, 1000)
    found = {
        "gkfast": gkfast.__version__,
        "real": {"name": real.name, "rows": len(real.rows)},
        "fake": {"name": fake.name, "rows": len(fake.rows)},
        "shape": list(real.shape),
        "compared": words,
        "sigma": sigma,
        "mmd2": value,
        "mmd2_deviation": error,
        "mmd2_interval": [value - _DEVIATIONS * error, value + _DEVIATIONS * error],
        "p_value": p_value,
        **metrics.kid(x, y, subset_size=subset, seed=seed),
        **metrics.prdc(x[:neighbours], y[:neighbours]),
        "rows_compared": {
            "mmd2": [len(x), len(y)],
            "p_value": [min(len(rows), metrics._TESTED) for rows in (x, y)],
            "kid": [subset, subset],
            "manifold_precision": [neighbours, neighbours],
        },
        "seed": seed,
    }
    if named is not None:
        found["fid"] = metrics.fid(x, y)
    return found, see


def _mmd2(fake: Tensor, real: Tensor, sigma: list[float], seed: int) -> tuple[float, float, float]:
    """The unbiased MMD^2, its standard error, and the p-value."""
    estimate = gkfast.mmd2_and_variance(fake, real, sigma, weights="mean")
    x, y = fake[: metrics._TESTED], real[: metrics._TESTED]
    test = gkfast.mmd_test(
        x, y, sigma, weights="mean", permutations=metrics._PERMUTATIONS, seed=seed, null_statistics=True
    )
    # where the distributions are near each other the unbiased variance may fall below zero; it is at least that of
    # equal ones, which goes with the square of 1/N + 1/M
    shrunk = (1 / len(fake) + 1 / len(real)) / (1 / len(x) + 1 / len(y))
    null: Any = test.null_statistics
    variance = max(float(estimate.variance), float(null.var()) * shrunk**2)
    return float(estimate.mmd2), variance**0.5, float(test.p_value)


def sentence(found: Mapping[str, Any]) -> str:
    """The verdict, and how sure it is."""
    low, high = found["mmd2_interval"]
    rows = found["rows_compared"]["p_value"]
    about = f"MMD² {found['mmd2']:.3g}, 95 % interval {low:.2g} to {high:.2g}, p = {found['p_value']:.3g}"
    if found["p_value"] <= 0.05:
        return f"The two are told apart: {about}."
    return f"With {rows[0]} generated and {rows[1]} real rows no difference is seen: {about}. More rows may show one."


def _rows_of_table(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    low, high = found["mmd2_interval"]
    of = {key: "{} and {} rows".format(*rows) for key, rows in found["rows_compared"].items()}
    table = [
        ("MMD²", f"{found['mmd2']:.5f}", f"unbiased, 0 where the distributions agree; {of['mmd2']}"),
        ("95 % interval", f"{low:.5f} to {high:.5f}", "estimate and 1.96 of its deviations"),
        ("p-value", f"{found['p_value']:.4g}", f"of the permutation test that they agree; {of['p_value']}"),
        ("KID", f"{found['kid']:.4g} ± {found['kid_std']:.2g}", f"polynomial MMD², subsets of {of['kid']}"),
        ("Precision", f"{found['manifold_precision']:.3f}", "share of FAKE among REAL"),
        ("Recall", f"{found['manifold_recall']:.3f}", "share of REAL among FAKE"),
        ("Density", f"{found['density']:.3f}", "of REAL around FAKE, 1 where they agree"),
        ("Coverage", f"{found['coverage']:.3f}", f"share of REAL with FAKE beside it; {of['manifold_precision']}"),
    ]
    if "fid" in found:
        table.insert(4, ("FID", f"{found['fid']:.4g}", f"Fréchet distance of the features; {of['mmd2']}"))
    return table


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures for a terminal."""
    head = [sentence(found), f"compared: {found['compared']}"]
    return head + [f"{name:<14} {value:<24} {words}" for name, value, words in _rows_of_table(found)]


def write(folder: Path, real: Samples, fake: Samples, found: Mapping[str, Any], see: See) -> None:
    """report.html with its pictures, and metrics.json."""
    checks.require("matplotlib", "the report", "matplotlib")
    table = not real.image and "features" not in found["compared"]
    # tables are drawn as they are compared
    x, y = (see(sample.rows) if table else sample.rows for sample in (real, fake))
    data = Data(real.name, x, x, x[:_ROWS], real.shape, real.unit_range)
    generated = {f"FAKE: {_plain(fake.name)}": y}
    witnessed = None if table else see
    drawn = {
        "samples.png": pictures.png(
            pictures.samples_figure(data, generated, real=f"REAL: {_plain(real.name)}", words=str)
        ),
        "witness.png": pictures.png(
            pictures.witness_figure(data, generated, found["sigma"], words=str, see=witnessed)
        ),
    }
    files.make_folder(folder, str(folder))
    for name, picture in drawn.items():
        checkpoint.write(folder / name, picture)
    checkpoint.write(folder / "metrics.json", (json.dumps(found, indent=2) + "\n").encode())
    checkpoint.write(folder / "report.html", _page(found, drawn).encode())


def _plain(name: str) -> str:
    """A name that matplotlib takes for no formula."""
    return name.replace("$", r"\$")


def _page(found: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    image = {name: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for name, png in drawn.items()}
    rows = "".join(
        f"<tr><th scope=row>{name}<small>{html.escape(words)}</small></th><td>{value}</td></tr>"
        for name, value, words in _rows_of_table(found)
    )
    settings = {
        "REAL": f"{found['real']['name']}, {found['real']['rows']} rows",
        "FAKE": f"{found['fake']['name']}, {found['fake']['rows']} rows",
        "compared": found["compared"],
        "bandwidths sigma": f"{', '.join(f'{s:.4g}' for s in found['sigma'])} (from REAL)",
        "seed": found["seed"],
        "gkfast": found["gkfast"],
    }
    return (report.HEAD + _BODY).format(
        title=html.escape(f"{found['fake']['name']} against {found['real']['name']}"),
        seen=html.escape(sentence(found)),
        samples=image["samples.png"],
        witness=image["witness.png"],
        table=f"<table><tbody>{rows}</tbody></table>",
        settings="".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in settings.items()),
    )


_BODY = """<body>
<h1>{title}</h1>
<p class="seen">{seen}</p>
<img src="{samples}" alt="real samples beside generated ones">
<p class="note">The first samples of each, none picked.</p>
<h2>Metrics</h2>
{table}
<p class="note">The interval is a normal one: near 0 the estimate is skewed, and the p-value decides.</p>
<h2>Where there is too much and too little</h2>
<img src="{witness}" alt="witness function between generated and real samples">
<p class="note">The witness function of the MMD: mean kernel to FAKE less mean kernel to REAL.</p>
<h2>Settings</h2>
<dl>{settings}</dl>
</body>
</html>
"""
