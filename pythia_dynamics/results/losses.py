"""Loss by step: from tables and logs, and from the results of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from pythia_dynamics.errors import PythiaDynError
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
        if path.suffix == ".json":
            frame = pd.DataFrame(json.loads(path.read_text())["log_history"])
        elif path.suffix == ".jsonl":
            frame = pd.read_json(path, lines=True)
        else:
            frame = pd.read_csv(path)
    except (KeyError, TypeError):
        raise PythiaDynError(f"{path} is no trainer_state.json: it has no log_history") from None
    except (OSError, ValueError) as error:
        raise PythiaDynError(f"cannot read losses from {path}: {error}") from None
    column = next((name for name in (column, *_COLUMNS) if name in frame.columns), None)
    if column is None or "step" not in frame.columns:
        raise PythiaDynError(
            f"{path} must have the columns step and loss (or nll_mean); it has {', '.join(map(str, frame.columns))}"
        )
    try:
        known = frame[["step", column]].dropna()
        steps, values = pd.to_numeric(known["step"]), pd.to_numeric(known[column]).astype(float)
    except (ValueError, TypeError) as error:
        raise PythiaDynError(f"{path} must have a whole number and a number in every row: {error}") from None
    if (steps % 1 != 0).any():
        raise PythiaDynError(f"{path} must have a whole number in the column step of every row")
    return dict(zip(steps.astype(int).tolist(), values.tolist(), strict=True))


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
