"""What depends on the versions of torch and Triton."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gkfast import checks

ROOT = Path(__file__).parent.parent
PRIVATE = ROOT / "gkfast/ops/torch_private.py"
SOURCES = [
    path
    for folder in ("gkfast", "kernels")
    for path in (ROOT / folder).rglob("*.py")
    # the git-ignored link would lead to kernels/ a second time
    if path != PRIVATE and "kernels" not in path.relative_to(ROOT).parts[1:]
]


def private_names(tree):
    """torch's private names in a module: dotted from a name that was imported from torch, or imported themselves."""
    modules, found = {"torch": "torch"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {
                alias.asname: alias.name for alias in node.names if alias.asname and alias.name.startswith("torch.")
            }
            found |= {a.name for a in node.names if re.match(r"torch\b.*\._", a.name)}
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        first, _, rest = name.partition(".")
        if first in modules and rest:
            found.add(f"{modules[first]}.{rest}")
    found |= set(modules.values())
    # what two underscores begin and end is Python's
    return {name for name in found if re.search(r"\._(?!_)", name)} | {
        # on tensors of any name
        f".{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("_version", "_dynamo_marked_constant")
    }


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("torch._C._dispatch_keys(x)", "torch._C._dispatch_keys"),
        ("from torch._functorch.utils import unwrap_dead_wrappers", "torch._functorch.utils.unwrap_dead_wrappers"),
        ("from torch.autograd import forward_ad as f\nf._current_level", "torch.autograd.forward_ad._current_level"),
        ("import torch._dynamo as d", "torch._dynamo"),
        ("found._version", "._version"),
    ],
)
def test_private_names_are_found(line, name):
    assert name in private_names(ast.parse(line))
    assert not private_names(ast.parse("import torch\nfrom torch import nn\ntorch.__version__, nn.Module.__call__"))


def test_no_other_file_uses_private_names_of_torch():
    assert len(SOURCES) > 40
    found = {str(path): private_names(ast.parse(path.read_text())) for path in SOURCES}
    # kernels import nothing of gkfast
    own = {str(ROOT / "kernels/gpu/launch.py"): {"torch.utils._python_dispatch.TorchDispatchMode"}}
    assert {path: names for path, names in found.items() if names} == own


def test_every_private_name_is_used():
    tree = ast.parse(PRIVATE.read_text())
    made = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    made |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    made -= {"_find", "Function"}
    assert len(made) > 10
    used = {
        alias.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "gkfast.ops.torch_private"
        for alias in node.names
    }
    # a name may also be read by a function of the file itself
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    used |= {node.id for f in functions for node in ast.walk(f) if isinstance(node, ast.Name)} & made
    assert made == used


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch._C", "_no_such_name"), ("torch._no_such_module", "name"), ("torch._C", "_autograd._no")],
)
def test_a_torch_without_a_name_is_refused(module, name):
    from gkfast.ops.torch_private import _find

    with pytest.raises(ImportError, match=rf"torch must have {module}\.{name}, got torch .*; install"):
        _find(module, name)


@pytest.mark.parametrize(
    ("triton", "said"), [("types.SimpleNamespace(__version__='3.5.1')", "3.5.1"), ("None", "none")]
)
def test_gpu_kernels_without_their_triton(triton, said):
    code = f"import sys, types; sys.modules['triton'] = {triton}; import gkfast.kernels.gpu"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"ImportError: Triton must be 3.6 or newer for tensors on a GPU, got {said}; install" in result.stderr


def test_batch_dimensions_broadcast_as_in_numpy():
    some = [(), (1,), (3,), (0,), (2, 1), (2, 3), (1, 1, 3), (2, 0)]
    fits = 0
    for shapes in itertools.product(some, repeat=3):
        named = [(f"array {k}", shape) for k, shape in enumerate(shapes)]
        try:
            expected = np.broadcast_shapes(*shapes)
        except ValueError:
            with pytest.raises(ValueError, match=r"batch dimensions must broadcast, got array 0 \("):
                checks.batch_shape(named)
        else:
            assert checks.batch_shape(named) == expected
            fits += 1
    assert 200 < fits < 400
