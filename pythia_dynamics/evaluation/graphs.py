"""CUDA graphs of steps that come again with the same shapes.

A step of generation of a small model is hundreds of short kernels, and launching them takes longer than running them. A
graph launches all of them at once. It holds the addresses of what it reads and writes, so a step may only use memory
that stays where it is.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

from pythia_dynamics.errors import first_line

__all__ = ["StepGraphs", "capture_on_cuda"]

Step = Callable[[], None]
"""Work of fixed shapes, whose inputs and outputs are in memory that stays where it is."""

Capture = Callable[[Step], Step]
"""Makes a step that does the same work again without its Python code; it does not do the work itself."""

_MOST = 1024
"""Graphs that are kept: those of a few hundred combinations of rows and lengths, each with about a megabyte."""


class StepGraphs:
    """Runs steps; one that comes a second time is captured, and from then on replayed.

    A capture costs as much as running the step without a graph does, so one that never comes again is not captured.
    Where a step cannot be captured, a warning says why, and it and all later ones are run as they are.

    Parameters
    ----------
    start
        Makes a `Capture`; called before the first step is captured, and again after `clear`. `capture_on_cuda`, or a
        stand-in on a machine without a GPU.
    """

    def __init__(self, start: Callable[[], Capture]) -> None:
        self._start = start
        self._capture: Capture | None = None
        self._replays: OrderedDict[Hashable, Step] = OrderedDict()
        self._seen: set[Hashable] = set()
        self.failure: str | None = None
        """Why steps are not captured; None while they are."""

    def __len__(self) -> int:
        return len(self._replays)

    def clear(self) -> None:
        """Forget all steps: the memory that they used is gone."""
        self._replays.clear()
        self._seen.clear()
        self._capture = None

    def run(self, key: Hashable, step: Step) -> None:
        """Do the work of a step.

        Parameters
        ----------
        key
            Stands for the shapes and addresses that the step uses: equal keys stand for equal kernels.
        step
            The work.
        """
        if key in self._replays:
            self._replays.move_to_end(key)
            self._replays[key]()
        elif key in self._seen and self.failure is None:
            self._replay_captured(key, step)
        else:
            self._seen.add(key)
            step()

    def _replay_captured(self, key: Hashable, step: Step) -> None:
        if self._capture is None:
            self._capture = self._start()
        try:
            replay = self._capture(step)
        except (
            torch.OutOfMemoryError
        ):  # inside a capture no cached memory is given back; without it there may be enough
            step()
            return
        except RuntimeError as error:
            self.failure = first_line(error)
            warnings.warn(f"steps are run without CUDA graphs: {self.failure}", stacklevel=2)
            step()
            return
        self._replays[key] = replay
        if len(self._replays) > _MOST:
            self._replays.popitem(last=False)
        replay()


def capture_on_cuda(device: torch.device) -> Capture:
    """Capture on a CUDA device; the graphs share one pool of memory, so at most one may run at a time.

    The pool ends with its last graph and cannot be used again: where all graphs are dropped, a new capture is needed.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    failed: list[torch.cuda.CUDAGraph] = []  # kept, because the allocator still refers to a capture that broke off

    def capture(step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        compute = torch.cuda.current_stream(device)
        stream.wait_stream(compute)
        with torch.cuda.stream(stream):  # and with its device, which need not be the current one
            # Another thread may upload the next checkpoint meanwhile: its calls must not break this capture.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                failed.append(graph)
                with suppress(RuntimeError):  # that the capture is broken; why is known
                    graph.capture_end()
                raise
            graph.capture_end()
        compute.wait_stream(stream)

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay

    return capture
