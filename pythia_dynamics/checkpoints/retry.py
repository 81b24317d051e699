"""Retry policy for requests to the Hub: how often a failed request is repeated, and after which wait."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from pythia_dynamics.checkpoints.source import AccessError, Traffic
from pythia_dynamics.errors import HubError

__all__ = ["AttemptCounter", "Failure", "RateLimitGate", "RetryPolicy", "RetryableError"]

T = TypeVar("T")


class Failure(Enum):
    """The kinds of failure that a repeated request may overcome; each has a limit of its own in `RetryPolicy`."""

    TRANSIENT = "the server is overloaded or the connection was lost"
    UNREACHABLE = "no connection could be made"
    INVALID_RESPONSE = "the server answered with something else than what was requested"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up on a request. All counts start anew whenever content arrives.

    Parameters
    ----------
    max_attempts
        Attempts in all. The default of 14 takes about 70 s with the default waits, longer than a server restarts.
    max_unreachable
        Attempts that end in `Failure.UNREACHABLE`. The default of 5 reports a missing network after 7 s.
    max_invalid_responses
        Attempts that end in `Failure.INVALID_RESPONSE`. The default of 4 (3 s) gets past one bad
        mirror of several; a server that keeps on answering wrongly is not expected to change.
    first_wait
        Wait after the first failure, in seconds; doubled after each further one. Half a second is a few round trips.
    max_wait
        Longest such wait, in seconds; 8 s as in `huggingface_hub`. A wait that the Hub asks for may be longer.
    max_seconds
        Time without content, waits included, after which the request fails. Half an hour is six windows
        of the Hub's rate limit, which has one of five minutes.
    timeout
        Longest wait for the server to accept a connection or send more bytes, in seconds; also the longest time a
        file list or branch list may take. The default is three times that of `huggingface_hub`, for slow networks.
    """

    max_attempts: int = 14
    max_unreachable: int = 5
    max_invalid_responses: int = 4
    first_wait: float = 0.5
    max_wait: float = 8.0
    max_seconds: float = 1800.0
    timeout: float = 30.0

    def limit(self, failure: Failure) -> int:
        """The number of attempts that may end in this kind of failure."""
        limits = {Failure.UNREACHABLE: self.max_unreachable, Failure.INVALID_RESPONSE: self.max_invalid_responses}
        return limits.get(failure, self.max_attempts)


class RetryableError(Exception):
    """A request failed in a way that a repetition may overcome. Never leaves this package's HTTP code.

    Parameters
    ----------
    reason
        What failed, for the message of the final error.
    failure
        The kind of failure, which decides how often the request is repeated.
    wait
        Seconds the server asks to wait; None for the waits of the policy.
    """

    def __init__(self, reason: str, failure: Failure = Failure.TRANSIENT, *, wait: float | None = None) -> None:
        self.failure, self.wait = failure, wait
        super().__init__(reason)


class RateLimitGate:
    """Delays the requests of all threads while the Hub's rate limit is exhausted. Pickles as a new, open gate."""

    def __init__(self) -> None:
        self._until = 0.0
        self._cancelled = threading.Event()

    def __reduce__(self) -> tuple[type[RateLimitGate], tuple[()]]:
        return (RateLimitGate, ())

    def close_for(self, seconds: float) -> None:
        """Let no request pass for so many seconds from now."""
        self._until = max(self._until, time.monotonic() + seconds)

    def cancel(self) -> None:
        """End all waits, present and future, with a `HubError`."""
        self._cancelled.set()

    def wait(self, seconds: float = 0.0) -> None:
        """Wait at least so many seconds, and until the gate is open. Raises `HubError` once cancelled."""
        until = max(time.monotonic() + seconds, self._until)
        while not self._cancelled.is_set() and (left := until - time.monotonic()) > 0:
            self._cancelled.wait(left)
            until = max(until, self._until)
        if self._cancelled.is_set():
            raise HubError("cancelled")


class AttemptCounter:
    """Counts the failed attempts of one request since content last arrived, and waits between attempts.

    Parameters
    ----------
    policy
        The limits and waits.
    gate
        The gate to wait at.
    traffic
        Where retries are counted.
    subject
        What is requested, at the beginning of the final error's message.
    """

    def __init__(self, policy: RetryPolicy, gate: RateLimitGate, traffic: Traffic, subject: str) -> None:
        self._policy, self._gate, self._traffic, self._subject = policy, gate, traffic, subject
        self._failures: Counter[Failure] = Counter()
        self._since = time.monotonic()

    def run(self, request: Callable[[], T]) -> T:
        """The result of `request`, called until it raises no `RetryableError`. Raises as `wait_after`."""
        while True:
            try:
                return request()
            except RetryableError as error:
                self.wait_after(error)

    def reset(self) -> None:
        """Forget the failures, because content has arrived."""
        self._failures.clear()
        self._since = time.monotonic()

    def wait_after(self, error: RetryableError) -> None:
        """Wait for the next attempt.

        Raises `HubError` (`AccessError` where the Hub is unreachable) when the policy allows no further attempt.
        """
        policy, kind = self._policy, error.failure
        self._failures[kind] += 1
        self._traffic.add(retries=1)
        count = self._failures.total()
        pause = error.wait
        if pause is None:  # at random, so that parallel workers do not all come back at the same moment
            pause = min(policy.max_wait, policy.first_wait * 2 ** (count - 1)) * random.uniform(0.75, 1.0)
        spent = time.monotonic() - self._since
        too_long = spent + pause > policy.max_seconds
        if self._failures[kind] >= policy.limit(kind) or count >= policy.max_attempts or too_long:
            times = f", {count} times in {spent:.0f} s" if count > 1 else ""
            requested = f" and asks to wait {pause:.0f} s" if too_long else ""
            raise (AccessError if kind is Failure.UNREACHABLE else HubError)(
                f"{self._subject}: {error}{times}{requested}; try again later"
            )
        self._gate.wait(pause)
