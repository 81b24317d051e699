"""The retry policy: how many attempts each kind of failure has, the waits between them, and the rate-limit gate."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable

import pytest

from pythia_dynamics.checkpoints import retry
from pythia_dynamics.checkpoints.retry import AttemptCounter, Failure, RateLimitGate, RetryableError, RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, Traffic
from pythia_dynamics.errors import HubError

POLICY = RetryPolicy(max_attempts=6, max_unreachable=3, max_invalid_responses=2, first_wait=0.0)


def counter(policy: RetryPolicy = POLICY) -> AttemptCounter:
    return AttemptCounter(policy, RateLimitGate(), Traffic(), "org/model")


def failing(*failures: Failure, then: str = "done") -> Callable[[], str]:
    """A request that fails in these ways, one after the other, and then succeeds."""
    left = list(failures)

    def request() -> str:
        if left:
            raise RetryableError("it failed", left.pop(0))
        return then

    return request


@pytest.mark.parametrize(
    ("failure", "attempts", "error"),
    [(Failure.TRANSIENT, 6, HubError), (Failure.UNREACHABLE, 3, AccessError), (Failure.INVALID_RESPONSE, 2, HubError)],
)
def test_each_kind_of_failure_has_its_limit(failure: Failure, attempts: int, error: type[HubError]) -> None:
    assert counter().run(failing(*[failure] * (attempts - 1))) == "done"
    with pytest.raises(error, match=rf"org/model: it failed, {attempts} times in 0 s; try again later") as caught:
        counter().run(failing(*[failure] * attempts))
    assert type(caught.value) is error


def test_all_failures_count_until_content_arrives() -> None:
    mixed = [Failure.TRANSIENT, Failure.UNREACHABLE, Failure.INVALID_RESPONSE] * 2
    with pytest.raises(HubError, match="5 times"):  # the second invalid response
        counter(RetryPolicy(max_attempts=5, first_wait=0.0)).run(failing(*mixed))
    attempts = counter()
    for _ in range(20):
        attempts.wait_after(RetryableError("it failed"))
        attempts.reset()


def test_waits_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)  # type: ignore[attr-defined]
    monkeypatch.setattr(RateLimitGate, "wait", lambda gate, seconds=0.0: waits.append(seconds))
    with pytest.raises(HubError, match="14 times"):
        counter(RetryPolicy()).run(failing(*[Failure.TRANSIENT] * 14))
    assert waits == [0.5, 1.0, 2.0, 4.0, *[8.0] * 9]


def test_the_gate_delays_and_can_be_cancelled() -> None:
    gate = RateLimitGate()
    gate.close_for(0.2)
    gate.close_for(0.1)
    began = time.monotonic()
    gate.wait()
    assert 0.2 <= time.monotonic() - began < 2
    gate.close_for(60)
    threading.Timer(0.05, gate.cancel).start()
    with pytest.raises(HubError, match="cancelled"):
        gate.wait()
    pickle.loads(pickle.dumps(gate)).wait()  # in another process it is open
