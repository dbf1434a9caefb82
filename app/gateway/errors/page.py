"""The documentation of errors (docs/errors.md) as a web page."""

from __future__ import annotations

import functools
import itertools
import re
from importlib.resources import files

from markdown_it import MarkdownIt

STYLE = """
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }
h3 { font-family: ui-monospace, monospace }
:target { background: #ff06; outline: 0.3rem solid #ff06 }
pre { padding: 0.8rem; background: #8881; overflow-x: auto }
table { border-collapse: collapse }
td, th { padding: 0.2rem 0.8rem; border: 1px solid #8886; text-align: left }
:root { color-scheme: light dark }
"""


@functools.cache
def errors_page() -> str:
    """The page, as HTML; each heading's anchor is its text, so that of an error is its code."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((files(__package__) / "errors.md").read_text())
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"\W+", "-", text.content.lower()))
    body = markdown.renderer.render(tokens, markdown.options, {})
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Cynosure: errors</title><style>{STYLE}</style><main>{body}</main></html>"
    )
