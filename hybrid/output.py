"""Tables of text that commands print, text for pages, and where results go."""

import contextlib
import html
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybrid.models.errors import InvalidArgumentError
from hybrid.models.files import check_writable

LARGE = 1000.0


@contextlib.contextmanager
def quiet(name: str, level: int) -> Iterator[None]:
    """A logger by its name says nothing below a level inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Warnings of the block are written to stderr as a command says things, without a place in the source."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in said):
                print(f"Warning: {message}", file=sys.stderr)


def check_output(path: Path | None, formats: Sequence[str]) -> None:
    """Fail before the work, not after it, where a file could not be written.

    Raises
    ------
    InvalidArgumentError
        If its name ends in none of the formats, or it cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in formats:
        raise InvalidArgumentError(f"{path}: the name must end in {' or '.join(formats)}")
    check_writable(path)


def as_html(text: str) -> str:
    """Text that a page of HTML shows as it is, whatever is in it."""
    return html.escape(" ".join(text.split()))


def as_markdown(text: str) -> str:
    """Text that a page of Markdown shows as it is, whatever is in it."""
    plain = html.escape(" ".join(text.split()), quote=False)  # the # of an escaped quote would be escaped again
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", plain)


def _decimals(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.3f}" if not abs(value) >= LARGE else f"{value:,.0f}"


def as_table(frame: Any, form: Any = None) -> Any:
    """A data frame as a page of HTML shows it, whatever is in its cells and names.

    Parameters
    ----------
    frame
        A pandas DataFrame.
    form
        Of the numbers, as "{:.4g}"; None gives three decimals, and none from a thousand on.
    """
    style = frame.style.format(form or _decimals, escape="html")
    return style.format_index(escape="html").format_index(escape="html", axis=1)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns of text, aligned to the right except for those numbered in `left`."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
