"""The file of `python bench/gpu.py --first`: a row of JSON after each check, and what the rows say in the end."""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path


def read(place):
    """The rows of a file that may be cut off anywhere."""
    rows = []
    if place.exists():
        for line in place.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and {"run", "stage", "name"} <= row.keys():
                rows.append(row)
    return rows


def code_of(folder):
    """A name for the contents of the kernels: rows of other ones are not theirs."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


class Record:
    """The file. It goes on behind rows of the same kernels on the same device; `rows` are these and the new ones."""

    def __init__(self, place, code, device, over=False):
        self.place, self.lock, self.start = Path(place), threading.Lock(), time.monotonic()
        self.place.parent.mkdir(parents=True, exist_ok=True)
        if over:
            self.place.unlink(missing_ok=True)
        before = read(self.place)
        own = {r["run"] for r in before if r["stage"] == "run" and (r.get("code"), r.get("gpu")) == (code, device)}
        self.rows = [row for row in before if row["run"] in own]
        self.done = {(row["stage"], row["name"]) for row in self.rows}
        self.run = max((row["run"] for row in before), default=0) + 1
        cut = self.place.exists() and not self.place.read_bytes().endswith(b"\n")
        self.file = os.open(self.place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if cut:
            # a line that was cut off stays alone
            os.write(self.file, b"\n")
        self.add([{"stage": "run", "name": "run", "code": code, "gpu": device}])

    def add(self, rows):
        """Append these rows, and have them on the disk."""
        with self.lock:
            rows = [{"run": self.run, "t": round(time.monotonic() - self.start, 2), **row} for row in rows]
            text = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode())
            while text:
                text = text[os.write(self.file, text) :]
            os.fsync(self.file)
            self.rows += rows

    def close(self):
        os.close(self.file)


# what the rows say


def is_bad(row):
    return "failed" in row or "wrong" in row


def what_is_wrong(row):
    return row.get("failed") or row.get("wrong") or ""


def latest(rows):
    """The last row of each name, of the kernels that ran last."""
    runs = [row for row in rows if row["stage"] == "run"]
    if not runs:
        return []
    own = {r["run"] for r in runs if (r.get("code"), r.get("gpu")) == (runs[-1].get("code"), runs[-1].get("gpu"))}
    found = {}
    for row in rows:
        if row["run"] in own:
            # in the order of the last ones
            found.pop((row["stage"], row["name"]), None)
            found[row["stage"], row["name"]] = row
    return list(found.values())


def report(place):
    """The text of a file."""
    return "\n".join(lines_of(latest(read(Path(place)))))


def lines_of(rows):
    if not rows:
        return ["no rows"]
    by_stage = {}
    for row in rows:
        by_stage.setdefault(row["stage"], {})[row["name"]] = row
    parts = (_header, _stages, _failures, _accuracy, _of_k_alone, _sanitizer, _timings, _tests)
    found = []
    for part in parts:
        lines = list(part(by_stage))
        found += ([""] if found and lines else []) + lines
    return found


def _header(by_stage):
    yield f"kernels {by_stage['run']['run'].get('code')} on {by_stage['run']['run'].get('gpu')}"
    for name in ("versions", "clocks", "clocks after"):
        row = by_stage.get("versions", {}).get(name)
        if row:
            yield f"{name}: " + ", ".join(
                f"{k} {v}" for k, v in row.items() if k not in ("run", "t", "stage", "name")
            )
    ceilings = {r["of"]: r["per_second"] for r in by_stage.get("versions", {}).values() if "per_second" in r}
    if ceilings:
        yield "ceilings: " + ", ".join(f"{value / 1e12:.3g} T {of}/s" for of, value in ceilings.items())


def _stages(by_stage):
    for stage, rows in by_stage.items():
        if stage != "run":
            own = [row for row in rows.values() if row["name"] != "end"]
            bad = sum(map(is_bad, own))
            end = rows.get("end")
            how = "cut off" if end is None else f"{end['seconds']:.0f} s"
            if end and end.get("left"):
                how += f", {end['left']} left for lack of time"
            if end and end.get("dropped"):
                how += f", {end['dropped']} dropped after failures"
            yield f"{stage:10} {len(own):5} rows, {bad} bad, {how}"


# of failures that the report names: it should fit on a page
_KINDS = 15


def _failures(by_stage):
    """The first of each kind, with how many are like it."""
    found, counts = {}, Counter()
    for stage, rows in by_stage.items():
        for row in filter(is_bad, rows.values()):
            # of accuracy the op, form and precision; else what was said
            kind = (stage, row.get("op") or row["name"], row.get("form"), row.get("precision"), "failed" in row)
            counts[kind] += 1
            found.setdefault(kind, row)
    if not found:
        yield "nothing failed"
        return
    yield f"failed first, of {sum(counts.values())}:"
    for kind, row in list(found.items())[:_KINDS]:
        more = f" (and {counts[kind] - 1} like it)" if counts[kind] > 1 else ""
        yield f"  {row['stage']} {row['name']}{more}: {what_is_wrong(row)[:140]}"
    if len(found) > _KINDS:
        yield f"  and {len(found) - _KINDS} kinds more"


def _table(rows, line_of, column, value):
    """In each cell of lines and columns the worst value."""
    worst, columns = {}, []
    for row in rows:
        if row.get("over") is None:
            continue
        line, name = line_of(row), column(row)
        if name not in columns:
            columns.append(name)
        new, old = value(row), worst.get((line, name))
        # a NaN is the worst
        if old is None or new != new or new > old:
            worst[line, name] = new
    if not worst:
        return
    yield f"{'':36}" + "".join(f"{name!s:>10}" for name in columns)
    for line in sorted({line for line, _ in worst}):
        cells = (worst.get((line, name)) for name in columns)
        yield f"{line:36}" + "".join(f"{'' if cell is None else f'{cell:.2g}':>10}" for cell in cells)


def _accuracy(by_stage):
    rows = [row for row in by_stage.get("accuracy", {}).values() if "data" in row and row.get("tolerance")]
    lines = list(_table(rows, lambda r: f"{r['form']}: {r['op']}", lambda r: r["precision"], lambda r: r["over"]))
    if lines:
        yield "worst error as a share of what is allowed, over all data and D:"
        yield from lines


def _of_k_alone(by_stage):
    rows = [row for row in by_stage.get("accuracy", {}).values() if row["name"].rpartition(" ")[2].startswith("s=")]
    lines = list(
        _table(rows, lambda r: f"{r['form']} {r['precision']}", lambda r: f"s = {r['s']:g}", lambda r: r["error"])
    )
    if lines:
        yield "worst error of K alone where the greatest |x - centre|^2 / (2 sigma^2) is s, over all D:"
        yield from lines


def _sanitizer(by_stage):
    for row in by_stage.get("sanitizer", {}).values():
        if "summary" in row:
            yield f"{row['name']}: {row['summary']}"


def _timings(by_stage):
    rows = [row for row in by_stage.get("timing", {}).values() if "ms" in row]
    if rows:
        yield f"{'timing':53} {'ms':>9} {'eager':>9} {'ratio':>6} {'Tp/s':>7}  of bound"
    for row in rows:
        rival = f"{row['rival_ms']:9.3f} {row['ratio']:6.2f}" if "ratio" in row else f"{'failed':>9} {'':6}"
        share = f"{row['share']:4.0%} of {row['bound']}" if "share" in row else ""
        share += ", no graph" if any(row.get("no_graph", ())) else ""
        yield f"{row['name']:53} {row['ms']:9.4f} {rival} {row['Tp/s']:7.3f}  {share}"
    for row in by_stage.get("timing", {}).values():
        if "us" in row:
            yield (
                f"host of {row['name']}: median {row['us']:.0f} us, least {row['least_us']:.0f}; "
                f"eager {row['rival_us']:.0f}, {row['rival_least_us']:.0f}"
            )


def _tests(by_stage):
    rows = by_stage.get("tests", {}).values()
    for row in rows:
        if "summary" in row:
            yield f"pytest {row['name']}: {row['summary']}"
    outcomes = Counter(row.get("outcome") or "killed" for row in rows if "outcome" in row or "failed" in row)
    if outcomes:
        yield "tests: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def has_failed(rows):
    return any(map(is_bad, latest(rows)))
