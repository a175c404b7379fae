"""Compiles every Triton kernel for three architectures without a GPU; prints registers and spills as JSON."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gkfast.kernels.gpu import rbf as launchers  # noqa: F401  (loads the module)

module = sys.modules["gkfast.kernels.gpu.rbf"]
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
SIZES = dict.fromkeys(("N", "M", "D", "S", "row_stride", "col_stride"), "i64")
KERNELS = {
    "matrix": (module._rbf_kernel, {}),
    "weight": (module._rbf_weight_kernel, {"WANT_MOMENTS": True}),
    "pull": (module._rbf_pull_kernel, {"BOTH": True}),
}


def compile_one(tile, kernel, constants, dtype, sm):
    accumulator = "fp64" if dtype == "fp64" else "fp32"
    bn, bm, bd, warps = module.TILES[tile]
    constants = constants | {"BN": bn, "BM": bm, "BD": bd, "ACC": getattr(triton.language, f"float{accumulator[2:]}")}
    # the table, W and its moments are of the dtype that is accumulated in
    wide = {"w_ptr", "table_ptr", "moments_ptr"}
    signature = {
        name: "constexpr" if name in constants else SIZES.get(name) or f"*{accumulator if name in wide else dtype}"
        for name in kernel.arg_names
    }
    target = GPUTarget("cuda", sm, 32)
    return triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": warps})


# what differs between dtypes is seen on one architecture, what differs between architectures in two dtypes
DTYPES = {80: ("fp32", "fp64"), 90: ("fp32", "fp64", "bf16", "fp16"), 100: ("fp32", "fp64")}
rows = []
for sm, dtypes in DTYPES.items():
    for dtype in dtypes:
        for tile, (kernel, constants) in KERNELS.items():
            ptx = compile_one(tile, kernel, constants, dtype, sm).asm["ptx"]
            with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                file.write(ptx)
                file.flush()
                architecture = re.search(r"\.target (sm_\w+)", ptx).group(1)
                # Triton ships a newer assembler for Blackwell
                ptxas = BIN / ("ptxas-blackwell" if sm >= 100 else "ptxas")
                command = [ptxas, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
                log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            rows.append(
                {
                    "kernel": kernel.__name__,
                    "dtype": dtype,
                    "sm": sm,
                    "registers": int(re.search(r"Used (\d+) registers", log).group(1)),
                    "spills": sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
                    "ex2.approx.ftz": ptx.count("ex2.approx.ftz.f32"),
                }
            )
print(json.dumps(rows))
