"""TODO."""

from __future__ import annotations

import json
from pathlib import Path

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results

__all__ = ["known_loss", "read_losses"]


_LOSSES = ("loss", "nll_mean", "train_loss", "eval_loss")


def read_losses(path: Path | str, column: str | None = None) -> dict[int, float]:
    """Loss by step, in nats per token, from a table with `step` and a `column`.

    `path` is a CSV, a log of one JSON object a line (``.jsonl``), or the ``trainer_state.json`` that transformers'
    `Trainer` leaves in a checkpoint. Taken is `column` where there is one, else the first of `loss`, `nll_mean` (of
    ``perplexity-forward.csv``), `train_loss`, `eval_loss`. Rows without it say nothing; of several rows of a step the
    last one counts. Raises `PythiaDynError`.
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
    column = next((name for name in (column, *_LOSSES) if name in frame.columns), None)
    if column is None or "step" not in frame.columns:
        raise PythiaDynError(
            f"{path} must have the columns step and loss (or nll_mean); it has {', '.join(map(str, frame.columns))}"
        )
    try:
        told = frame[["step", column]].dropna()
        steps, values = pd.to_numeric(told["step"]), pd.to_numeric(told[column]).astype(float)
    except (ValueError, TypeError) as error:
        raise PythiaDynError(f"{path} must have a whole number and a number in every row: {error}") from None
    if (steps % 1 != 0).any():
        raise PythiaDynError(f"{path} must have a whole number in the column step of every row")
    return dict(zip(steps.astype(int).tolist(), values.tolist(), strict=True))


def known_loss(results: Results, source: str) -> tuple[dict[int, float], str] | None:
    """The loss of a model by step, and the file it is from; None where nothing is known.

    It is that of the forward perplexity, else the validation loss in ``losses.csv`` of the suite in the directory
    `source`. Raises `PythiaDynError` for a file that is damaged.
    """
    for path, column in (
        (results.path / "perplexity-forward.csv", "nll_mean"),
        (Path(source) / "losses.csv", "validation_loss"),
    ):
        if path.is_file():
            return read_losses(path, column), str(path)
    return None
