"""Loss by step from tables and logs, and the loss that is known of a model."""

from __future__ import annotations

import json
from pathlib import Path

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results

__all__ = ["known_loss", "read_losses"]


_COLUMNS = ("loss", "nll_mean", "train_loss", "eval_loss")


def read_losses(path: Path | str, column: str | None = None) -> dict[int, float]:
    """Loss by step, in nats per token.

    Parameters
    ----------
    path : Path or str
        A CSV, a log of one JSON object a line (``.jsonl``), or the ``trainer_state.json`` that the `Trainer` of
        transformers leaves in a checkpoint.
    column : str, optional
        The column of the loss, where the table has it. Otherwise the first of `loss`, `nll_mean` (of
        ``perplexity-forward.csv``), `train_loss`, `eval_loss` that it has.

    Returns
    -------
    dict of int to float
        Rows without a loss are left out; of several rows of a step the last one counts.

    Raises
    ------
    PythiaDynError
        For a file that cannot be read, or that has no such columns or no numbers in them.
    """
    import pandas as pd

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
    """The loss of a model by step and the file it is from; None where none is known.

    It is the mean NLL of the forward perplexity, else the validation loss in ``losses.csv`` of the suite.

    Parameters
    ----------
    results : Results
        The results of the model, or of a tensor of it.
    source : str
        Where its weights are from; a directory where it is a suite.

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
