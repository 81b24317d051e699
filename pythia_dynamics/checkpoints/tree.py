"""Which files of a source belong to which checkpoint, by their paths. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Literal, TypeVar, get_args

from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.suite import Reference, StepName, Suite, chosen_steps

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "WeightFormat",
    "checkpoint_files",
    "files_of",
    "is_index",
    "is_shared",
    "revisions_in",
    "weight_files",
    "weights_by_format",
    "without_suffix",
]

T = TypeVar("T")

WeightFormat = Literal["safetensors", "torch"]
"""The file formats weights are read from, the preferred one first."""

FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

_SUFFIXES_OF: Mapping[WeightFormat, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torch": (".ckpt", ".pt", ".pth", ".bin"),
}
SUFFIXES = tuple(suffix for format in FORMATS for suffix in _SUFFIXES_OF[format])
"""How the name of a file ends that may hold weights, the preferred one first."""

_USUAL: Mapping[WeightFormat, tuple[str, ...]] = {
    "safetensors": ("model.", "model-"),
    "torch": ("pytorch_model.", "pytorch_model-"),
}
"""How the names begin that transformers gives to weights, in one file or in shards."""

_INDEX = ".index.json"
"""How the name of an index of shards ends, after the name that the file would have in one piece."""

_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "trainer_state", "random_states")
"""How the names of files begin that a training program writes beside the weights, to go on from them."""

_MODEL_FILES = ("config.json", "generation_config.json")
_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "merges.txt", "spiece.model")


def revisions_in(suite: Suite, folders: Iterable[str], files: Iterable[str], *, where: str) -> dict[int, Revision]:
    """The checkpoints among the folders and files of a source by step, in increasing order.

    Parameters
    ----------
    suite
        How they are named, and whether to look for folders or for files first. A folder inside a checkpoint is none.
    folders, files
        Paths relative to the source.
    where
        The source, for messages.

    Raises
    ------
    PythiaDynError
        As `chosen_steps`.
    """
    for kind in suite.references:
        if found := _folders(suite, folders) if kind == "folder" else _files(suite, files) if kind == "file" else {}:
            chosen = chosen_steps(suite, sorted(found.items()), where=where, kind=kind)
            return {step: _revision(suite, kind, ref, named) for step, (ref, named) in chosen.items()}
    return {}


def _folders(suite: Suite, folders: Iterable[str]) -> dict[str, StepName]:
    """The folders that are named like a step and lie in no other one."""
    found: dict[str, StepName] = {}
    for path in sorted(folders, key=lambda path: path.count("/")):
        if any(str(parent) in found for parent in PurePosixPath(path).parents):
            continue
        if named := suite.step_name(path, "folder"):
            found[path] = named
    return found


def _files(suite: Suite, files: Iterable[str]) -> dict[str, StepName]:
    """The weight files that are named like a step; of several formats of one, the preferred one."""
    files, by_stem = list(files), dict[str, str]()
    for suffix in SUFFIXES:
        for path in files:
            if path.endswith(suffix):
                by_stem.setdefault(path.removesuffix(suffix), path)
    return {path: named for stem, path in by_stem.items() if (named := suite.step_name(stem, "file"))}


def without_suffix(path: str) -> str:
    """The path of a file without the suffix of a format of weights: what a suite's pattern is compared with."""
    return next((path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix)), path)


def _revision(suite: Suite, kind: Reference, ref: str, named: StepName) -> Revision:
    folder, _, file = ref.rpartition("/") if kind == "file" else (ref, "", "")
    tokens = suite.tokens_at(named.step, named.tokens)
    return Revision(named.step, ref, kind=kind, tokens=tokens, folder=folder, file=file)


def files_of(revision: Revision, paths: Mapping[str, T]) -> dict[str, T]:
    """The files of a revision by their path in it, of all files of its source by their path there.

    Parameters
    ----------
    revision
        The checkpoint. Of the files beside the file of one, those belong to it that hold no weights.
    paths
        Anything by path in the source.
    """
    prefix = f"{revision.folder}/" if revision.folder else ""
    inside = {path[len(prefix) :]: value for path, value in paths.items() if path.startswith(prefix)}
    if not revision.file:
        return inside
    return {
        path: value for path, value in inside.items() if path == revision.file or ("/" not in path and is_shared(path))
    }


def is_shared(name: str) -> bool:
    """Whether a file is of the model or its tokenizer, and holds no weights."""
    return name in _MODEL_FILES + _TOKENIZER_FILES or name.startswith(("tokenizer", "vocab"))


def is_index(name: str) -> bool:
    """Whether a file is an index of shards."""
    return name.endswith(_INDEX)


def weights_by_format(names: Iterable[str]) -> dict[WeightFormat, list[str]]:
    """The files at the top of a checkpoint that hold its weights in each format, sorted; with the index of shards.

    Where there are files of the usual name (``model.safetensors``, ``pytorch_model.bin``, or shards of one), the others
    are left out.

    Parameters
    ----------
    names
        Paths of all files of the checkpoint.
    """
    top = sorted(
        name for name in names if "/" not in name and not name.startswith(_TRAINING_STATE) and not is_shared(name)
    )
    found = {
        format: [name for name in top if name.removesuffix(_INDEX).endswith(_SUFFIXES_OF[format])] for format in FORMATS
    }
    usual = {format: [name for name in found[format] if name.startswith(_USUAL[format])] for format in FORMATS}
    return usual if any(usual.values()) else found


def weight_files(names: Iterable[str]) -> list[str]:
    """The files at the top of a checkpoint that its weights are read from: those of the preferred format that it has.

    Parameters
    ----------
    names
        Paths of all files of the checkpoint.
    """
    return next((found for found in weights_by_format(names).values() if found), [])


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """The files that a whole model is loaded from, sorted: config, tokenizer and weights.

    Parameters
    ----------
    names
        Paths of all files of the checkpoint.
    """
    names = list(names)
    return sorted([*weight_files(names), *(name for name in names if "/" not in name and is_shared(name))])
