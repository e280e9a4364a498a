"""How stores are shown: numbers as text, and HTML for notebooks.

HTML is headings and tables of escaped, visible text, without external styles or scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from kpstore.visible import visible

Cell = str | int


def heading(title: str, note: str = "") -> str:
    """Return a line with a bold beginning."""
    return f"<div><b>{_text(title)}</b> {_text(note)}</div>"


def table(rows: Iterable[Sequence[Cell]], columns: Sequence[str] = ()) -> str:
    """Return rows as a table, ``""`` without rows; ints are right-aligned and written as 1,234."""
    body = list(rows)
    if not body:
        return ""
    lines = [_line(row, row, "td") for row in body]
    head = [_line(columns, body[0], "th")] if columns else []
    return f"<table>{''.join(head + lines)}</table>"


def block(*parts: str) -> str:
    """Return several parts as one."""
    return f"<div>{''.join(parts)}</div>"


def _line(cells: Sequence[Cell], like: Sequence[Cell], tag: str) -> str:
    # For each cell, as notebooks have their own styles for tables.
    sides = ["right" if isinstance(cell, int) else "left" for cell in like]
    texts = [_text(f"{cell:,}" if isinstance(cell, int) else cell) for cell in cells]
    tds = [
        f'<{tag} style="text-align: {side}">{text}</{tag}>'
        for side, text in zip(sides, texts, strict=True)
    ]
    return f"<tr>{''.join(tds)}</tr>"


def _text(text: str) -> str:
    return escape(visible(text))


def count(number: int, what: str) -> str:
    """Return 1 and ``video`` as ``1 video``, 1234 and ``video`` as ``1,234 videos``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(n_bytes: int) -> str:
    """Return 1234567 bytes as ``1.2 MB``."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
