"""Read the tensors of one revision from a source, with one stream kept open where the next bytes are likely to lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.source import ByteStream, Files, Revision, Source
from pythia_dynamics.checkpoints.tensors import TensorRequest, find_tensors
from pythia_dynamics.errors import PythiaDynError

__all__ = ["RevisionReader"]

MAX_SKIPPED_BYTES = 64 * 1024
"""Largest gap that is read and dropped instead of requested anew: 2 ms at the 40 MB/s of one connection to the Hub,
where a request takes 30 ms or more; and what the HTTP client has received at once anyway."""


class RevisionReader:
    """Reads tensors of one revision. Not for several threads.

    Attributes
    ----------
    sizes : dict[str, int]
        Size in bytes of each file that was read.
    sha256 : dict[str, str | None]
        Checksum of each file that was read, None where the source states none.

    Parameters
    ----------
    source
        Where to read.
    revision
        What to read.
    headers_only
        Whether the tensors themselves will not be read, so that nothing is read ahead.
    """

    def __init__(self, source: Source, revision: Revision, *, headers_only: bool = False) -> None:
        self.sizes: dict[str, int] = {}
        self.sha256: dict[str, str | None] = {}
        self.source, self.revision = source, revision
        self._headers_only = headers_only
        self._stream: ByteStream | None = None
        self._file = ""
        self._last_start, self._last = 0, b""

    def find(self, patterns: Sequence[str], cache: LayoutCache) -> Iterator[TensorRequest]:
        """Each tensor that the patterns match, in the order of the bytes; read one with `read` before the next.

        Parameters
        ----------
        patterns
            Names and globs of the tensors.
        cache
            The layouts of earlier revisions; that of this one is added.

        Raises
        ------
        PythiaDynError
            As `find_tensors` and `Source.read`.
        """
        where = f"{self.source.location} {self.revision.ref}"
        return find_tensors(self, patterns, cache, where=where, file=self.revision.file)

    def list_files(self) -> Files:
        """(size in bytes, sha256) of every file of the revision, by path."""
        return self.source.files(self.revision)

    def read_range(self, file: str, start: int, stop: int | None, prefetch_stop: int = 0) -> tuple[bytes, int]:
        """The bytes ``file[start:stop]``, from those read last where they contain them, and the size of the file."""
        begin = self._last_start
        if file == self._file and stop is not None and begin <= start < stop <= begin + len(self._last):
            return self._last[start - begin : stop - begin], self.sizes[file]
        if start < 0 or stop is None:
            self.close()
            stream = self._open(file, start, stop)
            start, stop = stream.start, stream.stop
        data = b"".join(self._chunks(file, start, stop, 0 if self._headers_only else prefetch_stop))
        self._last_start, self._last = start, data
        return data, self.sizes[file]

    def read(self, request: TensorRequest) -> Iterator[bytes]:
        """The bytes of a tensor that `find` has found, in chunks. Raises as `Source.read`."""
        tensor, begin = request.tensor, self._last_start
        position = tensor.start
        if tensor.file == self._file and begin <= position < begin + len(self._last):
            chunk = self._last[position - begin :][: tensor.nbytes]
            position += len(chunk)
            yield chunk
        yield from self._chunks(tensor.file, position, tensor.stop, request.prefetch_stop)

    def close(self) -> None:
        """Close the open stream. Raises no error: what could not be read has been said."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if stream.stop - stream.position <= MAX_SKIPPED_BYTES:  # so that its connection can be used again
                with suppress(PythiaDynError):
                    stream.read(stream.stop - stream.position)
            stream.close()

    def _chunks(self, file: str, start: int, stop: int, prefetch_stop: int) -> Iterator[bytes]:
        """The bytes ``file[start:stop]``, whole unless the file ends before, from as many streams as it takes."""
        size = stop
        while start < min(stop, size):
            stream = self._stream_at(file, start, max(stop, prefetch_stop))
            count, size = min(stream.stop, stop) - start, stream.size
            yield from stream.chunks(count)
            start += count

    def _stream_at(self, file: str, start: int, stop: int) -> ByteStream:
        """A stream at position `start`: the open one where that is close enough, else a new one up to `stop`."""
        stream = self._stream
        if stream is not None and file == self._file and start < stream.stop:
            gap = start - stream.position
            if 0 <= gap <= MAX_SKIPPED_BYTES:
                stream.read(gap)
                return stream
        self.close()
        return self._open(file, start, stop)

    def _open(self, file: str, start: int, stop: int | None) -> ByteStream:
        stream = self.source.read(self.revision, file, start, stop)
        self._stream, self._file, self._last = stream, file, b""
        self.sizes[file], self.sha256[file] = stream.size, stream.sha256
        return stream
