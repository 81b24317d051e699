"""Insisting, politely: how often and how long a request that failed is made again."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pythia_dynamics.checkpoints.source import AccessError, Traffic
from pythia_dynamics.errors import HubError

__all__ = ["Again", "Gate", "Retry", "Tries", "within"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to insist. Counts start anew whenever bytes arrive.

    A request is made `tries` times at most, after waits that double from `first` to `longest` seconds (or as long as
    the Hub asks for); a connection that cannot be made, `unreachable` times; an answer that makes no sense,
    `senseless` times. `patience` bounds the whole in seconds, `timeout` each single wait for the server.
    """

    tries: int = 14
    unreachable: int = 5
    senseless: int = 4
    first: float = 0.5
    longest: float = 8.0
    patience: float = 1800.0
    timeout: float = 30.0


class Again(Exception):
    """The request failed in a way that may pass; the message says how."""

    def __init__(self, why: str, *, wait: float | None = None, limit: str = "tries") -> None:
        self.wait, self.limit = wait, limit
        super().__init__(why)


class Gate:
    """Holds all requests of all threads back until the Hub's rate limit allows another."""

    def __init__(self) -> None:
        self.until = 0.0
        self.cancelled = threading.Event()

    def __reduce__(self) -> tuple[type[Gate], tuple[()]]:
        return (Gate, ())

    def hold(self, seconds: float) -> None:
        self.until = max(self.until, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Wait some seconds, and until the gate opens. Raises `HubError` once cancelled."""
        until = max(time.monotonic() + seconds, self.until)
        while not self.cancelled.is_set() and (left := until - time.monotonic()) > 0:
            self.cancelled.wait(left)
            until = max(until, self.until)
        if self.cancelled.is_set():
            raise HubError("cancelled")


class Tries:
    """Counts the failures of one request since bytes last arrived, and waits between them."""

    def __init__(self, retry: Retry, gate: Gate, traffic: Traffic, what: str) -> None:
        self._retry, self._gate, self._traffic, self._what = retry, gate, traffic, what
        self._failed: Counter[str] = Counter()
        self._began = time.monotonic()

    def progress(self) -> None:
        """Bytes have arrived: forget the failures before."""
        if self._failed:
            self._failed.clear()
        self._began = time.monotonic()

    def failed(self, error: Again) -> None:
        """Wait for the next try. Raises `HubError` when there have been enough."""
        retry = self._retry
        self._failed[error.limit] += 1
        self._traffic.add(retries=1)
        count = self._failed.total()
        pause = min(retry.longest, retry.first * 2 ** (count - 1)) * random.uniform(0.75, 1.0)
        if error.wait is not None:
            pause = error.wait
        spent = time.monotonic() - self._began
        enough = self._failed[error.limit] >= getattr(retry, error.limit) or count >= retry.tries
        if enough or spent + pause > retry.patience:
            kind = AccessError if error.limit == "unreachable" else HubError
            asked = f" and asks to wait {pause:.0f} s" if spent + pause > retry.patience else ""
            times = f", {count} times in {spent:.0f} s" if count > 1 else ""
            raise kind(f"{self._what}: {error}{times}{asked}; try again later")
        self._gate.wait(pause)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may hang. Raises `TimeoutError` when it takes too long; it is left to itself then."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
