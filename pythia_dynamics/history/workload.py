"""What is to be done, and what there is to do it with: the values of the model in `pythia_dynamics.history.scaling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil, inf

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.request import WORKERS

__all__ = [
    "DISK_RATE",
    "EFFICIENCY",
    "FETCH_NANOSECONDS",
    "FRAME_SECONDS",
    "GPU_BYTES",
    "GPU_RATE",
    "PASS_BYTES",
    "PASS_NANOSECONDS",
    "READ_RATE",
    "REQUEST_SECONDS",
    "SURVEYED",
    "WORKER_BYTES",
    "Limits",
    "Resources",
    "Work",
    "evaluation_operations",
]

WORKER_BYTES = 4 * 2**20
"""Upper bound of what one worker of a fetch needs for a published Pythia checkpoint: a piece of at most 1 MiB that is
being written, and the header or the pickle of the file with what is parsed from it."""

SURVEYED = 3
"""Revisions whose headers are read one after the other before a fetch begins: the first, the middle and the last."""

FETCH_NANOSECONDS = 1.55
"""CPU time of fetching a byte: receiving, checksum, writing. One process fetches on one core at a time, whatever the
number of its threads: about 0.6 GB/s (``benchmarks/scaling.py``, one worker)."""

REQUEST_SECONDS = 0.0042
"""CPU time of fetching a revision beside that, from the same runs."""

DISK_RATE = 2.25e9
"""Bytes a second that a disk stores after they were written, from the same runs."""

READ_RATE = 2.75e9
"""Bytes that a disk reads a second: 29.5 GB in 10.7 s, more than the memory (``benchmarks/sweep.py --shape 1b``)."""

PASS_NANOSECONDS = 0.69
"""CPU time of MSD and exact counts in one pass, for each weight of each step: measured on one core of a Xeon at 2.5 GHz
(``benchmarks/one_core.py``). MSD alone takes 0.32, the counts alone 0.45."""

FRAME_SECONDS = 2.5e-3
"""CPU time of what follows a pass for each step of each tensor, whatever its size: above all the modes of a density.
It is done on one core. From 1.7 to 3.6 ms were measured (``benchmarks/whole_model.py``, ``benchmarks/scaling.py``)."""

PASS_BYTES = 250 * 2**20
"""Memory of a pass over weights: 228 to 250 MiB were measured (``benchmarks/sweep.py``, ``benchmarks/whole_model.py``).
It does not grow with the model."""

EFFICIENCY = 0.5
"""Share of the rate of matrix products that an evaluation reaches: a forward pass of a 70m 53 %, causal unmasking 67 to
73 % (``benchmarks/perplexity.py``, on a CPU). Of much smaller models it is a few percent."""

GPU_RATE = 19.5e12
"""Operations a second of an NVIDIA A100 in float32 without TF32, which is how evaluations run by default, by its data
sheet. No evaluation has been measured on one."""

GPU_BYTES = 80 * 10**9
"""Memory of that GPU."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The Hub's rate limit: requests in a fixed window, for each address or each user.

    Parameters
    ----------
    requests
        File requests (``/resolve/``) in a window. The default is that of an address without a token; a free account
        has 5,000 file and 1,000 API requests (https://huggingface.co/docs/hub/rate-limits).
    api
        Requests to the API in a window.
    seconds
        Length of the window.
    """

    requests: float = 3000
    api: float = 500
    seconds: float = 300.0

    def __post_init__(self) -> None:
        _require(self.requests >= 1 and self.api >= 1 and self.seconds >= 0, f"no limit of the Hub: {self}")


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done. All numbers are totals, so that works can be added; each revision counts as their mean.

    Parameters
    ----------
    revisions
        Revisions to fetch.
    requests
        File requests, as the Hub's rate limit counts them.
    storage_requests
        Answers of the storage that the Hub redirects to; none of them counts against the limit.
    api_requests
        Requests to the Hub's API.
    bytes
        What is transferred.
    disk_bytes
        What is stored.
    weights
        Weights to read in passes, those of all steps.
    nanoseconds
        CPU time of a pass for each of them.
    frames
        Tensors to measure, each counted once a step.
    frame_seconds
        CPU time for each of them, beside that of its weights.
    checkpoints
        Whole checkpoints to evaluate; they are downloaded as well.
    checkpoint_bytes
        Bytes of all of them.
    checkpoint_requests
        File requests for all of them.
    operations
        Floating-point operations of all evaluations; see `evaluation_operations`.
    largest_model
        Weights of the largest model to evaluate.
    """

    revisions: int = 0
    requests: int = 0
    storage_requests: int = 0
    api_requests: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    weights: int = 0
    nanoseconds: float = PASS_NANOSECONDS
    frames: int = 0
    frame_seconds: float = FRAME_SECONDS
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    checkpoint_requests: int = 0
    operations: float = 0.0
    largest_model: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            _require(0 <= getattr(self, each.name) < inf, f"{each.name} of a work is not {getattr(self, each.name)}")

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        total = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        for mean, count in (("nanoseconds", "weights"), ("frame_seconds", "frames")):
            parts = [(getattr(each, mean), getattr(each, count)) for each in (self, other)]
            weighted = sum(value * n for value, n in parts) / max(total[count], 1)
            total[mean] = weighted if total[count] else getattr(self, mean)
        return Work(**{**total, "largest_model": max(self.largest_model, other.largest_model)})

    def part(self, count: int) -> Work:
        """The largest of `count` equal parts, as the jobs of an array have them; each asks the API on its own."""
        fetched, evaluated = ceil(self.revisions / count), ceil(self.checkpoints / count)

        def of_fetch(total: int) -> int:
            return -(-total * fetched // max(self.revisions, 1))

        def of_evaluation(total: int) -> int:
            return -(-total * evaluated // max(self.checkpoints, 1))

        return replace(
            self,
            revisions=fetched,
            requests=of_fetch(self.requests),
            storage_requests=of_fetch(self.storage_requests),
            bytes=of_fetch(self.bytes),
            disk_bytes=of_fetch(self.disk_bytes),
            weights=ceil(self.weights / count),
            frames=ceil(self.frames / count),
            checkpoints=evaluated,
            checkpoint_bytes=of_evaluation(self.checkpoint_bytes),
            checkpoint_requests=of_evaluation(self.checkpoint_requests),
            operations=self.operations * evaluated / max(self.checkpoints, 1),
        )


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is to do it with.

    Parameters
    ----------
    workers
        Revisions that are fetched at once, on all machines together.
    addresses
        Addresses or users for which the Hub counts requests separately. Each has a line of its own, too.
    cores
        Cores of all machines together.
    machines
        How many machines there are. A fetch runs in one process on each, which uses one core.
    bandwidth
        Bytes a second of the line of one address.
    connection
        Bytes a second of one connection.
    hub_latency, storage_latency
        Seconds until an answer of the Hub, or of its storage, begins. The defaults are those of a distant server.
    limits
        The Hub's rate limit for one address.
    disk, read
        Bytes a second that one machine stores, and reads in a pass.
    fetch_nanoseconds, request_seconds
        CPU time of fetching a byte, and beside that a revision.
    gpus
        How many GPUs there are.
    gpu_rate
        Operations a second of one of them.
    gpu_bytes
        Memory of one of them.
    """

    workers: int = WORKERS
    addresses: int = 1
    cores: int = 1
    machines: int = 1
    bandwidth: float = 25e6
    connection: float = inf
    hub_latency: float = 0.1
    storage_latency: float = 0.1
    limits: Limits = field(default_factory=Limits)
    disk: float = DISK_RATE
    read: float = READ_RATE
    fetch_nanoseconds: float = FETCH_NANOSECONDS
    request_seconds: float = REQUEST_SECONDS
    gpus: int = 0
    gpu_rate: float = GPU_RATE
    gpu_bytes: int = GPU_BYTES

    def __post_init__(self) -> None:
        for name in ("workers", "addresses", "cores", "machines"):
            _require(getattr(self, name) >= 1, f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("bandwidth", "connection", "disk", "read", "gpu_rate"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("hub_latency", "storage_latency", "fetch_nanoseconds", "request_seconds", "gpus"):
            _require(0 <= getattr(self, name) < inf, f"{name} must not be negative, nor {getattr(self, name)}")


def evaluation_operations(weights: int, lengths: Sequence[float]) -> float:
    """Operations of the three perplexities of one checkpoint, about.

    Forward and last-word perplexity read each passage once; causal unmasking of t tokens generates t²/2. A token takes
    two operations a weight.

    Parameters
    ----------
    weights
        Weights that a token is multiplied with: all but the embedding.
    lengths
        Tokens of each passage.
    """
    return 2.0 * weights * sum(2 * tokens + tokens * tokens / 2 for tokens in lengths)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PythiaDynError(otherwise)
