"""Compiled code on disk: several processes that fill one empty cache at once, and one that only reads it."""

import os
import subprocess
import sys

import numpy as np

import gkfast

# each process begins with another operation and dtype, so that they compile different signatures at the same time
CHILD = """
import sys, time, numpy, gkfast
first = int(sys.argv[1])
rng = numpy.random.default_rng(0)
wide = [rng.normal(size=(40, 3)) for _ in range(2)]
calls = [
    (operation, dtype)
    for operation in (
        lambda x, y: gkfast.rbf(x, y, 0.8),
        lambda x, y: gkfast.rbf_matmul(x, y, y[:, :2], [0.5, 1.5]),
        lambda x, y: gkfast.mmd2(x, y, 0.8),
    )
    for dtype in (numpy.float32, numpy.float64)
]
results = {}
for k in range(len(calls)):
    k = (first + k) % len(calls)
    operation, dtype = calls[k]
    results[k] = float(numpy.sum(operation(*(a.astype(dtype) for a in wide))))
from gkfast.kernels.cpu.compiled import compiled_here
print([results[k] for k in sorted(results)], compiled_here())
"""


def test_processes_share_an_empty_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def start(first):
        command = [sys.executable, "-c", CHILD, str(first)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        values, compiled = out.strip().rsplit(" ", 1)
        # who waits is told why, and nobody else
        assert err.count("gkfast compiles its CPU kernels") == (compiled != "0")
        return np.array(eval(values)), int(compiled)

    together = [finish(process) for process in [start(first) for first in range(4)]]
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40, 3)) for _ in range(2))
    expected = [
        gkfast.rbf(x, y, 0.8, backend="reference").sum(),
        gkfast.rbf_matmul(x, y, y[:, :2], [0.5, 1.5], backend="reference").sum(),
        gkfast.mmd2(x, y, 0.8, backend="reference"),
    ]
    for values, _ in together:
        np.testing.assert_allclose(values, np.repeat(expected, 2), rtol=1e-5)
    # what one has compiled the others have loaded
    alone, compiled = finish(start(0))
    assert compiled == 0
    assert sum(count for _, count in together) > 0
    for values, _ in together:
        np.testing.assert_array_equal(values, alone)
