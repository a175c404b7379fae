"""GPU kernels: torch tensors in and out, compiled by Triton. README.md says how they fit together.

bandwidths   the table of bandwidths that kernels read
points       points as tensor cores take them, and when
tiles        the sizes of tiles
distances    squared distances of a tile, and kernels of them
pairings     whose rows meet whose columns
sweep        all pairs, row by row, for every sum
panel        pulls of many coordinates, from weights that a sweep leaves
baselines    where sums take k - 1
combine      the sums of a sweep's programs, added and combined
reduce       the same in a launch of its own
device       GPUs that Triton does not compile for, and what it lacks here
numbers      numbers of the host among the arguments of kernels
launch       launches, and plans that spare the host the way to them
rbf, rbf_matmul, kernel_sums, log_density   the operations; precision "highest", "high" or "medium" as in README.md

Without a GPU the same code runs under Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported), which
is how the tests check it.
"""

try:
    from triton import __version__ as _found
except ImportError:
    _found = "none"
# earlier compilers fail on these kernels, each in its own words
if _found == "none" or [int(part) for part in _found.split(".")[:2]] < [3, 6]:
    raise ImportError(
        f"Triton must be 3.6 or newer for tensors on a GPU, got {_found}; install torch 2.10 or newer, whose Linux "
        'builds bring it (pip install "gkfast[gpu]"), or move the tensors to the CPU'
    )

from . import baselines as _baselines
from . import kernel_sums as _kernel_sums
from . import log_density as _log_density
from . import rbf as _rbf
from . import rbf_matmul as _rbf_matmul
from .launch import planned

# the place of the points x, which say where a call runs, is the first but where it is named
baselines = planned(_baselines.baselines)
kernel_sums_with_gradients = planned(_kernel_sums.kernel_sums_with_gradients, 1)
mmd2_by_bandwidth = planned(_kernel_sums.mmd2_by_bandwidth, 1)
log_density = planned(_log_density.log_density)
log_density_by_bandwidth = planned(_log_density.log_density_by_bandwidth)
rbf, rbf_backward = planned(_rbf.rbf), planned(_rbf.rbf_backward)
rbf_matmul, rbf_matmul_backward = planned(_rbf_matmul.rbf_matmul), planned(_rbf_matmul.rbf_matmul_backward)

__all__ = [
    "baselines",
    "kernel_sums_with_gradients",
    "log_density",
    "log_density_by_bandwidth",
    "mmd2_by_bandwidth",
    "rbf",
    "rbf_backward",
    "rbf_matmul",
    "rbf_matmul_backward",
]
