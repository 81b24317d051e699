"""Loss by step: from tables and logs, and from the results of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import EmptyDataError

from pythia_dynamics.errors import PythiaDynError, first_line
from pythia_dynamics.results.folder import Results

__all__ = ["known_loss", "read_losses"]

_COLUMNS = ("loss", "nll_mean", "train_loss", "eval_loss")
"""Columns that hold a loss, in order of preference."""


def read_losses(path: Path | str, column: str | None = None) -> dict[int, float]:
    """Loss by step, in nats per token.

    Parameters
    ----------
    path
        A CSV file, a log with one JSON object per line (``.jsonl``), or the ``trainer_state.json`` that the `Trainer`
        of transformers writes into a checkpoint.
    column
        The column of the loss. By default, or where the table lacks it, the first of `loss`, `nll_mean` (of
        ``perplexity-forward.csv``), `train_loss`, `eval_loss` that the table has.

    Returns
    -------
    dict of int to float
        Rows without a loss are left out. Of several rows of a step the last one counts.

    Raises
    ------
    PythiaDynError
        For a file that cannot be read, lacks these columns, or has something else than numbers in them.
    """
    path = Path(path)
    try:
        frame = _frame(path)
    except OSError as error:
        raise PythiaDynError(f"cannot read losses from {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PythiaDynError(f"cannot read losses from {path}: it is not text in UTF-8") from None
    except EmptyDataError:
        raise PythiaDynError(f"cannot read losses from {path}: it is empty") from None
    except json.JSONDecodeError as error:
        raise PythiaDynError(f"cannot read losses from {path}: it is no JSON (line {error.lineno})") from None
    except ValueError as error:
        raise PythiaDynError(f"cannot read losses from {path}: {first_line(error)}") from None
    column = next((name for name in (column, *_COLUMNS) if name in frame.columns), None)
    if column is None or "step" not in frame.columns:
        has = ", ".join(map(str, frame.columns)) or "none"
        raise PythiaDynError(f"{path} must have the columns step and loss (or nll_mean); it has {has}")
    known = frame[["step", column]].dropna()
    steps, values = (_numbers(known[name]) for name in ("step", column))
    if steps is None or (steps % 1 != 0).any():
        raise PythiaDynError(f"{path} must have a whole number in the column step of every row")
    if values is None:
        raise PythiaDynError(f"{path} must have a number, or nothing, in the column {column} of every row")
    return dict(zip(steps.astype(int).tolist(), values.tolist(), strict=True))


def _frame(path: Path) -> pd.DataFrame:
    """The rows of a table or a log. Raises `ValueError` for other content, and `PythiaDynError` for other JSON."""
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
    """The objects of a log with one in each line. Raises `PythiaDynError` for a line with something else."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise PythiaDynError(f"cannot read losses from {path}: line {number} is no JSON object") from None
    return rows


def _numbers(column: pd.Series) -> pd.Series | None:
    """The values of a column as float64, None where one is not a number."""
    try:
        return pd.to_numeric(column).astype(float)
    except (ValueError, TypeError, OverflowError):
        return None


def known_loss(results: Results, source: str) -> tuple[dict[int, float], str] | None:
    """The loss of a model by step: the mean NLL of the forward perplexity, else the validation loss of its suite.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    source
        Where its weights are from. Where this is the directory of a suite, its ``losses.csv`` is read.

    Returns
    -------
    tuple of (dict of int to float, str), or None
        The loss by step, and the file it is from. None where no loss is known.

    Raises
    ------
    PythiaDynError
        For a file that is damaged.
    """
    for path, column in (
        (results.model.path / "perplexity-forward.csv", "nll_mean"),
        (Path(source) / "losses.csv", "validation_loss"),
    ):
        if path.is_file():
            return read_losses(path, column), str(path)
    return None
