"""The calls that a capture makes on CUDA, in their order, against a stand-in for `torch.cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pythia_dynamics.evaluation.graphs import StepGraphs, capture_on_cuda

DEVICE = torch.device("cuda", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    class Stream:
        def __init__(self, device: torch.device, name: str = "side") -> None:
            self.device, self.name = device, name

        def wait_stream(self, other: Stream) -> None:
            seen.append((self.name, "waits for", other.name))

    class Graph:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            seen.append(("begin", pool, capture_error_mode))

        def capture_end(self) -> None:
            seen.append("end")

        def replay(self) -> None:
            seen.append("replay")

    @contextmanager
    def within(what: Any) -> Iterator[None]:
        seen.append(("enter", getattr(what, "name", what)))
        yield
        seen.append("leave")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "device", within)
    return seen


CAPTURE = [("side", "waits for", "main"), ("enter", "side"), ("begin", "pool", "thread_local"), "step", "end", "leave",
           ("main", "waits for", "side")]  # fmt: skip
REPLAY = [("enter", DEVICE), "replay", "leave"]


def test_a_step_is_captured_beside_the_stream_that_computes_and_replayed_on_its_device(calls: list[Any]) -> None:
    graphs = StepGraphs(lambda: capture_on_cuda(DEVICE))
    expected = [["step"], [*CAPTURE, *REPLAY], REPLAY, REPLAY]
    for wanted in expected:
        calls.clear()
        graphs.run("key", lambda: calls.append("step"))
        assert calls == wanted


def test_a_step_that_fails_in_a_capture_ends_it_and_is_run(calls: list[Any]) -> None:
    graphs = StepGraphs(lambda: capture_on_cuda(DEVICE))
    graphs.run("key", lambda: None)

    def step() -> None:
        if ("begin", "pool", "thread_local") in calls and "end" not in calls:
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append("run")

    with pytest.warns(UserWarning, match="without CUDA graphs"):
        graphs.run("key", step)
    assert calls[-1] == "run"
    assert "end" in calls
    assert graphs.failure == "operation not permitted when stream is capturing"
    graphs.run("key", step)
    assert calls[-1] == "run"
