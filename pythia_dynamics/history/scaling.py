"""What a fetch, a pass over weights and an evaluation take on given resources, in closed form. No I/O.

A revision passes through three places: it waits for answers of the Hub and its storage, it is transferred, and it is
stored. Many may wait for an answer at once. Those that are transferred share the line and, since bytes are checked and
written as they arrive, the core of their process; those that are stored share the disk. Such a network of queues has a
closed form (Buzen 1973), which depends on mean times only. The rate limit of the Hub is a fixed window of requests.
``docs/scaling.md`` holds all this against measured runs and a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.workload import (
    EFFICIENCY,
    PASS_BYTES,
    SURVEYED,
    WORKER_BYTES,
    Limits,
    Resources,
    Work,
)

__all__ = [
    "CAUSES",
    "Cause",
    "Cost",
    "Deployment",
    "Worth",
    "cost",
    "cost_of_array",
    "deployments",
    "fetch_seconds",
    "worth_having",
]

Cause = Literal["requests", "latency", "bytes", "cpu", "disk", "gpu"]
"""What time is spent on: waiting for the rate limit, for answers, for the line, for a core, for the disk, for a GPU."""

CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a work takes.

    Parameters
    ----------
    fetch_seconds, pass_seconds, evaluation_seconds
        Duration of each part; they follow one another.
    shares
        Share of the duration by cause; the sum is 1, or 0 where nothing is to be done.
    cpu_seconds
        CPU time of fetch and passes.
    gpu_seconds
        GPU time of the evaluations.
    requests, api_requests
        Requests that the Hub counts, of files and to its API.
    bytes
        What is transferred.
    disk_bytes
        What is stored, without checkpoints that are evaluated and deleted.
    memory_bytes
        Memory of the largest process, without that of the Python interpreter and its libraries.
    """

    fetch_seconds: float = 0.0
    pass_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    shares: Mapping[Cause, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    requests: int = 0
    api_requests: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Duration of all."""
        return self.fetch_seconds + self.pass_seconds + self.evaluation_seconds

    @property
    def limited_by(self) -> Cause | None:
        """The cause of the largest share; None where nothing is to be done."""
        largest: Cause = max(CAUSES, key=lambda cause: self.shares.get(cause, 0.0))
        return largest if self.shares.get(largest) else None

    @property
    def cpu_hours(self) -> float:
        """CPU time in hours."""
        return self.cpu_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU time in hours."""
        return self.gpu_seconds / 3600


# -- one deployment -------------------------------------------------------------------------------------------


def cost(work: Work, resources: Resources) -> Cost:
    """What a work takes: the fetch, then the passes, then the evaluations, whose checkpoints pass through the disk.

    Parameters
    ----------
    work
        What is to be done.
    resources
        What there is to do it with.

    Raises
    ------
    PythiaDynError
        There are checkpoints to evaluate and no GPU, or a model that does not fit one GPU.
    """
    spent: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    fetch = _add(spent, _fetch(work, resources))
    computing, following = work.weights * work.nanoseconds * 1e-9, work.frames * work.frame_seconds
    counting, reading = computing / resources.cores, 2 * work.weights / (resources.read * resources.machines)
    passing = _add(spent, {"cpu" if counting >= reading else "disk": max(counting, reading)})
    passing += _add(spent, {"cpu": following})
    evaluation = _add(spent, _evaluate(work, resources))
    total = sum(spent.values())
    memory = [
        ceil(min(resources.workers, work.revisions) / resources.machines) * WORKER_BYTES,
        PASS_BYTES * bool(work.weights),
        4 * work.largest_model,
    ]
    return Cost(
        fetch_seconds=fetch,
        pass_seconds=passing,
        evaluation_seconds=evaluation,
        shares={cause: seconds / total if total else 0.0 for cause, seconds in spent.items()},
        cpu_seconds=computing + following + _cpu_seconds(work, resources),
        gpu_seconds=_gpu_seconds(work, resources) * work.checkpoints,
        requests=work.requests + work.checkpoint_requests,
        api_requests=work.api_requests,
        bytes=work.bytes + work.checkpoint_bytes,
        disk_bytes=work.disk_bytes,
        memory_bytes=max(memory),
    )


def fetch_seconds(work: Work, resources: Resources) -> float:
    """Duration of the fetch alone.

    Parameters
    ----------
    work, resources
        As for `cost`.
    """
    return sum(_fetch(work, resources).values())


def _fetch(work: Work, resources: Resources) -> dict[Cause, float]:
    """Seconds of a fetch by what they are spent on."""
    if not work.revisions:
        return {}
    workers = min(resources.workers, work.revisions)
    addresses = min(resources.addresses, workers)
    stations = _stations(work, resources, workers, addresses)
    delay = (work.requests * resources.hub_latency + work.storage_requests * resources.storage_latency) / work.revisions
    rate, stays = _throughput(workers, delay, [(each.alone, each.servers) for each in stations])
    # All begin at once, so the first revisions of all workers are transferred together; the others in the steady state.
    alone = delay + sum(each.alone for each in stations)
    first = alone + max(each.alone * max(0.0, workers / each.servers - 1) for each in stations)
    working = max(
        first + (work.revisions - workers) / rate,
        ceil(work.revisions / workers) * alone,  # what each worker takes that never waits
        # The whole speed of a station, always, but before its first revision comes and after its last one has gone.
        *(alone - each.alone + work.revisions * each.alone / each.servers for each in stations),
    )
    spent: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    causes: list[Cause] = ["latency", *(each.cause for each in stations)]
    for cause, share in zip(causes, stays, strict=True):
        spent[cause] += working * share / sum(stays) if sum(stays) else 0.0
    limits = resources.limits
    spent["requests"] += max(
        _wait(work.requests, limits.requests * addresses, limits.seconds, working),
        _wait(work.api_requests, limits.api * addresses, limits.seconds, working),
    )
    spent["latency"] += resources.hub_latency * min(work.api_requests, 1)
    spent["latency"] += min(SURVEYED, work.revisions) * (resources.hub_latency + resources.storage_latency)
    return spent


@dataclass(frozen=True, slots=True)
class _Station:
    """A shared place: why one waits there, the seconds of a revision that is alone, how many fit at full speed."""

    cause: Cause
    alone: float
    servers: float


def _stations(work: Work, resources: Resources, workers: int, addresses: int) -> tuple[_Station, _Station]:
    """Transfer, by line and core at once, and disk."""
    mean = work.bytes / work.revisions
    on_core = _cpu_seconds(work, resources) / work.revisions
    on_line = mean / min(resources.connection, resources.bandwidth)
    alone = max(on_line, on_core)
    least_line, least_core = mean / (addresses * resources.bandwidth), on_core / resources.machines
    if workers * max(least_line, least_core) > alone:  # there is a queue
        cause: Cause = "bytes" if least_line >= least_core else "cpu"
    else:
        cause = "bytes" if on_line >= on_core else "cpu"
    stored = work.disk_bytes / work.revisions / resources.disk
    least = max(least_line, least_core)
    return _Station(cause, alone, alone / least if least else inf), _Station("disk", stored, resources.machines)


def _cpu_seconds(work: Work, resources: Resources) -> float:
    return work.bytes * resources.fetch_nanoseconds * 1e-9 + work.revisions * resources.request_seconds


def _throughput(workers: int, delay: float, stations: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """Revisions a second in the steady state, and the time that a revision stays at the delay and at each station.

    The product form of a closed network (Buzen's convolution): a station with demand D and s servers has the weights
    Π_{j≤k} D/min(j, s), the delay Z has Z^k/k!. It holds for stations that share their speed equally, whatever the
    distribution of the times. The weights are scaled by the bound of the throughput, so that none overflows.
    """
    alone = delay + sum(demand for demand, _ in stations)
    if alone == 0:
        return inf, [0.0] * (1 + len(stations))
    scale = min([workers / alone, *(servers / demand for demand, servers in stations if demand)])
    count = np.arange(1, workers + 1)
    places = [delay * scale / count]
    places += [demand * scale / np.minimum(count, servers) for demand, servers in stations]
    weights = [np.concatenate([[1.0], np.cumprod(each)]) for each in places]
    others = [_convolved([*weights[:i], *weights[i + 1 :]], workers) for i in range(len(weights))]
    total = np.convolve(weights[0], others[0])[: workers + 1]
    rate = scale * float(total[-2] / total[-1])
    held = [
        float((np.arange(workers + 1) * own * other[::-1]).sum() / total[-1])
        for own, other in zip(weights, others, strict=True)
    ]
    return rate, [each / rate for each in held]


def _convolved(weights: Sequence[NDArray[np.float64]], workers: int) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.eye(1, workers + 1)[0]
    for each in weights:
        total = np.asarray(np.convolve(total, each)[: workers + 1])
    return total


def _wait(requests: float, allowed: float, window: float, seconds: float) -> float:
    """How much longer so many requests take because no more than `allowed` may be sent in each window.

    All windows but the last are used up; what the last one allows is sent at the speed of the rest.
    """
    full = ceil(requests / allowed) - 1 if requests else 0
    if full <= 0:
        return 0.0
    return max(0.0, full * window + seconds * (requests - full * allowed) / requests - seconds)


def _evaluate(work: Work, resources: Resources) -> dict[Cause, float]:
    """Seconds of the evaluations: a checkpoint is evaluated while the next ones are downloaded."""
    if not work.checkpoints:
        return {}
    if not resources.gpus:
        raise PythiaDynError(f"{work.checkpoints} checkpoints are to be evaluated, and there is no GPU")
    if 4 * work.largest_model > resources.gpu_bytes:
        raise PythiaDynError(f"{work.largest_model} weights in float32 do not fit a GPU of {resources.gpu_bytes} bytes")
    download = Work(
        work.checkpoints,
        work.checkpoint_requests,
        work.checkpoint_requests,
        bytes=work.checkpoint_bytes,
        disk_bytes=work.checkpoint_bytes,
    )
    spent = _fetch(download, resources)
    moving = sum(spent.values())
    computing = ceil(work.checkpoints / resources.gpus) * _gpu_seconds(work, resources)
    return spent if moving >= computing else {"gpu": computing}


def _gpu_seconds(work: Work, resources: Resources) -> float:
    """GPU time of one evaluation."""
    return work.operations / max(work.checkpoints, 1) / (EFFICIENCY * resources.gpu_rate)


def _add(total: dict[Cause, float], more: Mapping[Cause, float]) -> float:
    for cause, seconds in more.items():
        total[cause] += seconds
    return sum(more.values())


# -- several deployments --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deployment:
    """One way to do a work: its name, what there is, and what the work takes."""

    name: str
    resources: Resources
    cost: Cost


@dataclass(frozen=True, slots=True)
class Worth:
    """How many workers are worth having.

    Parameters
    ----------
    efficient
        The most whose efficiency is 50 % or more: so many workers take at most twice their share of the time of one.
    useful
        The least after which twice as many save less than 5 % of the time, and so does every further doubling.
    """

    efficient: int
    useful: int


def cost_of_array(work: Work, job: Resources, jobs: int) -> Cost:
    """What a work takes as equal jobs that know nothing of one another, each with the same part of the revisions.

    Jobs that share an address share its line and its rate limit equally. Each job asks for the list of branches, and
    reads the first headers, on its own.

    Parameters
    ----------
    work
        What is to be done.
    job
        What one job has; `addresses` are those of all jobs together.
    jobs
        How many there are; no more are used than there are revisions or checkpoints.
    """
    jobs = max(1, min(jobs, max(work.revisions, work.checkpoints, 1 if work.revisions + work.checkpoints else jobs)))
    together = ceil(jobs / job.addresses)
    limits = job.limits
    shared = Limits(max(limits.requests / together, 1), max(limits.api / together, 1), limits.seconds)
    part = cost(work.part(jobs), replace(job, addresses=1, bandwidth=job.bandwidth / together, limits=shared))
    whole = cost(work, job)
    kept = ("fetch_seconds", "pass_seconds", "evaluation_seconds", "shares", "memory_bytes")
    api = work.api_requests * jobs
    return replace(whole, **{name: getattr(part, name) for name in kept}, api_requests=api)


def deployments(work: Work, machine: Resources, *, jobs: int, addresses: int = 1) -> tuple[Deployment, ...]:
    """A work on one machine, as an array of jobs on such machines, and on a cluster of single cores.

    Parameters
    ----------
    work
        What is to be done.
    machine
        One machine, with one address. On the cluster each of its `workers` is a process with a core of its own.
    jobs
        Jobs of the array, each on a machine.
    addresses
        Addresses of array and cluster.
    """
    job = replace(machine, addresses=addresses)
    cluster = replace(job, cores=machine.workers, machines=machine.workers)
    array = cost_of_array(work, job, jobs)
    everything = replace(job, workers=jobs * job.workers, cores=jobs * job.cores, machines=jobs)
    return (
        Deployment("machine", machine, cost(work, machine)),
        Deployment("array", everything, array),
        Deployment("cluster", cluster, cost(work, cluster)),
    )


def worth_having(seconds: Callable[[int], float], most: int = 256) -> Worth:
    """How many workers are worth having, among the powers of two.

    Parameters
    ----------
    seconds
        The duration with so many workers.
    most
        The largest number to consider.
    """
    counts = [2**k for k in range(most.bit_length())]
    times = {n: seconds(n) for n in counts}
    efficient = max(n for n in counts if times[1] >= 0.5 * n * times[n])
    saving = [n for n in counts[1:] if times[n] < 0.95 * times[n // 2]]
    return Worth(efficient, max(saving, default=1))
