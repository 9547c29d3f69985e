"""Plain-text tables for the command line and the reports."""

from __future__ import annotations

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


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """A table of text with a rule under its headers, every column as wide as its widest cell.

    Args:
        headers: the names of the columns.
        rows: one sequence of cells for each row; a cell is shown with `str`.
        right: numbers of the columns that are aligned to the right (figures).

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    cells = [[str(c) for c in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table has {len(headers)} columns: {row}")
    widths = [max(map(_width, column)) for column in zip(headers, *cells)]  # noqa: B905 - lengths are checked above

    def line(row: Sequence[str]) -> str:
        padded = (
            " " * (w - _width(c)) + c if i in right else c + " " * (w - _width(c))
            for i, (c, w) in enumerate(zip(row, widths))  # noqa: B905
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(headers)), "  ".join("-" * w for w in widths), *map(line, cells)])


def facts(items: Mapping[str, object] | Sequence[tuple[str, object]], *, indent: str = "") -> str:
    """Two columns, names and values, without headers; a value of several lines stays in its column."""
    pairs = list(items.items()) if isinstance(items, Mapping) else list(items)
    width = max((_width(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        first, *rest = str(value).split("\n")
        lines.append(f"{indent}{name}{' ' * (width - _width(name))}  {first}".rstrip())
        lines += [f"{indent}{' ' * width}  {text}".rstrip() for text in rest]
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns a terminal needs: wide (CJK) characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
