"""Pages that MkDocs builds from the code: the API by the tables of public names, and files outside of docs/."""

import base64
import inspect
import json
import posixpath
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import gkfast
import gkfast.gan
from docs.formulas import as_markdown

ROOT = Path(__file__).parent.parent
# files of the checkout that are pages of the site
INCLUDED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "kernels/cpu/README.md": "kernels-cpu.md",
    "kernels/gpu/README.md": "kernels-gpu.md",
    "examples/README.md": "examples.md",
    "examples/story.ipynb": "story.md",
}
PICTURES = ("bench/results", "examples/pictures")
# modules that a user does not call; the GAN side has a page of its own
_NOT_HERE = {"gan", "kernels", "ops"}
# besides the names in gkfast.gan's table, everything in these
_WHOLE_GAN_MODULES = ("losses", "metrics")


def defined_in(module: ModuleType) -> list[str]:
    """Public functions and classes of a module, in the order of its source."""
    found = [
        (inspect.getsourcelines(value)[1], name)
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and value.__doc__
    ]
    return [name for _, name in sorted(found)]


def _with_results(module: ModuleType, names: list[str]) -> list[str]:
    """The names, and after them the named tuples that the functions return."""
    returned = (getattr(module, name).__annotations__.get("return") for name in names)
    tuples = (r for r in returned if inspect.isclass(r) and r.__module__ == module.__name__)
    return [*names, *dict.fromkeys(t.__name__ for t in tuples)]


@cache
def api() -> dict[str, list[str]]:
    """The names on the page of each module, as mkdocstrings finds them."""
    pages = {}
    for module, names in sorted(gkfast._PUBLIC.items(), key=lambda page: page[0] != "functional"):
        here = _with_results(import_module(f"gkfast.{module}"), names.split())
        pages[module] = [f"gkfast.{n}" if n in gkfast.__all__ else f"gkfast.{module}.{n}" for n in here]
    for module in gkfast._MODULES:
        if module not in pages and module not in _NOT_HERE:
            pages[module] = [f"gkfast.{module}.{n}" for n in defined_in(import_module(f"gkfast.{module}"))]
    gan = [f"gkfast.gan.{name}" for names in gkfast.gan._PUBLIC.values() for name in names.split()]
    for module in _WHOLE_GAN_MODULES:
        every = defined_in(import_module(f"gkfast.gan.{module}"))
        gan += [f"gkfast.gan.{module}.{n}" for n in every if n not in gkfast.gan.__all__]
    return pages | {"gan": gan}


def short_names() -> set[str]:
    """Public names as docstrings have them, without the package."""
    return {name.removeprefix("gkfast.") for names in api().values() for name in names}


def _first_sentence(name: str) -> str:
    parent, _, last = name.rpartition(".")
    doc = inspect.getdoc(getattr(import_module(parent), last)) or ""
    return doc.split("\n\n")[0].replace("\n", " ") if not name.endswith("LOSSES") else "The names of losses."


def _page(module: str, names: list[str]) -> str:
    doc = inspect.getdoc(import_module(f"gkfast.{module}")) or ""
    # the first line of functional.py is for its readers, the rest for its users
    doc = doc.partition("\n\n")[2] if module == "functional" else doc
    return "\n\n".join([f"# gkfast.{module}", as_markdown(doc, short_names()), *(f"::: {n}" for n in names)]) + "\n"


def _index() -> str:
    lines = ["# API", "", "Every public name; NumPy arrays and torch tensors go into the same functions.", ""]
    for module, names in api().items():
        lines += [f"## [{module}]({module}.md)", "", "| name | |", "|---|---|"]
        lines += [f"| [`{name}`][{name}] | {_first_sentence(name).replace('|', chr(92) + '|')} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def notebook(path: Path, folder: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with its outputs as Markdown, and its pictures by their addresses in `folder`."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```{{ .python }}\n{source}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append("```text\n" + "".join(output["text"]).rstrip("\n") + "\n```")
            elif "image/png" in output.get("data", {}):
                name = f"{folder}/{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![What the code above draws]({name})")
    return "\n\n".join(parts) + "\n", pictures


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav or []:
        if "API" in entry:
            entry["API"] = ["api/index.md", *({module: f"api/{module}.md"} for module in api())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(uri: str, **source: Any) -> None:
        files.append(File.generated(config, uri, **source))

    add("api/index.md", content=_index())
    for module, names in api().items():
        add(f"api/{module}.md", content=_page(module, names))
    for path, uri in INCLUDED.items():
        if path.endswith(".ipynb"):
            text, pictures = notebook(ROOT / path, f"pictures/{Path(path).stem}")
            add(uri, content=text)
            for name, content in pictures.items():
                add(name, content=content)
        else:
            add(uri, abs_src_path=str(ROOT / path))
    for script in sorted((ROOT / "examples").glob("*.py")):
        add(f"examples/{script.stem}.md", content=f"# {script.stem}\n\n```{{ .python }}\n{script.read_text()}```\n")
    for folder in PICTURES:
        for picture in sorted((ROOT / folder).glob("*.png")):
            add(f"pictures/{folder}/{picture.name}", abs_src_path=str(picture))
    return files


_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links as the site has them: the files are written to be read in the checkout."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    here = Path(source).parent

    def moved(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if ":" in target:
            return match[0]
        path = (here / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            if here.is_relative_to(ROOT / "docs") and target.startswith(("../api/", "api/")):
                return match[0]  # a page made above
            raise PluginError(f"{page.file.src_uri} links to {target}, which is not in the checkout")
        uri = _uri(path.relative_to(ROOT).as_posix())
        if uri is None:
            # a file of the checkout that is no page: its name alone
            return f"`{text.strip('`')}`"
        return f"{mark}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    # code is left alone
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def _uri(path: str) -> str | None:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if any(path.startswith(folder + "/") and path.endswith(".png") for folder in PICTURES):
        return f"pictures/{path}"
    if path.startswith("examples/") and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    return INCLUDED.get(path)
