"""Text that others wrote, made safe to show: ids, paths, messages, annotations, provenance.

A terminal obeys control characters and escape codes, and a reader believes the order in which
characters appear. Text of a stranger's store must not be able to move the cursor, hide a line or
turn a word around, so whatever is printed or put into HTML passes through :func:`visible`.
"""

from __future__ import annotations

import logging
import re

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters, with the escape that begins a terminal's codes
    "\u00ad\u180e\u200b\u2060-\u2065\ufeff"  # characters without width
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # marks that turn the reading direction around
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags, which are not shown
    "\ud800-\udfff"  # halves of surrogate pairs: bytes of a file name that are no text
    "]"
)


def visible(text: str) -> str:
    r"""Return text with all characters that a terminal obeys or hides as escapes, such as ``\x1b``.

    Line breaks and tabs are among them. Joiners of letters and emoji (U+200C, U+200D) stay.

    Examples
    --------
    >>> print(visible("clip\x1b[2J\n"))
    clip\x1b[2J\n
    """
    return _HIDDEN.sub(_escaped, text)


def logger(name: str) -> logging.Logger:
    """Return the logger of a module, whose messages are made visible."""
    found = logging.getLogger(name)
    found.addFilter(_show)
    return found


def _show(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), ()
    return True


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
