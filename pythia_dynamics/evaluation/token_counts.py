"""How often each token occurs in a text, for `pythia_dynamics.rows`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.view import tokenizer_file
from pythia_dynamics.errors import CheckpointError, PythiaDynError
from pythia_dynamics.evaluation.corpus import load_corpus, load_tokenizer
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History

__all__ = ["token_counts"]

_TOKENIZER = "tokenizer.json"

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""``owner/name`` on the Hub."""


def token_counts(
    history: Any, corpus: str | Path, *, tokenizer: str | Path | None = None, limit: int | None = None
) -> NDArray[np.int64]:
    """The count of each token in a text, one per row of the weights.

    Parameters
    ----------
    history : History, str or Path
        The weights whose rows are tokens: a history, or the name or path of a fetched model.
    corpus : str or Path
        A text, as for `pythia_dynamics.perplexity`.
    tokenizer : str or Path, optional
        A ``tokenizer.json``, its directory, or a repository that has one. Default: that of the checkpoints.
    limit : int, optional
        The first passages only.

    Returns
    -------
    array of int64, shape (v,)

    Raises
    ------
    CorpusError
        The corpus cannot be read.
    CheckpointError
        The tokenizer cannot be had or read.
    PythiaDynError
        The tokenizer is not known, or has a token without a row.
    """
    history = as_history(history)
    file = _tokenizer_of(history) if tokenizer is None else Path(tokenizer)
    file = file if file.is_file() else tokenizer_file(str(file if tokenizer is None else tokenizer))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    encoder = load_tokenizer(content, file)
    texts = list(load_corpus(corpus, limit=limit).texts)
    ids = [np.array(each.ids, dtype=np.int64) for each in encoder.encode_batch(texts, add_special_tokens=False)]
    rows = history.frame_shape[0]
    counts = np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=rows)
    if len(counts) > rows:
        raise PythiaDynError(f"the tokenizer {file} has token {len(counts) - 1}; {history.tensor} has {rows} rows")
    return counts


def _tokenizer_of(history: History) -> Path:
    """The ``tokenizer.json`` of a directory of checkpoints, or of its last step that has one; or of a repository."""
    source = str(history.provenance.get("source", ""))
    given = (history.provenance.get("suite") or {}).get("tokenizer")
    directory = Path(source)
    if given is not None or (not directory.is_dir() and _REPOSITORY.fullmatch(source)):
        return tokenizer_file(given or source)
    if (directory / _TOKENIZER).is_file():
        return directory
    if directory.is_dir():
        try:
            revisions = LocalSource(directory).revisions()
        except CheckpointError:  # its steps have names that only the suite of the store knows
            revisions = {}
        for step in sorted(revisions, reverse=True):
            file = directory / revisions[step].path(_TOKENIZER)
            if file.is_file():
                return file
    raise PythiaDynError(
        f"the tokenizer of {history.name} is not known: give it with --tokenizer, or count the tokens with it and give "
        "a CSV with token_id and count"
    )
