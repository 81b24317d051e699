"""Reading and writing of CSV tables and JSON documents. Files are written atomically."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pythia_dynamics.files import atomic_file

__all__ = ["csv_text", "json_text", "plain", "read_csv", "read_json", "write_csv", "write_json"]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, digits: int | None = None) -> str:
    """A table as CSV text: a line with the names of the columns, then one line per row.

    Parameters
    ----------
    columns
        Names of the columns.
    rows
        The rows, one value per column. NaN and None become empty fields.
    digits
        Significant digits of a float. By default as many as are necessary to read back the same number.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value, digits) for value in row] for row in rows)
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, digits: int | None = None) -> Path:
    """Write a table to a CSV file and return its path. Other parameters as for `csv_text`; raises `StoreError`."""
    with atomic_file(path) as file:
        file.write(csv_text(columns, rows, digits=digits).encode())
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file: for each row the text by name of the column. Raises `OSError`."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain(value: Any) -> Any:
    """Convert a value to types of JSON: mappings, lists, text, booleans, None and finite numbers.

    JSON has no NaN and no infinity, so numbers that are not finite become None. Scalars and arrays of NumPy become
    numbers and lists of Python. Tuples and sets become lists. Keys and all other values (paths, dates) become text.
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


def json_text(content: Any) -> str:
    """A value as a JSON document, converted by `plain`."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, content: Any) -> Path:
    """Write a value to a JSON file by `json_text` and return its path. Raises `StoreError`."""
    with atomic_file(path) as file:
        file.write(json_text(content).encode() + b"\n")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `OSError`, and `ValueError` for a damaged file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _field(value: Any, digits: int | None) -> Any:
    if value is None or value != value:
        return ""
    if isinstance(value, float):  # the float64 of NumPy is a subclass
        return repr(float(value)) if digits is None else f"{value:.{digits}g}"
    return value
