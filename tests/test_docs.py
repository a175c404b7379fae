"""The documentation: its code runs, its links lead somewhere, and every public name is in it."""

import doctest
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import gkfast
import gkfast.gan

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))
# files that the site includes, and the first page that a reader sees
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"))]
TEXTS += sorted(ROOT.glob("kernels/*/README.md"))
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path):
    """(language, code, line) of the code blocks of a page."""
    text = path.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2))) for m in FENCE.finditer(text)]


# torch itself warns when it loads its forward-mode rules
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script", "ignore:Skipping serialization of skipfiles_inline_module_allowlist"
)
@pytest.mark.parametrize("path", [p for p in PAGES if {"python", "pycon"} & {b[0] for b in blocks(p)}], ids=name_of)
def test_code_runs(path):
    """The blocks of a page, in order and in one namespace: ```python runs, the output of ```pycon is compared."""
    if path.name == "jax.md":
        pytest.importorskip("jax", reason='needs pip install "gkfast[jax]"')
    names = {"__name__": "page"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for language, code, line in blocks(path):
        if language == "python":
            exec(compile("\n" * line + code, str(path), "exec"), names)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), line)
            runner.run(test, clear_globs=False)
            names = test.globs
    assert not runner.summarize(verbose=False).failed


def anchors(text):
    """Of the headings, as MkDocs makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", t)).strip().lower()) for t in titles}


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in LINK.findall(text):
        if ":" in target or "api/" in target:
            # other sites, and pages made of the docstrings, at which the build in strict mode looks
            continue
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), f"{target}#{anchor}"


def test_no_page_names_a_missing_function():
    """`gkfast.name` in a page is a name that exists."""
    for path in TEXTS:
        for dotted in re.findall(r"`gkfast\.([A-Za-z_.0-9]+)[`(]", path.read_text()):
            value = gkfast
            for part in dotted.split("."):
                assert hasattr(value, part) or find_spec(f"gkfast.{dotted}"), f"{name_of(path)}: gkfast.{dotted}"
                value = getattr(value, part, None)


@pytest.fixture(scope="module")
def pages():
    return pytest.importorskip("docs.pages", reason='the site needs pip install "gkfast[docs]"')


def test_every_public_name_has_a_place(pages):
    listed = {name for names in pages.api().values() for name in names}
    expected = {f"gkfast.{name}" for name in gkfast.__all__} | {f"gkfast.gan.{name}" for name in gkfast.gan.__all__}
    assert expected - listed == set()
    assert {*gkfast._MODULES} - {*pages.api()} == {"kernels", "ops"}


@pytest.mark.slow
def test_site_builds_with_every_name(pages, tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    html = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    named = {name for names in pages.api().values() for name in names}
    assert {name for name in named if f'id="{name}"' not in html} == set()
    assert "code-block" not in html
    assert '<pre class="formula' in html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (
            "exp(-|x_i - y_j|^2 / (2 sigma_s^2))",
            "exp(−|x<sub>i</sub> − y<sub>j</sub>|<sup>2</sup> / (2 σ<sub>s</sub><sup>2</sup>))",
        ),
        ("sum_{i != j} x_weights <= pi^(-D/2)", "∑<sub>i ≠ j</sub> x_weights ≤ π<sup>−D/2</sup>"),
    ],
)
def test_formulas(pages, text, html):
    assert sys.modules["docs.formulas"].typeset(text) == html
