"""What a run shows while it trains: a progress line, records, samples, and TensorBoard's copy of them."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gkfast.gan import pictures
from gkfast.gan.checkpoint import write
from gkfast.gan.data import Data
from gkfast.gan.loop import Record

Snapshots = list[tuple[int, Tensor]]

# seconds at least between pictures
_BETWEEN = 5.0


def duration(seconds: float) -> str:
    """A time in its largest units."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Shown:
    """The files of a folder that grow while its run trains.

    Parameters
    ----------
    data : Data
    folder : Path
    labels : sequence of str
        All stages of the run, in their order.
    seconds : mapping
        Those of stages, as far as they are known beforehand.
    tensorboard : bool
    """

    def __init__(
        self, data: Data, folder: Path, labels: Sequence[str], seconds: Mapping[str, float], tensorboard: bool
    ) -> None:
        self.data, self.folder, self.tensorboard = data, folder, tensorboard
        self.left, self.seconds = list(labels), seconds
        # of the stages that are over
        self.records: list[dict[str, Any]] = []
        self.snapshots: dict[str, Snapshots] = {}
        self._boards: dict[str, Any] = {}
        self._drawn = time.monotonic()

    def begin(self, label: str) -> str:
        """The words of the progress line of a stage that begins: what it is, and what is left after it."""
        self.left = self.left[self.left.index(label) + 1 :]
        after = [f"{k} ({duration(self.seconds[k])})" if k in self.seconds else k for k in self.left]
        return f"{label}, then {', '.join(after)}:" if after else f"{label}:"

    def end(self, label: str, history: Sequence[Record]) -> None:
        self.records += [{"run": label, **record} for record in history]

    def log(self, label: str) -> Callable[[list[Record]], None]:
        """Writes metrics.jsonl anew when a stage begins or is resumed, and appends to it from then on.

        This removes the lines that a killed run had logged after its last checkpoint.
        """
        path, board, written = self.folder / "metrics.jsonl", self._board(label), -1

        def lines(records: Sequence[Mapping[str, Any]]) -> str:
            return "".join(json.dumps(record) + "\n" for record in records)

        def log(history: list[Record]) -> None:
            nonlocal written
            records = [{"run": label, **record} for record in history]
            if written < 0:
                write(path, lines(self.records + records).encode())
            else:
                with open(path, "a") as file:
                    file.write(lines(records[written:]))
            if board is not None:
                for record in history[max(written, 0) :]:
                    for name, value in record.items():
                        board.add_scalar(name, value, int(record["step"]))
                board.flush()
            written = len(history)

        return log

    def draw(self, label: str, snapshots: Snapshots) -> None:
        """Draw the snapshots so far into progress.png, and for TensorBoard; every few seconds at most."""
        self.snapshots[label] = snapshots
        if time.monotonic() - self._drawn < _BETWEEN:
            return
        drawn = pictures.png(pictures.progress_figure(self.data, self.snapshots))
        write(self.folder / "progress.png", drawn)
        board = self._board(label)
        if board is not None:
            board.add_image("samples", pictures.pixels(drawn), snapshots[-1][0], dataformats="HWC")
        self._drawn = time.monotonic()

    def _board(self, label: str) -> Any:
        """TensorBoard's writer of a stage, where it is wanted."""
        if self.tensorboard and label not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            self._boards[label] = SummaryWriter(str(self.folder / "tensorboard" / label))
        return self._boards.get(label)
