"""Plain-text tables for the command line and the reports."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

__all__ = ["facts", "size", "table"]


def size(num_bytes: float) -> str:
    """Bytes as people read them: "512 B", "1.5 KiB", "96.3 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), wrap: bool = False,
    indent: str = "",
) -> str:  # fmt: skip
    """A table of text with a rule under its headers, every column as wide as its widest cell.

    Args:
        headers: the names of the columns.
        rows: one sequence of cells for each row; a cell is shown with `str`.
        right: numbers of the columns that are aligned to the right (figures).
        wrap: break the last column's text into lines, so that the table fits the terminal (or 120 columns).
        indent: before every line.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    cells = [[str(c) for c in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table has {len(headers)} columns: {row}")
    if wrap and headers:
        cells = _wrapped(headers, cells, _columns() - len(indent))
    widths = [max(map(_width, column)) for column in zip(headers, *cells)]  # noqa: B905 - lengths are checked above

    def line(row: Sequence[str]) -> str:
        padded = (
            " " * (w - _width(c)) + c if i in right else c + " " * (w - _width(c))
            for i, (c, w) in enumerate(zip(row, widths))  # noqa: B905
        )
        return indent + "  ".join(padded).rstrip()

    return "\n".join([line(list(headers)), indent + "  ".join("-" * w for w in widths), *map(line, cells)])


def facts(items: Mapping[str, object] | Sequence[tuple[str, object]], *, indent: str = "", wrap: bool = False) -> str:
    """Two columns, names and values, without headers; a value of several lines stays in its column.

    Args:
        items: names and values.
        indent: before every line.
        wrap: break long values into lines, as in `table`.
    """
    pairs = list(items.items()) if isinstance(items, Mapping) else list(items)
    width = max((_width(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        text = str(value)
        if wrap:
            text = "\n".join(_lines(text, _columns() - len(indent) - width - 2))
        first, *rest = text.split("\n")
        lines.append(f"{indent}{name}{' ' * (width - _width(name))}  {first}".rstrip())
        lines += [f"{indent}{' ' * width}  {line}".rstrip() for line in rest]
    return "\n".join(lines)


def _wrapped(headers: Sequence[str], cells: list[list[str]], width: int) -> list[list[str]]:
    """The rows, with more lines where the last cell is too long for what the other columns leave."""
    others = sum(max(_width(c) for c in column) + 2 for column in list(zip(headers, *cells))[:-1])  # noqa: B905
    rows = []
    for row in cells:
        first, *rest = _lines(row[-1], width - others)
        rows += [[*row[:-1], first], *([""] * (len(row) - 1) + [line] for line in rest)]
    return rows


def _lines(text: str, width: int) -> list[str]:
    wrapped = (textwrap.wrap(part, max(width, 30), break_long_words=False) or [""] for part in text.split("\n"))
    return [line for lines in wrapped for line in lines]


def _columns() -> int:
    return shutil.get_terminal_size((120, 24)).columns


def _width(text: str) -> int:
    """Columns a terminal needs: wide (CJK) characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
