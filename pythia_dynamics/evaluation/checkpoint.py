"""What a checkpoint is run with besides its weights: its own config, and its own tokenizer or that of an earlier step.

Both are compared by digest from step to step, so that the model is built again, and the text encoded again, only where
they differ. Some suites have the tokenizer at some steps only. A step without one is run with that of the nearest
earlier step of the suite that has one, whether or not that step is evaluated too: the result of a step depends neither
on the other steps that are asked for nor on what an earlier run has done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.source import FileMissingError, Revision, Source
from pythia_dynamics.errors import CheckpointError, first_line, listed
from pythia_dynamics.tables import read_json

__all__ = ["IDENTITY", "Checkpoint", "CheckpointReader", "TokenizerFile", "describe_differences"]

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"

_WITHOUT_EFFECT = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of ``config.json`` that do not change what the model computes: dtype and cache are set by whoever runs it."""

IDENTITY = ("config_sha256", "tokenizer_sha256", "tokenizer_step")
"""Names in `Checkpoint.identity`."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A ``tokenizer.json``.

    Parameters
    ----------
    step
        The step it was found at.
    path
        Where, for messages.
    content
        Its bytes.
    """

    step: int
    path: str
    content: bytes = field(repr=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.content).hexdigest())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that can be run.

    Parameters
    ----------
    step
        Its step.
    directory
        Its files.
    config_sha256
        Digest of its ``config.json`` as a value, without the keys that change nothing.
    tokenizer
        Its tokenizer, or that of an earlier step.
    """

    step: int
    directory: Path
    config_sha256: str
    tokenizer: TokenizerFile

    @property
    def identity(self) -> dict[str, Any]:
        """What it is run with: both digests, and `tokenizer_step` where the tokenizer is that of an earlier step."""
        digests = {"config_sha256": self.config_sha256, "tokenizer_sha256": self.tokenizer.sha256}
        borrowed = self.tokenizer.step != self.step
        return {**digests, "tokenizer_step": self.tokenizer.step} if borrowed else digests


class CheckpointReader:
    """Reads config and tokenizer of the checkpoints of a source.

    Parameters
    ----------
    source
        Where a tokenizer is read from that a step lacks.
    revisions
        Every revision of the source by step.
    """

    def __init__(self, source: Source, revisions: Mapping[int, Revision]) -> None:
        self._source = source
        self._revisions = revisions
        self._latest: TokenizerFile | None = None  # one only: they have megabytes
        self._without: set[int] = set()

    def read(self, revision: Revision, directory: Path) -> Checkpoint:
        """The checkpoint of a revision.

        Parameters
        ----------
        revision
            The revision.
        directory
            What `Source.snapshot` returned for it.

        Raises
        ------
        CheckpointError
            For a config that cannot be read, and where neither the step nor an earlier one has a tokenizer.
        HubError
            Where the tokenizer of an earlier step cannot be had.
        """
        config = _config_digest(directory / _CONFIG)
        return Checkpoint(revision.step, directory, config, self._tokenizer(revision, directory))

    def _tokenizer(self, revision: Revision, directory: Path) -> TokenizerFile:
        path = directory / _TOKENIZER
        if path.is_file():
            self._latest = TokenizerFile(revision.step, str(path), path.read_bytes())
            return self._latest
        self._without.add(revision.step)
        for step in sorted((step for step in self._revisions if step < revision.step), reverse=True):
            if self._latest is not None and self._latest.step == step:
                return self._latest
            if step not in self._without and (found := self._read_tokenizer(self._revisions[step])):
                self._latest = found
                return found
        place = f"{self._source.location}/{revision.ref}"
        raise CheckpointError(f"no {_TOKENIZER} in {place}, nor at an earlier step; give one with --tokenizer DIR")

    def _read_tokenizer(self, revision: Revision) -> TokenizerFile | None:
        """The tokenizer of another revision, without its weights; None where it has none."""
        try:
            with self._source.read(revision, _TOKENIZER) as stream:
                content = stream.read(stream.size)
        except FileMissingError:
            self._without.add(revision.step)
            return None
        return TokenizerFile(revision.step, f"{_TOKENIZER} of {self._source.location}/{revision.ref}", content)


def describe_differences(identities: Mapping[int, Mapping[str, Any]]) -> str:
    """One line on the steps that were not run like the first one; empty where all were.

    Parameters
    ----------
    identities
        `Checkpoint.identity` by step.
    """
    if not identities:
        return ""
    first, *others = sorted(identities)
    expected = identities[first]
    borrowed = [step for step in (first, *others) if "tokenizer_step" in identities[step]]
    config = [step for step in others if identities[step]["config_sha256"] != expected["config_sha256"]]
    tokenizer = [
        step
        for step in others
        if step not in borrowed and identities[step]["tokenizer_sha256"] != expected["tokenizer_sha256"]
    ]
    another = [
        f"{_subject(steps, 'has', 'have')} another {name} than step {first}"
        for name, steps in (("config", config), ("tokenizer", tokenizer))
        if steps
    ]
    parts = [" and ".join(another), "each was evaluated with its own"] if another else []
    if borrowed:
        lenders = sorted({identities[step]["tokenizer_step"] for step in borrowed})
        which = _subject(borrowed, "has no tokenizer and was", "have no tokenizer and were")
        parts.append(f"{which} evaluated with that of {listed(lenders)}")
    return "; ".join(parts)


def _subject(steps: Sequence[int], singular: str, plural: str) -> str:
    return f"{listed(steps)} {singular if len(steps) == 1 else plural}"


def _config_digest(file: Path) -> str:
    """Digest of the keys of a config that decide what the model computes, whatever their order and layout."""
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"cannot read {file}: it is not a JSON object")
    decisive = {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
