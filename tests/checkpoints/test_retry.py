"""The retry policy: how many attempts each kind of failure has, the waits between them, and when an outage is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pythia_dynamics.checkpoints import retry
from pythia_dynamics.checkpoints.gate import RequestGate
from pythia_dynamics.checkpoints.retry import STORAGE, AttemptCounter, Failure, RetryableError, RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, Traffic
from pythia_dynamics.errors import HubError

POLICY = RetryPolicy(max_attempts=6, max_unreachable=3, max_invalid_responses=2, first_wait=0.0)


def counter(policy: RetryPolicy = POLICY, gate: RequestGate | None = None, revision: str = "step1") -> AttemptCounter:
    return AttemptCounter(policy, gate or RequestGate(), Traffic(), "org/model", revision)


class Clock:
    """A clock that a sleep puts forward."""

    def __init__(self) -> None:
        self.seconds, self.waits = 0.0, list[float]()

    def gate(self) -> RequestGate:
        return RequestGate(now=lambda: self.seconds, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds


def failing(*failures: Failure, then: str = "done") -> Callable[[], str]:
    """A request that fails in these ways, one after the other, and then succeeds."""
    left = list(failures)

    def request() -> str:
        if left:
            kind = left.pop(0)
            raise RetryableError("it answered 429" if kind is Failure.LIMITED else "it failed", kind, wait=0)
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
    clock = Clock()
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="it failed") as notices, pytest.raises(HubError, match="14 times in 80 s"):
        counter(RetryPolicy(), clock.gate()).run(failing(*[Failure.TRANSIENT] * 14))
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, *[8.0] * 9]
    assert [str(notice.message) for notice in notices] == [  # one every 15 s
        "org/model: it failed, 3 times; waiting 2 s",
        "org/model: it failed, 7 times; waiting 8 s",
        "org/model: it failed, 9 times; waiting 8 s",
        "org/model: it failed, 11 times; waiting 8 s",
        "org/model: it failed, 13 times; waiting 8 s",
    ]


def test_an_exhausted_rate_limit_is_waited_for_as_long_as_content_arrives_elsewhere() -> None:
    clock = Clock()
    gate = clock.gate()
    attempts = counter(RetryPolicy(max_seconds=600), gate)

    def wait(times: int) -> None:
        for _ in range(times):
            attempts.wait_after(RetryableError("it answered 429", Failure.LIMITED, wait=60))
            if times == 40:
                gate.succeeded(STORAGE)

    with pytest.warns(UserWarning, match="429"):
        wait(40)
    with pytest.warns(), pytest.raises(HubError, match="it answered 429 and asks to wait 60 s; try again later"):
        wait(11)
    assert clock.seconds == pytest.approx((40 + 10) * 60)


def test_a_server_that_asks_for_no_wait_is_not_asked_all_the_time() -> None:
    clock = Clock()
    attempts = counter(RetryPolicy(), clock.gate())
    with pytest.warns(UserWarning, match="429"):
        attempts.run(failing(*[Failure.LIMITED] * 20))
    assert clock.seconds > 60


def test_slow_transfers_count_though_content_arrives() -> None:
    attempts = counter(RetryPolicy(first_wait=0.0))
    for _ in range(2):
        attempts.wait_after(RetryableError("it failed", Failure.SLOW))
        attempts.reset()
    with pytest.raises(HubError, match="3 times"):
        attempts.wait_after(RetryableError("it failed", Failure.SLOW))


def fail(gate: RequestGate, revision: str, failure: Failure = Failure.TRANSIENT, server: str = STORAGE) -> HubError:
    attempts = counter(POLICY, gate, revision)
    attempts.server = server
    with pytest.raises(HubError) as caught:
        attempts.run(failing(*[failure] * 10))
    return caught.value


def test_the_third_revision_in_a_row_that_fails_alike_is_an_outage() -> None:
    gate = RequestGate()
    assert "6 times" in str(fail(gate, "step1"))
    assert "2 times" in str(fail(gate, "step1"))  # the same revision again
    assert "2 times" in str(fail(gate, "step2"))
    error = fail(gate, "step3")
    assert type(error) is AccessError
    assert str(error) == "org/model: it failed, 2 times in 0 s, as the 2 steps before it; try again later"


def test_what_does_not_fail_alike_is_no_outage() -> None:
    gate = RequestGate()
    for step in range(20):
        assert type(fail(gate, f"step{step}", (Failure.TRANSIENT, Failure.INVALID_RESPONSE)[step % 2])) is HubError
    for step in range(20):
        assert type(fail(gate, f"step{step}")) is HubError
        fail(gate, f"step{step}", server="the Hub")
    for step in range(20):
        assert type(fail(gate, f"step{step}")) is HubError
        gate.succeeded("the Hub")
        gate.succeeded(STORAGE)
    fail(gate, "step1")
    fail(gate, "step2")
    gate.succeeded("the Hub")  # an index, say, while the weights of all revisions fail
    assert type(fail(gate, "step3")) is AccessError


def test_one_refusal_is_final_for_its_revision_only() -> None:
    gate = RequestGate()
    error = fail(gate, "step1", Failure.REFUSED)
    assert (type(error), str(error)) == (HubError, "org/model: it failed")
    fail(gate, "step2", Failure.REFUSED)
    assert type(fail(gate, "step3", Failure.REFUSED)) is AccessError
