"""A tensor that is read from its source in parts, by byte range: its history has no room on the disk."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from zlib_ng.zlib_ng import crc32

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import FormatError, IntegrityError, PythiaDynError, StoreError
from pythia_dynamics.files import store_errors
from pythia_dynamics.history.chunk import ChunkWriter, widening
from pythia_dynamics.history.parted import PartedWeights, Ranges
from pythia_dynamics.history.passage import CRC32
from pythia_dynamics.history.spec import DTYPES, TensorSpec
from pythia_dynamics.history.transfer import Outcome, run_all
from pythia_dynamics.history.whole import repeat_if_damaged
from pythia_dynamics.progress import Progress

__all__ = ["Located", "LostStepsError", "RemoteWeights", "checksum_fails", "locate"]

_ATTEMPTS = 3
"""How often a tensor is read whose parts together fail its checksum, as `repeat_if_damaged` does with a whole one."""


class LostStepsError(PythiaDynError):
    """Steps whose weights could not be read to their end, although their beginning may be in sums already.

    What was measured is to be measured again, without these steps.

    Parameters
    ----------
    reasons
        Why they are lost, by step. Empty where the next attempt may have all of them.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__("; ".join(reasons.values()) or "a tensor failed its checksum and is read again")


@dataclass(frozen=True)
class Located:
    """Where a tensor lies at one step.

    Parameters
    ----------
    revision
        The checkpoint.
    tensor
        File, byte range, dtype, shape and checksum.
    """

    revision: Revision
    tensor: TensorSlice


def locate(
    source: Source,
    revision: Revision,
    spec: TensorSpec,
    pattern: str,
    cache: LayoutCache,
    stop: threading.Event,
) -> Outcome:
    """Find a tensor of one revision, from headers only. The outcome has its place in `Outcome.tensor`.

    Parameters
    ----------
    source, revision
        Where to look.
    spec
        What is expected.
    pattern
        The name or role to ask for.
    cache
        The layouts of other revisions.
    stop
        Whether to give up.
    """
    reader = RevisionReader(source, revision, headers_only=True)
    try:
        if stop.is_set():
            return Outcome(revision, source.traffic)
        tensor = next(reader.find((pattern,), cache)).tensor
        if not spec.holds(found := TensorSpec(spec.name, tensor.dtype, tensor.shape)):
            raise FormatError(f"{tensor.name} is {found} at {revision.ref}, and {spec} at the other steps")
        return Outcome(revision, source.traffic, complete=True, tensor=tensor)
    except AccessError as error:
        return Outcome(revision, source.traffic, fatal=error)
    except PythiaDynError as error:
        return Outcome(revision, source.traffic, reasons={} if stop.is_set() else {spec.name: str(error)})
    finally:
        reader.close()


class RemoteWeights(PartedWeights):
    """Reads parts of one tensor from its source.

    Parameters
    ----------
    source
        Where the checkpoints are.
    spec
        The tensor.
    located
        Where it lies, by step.
    folder, scratch, workers
        As for `PartedWeights`.
    """

    def __init__(
        self,
        source: Source,
        spec: TensorSpec,
        located: Mapping[int, Located],
        folder: Path,
        scratch: int,
        workers: int,
    ) -> None:
        super().__init__(spec, folder, scratch, workers, CRC32)
        self.source, self.located = source, located
        self._damaged: Counter[int] = Counter()

    def _read(self, paths: Mapping[int, Path], ranges: Ranges, progress: Progress) -> None:
        """Read ranges of all steps into their files."""
        stop = threading.Event()
        is_whole = list(ranges) == [(0, self.frame_size)]
        calls = [
            partial(_read_part, self.source.with_own_traffic(), self.located[step], self.spec, ranges, path, stop)
            for step, path in paths.items()
        ]
        reasons: dict[int, str] = {}
        running = run_all(self.source, calls, workers=self.workers, executor=None, stop=stop, progress=progress)
        with closing(running) as outcomes:
            for outcome in outcomes:
                if outcome.fatal is not None:
                    raise outcome.fatal
                if outcome.reasons:
                    (reasons[outcome.revision.step],) = outcome.reasons.values()
        if reasons:
            raise LostStepsError(reasons)
        if not is_whole and len(ranges) == 1:
            self._note(paths, *ranges[0])
            self._compare(paths)

    def _note(self, paths: Mapping[int, Path], start: int, stop: int) -> None:
        """Note the CRC-32 of a part of each step whose file states that of the tensor."""
        for step, path in paths.items():
            tensor = self.located[step].tensor
            if tensor.crc32 is None:
                continue
            values = np.fromfile(path, self.spec.numpy_dtype, stop - start)
            if tensor.dtype != self.spec.dtype:
                values = values.astype(DTYPES[tensor.dtype])
            width = values.dtype.itemsize
            self.passage.add(step, start * width, stop * width, crc32(values.view(np.uint8).data))

    def _compare(self, steps: Iterable[int]) -> None:
        """Compare the CRC-32 of tensors that have passed as a whole."""
        failed = []
        for step in steps:
            tensor = self.located[step].tensor
            passed = self.passage.whole(step, tensor.stop - tensor.start)
            if passed is not None and passed != tensor.crc32:
                failed.append(step)
        if failed:
            self._failed(failed)

    def _failed(self, steps: list[int]) -> None:
        """Have what was measured be measured again, without steps that fail their checksum again and again."""
        self._damaged.update(steps)
        lost = [step for step in steps if self._damaged[step] == _ATTEMPTS]
        raise LostStepsError({step: checksum_fails(self.located[step]) for step in lost})


def checksum_fails(located: Located) -> str:
    """What to say of weights that fail the checksum that their file states."""
    tensor = located.tensor
    return f"{tensor.name} of {located.revision.ref} fails the checksum of {tensor.file}"


def _read_part(
    source: Source, located: Located, spec: TensorSpec, ranges: Ranges, path: Path, stop: threading.Event
) -> Outcome:
    """Write ranges of the weights of one step to a file."""
    revision, tensor = located.revision, located.tensor
    reader = RevisionReader(source, revision)
    width = DTYPES[tensor.dtype].itemsize
    is_whole = list(ranges) == [(0, math.prod(spec.shape))]

    def write() -> None:
        count = sum(end - start for start, end in ranges)
        checksum = 0
        with store_errors(path), path.open("wb") as file:
            writer = ChunkWriter(file, count * spec.numpy_dtype.itemsize)
            put = widening(writer.write, tensor.dtype, spec.dtype)
            for start, end in ranges:
                part = replace(tensor, start=tensor.start + start * width, stop=tensor.start + end * width)
                for piece in reader.read(TensorRequest(part, 0)):
                    if stop.is_set():
                        raise PythiaDynError("stopped")
                    checksum = crc32(piece, checksum) if is_whole else 0
                    put(piece)
            writer.finish()
        if is_whole and tensor.crc32 is not None and checksum != tensor.crc32:
            raise IntegrityError(checksum_fails(located))

    try:
        if stop.is_set():
            return Outcome(revision, source.traffic)
        repeat_if_damaged(write)
        return Outcome(revision, source.traffic, complete=True)
    except IntegrityError as error:
        return Outcome(revision, source.traffic, reasons={spec.name: str(error)})
    except (AccessError, StoreError) as error:
        return Outcome(revision, source.traffic, fatal=error)
    except PythiaDynError as error:
        return Outcome(revision, source.traffic, reasons={} if stop.is_set() else {spec.name: str(error)})
    finally:
        reader.close()
