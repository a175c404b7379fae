"""Size and shape of the code: `python -m bench.house [ROOT]` counts the checkout ROOT, by default this one.

With --functions it lists the functions that have many parameters, with --imports it draws the imports.
tests/test_house.py holds the bars.
"""

import argparse
import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent.parent
FEW, MANY = 8, 30


class Figure(NamedTuple):
    """`before`: at commits a2f10e8 and 4eee9f9, by this file; `bar`: what the tests allow; `aim`: the goal."""

    before: tuple[int, int]
    bar: int | None
    meaning: str
    aim: int | None = None


FIGURES = {
    "functions": Figure((61, 65), 15, f"functions with more than {FEW} positional parameters, GPU kernels apart"),
    "gpu_kernels": Figure((6, 6), 2, f"jit functions of kernels/gpu with more than {MANY} parameters"),
    "ops": Figure((1673, 1773), 1730, "lines of gkfast/ops", 950),
    "functional": Figure(
        (914, 1135), 1145, "lines of functional.py with density.py, arguments.py and squared_norm.py", 700
    ),
    # bars above their aims go down with the count
    "total": Figure((13_774, 16_129), 24_320, "lines of gkfast/ and kernels/ without independence.py", 12_000),
    "ops_code": Figure((1244, 1310), 1170, "lines of gkfast/ops that are code: no docstring, comment or blank line"),
    "code": Figure((9252, 10_952), 16_360, "lines of gkfast/ and kernels/ that are code"),
    "hsic": Figure((0, 0), None, "lines of independence.py"),
    "longest": Figure((914, 1046), 552, "lines of the longest file"),
    "circles": Figure((1, 1), 0, "import circles"),
    "files": Figure((4, 5), 4, "files above the kernels that a repeated mmd2 with its gradient enters"),
    "returns": Figure((18, 20), 2, "how often that call comes back to a file that it left"),
    "first_returns": Figure((48, 50), None, "the same for the first call of a shape"),
}


def sources(root: Path) -> dict[Path, str]:
    """Text of every file of gkfast/ and kernels/, by its path in the checkout; gkfast/kernels is a link."""
    paths = [path.relative_to(root) for top in ("gkfast", "kernels") for path in sorted((root / top).rglob("*.py"))]
    return {path: (root / path).read_text() for path in paths if path.parts[:2] != ("gkfast", "kernels")}


def code_lines(text: str) -> int:
    """Lines that are no docstring, no comment and not blank."""
    lines = text.splitlines()
    written = {at for at, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and first.end_lineno and ast.get_docstring(node, clean=False) is not None:
                written -= set(range(first.lineno, first.end_lineno + 1))
    return len(written)


class Signature(NamedTuple):
    place: str
    positional: int  # without self or cls
    parameters: int
    gpu_kernel: bool


def signatures(texts: dict[Path, str]) -> Iterator[Signature]:
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                names = [a.arg for a in node.args.posonlyargs + node.args.args]
                positional = len(names) - (names[:1] in (["self"], ["cls"]))
                name, decorators = getattr(node, "name", "lambda"), getattr(node, "decorator_list", [])
                jit = path.parts[:2] == ("kernels", "gpu") and any("jit" in ast.unparse(d) for d in decorators)
                parameters = positional + len(node.args.kwonlyargs)
                yield Signature(f"{path}:{node.lineno} {name}", positional, parameters, jit)


def offenders(texts: dict[Path, str]) -> tuple[list[Signature], list[Signature]]:
    """Functions with many positional parameters, and GPU kernels with many parameters."""
    every = list(signatures(texts))
    return (
        [s for s in every if not s.gpu_kernel and s.positional > FEW],
        [s for s in every if s.gpu_kernel and s.parameters > MANY],
    )


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "gkfast" else ("gkfast", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(texts: dict[Path, str]) -> dict[str, set[str]]:
    """Modules that each module imports, at its top or in a function; packages stand for no more than __init__.py."""
    modules = {module_name(path) for path in texts}
    found: dict[str, set[str]] = {name: set() for name in modules}
    for path, text in texts.items():
        own = module_name(path)
        package = own.split(".") if path.name == "__init__.py" else own.split(".")[:-1]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parent = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*parent, *([node.module] if node.module else [])])
                # `from package import module` is an import of the module
                names = [n if (n := f"{source}.{alias.name}") in modules else source for alias in node.names]
            else:
                continue
            found[own] |= {name for name in names if name in modules and name != own}
    return found


def picture(graph: dict[str, set[str]]) -> str:
    """The imports as a mermaid graph: gan and kernels as one box each, and no edge that a longer way implies."""

    def box(module: str) -> str:
        parts = module.split(".")[1:]
        return parts[0] if parts and parts[0] in ("gan", "kernels") else ".".join(parts)

    edges = {(box(name), box(other)) for name, others in graph.items() for other in others}
    direct: dict[str, set[str]] = {}
    for one, other in edges:
        if one and other and one != other:
            direct.setdefault(one, set()).add(other)

    def below(one: str) -> set[str]:
        return {other for step in direct.get(one, ()) for other in {step} | below(step)}

    lines = [
        f"    {one} --> {other}"
        for one, others in sorted(direct.items())
        for other in sorted(others)
        if not any(other in below(step) for step in others - {other})
    ]
    return "\n".join(["graph TD", *lines])


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules each of which imports all others, directly or not."""
    reach = {name: set(direct) for name, direct in graph.items()}
    for between in graph:
        for name in graph:
            if between in reach[name]:
                reach[name] |= reach[between]
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return [set(group) for group in groups if group]


# gkfast.kernels is the folder kernels/ of the same checkout, whatever is installed; modules are loaded and code is
# compiled before calls are watched
CALL = """
import importlib.util, sys
root = sys.argv[1]
sys.path.insert(0, root)
import torch, gkfast
spec = importlib.util.spec_from_file_location("gkfast.kernels", root + "/kernels/__init__.py")
sys.modules["gkfast.kernels"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["gkfast.kernels"])
home = gkfast.__file__.removesuffix("__init__.py")

def call(rows):
    gkfast.mmd2(torch.zeros(rows, 3, requires_grad=True), torch.ones(rows, 3), [1.0, 2.0, 4.0]).backward()

def watched(rows):
    files = []

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(home):
            return None
        if event == "line" and files[-1:] != [name]:
            files.append(name)
        return trace

    sys.settrace(trace)
    call(rows)
    sys.settrace(None)
    print(*files)

call(5)
watched(7)
watched(7)
"""


def stays(root: Path) -> tuple[list[str], list[str]]:
    """Files above the kernels in the order of executed lines: of the first mmd2 of a shape, and of the next one."""
    command = [sys.executable, "-c", CALL, str(root)]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    first, again = result.stdout.splitlines()
    return first.split(), again.split()


def count(root: Path = HERE) -> dict[str, int]:
    texts = sources(root)
    lines = {path: text.count("\n") for path, text in texts.items()}
    code = {path: code_lines(text) for path, text in texts.items()}
    functions, gpu_kernels = offenders(texts)
    first, again = stays(root)
    hsic = sum(n for p, n in lines.items() if p.name == "independence.py")
    return {
        "functions": len(functions),
        "gpu_kernels": len(gpu_kernels),
        "ops": sum(n for p, n in lines.items() if p.parts[:2] == ("gkfast", "ops")),
        "functional": sum(
            lines.get(Path("gkfast", f"{n}.py"), 0) for n in ("functional", "density", "arguments", "squared_norm")
        ),
        "total": sum(lines.values()) - hsic,
        "ops_code": sum(n for p, n in code.items() if p.parts[:2] == ("gkfast", "ops")),
        "code": sum(code.values()),
        "hsic": hsic,
        "longest": max(lines.values()),
        "circles": len(circles(imports(texts))),
        "files": len(set(again)),
        "returns": len(again) - len(set(again)),
        "first_returns": len(first) - len(set(first)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", nargs="?", type=Path, default=HERE)
    parser.add_argument("--functions", action="store_true", help="list the functions with many parameters")
    parser.add_argument("--imports", action="store_true", help="draw what imports what, for mermaid")
    options = parser.parse_args()
    root = options.root.resolve()
    if options.imports:
        print(picture(imports(sources(root))))
        return
    if options.functions:
        for s in sorted((s for group in offenders(sources(root)) for s in group), key=lambda s: -s.parameters):
            print(f"{s.positional:3} of {s.parameters:3}  {s.place}")
        return
    print("| figure | a2f10e8 | 4eee9f9 | here | aim |\n|---|---:|---:|---:|---:|")
    for name, value in count(root).items():
        (older, newer), bar, meaning, aim = FIGURES[name]
        print(f"| {meaning} | {older} | {newer} | {value} | {bar if aim is None else aim} |")


if __name__ == "__main__":
    main()
