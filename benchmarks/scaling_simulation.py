"""A simulation, event by event, of 1 to 256 workers that fetch under the Hub's rate limit and then read the weights.

    python benchmarks/scaling_simulation.py --out benchmarks/results/scaling-simulation.csv --figure docs/scaling.png
    python benchmarks/scaling_simulation.py --draws benchmarks/results/scaling-draws.json

The second holds the model against it for works and resources that are drawn at random.

It shares the numbers of work and resources with the model in `pythia_dynamics.history.scaling`, and nothing of its
formulas: each request passes the window of its address, waits for its answer, shares the line of its address, and the
cores behind it, with the others that are under way, and is stored. Latencies are drawn at random, uniform
from half to one and a half of their mean, so that workers do not stay in step. A pass over all weights follows.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, inf, log
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from scaling_works import LINE, SIMULATED, total  # noqa: E402

from pythia_dynamics.history.scaling import Worth, cost, fetch_seconds, worth_having  # noqa: E402
from pythia_dynamics.history.workload import SURVEYED, Limits, Resources, Work  # noqa: E402

WORKERS = tuple(2**k for k in range(9))
ADDRESSES = (1, 16)
SPENT = ("requests", "latency", "bytes", "cpu", "disk", "idle")
TASKS_EACH = 4
"""Tasks of a pass for each core, as `docs/cluster.md` says."""
DRAWS = 20_000
BOUND = 0.2
"""Relative difference of model and simulation that counts as agreement."""


@dataclass(frozen=True)
class Simulated:
    """What came of a simulation.

    Parameters
    ----------
    fetch_seconds, pass_seconds
        Duration of both parts.
    spent
        Seconds of all workers together by cause; ``idle`` for those that found nothing left to fetch.
    sent
        For each address, when its file requests were sent.
    fetched
        For each revision, how often it was fetched.
    transferred
        Bytes that came.
    """

    fetch_seconds: float
    pass_seconds: float
    spent: Mapping[str, float]
    sent: tuple[tuple[float, ...], ...]
    fetched: tuple[int, ...]
    transferred: float

    @property
    def seconds(self) -> float:
        """Duration of all."""
        return self.fetch_seconds + self.pass_seconds


class Clock:
    """The events to come, in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Let something happen at a time; of several at once, in the order of these calls."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, event))

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()


class Shared:
    """A place whose speed is shared equally by whoever is there.

    Who is there is served at most at full speed, where it takes the seconds `alone`; all together at most so fast that
    each of them adds the seconds `together`. Sizes differ, so both are for each. The share of each is the same part of
    its full speed, so one number, the service of somebody who was always there, says who is ready next.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._served = self._since = 0.0
        self._there: list[tuple[float, int, float, Callable[[], None]]] = []
        self._load = 0.0
        self._count = self._version = 0

    def enter(self, alone: float, together: float, then: Callable[[], None]) -> None:
        """Take so many seconds of full speed, then go on."""
        self._advance()
        self._count += 1
        load = together / alone if alone else 0.0
        self._load += load
        heapq.heappush(self._there, (self._served + alone, self._count, load, then))
        self._plan()

    def _advance(self) -> None:
        self._served += (self._clock.now - self._since) * self._speed()
        self._since = self._clock.now

    def _speed(self) -> float:
        return min(1.0, 1.0 / self._load) if self._load > 1e-12 else 1.0

    def _plan(self) -> None:
        self._version += 1
        if self._there:
            version, left = self._version, max(self._there[0][0] - self._served, 0.0)
            self._clock.at(self._clock.now + left / self._speed(), lambda: self._leave(version))

    def _leave(self, version: int) -> None:
        if version != self._version:  # somebody came or went since
            return
        self._advance()
        ready, _, load, then = heapq.heappop(self._there)
        self._served = max(self._served, ready)  # without what rounding left
        self._load = self._load - load if self._there else 0.0
        self._plan()
        then()


class Window:
    """The rate limit of an address: so many requests in a fixed window, which begins with its first request."""

    def __init__(self, clock: Clock, requests: float, seconds: float) -> None:
        self._clock, self._requests, self._seconds = clock, requests, seconds
        self._until, self._used, self._is_planned = -inf, 0, False
        self._waiting: deque[Callable[[], None]] = deque()
        self.sent: list[float] = []

    def enter(self, then: Callable[[], None]) -> None:
        """Send a request as soon as the limit allows it, in the order of these calls."""
        self._waiting.append(then)
        self._pass()

    def _pass(self) -> None:
        now = self._clock.now
        if now >= self._until:
            self._until, self._used = now + self._seconds, 0
        while self._waiting and self._used < int(self._requests):
            self._used += 1
            self.sent.append(now)
            self._waiting.popleft()()
        if self._waiting and not self._is_planned:
            self._is_planned = True
            self._clock.at(self._until, self._renew)

    def _renew(self) -> None:
        self._is_planned = False
        self._pass()


def revisions(works: Sequence[Work]) -> Iterator[tuple[int, int, float, float]]:
    """File requests, answers of the storage, bytes and stored bytes of each revision in turn."""
    for work in works:
        n = work.revisions
        for k in range(n):
            requests = work.requests * (k + 1) // n - work.requests * k // n
            answers = work.storage_requests * (k + 1) // n - work.storage_requests * k // n
            yield requests, answers, work.bytes / n, work.disk_bytes / n


def simulate(works: Sequence[Work], resources: Resources, *, seed: int = 0) -> Simulated:
    """Fetch the revisions of all works, each by whichever worker is free, then read all weights in one pass.

    Parameters
    ----------
    works
        What is to be done; evaluations are left out.
    resources
        What there is to do it with.
    seed
        Of the latencies.
    """
    clock, rng, spent = Clock(), random.Random(seed), dict.fromkeys(SPENT, 0.0)
    todo = list(revisions(works))
    workers = min(resources.workers, max(len(todo), 1))
    addresses = min(resources.addresses, workers)
    connection = min(resources.connection, resources.bandwidth)
    lines = [Shared(clock) for _ in range(addresses)]
    windows = [Window(clock, resources.limits.requests, resources.limits.seconds) for _ in range(addresses)]
    disks = Shared(clock)
    fetched, ends, moved = [0] * len(todo), [0.0] * workers, [0.0]
    queue = iter(range(len(todo)))

    def latency(mean: float) -> float:
        return mean * rng.uniform(0.5, 1.5)

    def timed(cause: str, then: Callable[[], None]) -> Callable[[], None]:
        began = clock.now

        def done() -> None:
            spent[cause] += clock.now - began
            then()

        return done

    def work_on(worker: int) -> None:
        """Fetch the next revision, if there is one, and go on."""
        number = next(queue, None)
        ends[worker] = clock.now
        if number is None:
            return
        requests, answers, size, stored = todo[number]
        address = worker % addresses

        def request(left: int) -> None:
            if left:
                windows[address].enter(timed("requests", lambda: ask(left)))
            else:
                wait = sum(latency(resources.storage_latency) for _ in range(answers))
                clock.at(clock.now + wait, timed("latency", transfer))

        def ask(left: int) -> None:
            done = timed("latency", lambda: request(left - 1))
            clock.at(clock.now + latency(resources.hub_latency), done)

        def transfer() -> None:
            on_core = size * resources.fetch_nanoseconds * 1e-9 + resources.request_seconds
            alone = max(size / connection, on_core)
            of_line, of_cores = size / resources.bandwidth, on_core * addresses / resources.machines
            cause = "bytes" if size / connection >= on_core and of_line >= of_cores else "cpu"
            lines[address].enter(alone, max(of_line, of_cores), timed(cause, store))

        def store() -> None:
            moved[0] += size
            alone = stored / resources.disk
            disks.enter(alone, alone / resources.machines, timed("disk", finish))

        def finish() -> None:
            fetched[number] += 1
            work_on(worker)

        request(requests)

    if todo:
        first = latency(resources.hub_latency) if any(work.api_requests for work in works) else 0.0
        headers = min(SURVEYED, len(todo))
        first += sum(latency(resources.hub_latency) + latency(resources.storage_latency) for _ in range(headers))
        spent["latency"] += first * workers
        for worker in range(workers):
            clock.at(first, partial(work_on, worker))
    clock.run()
    fetch_seconds = max(ends)
    spent["idle"] += sum(fetch_seconds - end for end in ends)
    passing = _pass(works, resources)
    spent["cpu"] += passing * workers
    return Simulated(
        fetch_seconds, passing, spent, tuple(tuple(window.sent) for window in windows), tuple(fetched), moved[0]
    )


def _pass(works: Sequence[Work], resources: Resources) -> float:
    """Seconds of the pass: tasks that share the cores, while the disks of all machines are read; then each frame."""
    clock, tasks = Clock(), TASKS_EACH * resources.cores
    cores, total = Shared(clock), sum(work.weights * work.nanoseconds * 1e-9 for work in works)
    left = iter(range(tasks))

    def next_task() -> None:
        if next(left, None) is not None:
            cores.enter(total / tasks, total / tasks / resources.cores, next_task)

    for _ in range(resources.cores):
        next_task()
    clock.run()
    reading = 2 * sum(work.weights for work in works) / (resources.read * resources.machines)
    return max(clock.now, reading) + sum(work.frames * work.frame_seconds for work in works)


def cluster(workers: int, addresses: int) -> Resources:
    """So many workers with a core each, behind so many addresses."""
    return replace(LINE, workers=workers, addresses=addresses, cores=workers, machines=workers)


def table() -> list[dict[str, Any]]:
    """A row for each work, number of addresses and number of workers."""
    rows = []
    for name, works in SIMULATED.items():
        everything = total(works)
        for addresses in ADDRESSES:
            alone = None
            for workers in WORKERS:
                found = simulate(works, cluster(workers, addresses))
                alone = alone or found.seconds
                all_spent = sum(found.spent.values())
                rows.append(
                    {
                        "work": name,
                        "addresses": addresses,
                        "workers": workers,
                        "seconds": round(found.seconds, 2),
                        "model": round(cost(everything, cluster(workers, addresses)).seconds, 2),
                        "speed_up": round(alone / found.seconds, 3),
                        "efficiency": round(alone / found.seconds / workers, 4),
                        **{cause: round(found.spent[cause] / all_spent, 4) for cause in SPENT},
                    }
                )
    return rows


def drawn(rng: random.Random) -> tuple[Work, Resources]:
    """A fetch and what there is for it, with at least four revisions a worker and as many workers at each address.

    Sizes and speeds are uniform in their logarithm, and often at an end of their range: nothing to transfer, no
    latency, a line of 1 MB/s or a connection without a limit.
    """

    def between(low: float, high: float) -> float:
        return exp(rng.uniform(log(low), log(high)))

    revisions = rng.choice([rng.randint(4, 400), rng.randint(4, 40), 16 * rng.randint(1, 25)])
    requests, size = revisions * rng.randint(1, 3), rng.choice([0, int(between(1, 1e9)), int(between(1e6, 1e9))])
    work = Work(revisions, requests, requests, 1, revisions * size, revisions * size)
    addresses = min(rng.choice([1, 2, 16]), revisions // 4)
    workers = max(1, min(rng.randint(1, 64), revisions // 4) // addresses) * addresses
    latencies = [rng.choice([0.0, rng.uniform(0, 0.5), between(1e-4, 0.5)]) for _ in range(2)]
    return work, Resources(
        workers=workers,
        addresses=addresses,
        machines=workers,
        bandwidth=rng.choice([1e6, between(1e6, 1e10)]),
        connection=rng.choice([inf, 1e6, between(1e6, 1e9)]),
        hub_latency=latencies[0],
        storage_latency=latencies[1],
        limits=Limits(rng.randint(5, 500), 500.0, rng.choice([0.0, rng.uniform(0, 60)])),
    )


def disagreements(draws: int, seed: int = 0) -> list[float]:
    """Model over simulation, less 1, of those draws where the two disagree.

    Near the edge of a window, one address may need one window more; of the few requests at the beginning, the model has
    the mean latency.
    """
    rng, found = random.Random(seed), []
    for _ in range(draws):
        work, line = drawn(rng)
        simulated, predicted = simulate([work], line).fetch_seconds, fetch_seconds(work, line)
        is_near_edge = work.requests > 0.8 * line.limits.requests * line.addresses
        few = 0.05 + 2 * (line.hub_latency + line.storage_latency) + is_near_edge * line.limits.seconds
        if abs(predicted - simulated) > max(BOUND * simulated, few):
            found.append(predicted / simulated - 1)
    return found


def worth(rows: Sequence[dict[str, Any]]) -> Worth:
    """How many workers are worth having, by the rows of one work and number of addresses."""
    seconds = {int(row["workers"]): float(row["seconds"]) for row in rows}
    return worth_having(seconds.__getitem__, max(seconds))


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Duration against workers, simulated and by the model, and where the time of the workers goes."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    works = list(dict.fromkeys(row["work"] for row in rows))
    figure, axes = plt.subplots(len(works), 3, figsize=(11, 3.1 * len(works)), layout="constrained", squeeze=False)
    causes = {
        "requests": ("rate limit", "#d55e00"),
        "latency": ("latency", "#e69f00"),
        "bytes": ("bytes", "#0072b2"),
        "cpu": ("CPU", "#009e73"),
        "disk": ("disk", "#56b4e9"),
        "idle": ("idle", "#cccccc"),
    }
    for line, name in zip(axes, works, strict=True):
        for addresses, colour, axis in zip(ADDRESSES, ("#0072b2", "#d55e00"), line[1:], strict=True):
            own = [row for row in rows if row["work"] == name and int(row["addresses"]) == addresses]
            workers = [int(row["workers"]) for row in own]
            label = "1 address" if addresses == 1 else f"{addresses} addresses"
            line[0].loglog(workers, [float(row["seconds"]) for row in own], "o", color=colour, label=label)
            line[0].loglog(workers, [float(row["model"]) for row in own], "-", color=colour)
            shares = [[float(row[cause]) for row in own] for cause in causes]
            colours = [colour for _, colour in causes.values()]
            axis.stackplot(workers, shares, labels=[label for label, _ in causes.values()], colors=colours)
            axis.set(xscale="log", xlim=(1, max(workers)), ylim=(0, 1), title=label, xlabel="workers")
            axis.set_xticks(workers, list(map(str, workers)))
            axis.minorticks_off()
        line[0].set(title=name, xlabel="workers", ylabel="seconds")
        line[0].set_xticks(workers, list(map(str, workers)))
        line[0].minorticks_off()
        line[0].legend(frameon=False, title="points: simulated\nlines: model")
        line[1].set_ylabel("share of the workers' time")
    axes[0][2].legend(frameon=True, fontsize="small", loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--draws", type=Path, metavar="OUT", help="hold the model against random draws instead")
    options = parser.parse_args()
    if options.draws:
        outside = disagreements(DRAWS)
        found = {"draws": DRAWS, "bound": BOUND, "outside": len(outside), "differences": sorted(outside)}
        options.draws.write_text(json.dumps(found, indent=1) + "\n")
        return
    rows = table()
    for row in rows:
        print(" ".join(f"{value}" for value in row.values()))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
