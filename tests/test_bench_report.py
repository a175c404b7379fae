"""The comparison of two benchmark runs, and the report of one, on small made-up tables."""

import importlib
import sys
from itertools import groupby
from pathlib import Path

import pytest

# bench/ is not installed, and plain `pytest` leaves the checkout off the path
sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import machine, measure, plots, regressions, report, rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib.*")


def row(rival="", case="rbf float32 N=M=64 D=8", **values):
    """A row as a file holds it: a rival's with a ratio, gkfast's own with a share."""
    figures = (
        {"ratio": 2.0, "best_ratio": 2.0, "rival_ms": 2.0, "rival_error": 1e-6} if rival else {"bound_share": 0.5}
    )
    empty = dict.fromkeys(("ratio", "best_ratio", "rival_ms", "rival_error", "bound_share", "wrong"))
    where = {"machine": "here-2-threads", "processor": "Here", "threads": 2, "load": 0.1, "torch": "2"}
    sizes = {"op": "rbf", "dtype": "float32", "N": 64, "M": 64, "D": 8, "E": 1, "bandwidths": "one", "sweep": False}
    ours = {"gkfast_ms": 1.0, "gkfast_error": 1e-7, "gkfast_first_call_s": 0.1, "bound": "fma", "bound_ms": 0.5}
    quiet = {"disturbed": False, "spread": 0.02}
    return {"case": case, **sizes, "rival": rival, **ours, **quiet, **empty, **figures, **values, **where}


def saved(path, *table):
    rows.write(list(table), path)
    return str(path)


def test_written_rows_are_read_back(tmp_path):
    path = tmp_path / "rows.csv"
    before = [row(), row("eager", wrong="WRONG: error")]
    rows.write(before, path)
    with path.open() as file:
        after = rows.read(file)
    assert [{k: v for k, v in r.items() if k in before[0]} for r in after] == before


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        (row("eager"), None),
        (row("eager", ratio=1.95, best_ratio=1.95), None),
        (row("eager", ratio=1.2, best_ratio=1.2), "slower"),
        # its rounds scatter as much
        (row("eager", ratio=1.2, best_ratio=1.2, spread=0.25), None),
        # one of the two alone is a disturbance
        (row("eager", ratio=1.2), None),
        (row("eager", ratio=1.2, best_ratio=1.2, disturbed=True), "doubtful"),
        (row("eager", ratio=None, best_ratio=None, wrong="WRONG: error of kernel"), "wrong"),
        (row("gpytorch"), "gone"),
    ],
)
def test_a_change_of_a_rivals_ratio_is_classified(new, kind):
    changes = regressions.compare([new], [row("eager")], tolerance=0.2)
    kinds = ("slower", "doubtful", "wrong", "losses", "gone")
    assert [name for name in kinds if getattr(changes, name)] == ([kind] if kind else [])


def test_a_falling_share_of_the_bound_is_slower():
    changes = regressions.compare([row(bound_share=0.3)], [row()], tolerance=0.2)
    assert changes.slower == ["rbf float32 N=M=64 D=8: share of bound 0.5 to 0.3, 67% slower"]


def test_only_a_new_loss_is_reported():
    before, lost = row("eager", ratio=1.05, best_ratio=1.05), row("eager", ratio=0.98, best_ratio=0.98)
    changes = regressions.compare([lost], [before], tolerance=0.2)
    assert changes.losses
    assert not changes.slower
    assert not regressions.compare([lost], [lost], tolerance=0.2).losses
    # what storing costs is no rival
    fill = [row("fill", ratio=r, best_ratio=r) for r in (1.05, 0.98)]
    assert not regressions.compare(fill[1:], fill[:1], tolerance=0.2).losses


def test_exit_status(tmp_path, capsys):
    old = saved(tmp_path / "old.csv", row(), row("eager"))
    slow = saved(tmp_path / "slow.csv", row(), row("eager", ratio=1.0, best_ratio=1.0))
    assert regressions.main([old, old]) == 0
    assert "2 rows compared; 0 slower" in capsys.readouterr().out
    assert regressions.main([slow, old]) == 1
    assert "against eager: ratio 2 to 1, 100% slower" in capsys.readouterr().out
    assert regressions.main([slow]) == 2
    assert "committed rows of here-2-threads: no rows" in capsys.readouterr().out


def test_markdown_has_losses_in_bold(tmp_path, capsys):
    call = row(case="rbf numpy float32 N=M=8 D=2", op="rbf numpy", N=8, M=8, D=2, gkfast_ms=0.03)
    first = row(case="rbf first call, warm cache", op="rbf first call, warm cache", gkfast_ms=250.0)
    path = saved(tmp_path / "rows.csv", row(), row("eager"), row("torch.compile", ratio=0.75), call, first)
    report.main([path, "--markdown"])
    printed = capsys.readouterr().out
    assert "| rbf, N = 64, D = 8 | 1 ms | 50% |  | 2 |  | **0.75** |  |  |" in printed
    assert "gkfast is slower in 1 of 2 rows, furthest in: rbf, N = 64, D = 8 against torch.compile (0.75)." in printed
    assert "| rbf | 0.25 s |  |" in printed
    assert "| rbf numpy, N = 8, D = 2 | 30 µs |  |" in printed


@pytest.mark.parametrize(
    "table",
    [
        [row(rival, N=4096, M=4096, D=d, case=f"D={d}") for d in (2, 64) for rival in ("", "eager", "a new rival")],
        [{"case": "only this", "op": "rbf", "N": 8, "M": 8, "D": 2}],
    ],
    ids=["rivals", "columns missing"],
)
def test_plots_of_files_that_lack_columns(table, tmp_path):
    pytest.importorskip("matplotlib")
    report.main([saved(tmp_path / "rows.csv", *table)])
    assert {path.name for path in tmp_path.glob("*.png")} == {f"rows-{name}.png" for name in plots.PLOTS}


def test_labels_keep_their_distance_and_their_order():
    heights = plots._apart([0.1, 0.11, 0.12, 0.9], 0.1)
    assert heights == pytest.approx([0.01, 0.11, 0.21, 0.9])


@pytest.mark.parametrize(
    ("brand", "name"),
    [
        ("AMD EPYC", "amd-epyc-avx512-2-threads"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-avx512-2-threads"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-avx512-2-threads"),
    ],
)
def test_name_of_a_machine(brand, name):
    assert machine.name_of(brand, "avx512", 2) == name


@pytest.mark.parametrize("module", ["bench_rbf", "bench_rbf_matmul", "bench_mmd2", "bench_log_density"])
def test_rows_are_unique_and_cases_in_one_piece(module):
    # a case that came back later would be checked again, and stand in two places of the table
    table = [(str(case), name) for case, name in importlib.import_module(f"bench.{module}")._ROWS]
    assert len(table) == len(set(table))
    pieces = [case for case, _ in groupby(case for case, _ in table)]
    assert len(pieces) == len(set(pieces))


def test_bandwidths_of_a_case():
    case = measure.Case("mmd2 gradient", 64, 128, bandwidths="variance x2")
    s = [sigma**2 / 128 for sigma in case.sigma]
    assert s == pytest.approx([0.25, 0.5, 1, 2, 4])
    assert str(case) == "mmd2 gradient float32 N=M=64 D=128 S=5 variance x2"
