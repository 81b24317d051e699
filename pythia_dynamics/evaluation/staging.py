"""Weights that are uploaded to a device while it computes, and then copied into the model there.

The host reads a checkpoint in pieces into two small buffers of pinned memory. A queue of the device for uploads copies
each piece, in the dtype of the file, into staging memory on the device, beside the queue that computes. When the
checkpoint is due, the queue that computes copies the staged weights into the parameters and converts them; the
parameters keep their addresses, which captured CUDA graphs hold.

Three rules keep the queues apart, each by one event:

- the copy into the parameters waits for the last upload,
- the first upload of a checkpoint waits for the copy of the checkpoint before it, which reads the same staging memory,
- the host writes into a pinned buffer only after the upload from it.

All buffers are allocated once and kept, so that no allocator hands their memory to another use while a queue still
reads or writes it. `Tensor.record_stream` is not needed for that reason.

Cost: `2 * CHUNK_BYTES` of pinned host memory for any model, and the size of the checkpoint's files on the device.

While a CUDA graph is captured in the mode "global", CUDA forbids allocations and waits for events in every thread.
Graphs are to be captured with ``capture_error_mode="thread_local"`` where a thread stages weights meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from pythia_dynamics.evaluation.memory import is_out_of_memory
from pythia_dynamics.evaluation.weights import Expected, FoundTensor, Weights, copy_weights, find_weights

__all__ = ["CHUNK_BYTES", "CudaQueues", "Event", "Queue", "Queues", "StagedWeights", "WeightLoader", "device_queues"]

CHUNK_BYTES = 32 << 20
"""Size of a pinned buffer. Its upload takes 0.7 ms at the 50 GB/s of PCIe 5, a hundred times what starting a copy
costs; two of them let the host fill one while the other is uploaded. A power of two, to which torch rounds pinned
memory up."""

_ALIGNMENT = 256
"""Tensors are staged at multiples of this number of bytes, as torch's allocator places them. It divides
`CHUNK_BYTES`."""

_STAGING_SHARE = 0.5
"""Largest part of the memory of the device that the model and the staged weights may take together; the rest is for
the evaluation. It does not depend on what happens to be free, so that a run can be repeated to the bit."""

Queue = Literal["upload", "compute"]
Event = Any
"""What `Queues.record` returns; only `Queues` looks into it."""


class Queues(Protocol):
    """Two queues of a device. Each runs its operations in order; they run side by side but for events."""

    @property
    def capacity(self) -> int:
        """Memory of the device in bytes."""

    def host_buffer(self, size: int) -> torch.Tensor:
        """`size` bytes on the host that the device can copy from while the host continues, dtype uint8."""

    def device_buffer(self, size: int) -> torch.Tensor:
        """`size` bytes on the device, dtype uint8."""

    def submit(self, queue: Queue, operation: Callable[[], object]) -> None:
        """Append what `operation` does on the device to a queue."""

    def record(self, queue: Queue) -> Event:
        """An event that happens when everything submitted to a queue so far is done."""

    def wait(self, queue: Queue, event: Event) -> None:
        """Let everything that is submitted to a queue from now on run after an event."""

    def synchronize(self, event: Event) -> None:
        """Let the host wait for an event."""


class CudaQueues:
    """A CUDA stream for uploads, and the current stream of the thread that computes.

    Parameters
    ----------
    device
        The device, with its index: the current device belongs to a thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._uploads = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def capacity(self) -> int:
        """Memory of the device in bytes."""
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    def host_buffer(self, size: int) -> torch.Tensor:
        """Pinned memory."""
        with torch.cuda.device(self._device):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device_buffer(self, size: int) -> torch.Tensor:
        """Memory of the stream of uploads, which is the first to write it."""
        with torch.cuda.stream(self._uploads):
            return torch.empty(size, dtype=torch.uint8, device=self._device)

    def submit(self, queue: Queue, operation: Callable[[], object]) -> None:
        """Run an operation whose kernels and copies go to a stream."""
        with torch.cuda.stream(self._stream(queue)):
            operation()

    def record(self, queue: Queue) -> torch.cuda.Event:
        """A CUDA event. The host waits for it asleep, so that the other threads have the processor."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream(queue))
        return event

    def wait(self, queue: Queue, event: torch.cuda.Event) -> None:
        """Let a stream wait; the host does not."""
        self._stream(queue).wait_event(event)

    def synchronize(self, event: torch.cuda.Event) -> None:
        """Let the host wait for an event; other threads run meanwhile."""
        event.synchronize()

    def _stream(self, queue: Queue) -> torch.cuda.Stream:
        return self._uploads if queue == "upload" else torch.cuda.current_stream(self._device)


def device_queues(device: torch.device) -> Queues | None:
    """The queues of a device. None for a host, whose memory would have to hold the weights twice, and for MPS, which
    shares that memory: there, weights are copied from the mapped file when they are due."""
    return CudaQueues(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """Weights on their way to the device.

    Parameters
    ----------
    weights
        The weights; their tensors are views of the staging memory.
    uploaded
        When they are there.
    """

    weights: Weights
    uploaded: Event


class WeightLoader:
    """Loads one checkpoint after the other into a model, and stages one ahead where the device has queues.

    Parameters
    ----------
    model
        The model, on one device. Its parameters keep their addresses.
    queues
        Of that device; None checks a checkpoint ahead, and reads it when it is due.
    """

    def __init__(self, model: PreTrainedModel, queues: Queues | None) -> None:
        self._model = model
        self._expected = Expected.of(model)
        self._queues = queues
        self._model_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self._pinned: list[torch.Tensor] = []
        self._uploads: list[Event | None] = [None, None]  # the last one from each pinned buffer
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._installed: Event | None = None
        self._staged: StagedWeights | None = None

    def prepare(self, directory: Path, check: Callable[[], None] = lambda: None) -> Weights | StagedWeights:
        """Find the weights of a checkpoint, check that they fit the model, and stage them.

        Another thread than the one that computes may call it, after `install` of the checkpoint before has returned:
        the model is not touched.

        Parameters
        ----------
        directory
            The checkpoint. Its files are not needed any more once its weights are staged, else once `install` is done.
        check
            Called often while the files are read; its exceptions end the reading.

        Returns
        -------
        Weights or StagedWeights
            For `install`. Weights are not staged where they would take more than a half of the device's memory with
            the model, and, from then on, where the device runs out of memory.

        Raises
        ------
        CheckpointError, FormatError
            As `load_weights`.
        """
        weights = find_weights(self._expected, directory)
        offsets, size = _layout(weights.tensors)
        if self._queues is None or self._model_bytes + size > _STAGING_SHARE * self._queues.capacity:
            return weights
        try:
            # The buffers are used in inference mode and outside of it; a file may hold tensors that require gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._allocate(self._queues, size)
                self._staged = self._stage(self._queues, weights, offsets, size, check)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.close()
            self._queues = None
            return weights
        return self._staged

    def install(self, prepared: Weights | StagedWeights) -> None:
        """Copy prepared weights into the model, converted to its dtype, on the queue that computes.

        Parameters
        ----------
        prepared
            What `prepare` returned last.

        Raises
        ------
        FormatError
            Where a file that was not staged is damaged; the model stays as it is.
        """
        if isinstance(prepared, Weights):
            copy_weights(self._model, prepared)
            return
        assert self._queues is not None, "staged by another loader"
        assert prepared is self._staged, "the staging memory holds another checkpoint"
        self._queues.wait("compute", prepared.uploaded)
        self._queues.submit("compute", partial(copy_weights, self._model, prepared.weights))
        self._installed = self._queues.record("compute")

    def close(self) -> None:
        """Wait until nothing uses the buffers, and let go of them."""
        if self._queues is not None:
            self._synchronize(self._queues)
        self._pinned = []
        self._staged, self._staging = None, torch.empty(0, dtype=torch.uint8)

    def _allocate(self, queues: Queues, size: int) -> None:
        """Buffers for `size` bytes of weights; those of the first checkpoint serve all of its size."""
        if not self._pinned:
            self._pinned = [queues.host_buffer(CHUNK_BYTES) for _ in range(2)]
        if self._staging.numel() < size:
            self._synchronize(queues)
            self._staged, self._staging = None, torch.empty(0, dtype=torch.uint8)  # first let go of the smaller one
            self._staging = queues.device_buffer(size)

    def _synchronize(self, queues: Queues) -> None:
        """Let the host wait until nothing uses the buffers."""
        for event in (self._installed, *self._uploads):
            if event is not None:
                queues.synchronize(event)
        self._installed, self._uploads = None, [None, None]

    def _stage(
        self, queues: Queues, weights: Weights, offsets: Sequence[int], size: int, check: Callable[[], None]
    ) -> StagedWeights:
        """Read weights chunk by chunk, and start the upload of each. A tensor may lie in several chunks."""
        self._staged = None
        if self._installed is not None:
            queues.wait("upload", self._installed)
        for tensor, offset in zip(weights.tensors, offsets, strict=True):
            content = tensor.read().contiguous().reshape(-1).view(torch.uint8)
            end = offset + tensor.nbytes
            for chunk in range(offset - offset % CHUNK_BYTES, end, CHUNK_BYTES):
                check()
                start, stop = max(offset, chunk), min(end, chunk + CHUNK_BYTES)
                slot = _slot(chunk)
                if start == chunk and (uploaded := self._uploads[slot]) is not None:
                    queues.synchronize(uploaded)
                self._pinned[slot][start - chunk : stop - chunk].copy_(content[start - offset : stop - offset])
                if _aligned(stop) == chunk + CHUNK_BYTES:
                    self._upload(queues, chunk, chunk + CHUNK_BYTES)
        if size % CHUNK_BYTES:
            self._upload(queues, size - size % CHUNK_BYTES, size)
        staged = tuple(
            replace(tensor, read=partial(_view, self._staging[offset:][: tensor.nbytes], tensor.dtype, tensor.shape))
            for tensor, offset in zip(weights.tensors, offsets, strict=True)
        )
        return StagedWeights(replace(weights, tensors=staged), queues.record("upload"))

    def _upload(self, queues: Queues, start: int, stop: int) -> None:
        """Upload one chunk, or the beginning of one, from its pinned buffer."""
        slot = _slot(start)
        source, target = self._pinned[slot][: stop - start], self._staging[start:stop]
        queues.submit("upload", lambda: target.copy_(source, non_blocking=True))
        self._uploads[slot] = queues.record("upload")


def _layout(tensors: Sequence[FoundTensor]) -> tuple[list[int], int]:
    """Where each tensor is staged, and the size of the staging memory, in bytes."""
    ends = list(accumulate((_aligned(tensor.nbytes) for tensor in tensors), initial=0))
    return ends[:-1], ends[-1]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _slot(chunk: int) -> int:
    """Which pinned buffer a chunk goes through."""
    return chunk // CHUNK_BYTES % 2


def _view(staged: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    """The tensor whose bytes are staged."""
    return staged.view(dtype).view(shape)
