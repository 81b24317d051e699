"""Stand-ins for the queues of a device, on the host."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pythia_dynamics.evaluation.staging import Event, Queue

Fault = Literal[
    "install does not wait", "upload does not wait", "host does not wait", "uploaded early", "installed early"
]
Policy = Literal["late", "upload first", "compute first", "random"]


class ImmediateQueues:
    """Everything is done when it is submitted."""

    capacity = 1 << 40

    def host_buffer(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    device_buffer = host_buffer

    def submit(self, queue: Queue, operation: Callable[[], object]) -> None:
        operation()

    def record(self, queue: Queue) -> Event:
        return None

    def wait(self, queue: Queue, event: Event) -> None:
        pass

    def synchronize(self, event: Event) -> None:
        pass


@dataclass
class Happening:
    """An event: where it was recorded, and whether it has happened."""

    queue: Queue
    done: bool = False


@dataclass
class DeferredQueues:
    """What is submitted runs later: in any order that keeps the order within each queue, and the waits for events.

    Parameters
    ----------
    policy
        Which of the possible orders: as late as the waits of the host allow, one queue as early as it can and the other
        as late, or a random one.
    seed
        Of the random order.
    fault
        A mistake that is planted: a wait that is left out, or an event that is recorded before the last operation.
    """

    policy: Policy = "random"
    seed: int = 0
    fault: Fault | None = None
    capacity: int = 1 << 40
    allocated: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._items: dict[Queue, deque[tuple[str, Any]]] = {"upload": deque(), "compute": deque()}
        self._lock = threading.RLock()

    def host_buffer(self, size: int) -> torch.Tensor:
        return torch.full((size,), 0xA5, dtype=torch.uint8)

    def device_buffer(self, size: int) -> torch.Tensor:
        self.allocated.append(size)
        return torch.full((size,), 0x5A, dtype=torch.uint8)

    def submit(self, queue: Queue, operation: Callable[[], object]) -> None:
        with self._lock:
            self._items[queue].append(("run", operation))
            self._progress()

    def record(self, queue: Queue) -> Happening:
        event = Happening(queue)
        with self._lock:
            items = self._items[queue]
            early = self.fault == ("uploaded early" if queue == "upload" else "installed early")
            items.insert(len(items) - (early and bool(items)), ("record", event))
            self._progress()
        return event

    def wait(self, queue: Queue, event: Happening) -> None:
        if self.fault != ("upload does not wait" if queue == "upload" else "install does not wait"):
            with self._lock:
                self._items[queue].append(("wait", event))

    def synchronize(self, event: Happening) -> None:
        with self._lock:
            while not event.done and self.fault != "host does not wait":
                first = self._runnable()
                self._step(event.queue if event.queue in first else first[0])

    def drain(self) -> None:
        """Run everything that is left."""
        with self._lock:
            while runnable := self._runnable():
                self._step(self._random.choice(runnable))
            assert not any(self._items.values()), "a queue waits for ever"

    def _progress(self) -> None:
        if self.policy == "random":
            for _ in range(self._random.randrange(4)):
                if runnable := self._runnable():
                    self._step(self._random.choice(runnable))
        elif self.policy != "late":
            queue: Queue = "upload" if self.policy == "upload first" else "compute"
            while queue in self._runnable():
                self._step(queue)

    def _runnable(self) -> list[Queue]:
        heads = {queue: items[0] for queue, items in self._items.items() if items}
        waiting = {q for q, (kind, what) in heads.items() if kind == "wait" and not what.done}
        return [queue for queue in heads if queue not in waiting]

    def _step(self, queue: Queue) -> None:
        kind, what = self._items[queue].popleft()
        if kind == "run":
            what()
        elif kind == "record":
            what.done = True
