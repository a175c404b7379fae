"""The code stays within the bars of bench/house.py: few parameters, short files, a short way to the kernels."""

import textwrap

import pytest

from bench import house


@pytest.fixture(scope="module")
def counted():
    return house.count()


@pytest.mark.parametrize("name", [name for name, figure in house.FIGURES.items() if figure.bar is not None])
def test_figure_is_within_its_bar(counted, name):
    assert counted[name] <= house.FIGURES[name].bar, house.FIGURES[name].meaning


@pytest.fixture
def checkout(tmp_path):
    """checkout(path=text, ...): a folder with gkfast/ and kernels/ of these files."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))
        return house.sources(tmp_path)

    return write


def test_parameters_are_counted(checkout):
    names = [f"p{k}" for k in range(31)]
    kernel = f"@triton.jit\ndef kernel({', '.join(names)}): ...\n"
    texts = checkout(
        {
            "gkfast/a.py": f"""
                def eight({", ".join(names[:8])}, *, more, and_more): ...
                def nine({", ".join(names[:9])}): ...
                class A:
                    def method(self, {", ".join(names[:8])}): ...
                """,
            "kernels/gpu/b.py": kernel,
            "kernels/cpu/c.py": kernel,
        }
    )
    functions, gpu_kernels = house.offenders(texts)
    assert [s.place for s in functions] == ["gkfast/a.py:3 nine", "kernels/cpu/c.py:2 kernel"]
    assert [s.place for s in gpu_kernels] == ["kernels/gpu/b.py:2 kernel"]


def test_the_picture_of_the_imports_is_that_of_the_code():
    assert (
        house.picture(house.imports(house.sources(house.HERE))) in (house.HERE / "docs/architecture.md").read_text()
    )


def test_the_link_to_the_kernels_is_not_counted_again(checkout, tmp_path):
    checkout({"gkfast/a.py": "x = 1\n", "kernels/b.py": "y = 1\n"})
    (tmp_path / "gkfast" / "kernels").symlink_to("../kernels")
    assert {str(path) for path in house.sources(tmp_path)} == {"gkfast/a.py", "kernels/b.py"}


def test_import_circles_are_found(checkout):
    texts = checkout(
        {
            "gkfast/__init__.py": "",
            "gkfast/a.py": "from . import b",
            "gkfast/b.py": "def late():\n    from .ops import c",
            "gkfast/ops/__init__.py": "",
            "gkfast/ops/c.py": "import gkfast.a",
            "gkfast/d.py": "from .a import x",
            "kernels/e.py": "from .f import x",
            "kernels/f.py": "",
        }
    )
    assert house.circles(house.imports(texts)) == [{"gkfast.a", "gkfast.b", "gkfast.ops.c"}]


def test_code_is_counted_without_docstrings_comments_and_blank_lines():
    text = '"""One.\n\nTwo."""\n\n# three\ndef four():\n    """Five."""\n    return """six\n\n    # seven\n    """\n'
    # a string that is a value is code, but for its blank lines and those that begin like comments
    assert house.code_lines(text) == 3
