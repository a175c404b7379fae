"""Checkpoints written in one piece, the state of every random generator, and signals that wait for a checkpoint."""

import hashlib
import io
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

# rounding changes means by less than this share of the data's spread, and other rows by more
_ROUNDING = 1e-5


class Stopped(Exception):
    """Training ended before its last step, at a signal; its state is saved."""

    def __init__(self, name: str, number: int, step: int | None = None) -> None:
        at = "" if step is None else f" at step {step}, which is saved"
        super().__init__(f"stopped by {name}{at}")
        self.number = int(number)


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` states of a training, in a folder of their own.

    A file is written under a temporary name, synchronised to the disk and renamed: a process may be killed at any
    moment and leaves whole files. Loading runs no code (torch.load with weights_only).
    """

    folder: Path
    keep: int = 3

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path(step), state)
        # processes that were killed while they wrote leave these
        for unfinished in self.folder.glob(".step-*.pt.part"):
            unfinished.unlink(missing_ok=True)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest state, on the CPU, or None for an empty folder."""
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # torch raises anything for truncated archives, foreign bytes, and pickles that would run code
        except Exception as error:
            raise ValueError(
                f"{path} must be a whole checkpoint of gkfast, got what torch cannot load without running code; "
                "remove it, and the one before it is taken"
            ) from error
        return state

    def steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.pt"))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09}.pt"


def outline(*tensors: torch.Tensor | None) -> list[list[float]]:
    """Of each tensor: the standard deviation, the means of all, the first and the last row, and the shape.

    A resumed training recognises its data by them. Bits would not do: another machine rounds mixtures and spirals
    otherwise.
    """
    outlines = []
    for rows in tensors:
        if rows is not None:
            means = [values.mean(dtype=torch.float64) for values in (rows, rows[0], rows[-1])]
            outlines.append([float(rows.std()), *map(float, means), *map(float, rows.shape)])
    return outlines


def check_resumable(path: Path, state: dict[str, Any], data: list[list[float]], identity: dict[str, Any]) -> None:
    """A training on rows of this outline, with these settings, may go on from the state in a file."""
    # a state may have no outline
    saved = state.get("data")
    if saved is not None and not (len(saved) == len(data) and all(map(_alike, saved, data))):
        raise other_data(path)
    check_identity(path, state["identity"], identity)


def other_data(path: Path) -> ValueError:
    return ValueError(
        f"data must be the rows that {path} was trained on to resume from it, got others; "
        "give the same ones, or train into another folder"
    )


def check_identity(path: Path, saved: dict[str, Any], identity: dict[str, Any]) -> None:
    for name, value in identity.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{name} must be {saved.get(name)!r} to resume from {path}, got {value!r}; "
                "resume with the same settings, or train into another folder"
            )


def _alike(a: list[float], b: list[float]) -> bool:
    """Two outlines of the same rows: their shapes agree, their means to rounding."""
    return a[4:] == b[4:] and all(
        math.isclose(p, q, rel_tol=_ROUNDING, abs_tol=_ROUNDING * a[0]) for p, q in zip(a[:4], b[:4], strict=True)
    )


def cached(name: str, *tensors: torch.Tensor) -> Path:
    """A file of the user's cache, named by its content: in $XDG_CACHE_HOME, or the system's own place."""
    home = Path.home()
    system = {"win32": Path(os.environ.get("LOCALAPPDATA", home)), "darwin": home / "Library" / "Caches"}
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (given if given.is_absolute() else system.get(sys.platform, home / ".cache")) / "gkfast"
    folder.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]
    return folder / f"{name}-{content}.pt"


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def write(path: Path, content: bytes) -> None:
    """Write a file in one piece: a power cut leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _synchronise(path.parent)


def _synchronise(folder: Path) -> None:
    """Write the folder's list of names to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state(device: torch.device) -> dict[str, Any]:
    """Python's, NumPy's, torch's and the device's random states, as numbers and tensors only."""
    # a user's modules may draw from it
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    _, keys, position, has_gauss, gauss = numpy
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)


class Signals:
    """SIGINT and SIGTERM end a run at once, or, while held, after the current step.

    A second signal does not wait. Outside the main thread, where Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signal.Signals(number)
        if not (self._held and first):
            raise Stopped(self.received.name, number)

    def stop(self, step: int) -> Stopped:
        """The exception of a loop that held the signal, which may have come to another process."""
        received = self.received or signal.SIGTERM
        return Stopped(received.name, received, step)
