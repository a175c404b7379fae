"""Nothing is lost: a run that is killed at any moment, or stopped, goes on to the bits of one that never was."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from gkfast.gan import checkpoint, train_gan
from gkfast.gan.checkpoint import Checkpoints, Signals, Stopped
from gkfast.gan.train import Training

pytestmark = pytest.mark.slow

Y = 2 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT as Python has it, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# one process loads torch once and forks for every attempt; each attempt is killed where and when it is told to be
DRIVER = """
import json, os, random, signal, sys, time
import numpy, torch
from pathlib import Path
from gkfast.gan import metrics, run
from gkfast.gan.config import Config
from gkfast.gan.data import Data

torch.set_num_threads(1)
rows = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
data = Data("mine", rows[:64], rows[64:80], rows[80:], (2,))
# everything that has a state: two networks, an average, bandwidths that follow features, penalties
config = Config.from_settings(
    data="mine", loss="gan+mmd", steps=60, batch=16, space="features", ema=0.9, critic_steps=2, r1=0.1,
    checkpoint_every=7, keep=2,
)


# measuring is not what is tested
metrics.SAMPLES, metrics._PERMUTATIONS = 200, 20


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder, resume, after=None, at=None):
    \"\"\"The signal that ended a run in a process of its own, or 0.\"\"\"
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        # modules of one's own may use them; a fork seeds the first anew
        random.seed(5)
        numpy.random.seed(5)
        if at is not None:
            name, count = at
            original = getattr(os, name)

            def dying(*arguments):
                nonlocal count
                count -= 1
                if count == 0:
                    die()
                return original(*arguments)

            setattr(os, name, dying)
        run.run(data, folder, config, resume=resume, progress=False)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


whole, killed, warm = Path("whole"), Path("killed"), Path("warm")
for folder in (whole, killed, warm):
    folder.mkdir()
# what is loaded here is loaded in every child
run.run(data, warm, config.changed(steps=2), progress=False)
start = time.perf_counter()
assert attempt(whole, False) == 0
seconds = time.perf_counter() - start

rng = random.Random(int(sys.argv[1]))
ends = []
# in the middle of writing, before and after the rename, and between files
for name in ("fsync", "replace", "fsync", "replace"):
    ends.append(attempt(killed, bool(ends), at=(name, rng.randint(2, 6))))
for _ in range(6):
    ends.append(attempt(killed, True, after=rng.uniform(0.05, 0.6) * seconds))
last = attempt(killed, True)
print(json.dumps({"ends": ends, "last": last}))
"""


def records(folder):
    timed = {"seconds", "steps_per_second", "kernel_share"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def figures(folder):
    summary = json.loads((folder / "metrics.json").read_text())
    del summary["seconds"], summary["control"]["seconds"]
    return summary


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_and_resumed(tmp_path, seed):
    code = textwrap.dedent(DRIVER)
    done = subprocess.run(
        [sys.executable, "-c", code, str(seed)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    # those that were to die while writing did, most of the others too, and then one came through
    assert said["ends"][:4] == [signal.SIGKILL] * 4
    assert signal.SIGKILL in said["ends"][4:]
    assert said["last"] == 0

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("generator.pt", "control.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        same(a, b)
    assert records(whole) == records(killed)
    assert figures(whole) == figures(killed)
    for name in ("samples.png", "witness.png", "progress.png"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    for part in ("generator", "control"):
        # and nothing half-written is left
        assert len(list((killed / "checkpoints" / part).iterdir())) == 2
        last = [Checkpoints(folder / "checkpoints" / part).load() for folder in (whole, killed)]
        same(*last)


def same(a, b, path=""):
    """Every number of two states, but for those of the clock."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "steps_per_second", "kernel_share"}:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for k, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{path}/{k}")
    else:
        assert a == b, path


def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))
        D = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1), nn.Sigmoid())
    return G, D


def train(folder, **options):
    G, D = networks()
    options = {"epochs": 4, "ema": 0.5, "checkpoints": folder, "resume": True, **options}
    return train_gan(G, D, None, Y, 1.0, batch_size=16, noise_dim=2, **options)


def signal_at(step, number, monkeypatch):
    """Sends a signal to this process in the middle of the loop."""
    advance = Training.advance

    def advancing(training):
        record = advance(training)
        if training.step == step:
            os.kill(os.getpid(), number)
        return record

    monkeypatch.setattr(Training, "advance", advancing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_training_goes_on_from_there(tmp_path, monkeypatch, number):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(11, number, patch)
        with pytest.raises(Stopped, match=f"stopped by {number.name} at step 11, which is saved"):
            train(tmp_path / "stopped")
    assert max(Checkpoints(tmp_path / "stopped").steps()) == 11
    # the handlers are as they were
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    # what is random elsewhere must not matter
    torch.manual_seed(77)
    resumed = train(tmp_path / "stopped")
    for name in ("generator", "discriminator", "average"):
        for a, b in zip(getattr(whole, name).parameters(), getattr(resumed, name).parameters(), strict=True):
            assert torch.equal(a, b)
    assert [r["step"] for r in resumed.history] == [r["step"] for r in whole.history]


def test_a_second_signal_does_not_wait():
    signals = Signals()
    with signals, signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(Stopped, match=r"stopped by SIGTERM$"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_outside_of_the_loop_ends_at_once():
    with Signals(), pytest.raises(Stopped, match=r"stopped by SIGTERM$"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_checkpoints_an_interruption_is_pythons_own(monkeypatch):
    signal_at(3, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(None, resume=False)


def test_the_last_checkpoints_are_kept_and_the_newest_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", keep=2)
    assert checkpoints.load() is None
    for step in (1, 5, 40):
        checkpoints.save(step, {"step": step})
    assert checkpoints.steps() == [5, 40]
    assert checkpoints.load() == {"step": 40}
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["step-000000005.pt", "step-000000040.pt"]


def test_no_code_runs_from_a_checkpoint(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"step": 3, "trap": Trap()}, tmp_path / "step-000000003.pt")
    with pytest.raises(ValueError, match=r"step-000000003.pt must be a whole checkpoint of gkfast"):
        Checkpoints(tmp_path).load()
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, {"weights": torch.zeros(100)})
    path = checkpoints.path(7)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        checkpoints.load()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"epochs": 5}, "steps"), ({"loss": "gan"}, "loss"), ({"learning_rate": 2e-3}, "generator_rate")],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, options, name):
    train(tmp_path)
    with pytest.raises(ValueError, match=f"{name} must be .* to resume from .*step-000000016.pt, got"):
        train(tmp_path, **options)


def test_another_network_and_other_data_are_refused(tmp_path):
    train(tmp_path)
    G, D = networks()
    other = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    options = {"sigma": 1.0, "epochs": 4, "batch_size": 16, "noise_dim": 2, "ema": 0.5, "checkpoints": tmp_path}
    before = [w.clone() for w in other.parameters()]
    with pytest.raises(
        ValueError, match=r"generator must be the network of the checkpoint, 0.bias of shape \(16,\), got"
    ):
        train_gan(other, D, None, Y, resume=True, **options)
    assert all(torch.equal(w, b) for w, b in zip(other.parameters(), before, strict=True))
    for x, y in ((None, Y + 0.1), (None, Y[:63].repeat(2, 1)), (torch.randn(64, 3), Y)):
        with pytest.raises(ValueError, match=r"data must be the rows that .*step-000000016.pt was trained on"):
            train_gan(G, D, x, y, resume=True, **options)


def test_numbers_of_numpy_can_be_resumed(tmp_path):
    numbers = {"learning_rate": np.float32(1e-3), "r1": np.float64(0.1), "seed": np.int64(3), "lam": np.float32(2)}
    steps = train(tmp_path, **numbers).steps
    assert (
        train(tmp_path, **{name: float(value) for name, value in numbers.items() if name != "seed"}, seed=3).steps
        == steps
    )


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write(path, b"old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
