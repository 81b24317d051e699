"""Read a whole safetensors file once, to compare it with its SHA-256, and pass on the tensors in it.

Such a file has no checksum of a part of it. So a tensor is known to be what was published only when all of its file has
arrived, at the price of the whole file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from pythia_dynamics.checkpoints.formats.safetensors import HEADER_LENGTH, parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.source import Revision, Source
from pythia_dynamics.errors import FormatError, IntegrityError, PythiaDynError

__all__ = ["has_whole_checksum", "read_whole", "repeat_if_damaged"]

T = TypeVar("T")

_ATTEMPTS = 3
"""How often bytes that fail a checksum are read: damage in transit is rare, so a third failure is the file's."""


def repeat_if_damaged(attempt: Callable[[], T]) -> T:
    """The result of `attempt`, called up to three times while it raises `IntegrityError`."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except IntegrityError:
            continue
    return attempt()


def has_whole_checksum(tensor: TensorSlice, sha256: str | None) -> bool:
    """Whether a tensor can be checked only with its whole file, and the source states a checksum of that.

    Parameters
    ----------
    tensor
        The tensor.
    sha256
        Checksum of its file, None where the source states none.
    """
    return tensor.crc32 is None and sha256 is not None and tensor.file.endswith(".safetensors")


def read_whole(
    source: Source,
    revision: Revision,
    tensors: Mapping[TensorSlice, Callable[[bytes], object]],
    *,
    sha256: str,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Read a safetensors file from its first byte to its last, and compare it with its checksum.

    Parameters
    ----------
    source, revision
        Where the file is.
    tensors
        The tensors that are wanted, all of one file, and what takes the bytes of each in order.
    sha256
        The checksum of the file in hexadecimal.
    stop
        Says whether to give up.

    Raises
    ------
    IntegrityError
        The file has another checksum, or its header has other tensors than were looked for. What has been passed on is
        then not to be used.
    PythiaDynError
        As `Source.read`.
    """
    (file,) = {tensor.file for tensor in tensors}
    digest, header, header_stop, position = hashlib.sha256(), b"", HEADER_LENGTH, 0
    damaged = IntegrityError(f"{file} of {revision.ref} fails its SHA-256")
    with source.read(revision, file) as stream:
        for chunk in stream.chunks(stream.size):
            if stop():
                raise PythiaDynError("stopped")
            digest.update(chunk)
            if len(header) < header_stop:
                header += chunk
                header_stop = _header_stop(header, file, stream.size)
            for tensor, write in tensors.items():
                start, end = max(tensor.start - position, 0), min(tensor.stop - position, len(chunk))
                if start < end:
                    write(chunk[start:end])
            position += len(chunk)
    if digest.hexdigest() != sha256:
        raise damaged
    found = parse_safetensors(header, file=file, file_size=stream.size)  # what was read first, nothing has checked
    if any(found.get(tensor.name) != tensor for tensor in tensors):
        raise damaged


def _header_stop(header: bytes, file: str, size: int) -> int:
    """Where the header ends, as far as it is known; its beginning where it is damaged, as the checksum will show."""
    try:
        return safetensors_header_stop(header, file=file, file_size=size)
    except FormatError:
        return HEADER_LENGTH
