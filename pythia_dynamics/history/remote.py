"""Parts of one tensor at many steps, in files of a scratch folder: for a tensor whose history has no room on the disk.

A part is a range of the weights of each step. It is read by byte range, used, and deleted before the next one.
"""

from __future__ import annotations

import math
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import FormatError, IntegrityError, PythiaDynError, StoreError, size
from pythia_dynamics.files import store_errors
from pythia_dynamics.history.chunk import CHECKSUM_BYTES, ChunkWriter, widening
from pythia_dynamics.history.spec import DTYPES, TensorSpec
from pythia_dynamics.history.transfer import Outcome, run_all
from pythia_dynamics.history.whole import repeat_if_damaged
from pythia_dynamics.progress import Progress, silent

__all__ = ["Located", "LostStepsError", "RemoteWeights", "locate"]

Ranges = Sequence[tuple[int, int]]
"""Ranges (start, stop) of the weights of a frame, in row-major order."""

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


class RemoteWeights:
    """Reads parts of one tensor. Not for several threads; it reads several steps at once itself.

    Parameters
    ----------
    source
        Where the checkpoints are.
    spec
        The tensor.
    located
        Where it lies, by step.
    folder
        The scratch folder.
    scratch
        Bytes that the files in it may have.
    workers
        Steps that are read at once.
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
        self.source, self.spec, self.located = source, spec, located
        self.folder, self.scratch, self.workers = folder, scratch, workers
        self._sums: dict[int, tuple[int, int]] = {}  # by step the weights that have passed, and their CRC-32
        self._damaged: Counter[int] = Counter()

    @property
    def frame_size(self) -> int:
        """N, the number of weights of a step."""
        return math.prod(self.spec.shape)

    def windows(self, ranges: Ranges, steps: int) -> Iterator[list[tuple[int, int]]]:
        """Group consecutive ranges, so that the weights of a group at so many steps have room.

        Raises
        ------
        StoreError
            One range has no room.
        """
        room = self.scratch // steps - CHECKSUM_BYTES
        group: list[tuple[int, int]] = []
        for start, stop in ranges:
            if group and (stop - group[0][0]) * self.spec.numpy_dtype.itemsize > room:
                yield group
                group = []
            group.append((start, stop))
            if (need := (stop - start) * self.spec.numpy_dtype.itemsize) > room:
                raise self._too_small(steps * (need + CHECKSUM_BYTES), f"{stop - start:,} weights of {steps} steps")
        yield group

    def groups(self, steps: Sequence[int]) -> Iterator[Sequence[int]]:
        """Group steps, so that the whole frames of a group have room. Raises `StoreError` if one frame has none."""
        frame = self.spec.nbytes + CHECKSUM_BYTES
        count = self.scratch // frame
        if not count:
            raise self._too_small(frame, "one step")
        for first in range(0, len(steps), count):
            yield steps[first : first + count]

    def _too_small(self, need: int, what: str) -> StoreError:
        have = f"{what} of {self.spec.name} take {size(need)}, more than the scratch space of {size(self.scratch)}"
        return StoreError(f"{have}; allow more")

    @contextmanager
    def open(self, steps: Sequence[int], ranges: Ranges, progress: Progress = silent) -> Iterator[tuple[Path, ...]]:
        """Read ranges of the weights of some steps. They are deleted at the end of the ``with`` block.

        A CRC-32 that the file states is compared once all of a tensor has passed, from its first to its last weight.

        Parameters
        ----------
        steps
            The steps.
        ranges
            What is read of each step.
        progress
            Called with the number of steps that are done and of all.

        Yields
        ------
        tuple of Path
            A file for each step with the weights of all ranges, one after the other, and their CRC-32C.

        Raises
        ------
        LostStepsError
            Steps cannot be read, or fail their checksum.
        AccessError, StoreError
            Nothing can be read, or the scratch folder cannot be written.
        """
        folder = self.folder / f"part-{secrets.token_hex(4)}"
        try:
            with store_errors(folder):
                folder.mkdir(parents=True)
            paths = [folder / str(step) for step in steps]
            self._read(dict(zip(steps, paths, strict=True)), ranges, progress)
            yield tuple(paths)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def frame(self, step: int) -> NDArray[Any]:
        """All weights of one step, in memory. Errors as in `open`."""
        with self.open([step], [(0, self.frame_size)]) as (path,):
            return np.fromfile(path, self.spec.numpy_dtype, self.frame_size).reshape(self.spec.shape)

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
            self._compare(paths, *ranges[0])

    def _compare(self, paths: Mapping[int, Path], start: int, stop: int) -> None:
        """Add a part to the CRC-32 of each step that has one, and compare that of a tensor that has passed."""
        failed = []
        for step, path in paths.items():
            tensor = self.located[step].tensor
            position, checksum = (0, 0) if start == 0 else self._sums.pop(step, (-1, 0))
            if tensor.crc32 is None or position != start:
                continue
            values = np.fromfile(path, self.spec.numpy_dtype, stop - start)
            if tensor.dtype != self.spec.dtype:
                values = values.astype(DTYPES[tensor.dtype])
            self._sums[step] = (stop, crc32(values.view(np.uint8).data, checksum))
            if stop == self.frame_size and self._sums.pop(step)[1] != tensor.crc32:
                failed.append(step)
        if failed:
            self._damaged.update(failed)
            lost = [step for step in failed if self._damaged[step] == _ATTEMPTS]
            raise LostStepsError({step: _checksum_fails(self.located[step]) for step in lost})


def _checksum_fails(located: Located) -> str:
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
            raise IntegrityError(_checksum_fails(located))

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
