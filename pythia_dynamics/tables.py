"""CSV tables and JSON documents: the one way of writing and of reading each. A file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pythia_dynamics.files import atomic_file

__all__ = ["csv_text", "plain", "read_csv", "read_json", "write_csv", "write_json"]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, digits: int | None = None) -> str:
    """A table as CSV text, a line per row below the line of the `columns`.

    A float is written so that it reads back as the same number, or with so many significant `digits`. NaN and None are
    empty fields.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value, digits) for value in row] for row in rows)
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, digits: int | None = None) -> Path:
    """Write `csv_text` to a file and return its path."""
    with atomic_file(path) as file:
        file.write(csv_text(columns, rows, digits=digits).encode())
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, a mapping from column to text each. Raises `OSError`."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain(value: Any) -> Any:
    """A value as JSON can hold it: mappings, lists, text and finite numbers.

    JSON has no NaN and no infinity: numbers that are not finite become None. Scalars of NumPy become Python's, tuples
    become lists, keys and everything else (paths, dates) become text.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a scalar or an array of NumPy
        return plain(value.tolist()) if hasattr(value, "ndim") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_json(path: Path, content: Any) -> Path:
    """Write `plain` of a value as JSON and return the path."""
    with atomic_file(path) as file:
        file.write(json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `OSError`, and `ValueError` for a file that is damaged."""
    return json.loads(path.read_text(encoding="utf-8"))


def _field(value: Any, digits: int | None) -> Any:
    if value is None or value != value:
        return ""
    if isinstance(value, float):  # NumPy's float64 is one of Python's
        return repr(float(value)) if digits is None else f"{value:.{digits}g}"
    return value
