"""Reading and writing of CSV tables and JSON documents. Files are written atomically."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_dynamics.errors import PythiaDynError, first_line
from pythia_dynamics.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["csv_text", "json_text", "plain", "read_by_step", "read_csv", "read_json", "write_csv", "write_json"]


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


def read_by_step(path: Path | str, columns: Sequence[str], *, what: str, required: str) -> dict[int, float]:
    """One number by step, from a table or the log of a training.

    Parameters
    ----------
    path
        A CSV file, a log with one JSON object per line (``.jsonl``), or the ``trainer_state.json`` that the `Trainer`
        of transformers writes into a checkpoint.
    columns
        Names of the column of the number. The first one that the table has is read.
    what
        The numbers in the plural, for messages.
    required
        The columns that the table must have, in words, for messages.

    Returns
    -------
    dict of int to float
        Rows without a number are left out. Of several rows of a step the last one counts.

    Raises
    ------
    PythiaDynError
        For a file that cannot be read, lacks these columns, or has something else than numbers in them.
    """
    from pandas.errors import EmptyDataError

    path = Path(path)
    try:
        frame = _frame(path)
    except OSError as error:
        raise PythiaDynError(f"cannot read {what} from {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PythiaDynError(f"cannot read {what} from {path}: it is not text in UTF-8") from None
    except EmptyDataError:
        raise PythiaDynError(f"cannot read {what} from {path}: it is empty") from None
    except json.JSONDecodeError as error:
        raise PythiaDynError(f"cannot read {what} from {path}: it is no JSON (line {error.lineno})") from None
    except (ValueError, RecursionError) as error:
        raise PythiaDynError(f"cannot read {what} from {path}: {first_line(error)}") from None
    column = next((name for name in columns if name in frame.columns), None)
    if column is None or "step" not in frame.columns:
        has = ", ".join(map(str, frame.columns)) or "none"
        raise PythiaDynError(f"{path} must have the columns {required}; it has {has}")
    known = frame[["step", column]].dropna()
    steps, values = (_numbers(known[name]) for name in ("step", column))
    if steps is None or (steps % 1 != 0).any():
        raise PythiaDynError(f"{path} must have a whole number in the column step of every row")
    if values is None:
        raise PythiaDynError(f"{path} must have a number, or nothing, in the column {column} of every row")
    return dict(zip(steps.astype(int).tolist(), values.tolist(), strict=True))


def _frame(path: Path) -> pd.DataFrame:
    """The rows of a table or a log. Raises `ValueError` for other content, and `PythiaDynError` for other JSON."""
    import pandas as pd

    if path.suffix not in (".json", ".jsonl"):
        return pd.read_csv(path)
    if path.suffix == ".jsonl":
        return pd.DataFrame(_json_lines(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PythiaDynError(f"{path} is no trainer_state.json: it must have a list log_history of records with step")
    return pd.DataFrame(rows)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log with one in each line. Raises `ValueError` for a line with something else."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise ValueError(f"line {number} is no JSON object") from None
    return rows


def _numbers(column: pd.Series) -> pd.Series | None:
    """The values of a column as float64, None where one is not a number."""
    import pandas as pd

    try:
        return pd.to_numeric(column).astype(float)
    except (ValueError, TypeError, OverflowError):
        return None


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
