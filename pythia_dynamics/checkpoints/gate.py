"""What the requests of one source share: the Hub's rate limits, the failures in a row, and the end of all waits."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakSet

from pythia_dynamics.checkpoints.source import AccessError
from pythia_dynamics.errors import HubError

__all__ = ["RateLimit", "RequestGate"]

NOTICE_EVERY = 15.0
"""Seconds between two notices that requests wait: an outage that is given up after 70 s is told in five lines."""

SHORT_WAIT = 2.0
"""Waits below this many seconds are not told: a user does not notice them."""

_MOMENT = 0.05
"""Seconds between two looks at a rate limit while answers are under way."""


class RateLimit(NamedTuple):
    """What an answer states of a rate limit.

    Parameters
    ----------
    left
        Requests that are still allowed.
    seconds
        Time until the limit begins anew.
    quota
        Requests that are allowed then, None where that is not stated.
    """

    left: int
    seconds: float
    quota: int | None


class _Window:
    """How many more requests of a kind may be sent until a time, and how many have no answer yet.

    `is_counted` says whether `left` counts all requests since an answer stated it, or since the limit began anew;
    `is_new`, whether it began anew and no answer has stated until when.
    """

    def __init__(self) -> None:
        self.left = self.until = math.inf
        self.quota: int | None = None
        self.is_counted = self.is_new = False
        self.unanswered = 0


class RequestGate:
    """Where the requests of all threads of a source pass. Pickles as a new, open gate.

    Parameters
    ----------
    now
        The clock, in seconds.
    sleep
        Waits so many seconds, or less. Default: until `cancel`.
    """

    def __init__(
        self, *, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] | None = None
    ) -> None:
        self._sockets: WeakSet[Any] = WeakSet()
        self.now = now
        self._cancelled = threading.Event()
        self._sleep = sleep or self._cancelled.wait
        self._lock = threading.Lock()
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)
        self._noticed = -math.inf
        self._alike: tuple[Hashable, str] | None = None
        self._failed: set[str] = set()
        self.last_success = now()

    def __reduce__(self) -> tuple[type[RequestGate], tuple[()]]:
        return (RequestGate, ())

    # -- waiting ----------------------------------------------------------------------------------------------

    def cancel(self) -> list[Any]:
        """End all waits, present and future, with a `HubError`; the sockets of the requests, to be shut down."""
        with self._lock:
            self._cancelled.set()
            return list(self._sockets)

    def add_socket(self, socket: Any) -> bool:
        """Note a socket that a request uses; whether it may be used, because nothing was cancelled."""
        with self._lock:
            self._sockets.add(socket)
            return not self._cancelled.is_set()

    def wait(self, seconds: float, why: str) -> None:
        """Wait so many seconds, and give a notice of the reason if it is long. Raises `HubError` once cancelled."""
        with self._lock:
            is_told = seconds >= SHORT_WAIT and self.now() >= self._noticed + NOTICE_EVERY
            self._noticed = self.now() if is_told else self._noticed
        if is_told:
            warnings.warn(f"{why}; waiting {seconds:.0f} s", stacklevel=3)
        until = self.now() + seconds
        while not self._cancelled.is_set() and (left := until - self.now()) > 0:
            self._sleep(left)
        if self._cancelled.is_set():
            raise HubError("cancelled")

    # -- rate limits ------------------------------------------------------------------------------------------

    def enter(self, kind: str, longest: float) -> None:
        """Wait until the rate limit allows one more request of a kind, and count it.

        Every call is followed by one of `leave`. Raises `HubError` once cancelled, and `AccessError` when the wait is
        longer than `longest`.
        """
        while True:
            with self._lock:
                window = self._windows[kind]
                if self.now() >= window.until and not window.is_new:
                    # Where the quota is not known, one request finds out whether the limit is still used up.
                    window.left = window.quota or (1 if window.left <= 0 else math.inf)
                    window.is_new, window.is_counted = True, window.quota is not None
                if window.left > 0:
                    window.left -= 1
                    window.unanswered += 1
                    break
                # The answers that are under way will tell what is left.
                pause = _MOMENT if window.unanswered else window.until - self.now()
            if pause > longest:
                raise AccessError(f"the Hub's rate limit is used up for {pause:.0f} s; try again later")
            self.wait(pause, "the Hub's rate limit is used up")
        if self._cancelled.is_set():
            raise HubError("cancelled")

    def leave(self, kind: str, limit: RateLimit | None = None) -> None:
        """A request of `enter` has its answer, or failed; `limit` is what the answer states of the rate limit."""
        with self._lock:
            window = self._windows[kind]
            window.unanswered -= 1
            window.is_new = False
            if limit is not None:  # answers may be out of order, and may not count yet what is under way
                window.left = min(window.left, limit.left) if window.is_counted else limit.left - window.unanswered
                window.is_counted, window.until = True, self.now() + limit.seconds
                window.quota = limit.quota or window.quota
            elif window.quota is None and self.now() >= window.until:
                window.left, window.until = math.inf, math.inf

    # -- failures in a row ------------------------------------------------------------------------------------

    def failed(self, alike: tuple[Hashable, str], revision: str) -> int:
        """Note that a revision cannot be had; the number of revisions in a row that failed in this way.

        Parameters
        ----------
        alike
            What is equal for failures of one cause: their kind, and the server that failed.
        revision
            Its name.
        """
        with self._lock:
            if alike != self._alike:
                self._alike, self._failed = alike, set()
            self._failed.add(revision)
            return len(self._failed)

    def is_failing(self, alike: tuple[Hashable, str]) -> bool:
        """Whether the last failure was such a one, and no success came after it."""
        return bool(self._failed) and self._alike == alike

    def succeeded(self, *servers: str) -> None:
        """Note that content has arrived, for which these servers have answered."""
        self.last_success = self.now()
        if self._failed:
            with self._lock:
                if self._alike is not None and self._alike[1] in servers:
                    self._failed = set()
