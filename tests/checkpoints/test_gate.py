"""Where the requests of a source pass: rate limits as the Hub states them, cancellation, other processes."""

from __future__ import annotations

import math
import pickle
import threading
import time

import pytest

from pythia_dynamics.checkpoints.gate import RateLimit, RequestGate
from pythia_dynamics.errors import HubError

LONG = 1800.0


class Socket:
    """What a socket is to a gate: something to refer to."""


class Clock:
    """A clock that a sleep puts forward."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.gate = RequestGate(now=lambda: self.seconds, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_no_more_requests_than_the_limit_allows() -> None:
    clock, sent = Clock(), []
    gate = clock.gate
    used, began = 0, 0.0

    def requests() -> None:
        nonlocal used, began
        for _ in range(6):
            gate.enter("requests", LONG)
            if clock.seconds >= began + 60:
                used, began = 0, clock.seconds
            used += 1
            sent.append(clock.seconds)
            gate.leave("requests", RateLimit(max(0, 2 - used), began + 60.0 - clock.seconds, 2))

    with pytest.warns(UserWarning, match="the Hub's rate limit is used up; waiting 60 s"):
        requests()
    assert sent == [0, 0, 60, 60, 120, 120]


def test_a_limit_that_was_not_used_up_begins_anew() -> None:
    clock = Clock()
    gate = clock.gate
    gate.enter("api", LONG)
    gate.leave("api", RateLimit(3, 60, 10))
    clock.seconds = 61
    for _ in range(10):
        gate.enter("api", 0.01)
    gate.leave("api", RateLimit(9, 60, 10))
    with pytest.raises(HubError, match="used up"):
        gate.enter("api", 0.01)
    assert clock.seconds == 61


def test_requests_under_way_are_counted_against_what_is_left() -> None:
    clock = Clock()
    gate = clock.gate
    for _ in range(3):
        gate.enter("api", LONG)
    gate.leave("api", RateLimit(2, 60, 100))  # which may not know of the other two
    with pytest.raises(HubError, match="used up for 0 s"):
        gate.enter("api", 0.01)
    gate.leave("api", RateLimit(0, 60, 100))
    gate.leave("api", RateLimit(1, 60, 100))  # the earlier one of the two
    with pytest.raises(HubError, match="used up"):
        gate.enter("api", 0.01)
    gate.enter("requests", 0.01)  # each kind has a limit of its own


def test_without_a_quota_one_request_finds_out_whether_there_are_more() -> None:
    clock = Clock()
    gate = clock.gate
    gate.enter("api", LONG)
    gate.leave("api", RateLimit(0, 1.5, None))  # 429 with Retry-After
    gate.enter("api", LONG)
    assert clock.seconds == pytest.approx(1.5)
    with pytest.raises(HubError, match="used up"):
        gate.enter("api", 0.01)
    gate.leave("api")
    for _ in range(10):
        gate.enter("api", 0.0)
    assert clock.seconds == pytest.approx(1.5)


def test_too_long_a_wait_is_an_error() -> None:
    clock = Clock()
    clock.gate.enter("api", LONG)
    clock.gate.leave("api", RateLimit(0, 3600, 500))
    with pytest.raises(HubError, match="used up for 3600 s; try again later"):
        clock.gate.enter("api", LONG)
    assert clock.seconds == 0


def test_threads_share_a_limit() -> None:
    gate, lock = RequestGate(), threading.Lock()
    quota, window = 10, 0.2
    state = [-math.inf, 0]
    refused = []

    def work() -> None:
        for _ in range(5):
            gate.enter("api", LONG)
            with lock:
                now = time.monotonic()
                if now >= state[0] + window:
                    state[:] = [now, 0]
                state[1] += 1
                refused.append(state[1] > quota)
                limit = RateLimit(max(0, quota - int(state[1])), state[0] + window - now + 0.05, quota)
            time.sleep(0.005)
            gate.leave("api", limit)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(refused) == 40
    assert sum(refused) <= 3


def test_it_can_be_cancelled_and_pickled() -> None:
    gate, one, other = RequestGate(), Socket(), Socket()
    assert gate.add_socket(one)
    gate.enter("api", LONG)
    gate.leave("api", RateLimit(0, 1.9, None))
    threading.Timer(0.05, gate.cancel).start()
    began = time.monotonic()
    with pytest.raises(HubError, match="cancelled"):
        gate.enter("api", LONG)
    assert time.monotonic() - began < 1.5
    with pytest.raises(HubError, match="cancelled"):
        gate.wait(0.0, "")
    with pytest.raises(HubError, match="cancelled"):
        gate.enter("requests", LONG)
    assert gate.cancel() == [one]
    assert not gate.add_socket(other)
    pickle.loads(pickle.dumps(gate)).enter("api", 0.0)  # in another process it is open
