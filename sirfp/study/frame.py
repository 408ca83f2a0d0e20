"""The frame of an HTML page that loads no other file: its head, style, script and first lines; its wide parts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path


def frame(title: str, line: str, body: Iterable[str]) -> str:
    """Returns a whole page as HTML.

    Args:
        title: the title, as text.
        line: a line below the title, as text.
        body: the parts of the page, as HTML; empty ones are left out.
    """
    beside = Path(__file__).parent
    style, script = ((beside / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    header = (
        f'<header><h1>{escape(title)}</h1><button id="theme" type="button">Change theme</button>'
        f"<p>{escape(line)}</p></header>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(part for part in (header, *body) if part)
        + f"\n<script>{script}</script></body></html>\n"
    )


def scrolling(label: str, content: str) -> str:
    """Returns content, as HTML, that scrolls sideways alone where the screen is narrower, so that the page does not.

    Args:
        label: what it is, for those who do not see it.
        content: a table or a picture, as HTML.
    """
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'
