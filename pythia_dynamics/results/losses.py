"""Loss by step: from tables and logs, and from the results of a model."""

from __future__ import annotations

from pathlib import Path

from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_by_step

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
    columns = _COLUMNS if column is None else (column, *_COLUMNS)
    return read_by_step(path, columns, what="losses", required="step and loss (or nll_mean)")


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
