"""Tables of text that commands print, and text for pages."""

import html
import re
from collections.abc import Sequence


def as_html(text: str) -> str:
    """Text that a page of HTML shows as it is, whatever is in it."""
    return html.escape(" ".join(text.split()))


def as_markdown(text: str) -> str:
    """Text that a page of Markdown shows as it is, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", as_html(text))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns of text, aligned to the right except for those numbered in `left`."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
