"""A checkpoint as a directory that a whole model is loaded from, where its files do not lie together like that."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.checkpoints.tree import files_of, is_shared
from pythia_dynamics.errors import CheckpointError, PythiaDynError, first_line

__all__ = ["as_checkpoint", "tokenizer_file"]

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


def as_checkpoint(folder: Path, revision: Revision, suite: Suite) -> Path:
    """The directory of a checkpoint with its config, its tokenizer and its weights, and those of no other step.

    Parameters
    ----------
    folder
        Where its files are.
    revision
        The checkpoint.
    suite
        Where config and tokenizer are, if not in `folder`.

    Returns
    -------
    Path
        `folder` itself, if that is such a directory. Else a temporary one with links to the files, until the process
        ends.

    Raises
    ------
    CheckpointError
        The suite's config or tokenizer cannot be had.
    """
    if not revision.file and suite.config is None and suite.tokenizer is None:
        return folder
    own = {path.name: path for path in folder.iterdir() if path.is_file()}
    files = files_of(Revision(revision.step, revision.ref, file=revision.file), own)
    if suite.config is not None:
        files |= {_CONFIG: _shared_files(suite.config, "config")[_CONFIG]}
    if suite.tokenizer is not None:
        others = _shared_files(suite.tokenizer, "tokenizer")
        files = {name: path for name, path in files.items() if not _is_tokenizer(name)}
        files |= {name: path for name, path in others.items() if _is_tokenizer(name)}
    view = Path(tempfile.mkdtemp(dir=_scratch()))
    for name, path in files.items():
        (view / name).symlink_to(path.resolve())
    return view


def tokenizer_file(place: str) -> Path:
    """The ``tokenizer.json`` of a directory or of a repository, which is downloaded.

    Parameters
    ----------
    place
        The directory or the repository.

    Raises
    ------
    CheckpointError
        It has none, or cannot be had.
    """
    found = _shared_files(place, "tokenizer").get(_TOKENIZER)
    if found is None:
        raise CheckpointError(f"{place} has no {_TOKENIZER}; check --tokenizer")
    return found


def _is_tokenizer(name: str) -> bool:
    return (is_shared(name) and not name.endswith(_CONFIG)) or name == "tokenizer_config.json"


@cache
def _shared_files(place: str, kind: str) -> dict[str, Path]:
    """The config and tokenizer files of a directory or a repository, by name."""
    folder = Path(place).expanduser()
    folder = folder if folder.is_dir() else _downloaded(place, kind)
    found = {path.name: path for path in folder.iterdir() if path.is_file() and is_shared(path.name)}
    if not any(name == _CONFIG if kind == "config" else _is_tokenizer(name) for name in found):
        raise CheckpointError(f"{place} has no {_CONFIG if kind == 'config' else _TOKENIZER}; check --{kind}")
    return found


def _downloaded(repository: str, kind: str) -> Path:
    """The small files of a repository in the Hugging Face cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.txt", "*.model"]
    try:
        return Path(HfApi().snapshot_download(repository, allow_patterns=patterns))
    except HFValidationError:
        raise CheckpointError(f"{repository} is neither a directory nor a repository; check --{kind}") from None
    except PythiaDynError:
        raise
    except Exception as error:  # of the Hub, of the connection, of the file system
        raise CheckpointError(f"the {kind} of {repository} cannot be had: {first_line(error)}") from None


@cache
def _scratch() -> str:
    """The directory of all views, which is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="pythia-dyn-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
