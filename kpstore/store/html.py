"""HTML for notebooks: headings and tables of escaped text, without styles or scripts from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Cell = str | int


def heading(title: str, note: str = "") -> str:
    """Return a line with a bold beginning."""
    return f"<div><b>{escape(title)}</b> {escape(note)}</div>"


def table(rows: Iterable[Sequence[Cell]], columns: Sequence[str] = ()) -> str:
    """Return rows as a table, nothing if there are none.

    Ints are written as 1,234 and to the right.
    """
    body = list(rows)
    if not body:
        return ""
    lines = [_line(row, row, "td") for row in body]
    head = [_line(columns, body[0], "th")] if columns else []
    return f"<table>{''.join(head + lines)}</table>"


def block(*parts: str) -> str:
    """Return parts as one piece."""
    return f"<div>{''.join(parts)}</div>"


def _line(cells: Sequence[Cell], like: Sequence[Cell], tag: str) -> str:
    # Said for each cell, because notebooks have styles of their own for tables.
    sides = ["right" if isinstance(cell, int) else "left" for cell in like]
    texts = [escape(f"{cell:,}" if isinstance(cell, int) else cell) for cell in cells]
    tds = [
        f'<{tag} style="text-align: {side}">{text}</{tag}>'
        for side, text in zip(sides, texts, strict=True)
    ]
    return f"<tr>{''.join(tds)}</tr>"


def size(n_bytes: int) -> str:
    """Return a size as people say it."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
