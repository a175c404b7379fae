"""Formulas of the docstrings and guides, for the site: plain text in, HTML in the field's notation out."""

import html
import re
from typing import Any

import griffe

_SYMBOLS = {"sigma": "σ", "gamma": "γ", "lambda": "λ", "zeta": "ζ", "phi": "φ", "pi": "π", "sum": "∑", "sqrt": "√"}
_SIGNS = {"!=": "≠", "&lt;=": "≤", "&gt;=": "≥", "-&gt;": "→", " - ": " − ", "(-": "(−"}
# a subscript has at most three letters: x_weights and log_ratio are names
_SUBSCRIPT = re.compile(r"_(?:\{([^}]*)\}|(-?[A-Za-z0-9]{1,3})(?![A-Za-z0-9_]))")
_SUPERSCRIPT = re.compile(r"\^(?:\(([^()]*)\)|\{([^}]*)\}|(-?[A-Za-z0-9]+))")
# two spaces within a line: columns, which stay where they are
_COLUMNS = re.compile(r"\S  +\S")


def typeset(text: str) -> str:
    """HTML of a formula: Greek letters, subscripts, powers."""
    text = html.escape(text, quote=False)
    for plain, sign in _SIGNS.items():
        text = text.replace(plain, sign)
    text = _SUPERSCRIPT.sub(lambda m: f"<sup>{m[1] or m[2] or m[3]}</sup>", text)
    text = _SUBSCRIPT.sub(lambda m: f"<sub>{m[1] or m[2]}</sub>", text)
    return re.sub(rf"(?<![A-Za-z_])({'|'.join(_SYMBOLS)})(?![A-Za-z_])", lambda m: _SYMBOLS[m[1]], text)


def fence(source: str, *_: Any, **__: Any) -> str:
    """What pymdownx.superfences puts for a block ```formula."""
    kind = "columns" if _COLUMNS.search(source) else "running"
    return f'<pre class="formula {kind}">{typeset(source)}</pre>'


_BLOCK = re.compile(r"^( *)\.\. code-block:: text\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)


def as_markdown(docstring: str, public: set[str]) -> str:
    """A docstring whose formulas are fenced blocks, and whose public names in backticks are links."""

    def fenced(match: re.Match[str]) -> str:
        indent, body = match[1], match[2].rstrip("\n")
        lines = [line.removeprefix(indent + "    ") for line in body.split("\n")]
        return "\n".join(f"{indent}{line}" for line in ["```formula", *lines, "```"]) + "\n\n"

    text = _BLOCK.sub(fenced, docstring + "\n").rstrip("\n")
    return re.sub(
        r"(?<!`)`(?:gkfast\.)?([A-Za-z_.0-9]+)`(?!`)",
        lambda m: f"[`{m[1]}`][gkfast.{m[1]}]" if m[1] in public else m[0],
        text,
    )


class Docstrings(griffe.Extension):
    """Every docstring as Markdown before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            from docs.pages import short_names

            obj.docstring.value = as_markdown(obj.docstring.value, short_names())
