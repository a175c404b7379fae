"""Processes that take jobs one at a time. One that hangs or dies costs its job, which then has a row that says so.

A job is a dictionary; gpu_worker.py reads it as a line of JSON and answers with lines of JSON after a mark: that it
is ready, rows, what it has come to, that the job is done. All else that a process writes is kept for its failure.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-u", str(ROOT / "bench/gpu_worker.py"))
MARK = "@@ "
# seconds in which a process loads torch
START = 90
# lines of a process that are kept
_SAID = 40


class Worker:
    """One process: its job, the jobs it takes next, and when the job must be done."""

    def __init__(self, command, lines):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            # so that what it starts ends with it
            process_group=0,
        )
        self.ready, self.job, self.jobs, self.place = False, None, deque(), ""
        self.said = deque(maxlen=_SAID)
        self.due = time.monotonic() + START
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines):
        with self.process.stdout as said:
            for line in said:
                lines.put((self, line))
        lines.put((self, None))

    def take(self, limit):
        self.job, self.place = self.jobs.popleft(), ""
        self.said.clear()
        self.due = time.monotonic() + limit
        # of one that has ended the reader tells
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(self.job) + "\n")
            self.process.stdin.flush()

    def end(self):
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        # one that waits for a driver may take longer; nobody waits for it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def last_words(self):
        return " | ".join(line.strip() for line in list(self.said)[-4:] if line.strip())[-400:]


class Crew:
    """Workers of one command.

    Of the last work(): `left` is how many jobs it has not done, `dropped` how many it left out, `broken` why no
    worker can start.
    """

    def __init__(self, command, said=False):
        self.command, self.workers, self.lines = command, [], queue.SimpleQueue()
        # whether rows get what the process said meanwhile
        self.said = said
        self.left, self.dropped, self.broken, self._failed_starts = 0, 0, "", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.keep(0)

    def start(self, count):
        """So many workers at least."""
        while len(self.workers) < count:
            self.workers.append(Worker(self.command, self.lines))

    def keep(self, count):
        """So many workers at most, and none that has a job left."""
        idle = [worker for worker in self.workers if worker.job is None]
        for worker in self.workers:
            if worker not in idle[:count]:
                worker.end()
        self.workers = idle[:count]

    def finish(self, until):
        """Let the workers end by themselves; what they say last."""
        for worker in self.workers:
            worker.said.clear()
            with contextlib.suppress(OSError):
                worker.process.stdin.close()
        running = set(self.workers)
        while running and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                worker, line = self.lines.get(timeout=left)
                if line is None:
                    running.discard(worker)
                elif line.strip() and not line.startswith(MARK):
                    worker.said.append(line)
        said = [line.rstrip() for worker in self.workers for line in worker.said]
        self.keep(0)
        return said

    def work(self, groups, *, count, until, limit, unless=None):
        """Lists of (job, row), as they come. The jobs of a group go to one worker in their order.

        After `until` nothing new is begun; a worker that still has a job goes on, for the next work(). A job, or its
        next row, that takes longer than `limit` seconds is ended, and its row has "failed". A job for which unless()
        is true is dropped.
        """
        self._unless, self.dropped = unless or (lambda _: False), 0
        waiting = deque(deque(group) for group in groups if group)
        self.start(min(count, len(waiting)))
        # what was said since the last work() comes first: who is ready is not late
        found = self._listen(waiting, limit, 0)
        while True:
            found += self._give(waiting, count, until, limit)
            self.left = sum(map(len, waiting)) + sum(len(w.jobs) + (w.job is not None) for w in self.workers)
            if found:
                yield found
            if not self.left or self.broken or time.monotonic() >= until:
                break
            found = self._listen(waiting, limit, min(0.2, max(0.0, until - time.monotonic())))
        # jobs not begun are for nobody
        for worker in self.workers:
            worker.jobs.clear()

    def _give(self, waiting, count, until, limit):
        """Jobs to the first workers that have none; rows for those that took too long."""
        found, now = [], time.monotonic()
        for k, worker in enumerate(self.workers):
            if now > worker.due and (worker.job is not None or not worker.ready):
                place = f" at {worker.place}" if worker.place else ""
                patience = limit if worker.ready else START
                why = f"killed: no answer in {patience:g} s{place}: {worker.last_words()}"
                found += self._replace(k, waiting, why)
        for worker in self.workers[:count] if now < until else ():
            if worker.ready and worker.job is None and self._has_next(worker, waiting):
                worker.take(limit)
        return found

    def _has_next(self, worker, waiting):
        while worker.jobs or waiting:
            if not worker.jobs:
                worker.jobs = waiting.popleft()
            while worker.jobs and self._unless(worker.jobs[0]):
                worker.jobs.popleft()
                self.dropped += 1
            if worker.jobs:
                return True
        return False

    def _replace(self, k, waiting, why):
        """Another worker in the k-th place, for the rest of its jobs."""
        worker = self.workers[k]
        row = {"failed": why, "lost": True} | ({"at": worker.place} if worker.place else {})
        found = [] if worker.job is None else [(worker.job, self._row(worker, row))]
        worker.end()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= 3:
                self.broken = why
        # rather than wait for another to start, those that are there go on
        if worker.jobs:
            waiting.appendleft(worker.jobs)
        self.workers[k] = Worker(self.command, self.lines)
        return found

    def _row(self, worker, row):
        return row | {"said": [line.rstrip() for line in worker.said]} if self.said else row

    def _listen(self, waiting, limit, patience):
        """Rows of what the workers have said, all that is there."""
        found = []
        try:
            worker, line = self.lines.get(timeout=patience)
            while True:
                if worker in self.workers:
                    found += self._hear(worker, line, waiting, limit)
                worker, line = self.lines.get_nowait()
        except queue.Empty:
            return found

    def _hear(self, worker, line, waiting, limit):
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(1)
            code = worker.process.returncode
            return self._replace(
                self.workers.index(worker), waiting, f"died: exit status {code}: {worker.last_words()}"
            )
        if not line.startswith(MARK):
            if line.strip():
                worker.said.append(line)
            return []
        message = json.loads(line[len(MARK) :])
        worker.due = time.monotonic() + limit
        if "row" in message:
            row = self._row(worker, message["row"])
            worker.said.clear()
            return [(worker.job, row)]
        worker.place = message.get("at", worker.place)
        if message.get("ready"):
            worker.ready, self._failed_starts = True, 0
        elif message.get("done"):
            worker.job = None
            if message.get("lost"):
                return self._replace(self.workers.index(worker), waiting, "")
        return []
