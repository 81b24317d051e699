"""One chunk of the weight store: the bytes of a tensor at one step, and their checksum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import google_crc32c
import numpy as np

from pythia_dynamics.errors import IntegrityError
from pythia_dynamics.history.spec import DTYPES
from pythia_dynamics.objects import Place

__all__ = ["CHECKSUM_BYTES", "ChunkWriter", "check_chunk", "widening"]

CHECKSUM_BYTES = 4
"""Length of the CRC-32C that ends each chunk file."""


@dataclass
class ChunkWriter:
    """Writes the bytes of one chunk in order. `Store.writer` makes it; it is valid inside that context only.

    Parameters
    ----------
    file
        The file of the chunk, open for writing.
    expected
        Bytes of the tensor at one step.
    """

    file: IO[bytes] = field(repr=False)
    expected: int
    written: int = 0
    _checksum: Any = field(default_factory=google_crc32c.Checksum, repr=False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Raises `IntegrityError` when there are more than the tensor has."""
        view = memoryview(data).cast("B")
        self.written += len(view)
        if self.written > self.expected:
            raise IntegrityError(f"more than the tensor's {self.expected} bytes arrived")
        self._checksum.update(bytes(view) if not isinstance(data, bytes) else data)
        self.file.write(view)

    def finish(self) -> None:
        """Append the checksum. Raises `IntegrityError` when fewer bytes were written than the tensor has."""
        if self.written != self.expected:
            raise IntegrityError(f"{self.written} of the tensor's {self.expected} bytes arrived")
        self.file.write(int.from_bytes(self._checksum.digest(), "big").to_bytes(CHECKSUM_BYTES, "little"))


def widening(write: Callable[[bytes], object], source: str, target: str) -> Callable[[bytes], object]:
    """What takes the bytes of a tensor in one dtype, and writes them in a wider one, which has all of its values.

    Parameters
    ----------
    write
        Takes the wider bytes, in order.
    source, target
        Names of the dtypes in `DTYPES`; where they are equal, `write` itself is the result.
    """
    if source == target:
        return write
    rest = b""

    def widen(data: bytes) -> None:
        nonlocal rest
        data = rest + data
        whole = len(data) - len(data) % DTYPES[source].itemsize  # a piece may end inside a number
        rest = data[whole:]
        write(np.frombuffer(data[:whole], DTYPES[source]).astype(DTYPES[target]).tobytes())

    return widen


def check_chunk(path: Place, nbytes: int, *, what: tuple[int, str, Place]) -> None:
    """Compare a chunk file with its checksum.

    Parameters
    ----------
    path
        The file.
    nbytes
        Bytes of the weights in it.
    what
        Its step, its tensor and its store, for messages.

    Raises
    ------
    IntegrityError
        The file cannot be read, has another length, or does not match its checksum.
    """
    step, tensor, store = what
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise IntegrityError(f"step {step} of {store} cannot be read: {error.strerror or 'it is missing'}") from None
    body, stored = content[:nbytes], int.from_bytes(content[nbytes:], "little")
    if len(content) != nbytes + CHECKSUM_BYTES or google_crc32c.value(bytes(body)) != stored:
        raise IntegrityError(f"step {step} of {tensor} in {store} fails its checksum; fetch it again")
