"""How the bytes of a stored step were compared with those of its publisher: recorded by step, and put into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import listed

__all__ = [
    "CHECKS",
    "VIRTUAL",
    "Check",
    "Recorder",
    "check_of",
    "checks_in_words",
    "is_end_to_end",
    "record_of",
    "weakest_checks",
]

Check = Literal["sha256", "crc32", "memory", "transferred", "virtual"]
"""How the bytes of a step were checked: against the SHA-256 of the whole file, the CRC-32 of the storage in a torch
file, not at all because they were written from memory, only in what every answer states of its file and range, or not
yet because the store has only their place."""

CHECKS: Mapping[Check, str] = {
    "sha256": "checked with the SHA-256 of the whole file",
    "crc32": "checked with the CRC-32 in the torch file",
    "memory": "written from memory",
    "transferred": "transferred only, compared with no checksum of their publisher",
    "virtual": "not stored: read when they are measured, and compared with the CRC-32 of a torch file",
}
"""The checks in words, the strongest first."""

Recorder = Callable[[str, Mapping[int, Mapping[str, Any]]], None]
"""Takes the records of steps of a tensor, by its name and by step."""

VIRTUAL = "virtual"
"""Key of the record of a step whose weights are not in the store: what is needed to read them, beside the rest."""

_KEY = "checked"
"""The key of a record that has the check. A record without it, of an earlier version, counts as `transferred`."""


def record_of(
    tensor: TensorSlice, revision: Revision, source: str, *, check: Check, sha256: str | None
) -> dict[str, Any]:
    """The record of a step that was fetched, for `Store.writer`.

    Parameters
    ----------
    tensor
        The tensor in its file.
    revision
        Its checkpoint.
    source
        The repository or directory, as the store records it.
    check
        How the bytes are compared.
    sha256
        Checksum of the whole file, None where the source states none. It is compared only for the check ``sha256``.
    """
    return {
        "repo": revision.repository or source,
        "ref": revision.ref,
        "commit": revision.commit,
        "file": tensor.file,
        "tensor": tensor.name,
        "start": tensor.start,
        "stop": tensor.stop,
        "dtype": tensor.dtype,
        "version": __version__,
        "sha256": sha256,
        _KEY: check,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def check_of(record: Mapping[str, Any]) -> Check:
    """How the bytes of a step were checked, from its record in the store."""
    found = record.get(_KEY, "transferred" if "start" in record else "memory")
    return cast("Check", found) if found in CHECKS else "transferred"


def is_end_to_end(record: Mapping[str, Any], *, possible: bool = False) -> bool:
    """Whether the bytes of a step were compared with a checksum of their publisher.

    Parameters
    ----------
    record
        The record of the step.
    possible
        Whether a step also counts for which there is no such checksum.
    """
    done = check_of(record) in ("sha256", "crc32")
    return done or (possible and not (record.get("sha256") and str(record.get("file")).endswith(".safetensors")))


def weakest_checks(records: Iterable[Mapping[int, Mapping[str, Any]]], steps: Iterable[int]) -> dict[int, Check]:
    """The weakest check of each step over several tensors; steps that are in no store are left out.

    Parameters
    ----------
    records
        The records of each tensor, by step.
    steps
        The steps.
    """
    order, of_all = list(CHECKS), list(records)
    made = {step: [check_of(of_one[step]) for of_one in of_all if step in of_one] for step in steps}
    return {step: max(checks, key=order.index) for step, checks in made.items() if checks}


def _steps_by_check(checks: Mapping[int, Check]) -> dict[Check, list[int]]:
    """The steps of each check that occurs, in increasing order; the strongest check first."""
    found = {check: sorted(step for step, made in checks.items() if made == check) for check in CHECKS}
    return {check: steps for check, steps in found.items() if steps}


def checks_in_words(checks: Mapping[int, Check]) -> list[str]:
    """One line for each check that occurs: ``steps 1, 2: checked with the CRC-32 in the torch file``."""
    return [f"{listed(steps)}: {CHECKS[check]}" for check, steps in _steps_by_check(checks).items()]
