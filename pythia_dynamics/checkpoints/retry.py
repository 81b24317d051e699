"""Retry policy for requests to the Hub: how often a failed request is repeated, and after which wait."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from pythia_dynamics.checkpoints.gate import RequestGate
from pythia_dynamics.checkpoints.source import AccessError, Traffic
from pythia_dynamics.errors import HubError

__all__ = ["API", "HUB", "STORAGE", "AttemptCounter", "Failure", "RetryPolicy", "RetryableError"]

T = TypeVar("T")

HUB, STORAGE, API = "the Hub", "the storage behind the Hub", "the Hub's API"
"""What a file comes from, as messages call it, and what lists files. Each can fail while the others work."""

_OUTAGE = 3
"""Revisions in a row that fail alike, after which the server counts as out of order: one or two may be broken."""

_ATTEMPTS_AFTER_FAILURE = 2
"""Attempts for a request while the one before it failed alike in the end: the first one has waited long enough."""


class Failure(Enum):
    """The kinds of failure that a repeated request may overcome; each has a limit of its own in `RetryPolicy`."""

    TRANSIENT = "the server is overloaded or the connection was lost"
    UNREACHABLE = "no connection could be made"
    INVALID_RESPONSE = "the server answered with something else than what was requested"
    SLOW = "the content came too slowly"
    LIMITED = "the server asks to wait, because the rate limit is used up"
    REFUSED = "the server refuses this revision"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up on a request. All counts but that of slow transfers start anew whenever content arrives.

    Parameters
    ----------
    max_attempts
        Attempts in all. The default of 14 takes about 70 s with the default waits, longer than a server restarts.
        Those that end in `Failure.LIMITED` do not count.
    max_unreachable
        Attempts that end in `Failure.UNREACHABLE`. The default of 5 reports a missing network after 7 s.
    max_invalid_responses
        Attempts that end in `Failure.INVALID_RESPONSE`. The default of 4 (3 s) gets past one bad
        mirror of several; a server that keeps on answering wrongly is not expected to change.
    max_slow
        Transfers of one range that end in `Failure.SLOW`. The default of 3 takes 90 s.
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
    min_rate
        Bytes per second below which a transfer is given up. At 4 KiB/s the smallest W_U, of 13 MB, takes an hour.
    rate_seconds
        Seconds over which that rate is measured, without the time in which nobody reads.
    """

    max_attempts: int = 14
    max_unreachable: int = 5
    max_invalid_responses: int = 4
    max_slow: int = 3
    first_wait: float = 0.5
    max_wait: float = 8.0
    max_seconds: float = 1800.0
    timeout: float = 30.0
    min_rate: float = 4096.0
    rate_seconds: float = 30.0

    def limit(self, failure: Failure) -> float:
        """The number of attempts that may end in this kind of failure."""
        limits: dict[Failure, float] = {
            Failure.UNREACHABLE: self.max_unreachable,
            Failure.INVALID_RESPONSE: self.max_invalid_responses,
            Failure.SLOW: self.max_slow,
            Failure.LIMITED: math.inf,
            Failure.REFUSED: 1,
        }
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


class AttemptCounter:
    """Counts the failed attempts of one request since content last arrived, and waits between attempts.

    Attributes
    ----------
    server : str
        The server that the request has reached: `HUB`, `STORAGE` or `API`.

    Parameters
    ----------
    policy
        The limits and waits.
    gate
        Where the requests of the source pass.
    traffic
        Where retries are counted.
    subject
        What is requested, at the beginning of the final error's message.
    revision
        The revision that it is of. Where several fail alike, the whole source counts as out of order.
    """

    def __init__(self, policy: RetryPolicy, gate: RequestGate, traffic: Traffic, subject: str, revision: str) -> None:
        self.server = HUB
        self._policy, self._gate, self._traffic = policy, gate, traffic
        self._subject, self._revision = subject, revision
        self._failures: Counter[Failure] = Counter()
        self._since = gate.now()

    def run(self, request: Callable[[], T]) -> T:
        """The result of `request`, called until it raises no `RetryableError`. Raises as `wait_after`."""
        while True:
            try:
                return request()
            except RetryableError as error:
                self.wait_after(error)

    def reset(self) -> None:
        """Forget the failures, because content has arrived. Slow transfers are not forgotten: some content came."""
        self._failures = Counter({Failure.SLOW: self._failures[Failure.SLOW]})
        self._since = self._gate.now()
        self._gate.succeeded(self.server, *(HUB,) * (self.server == STORAGE))  # the Hub gave the storage's address

    def wait_after(self, error: RetryableError) -> None:
        """Wait for the next attempt.

        Raises `HubError` when the policy allows no further attempt, or the gate was cancelled; `AccessError` where the
        Hub is unreachable, its rate limit used up, or as many revisions in a row failed alike as make an outage.
        """
        policy, gate, kind = self._policy, self._gate, error.failure
        alike = (kind, self.server)
        self._failures[kind] += 1
        self._traffic.add(retries=1)
        failures = self._failures.total()
        count = failures - self._failures[Failure.LIMITED]
        # At random, so that parallel workers do not all come back at the same moment.
        pause = min(policy.max_wait, policy.first_wait * 2 ** min(failures - 1, 10)) * random.uniform(0.75, 1.0)
        pause = max(pause, error.wait or 0.0)
        now = gate.now()
        spent = now - (max(self._since, gate.last_success) if kind is Failure.LIMITED else self._since)
        too_long = spent + pause > policy.max_seconds
        limit = min(policy.limit(kind), _ATTEMPTS_AFTER_FAILURE if gate.is_failing(alike) else math.inf)
        if self._failures[kind] < limit and count < policy.max_attempts and not too_long:
            gate.wait(pause, f"{self._subject}: {error}, {failures} {'time' if failures == 1 else 'times'}")
            return
        gate.wait(0.0, "")
        in_a_row = 0 if kind is Failure.LIMITED else gate.failed(alike, self._revision)
        times = f", {count} times in {now - self._since:.0f} s" if count > 1 else ""
        if too_long and error.wait:
            times += f" and asks to wait {pause:.0f} s"
        if in_a_row >= _OUTAGE:
            times += f", as the {in_a_row - 1} steps before it"
        again = "" if kind is Failure.REFUSED and in_a_row < _OUTAGE else "; try again later"
        of_all = kind in (Failure.UNREACHABLE, Failure.LIMITED) or in_a_row >= _OUTAGE
        raise (AccessError if of_all else HubError)(f"{self._subject}: {error}{times}{again}")
