"""The number of entries of a model's tokenizer. The rows of W_U after them are padding."""

from __future__ import annotations

from pathlib import Path

from pythia_dynamics.checkpoints.registry import TOKENIZER_ENTRIES, is_pythia
from pythia_dynamics.checkpoints.suite import GENERIC
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History

__all__ = ["tokenizer_entries"]


def tokenizer_entries(history: History) -> int:
    """The number of entries of a model's tokenizer: the rows of W_U to keep with `drop_padding`.

    It is known for Pythia, and for a directory of checkpoints with a ``tokenizer.json`` in it or in one of its steps.

    Parameters
    ----------
    history
        The history of W_U, or of another tensor with a row for each entry.

    Raises
    ------
    PythiaDynError
        The tokenizer is not known or cannot be read, or the tensor has fewer rows than the tokenizer has entries.
    """
    source = str(history.provenance.get("source", ""))
    files = [Path(source) / "tokenizer.json"]
    if Path(source).is_dir():
        folders = (folder for folder in Path(source).iterdir() if GENERIC.step_name(folder.name))
        files += [folder / "tokenizer.json" for folder in sorted(folders)]
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        entries = _entries(file)
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


def _entries(file: Path) -> int:
    from tokenizers import Tokenizer

    try:
        return max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    except Exception as error:  # tokenizers has no exception class of its own
        raise PythiaDynError(f"cannot read {file}: {error}") from None
