"""Drive a plan over a source: read what it asks for, keeping one stream open where the next bytes are likely to be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pythia_dynamics.checkpoints.layout import Answer, List, Memory, Piece, Probe, Take, find_tensors
from pythia_dynamics.checkpoints.source import ByteStream, Revision, Source
from pythia_dynamics.errors import PythiaDynError

__all__ = ["RevisionReader"]

_SKIP = 64 * 1024
"""Bytes that are rather read and dropped than asked for anew."""


class RevisionReader:
    """Reads tensors of one revision. `sizes` and `sha256` tell of every file that was opened."""

    def __init__(self, source: Source, revision: Revision, *, dry: bool = False) -> None:
        self.sizes: dict[str, int] = {}
        self.sha256: dict[str, str | None] = {}
        self._source, self._revision, self._dry = source, revision, dry
        self._stream: ByteStream | None = None
        self._file = ""
        self._last = Piece(b"", 0, 0)

    def takes(
        self, patterns: Sequence[str], memory: Memory, *, held: Collection[str] = (), tickets: list[None]
    ) -> Iterator[Take]:
        """Each tensor that `patterns` mean, in the order of the bytes; read it with `content` before the next.

        A file list costs one of the `tickets`. A dry reader asks for headers only. Raises as `find_tensors`.
        """
        where = f"{self._source.location} {self._revision.ref}"
        plan = find_tensors(patterns, memory, where=where, held=held)
        answer: Answer = None
        failure: PythiaDynError | None = None
        while True:
            try:
                request = plan.throw(failure) if failure is not None else plan.send(answer)
            except StopIteration:
                return
            answer, failure = None, None
            if isinstance(request, Take):
                yield request
            elif isinstance(request, Probe):
                try:
                    answer = self._probe(request)
                except PythiaDynError as error:
                    failure = error
            elif isinstance(request, List) and tickets:
                tickets.pop()
                answer = self._source.files(self._revision)

    def content(self, take: Take) -> Iterator[bytes]:
        """The bytes of a tensor, in pieces."""
        tensor, position = take.tensor, take.tensor.start
        if tensor.file == self._file and self._last.start <= position < self._last.start + len(self._last.data):
            piece = self._last.data[position - self._last.start :][: tensor.nbytes]
            position += len(piece)
            yield piece
        while position < tensor.stop:
            stream = self._at(tensor.file, position, max(take.ahead, tensor.stop))
            count = min(stream.stop, tensor.stop) - position
            yield from stream.pieces(count)
            position += count

    def close(self) -> None:
        """Let go of the open stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if stream.stop - stream.position <= _SKIP:  # cheaper than a new connection
                stream.skip(stream.stop - stream.position)
            stream.close()

    def _probe(self, request: Probe) -> Piece:
        start, stop = request.start, request.stop
        last = self._last
        if (
            request.file == self._file
            and stop is not None
            and last.start <= start < stop <= last.start + len(last.data)
        ):
            return Piece(last.data[start - last.start : stop - last.start], start, last.size)
        if start < 0 or stop is None:
            self.close()
            stream = self._open(request.file, start, stop)
            stop = stream.stop
        else:
            stream = self._at(request.file, start, stop if self._dry else max(stop, request.ahead))
        piece = Piece(stream.read(min(stop, stream.stop) - stream.position), 0, stream.size)
        self._last = Piece(piece.data, stream.position - len(piece.data), stream.size)
        return self._last

    def _at(self, file: str, start: int, stop: int) -> ByteStream:
        """A stream that stands at `start`: the open one if that is near enough, else a new one up to `stop`."""
        stream = self._stream
        if stream is not None and file == self._file and 0 <= start - stream.position <= _SKIP and start < stream.stop:
            stream.skip(start - stream.position)
            return stream
        self.close()
        return self._open(file, start, stop)

    def _open(self, file: str, start: int, stop: int | None) -> ByteStream:
        stream = self._source.read(self._revision, file, start, stop)
        self._stream, self._file, self._last = stream, file, Piece(b"", 0, 0)
        self.sizes[file], self.sha256[file] = stream.size, stream.sha256
        return stream
