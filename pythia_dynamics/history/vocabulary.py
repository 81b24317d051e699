"""The number of entries of a model's tokenizer. The rows of W_U after them are padding."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.registry import TOKENIZER_ENTRIES, is_pythia
from pythia_dynamics.errors import CheckpointError, PythiaDynError
from pythia_dynamics.history.history import History

__all__ = ["tokenizer_entries"]


def tokenizer_entries(history: History) -> int:
    """The number of entries of a model's tokenizer: the rows of W_U to keep with `drop_padding`.

    It is known for Pythia, and for a directory of checkpoints with a ``tokenizer.json`` in it or in its steps. One in
    the directory itself stands for all steps.

    Parameters
    ----------
    history
        The history of W_U, or of another tensor with a row for each entry.

    Raises
    ------
    PythiaDynError
        The tokenizer is not known or cannot be read, the tokenizers of two steps have different numbers of entries, or
        the tensor has fewer rows than the tokenizer has entries.
    """
    source = str(history.provenance.get("source", ""))
    directory = Path(source)
    shared = directory / "tokenizer.json"
    found = None
    if shared.is_file():
        found = _entries(shared.read_bytes(), shared)
    elif directory.is_dir():
        found = _entries_of_steps(directory, history.name)
    if found is not None:
        entries = found
    elif is_pythia(source):
        entries = TOKENIZER_ENTRIES
    else:
        raise PythiaDynError(f"the tokenizer of {history.name} is not known; give --drop-padding a number of rows")
    if entries > history.frame_shape[0]:
        raise PythiaDynError(
            f"{history.tensor} of {history.name} has {history.frame_shape[0]} rows, its tokenizer {entries} entries: "
            "there is no padding to drop"
        )
    return entries


def _entries_of_steps(directory: Path, name: str) -> int | None:
    """The entries that the tokenizers of all steps of a directory have; None where no step has a tokenizer."""
    try:
        revisions = LocalSource(directory).revisions()
    except CheckpointError:  # its steps have names that only the suite of the store knows
        return None
    paths = {step: directory / revision.path("tokenizer.json") for step, revision in revisions.items()}
    files = [(step, file) for step, file in paths.items() if file.is_file()]
    known: dict[bytes, int] = {}  # by content, as most suites have one tokenizer, and counting takes 0.1 s
    first: tuple[int, int] | None = None
    for step, file in files:
        content = file.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest not in known:
            known[digest] = _entries(content, file)
        first = first or (step, known[digest])
        if known[digest] != first[1]:
            counts = f"{first[1]} entries at step {first[0]} and {known[digest]} at step {step}"
            raise PythiaDynError(f"the tokenizer of {name} has {counts}; give --drop-padding a number of rows")
    return None if first is None else first[1]


def _entries(content: bytes, file: Path) -> int:
    from tokenizers import Tokenizer

    try:
        return max(Tokenizer.from_buffer(content).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    except Exception as error:  # tokenizers has no exception class of its own
        raise PythiaDynError(f"cannot read {file}: {error}") from None
