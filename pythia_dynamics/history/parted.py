"""Parts of one tensor at many steps, in files of a scratch folder: for weights that are not on this machine.

A part is a range of the weights of each step. It is read, used, and deleted before the next one.
"""

from __future__ import annotations

import math
import secrets
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import IntegrityError, PythiaDynError, StoreError, size
from pythia_dynamics.files import store_errors
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.passage import CRC32C, Passage, Passed
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.whole import repeat_if_damaged
from pythia_dynamics.objects import ObjectPath
from pythia_dynamics.progress import Progress, silent

__all__ = ["PartedWeights", "Ranges", "StoredWeights", "temporary_room"]

Ranges = Sequence[tuple[int, int]]
"""Ranges (start, stop) of the weights of a frame, in row-major order."""

_SCRATCH = 10**9
"""Bytes of weights of an object store that are on the disk at one time. A slab of a history (a million weights of 143
steps) has 300 MB in 16 bits, 600 MB in 32."""

_WORKERS = 16
"""Steps that are read at once."""

_PIECE = 8 << 20
"""Bytes of one request. Larger ones are not faster, and this many are in memory for each worker."""


class PartedWeights(ABC):
    """Reads parts of one tensor. Not for several threads; it reads several steps at once itself.

    Parameters
    ----------
    spec
        The tensor.
    folder
        The scratch folder.
    scratch
        Bytes that the files in it may have.
    workers
        Steps that are read at once.
    polynomial
        That of the checksum of a tensor.

    Attributes
    ----------
    passage : Passage
        What has been read since a pass began, to compare the checksum of a tensor once all of it has.
    """

    reads_anywhere: ClassVar[bool] = False
    """Whether a task of an executor reads for itself, on its machine. If not, it is sent the files of a part."""

    def __init__(self, spec: TensorSpec, folder: Path, scratch: int, workers: int, polynomial: int) -> None:
        self.spec, self.folder, self.scratch, self.workers = spec, folder, scratch, workers
        self.passage = Passage(polynomial)

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
        if group:  # more jobs than ranges leave some without
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

        A checksum is compared once all of a tensor has passed, in any order; see `absorb` for several processes.

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
        PythiaDynError
            Steps cannot be read, or fail their checksum; or the scratch folder cannot be written.
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

    def absorb(self, passed: Passed) -> None:
        """Add what other processes have read of a pass, and compare the checksums of tensors that have passed.

        Parameters
        ----------
        passed
            What the `passage` of each had.

        Raises
        ------
        PythiaDynError
            Steps fail their checksum.
        """
        self.passage.absorb(passed)
        self._compare(passed)

    @abstractmethod
    def _compare(self, steps: Iterable[int]) -> None:
        """Compare the checksums of steps of which all has been read."""

    @abstractmethod
    def _read(self, paths: Mapping[int, Path], ranges: Ranges, progress: Progress) -> None:
        """Read ranges of all steps into their files."""


def temporary_room() -> tuple[Path, int, int]:
    """Where parts are written that no folder is named for: the folder, its bytes, and the steps read at once."""
    return Path(tempfile.gettempdir()) / "pythia-dyn", _SCRATCH, _WORKERS


class StoredWeights(PartedWeights):
    """Reads parts of a tensor from the chunks of a store that is not a directory.

    The CRC-32C that ends each chunk is compared when all of the chunk has passed.

    Parameters
    ----------
    spec
        The tensor.
    chunks
        The chunk of each step.
    """

    reads_anywhere = True

    def __init__(self, spec: TensorSpec, chunks: Mapping[int, ObjectPath]) -> None:
        super().__init__(spec, *temporary_room(), CRC32C)
        self.chunks = dict(chunks)

    def _read(self, paths: Mapping[int, Path], ranges: Ranges, progress: Progress) -> None:
        """Read ranges of all steps into their files."""
        stop, done = threading.Event(), 0
        progress(done, len(paths))
        with ThreadPoolExecutor(min(self.workers, len(paths)), thread_name_prefix="chunks") as pool:
            running = [pool.submit(self._read_step, step, path, ranges, stop) for step, path in paths.items()]
            try:
                for future in running:
                    future.result()
                    done += 1
                    progress(done, len(paths))
            finally:
                stop.set()
                for future in running:
                    future.cancel()

    def _read_step(self, step: int, path: Path, ranges: Ranges, stop: threading.Event) -> None:
        """Write ranges of the weights of one step to a file, and compare the checksum when all have passed."""
        width = self.spec.numpy_dtype.itemsize
        is_one = len(ranges) == 1  # several are of a part of a fused tensor, of which the rest is not read

        def write() -> None:
            with store_errors(path), path.open("wb") as file:
                for first, last in ranges:
                    passed = 0
                    for at in range(first * width, last * width, _PIECE):
                        if stop.is_set():
                            raise PythiaDynError("stopped")
                        piece = self._bytes(step, at, min(at + _PIECE, last * width))
                        passed = google_crc32c.extend(passed, piece) if is_one else 0
                        file.write(piece)
                    if is_one:
                        self.passage.add(step, first * width, last * width, passed)
                file.write(bytes(CHECKSUM_BYTES))  # files of parts have the length of chunks
            self._compare([step])

        if list(ranges) == [(0, self.frame_size)]:
            repeat_if_damaged(write)
        else:  # the other parts may be in sums already
            write()

    def _compare(self, steps: Iterable[int]) -> None:
        """Compare the CRC-32C of chunks that have passed as a whole."""
        nbytes = self.spec.nbytes
        for step in steps:
            passed = self.passage.whole(step, nbytes)
            if passed is not None and int.from_bytes(self._bytes(step, nbytes, nbytes + CHECKSUM_BYTES), "little") != (
                passed
            ):
                raise IntegrityError(
                    f"step {step} of {self.spec.name} ({self.chunks[step]}) fails its checksum; fetch it again"
                )

    def _bytes(self, step: int, start: int, stop: int) -> bytes:
        try:
            (found,) = self.chunks[step].read_ranges([(start, stop)])
        except FileNotFoundError:
            chunk = self.chunks[step]
            raise IntegrityError(
                f"the weights at step {step} are damaged ({chunk} is missing); fetch them again"
            ) from None
        return bytes(found)
