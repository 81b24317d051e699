"""How busy a GPU is over the checkpoints of a 70m, from a simulation whose times are measured or stated.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_pipeline.py

Measured on this machine: how long a float16 safetensors file of a 70m takes to be found, checked and read into pinned
buffers (whose memory is plain here), and to be copied and cast directly; and what one writing of the rows of a mode
takes, during which the device waits. Stated, and not measured: the rates of the bus and of the device's memory, and the
time that a checkpoint computes.

The simulation follows each chunk through the reader, a pinned buffer and the bus, and each checkpoint through the
queue that computes. It is held against the wall time of `load_ahead` and `WeightLoader` themselves, which read the
real files in a thread, with queues that take the stated time and a computation that sleeps; there, the simulation has
the reading time of the same run, because that of a shared machine varies. `busy` is the share of the time in which the
device computes, once the first checkpoint is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from perplexity import random_model
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.evaluation.loading import load_ahead
from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.rows import Row
from pythia_dynamics.evaluation.scoring import Sentences
from pythia_dynamics.evaluation.staging import CHUNK_BYTES, Queue, WeightLoader
from pythia_dynamics.evaluation.weights import Expected, find_weights, load_weights

GOAL = 0.7
PASSAGES = 500
FLUSH_SECONDS = 1.0
"""Rows are written at most this often."""


@dataclass(frozen=True)
class Times:
    """What a checkpoint costs, in seconds and bytes.

    Parameters
    ----------
    find
        To find and check its weights.
    read
        To read them into pinned buffers.
    direct
        To read and cast them on the host, and copy them without pinned memory: before the pipeline.
    size
        Bytes on the bus.
    bus
        Bytes per second of the bus.
    install
        To copy and cast them on the device.
    compute
        To evaluate them.
    flush
        To write the rows.
    """

    find: float
    read: float
    direct: float
    size: int
    bus: float
    install: float
    compute: float
    flush: float = 0.0


def ready_at(times: Times, start: float, staging_free: float) -> float:
    """When weights are on the device whose reading starts at `start`."""
    read, uploaded, buffers = start + times.find, staging_free, [start, start]
    chunks = math.ceil(times.size / CHUNK_BYTES)
    for chunk in range(chunks):
        size = min(CHUNK_BYTES, times.size - chunk * CHUNK_BYTES)
        read = max(read, buffers[chunk % 2]) + times.read * size / times.size
        uploaded = max(uploaded, read) + size / times.bus
        buffers[chunk % 2] = uploaded
    return uploaded


def simulate(times: Times, checkpoints: int, *, ahead: bool) -> dict[str, float]:
    """Wall time of a run, first loading included, and the share of it after that in which the device computes."""
    now = flushed = 0.0
    ready = ready_at(times, 0.0, 0.0) if ahead else 0.0
    first = 0.0
    for number in range(checkpoints):
        if ahead:
            now = max(now, ready)
            installed = now + times.install
            ready = ready_at(times, now, installed)  # the host does not wait for the copy on the device
            now = installed
        else:
            now += times.direct
        if number == 0:
            first = now
        now += times.compute
        if times.flush and now - flushed >= FLUSH_SECONDS:
            now += times.flush
            flushed = now
    return {"wall": now, "busy": checkpoints * times.compute / (now - first)}


def least_compute(times: Times, *, ahead: bool) -> float:
    """The computing time, in seconds, from which the device is busy enough; found by bisection."""
    low, high = 0.0, 100.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        busy = simulate(replace(times, compute=middle), 200, ahead=ahead)["busy"]
        low, high = (low, middle) if busy >= GOAL else (middle, high)
    return high


class TimedQueues:
    """Queues of a device that moves no data, and takes the stated time."""

    capacity = 1 << 40

    def __init__(self, times: Times) -> None:
        self.times = times
        self.free: dict[Queue, float] = {"upload": 0.0, "compute": 0.0}
        self.waited = 0.0  # by the host, in seconds
        self._chunks = math.ceil(times.size / CHUNK_BYTES)
        self._submitted = 0

    def host_buffer(self, size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.uint8)

    def device_buffer(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def submit(self, queue: Queue, operation: Callable[[], object]) -> None:
        if queue == "upload":
            chunk = self._submitted % self._chunks
            self._submitted += 1
            seconds = min(CHUNK_BYTES, self.times.size - chunk * CHUNK_BYTES) / self.times.bus
        else:
            seconds = self.times.install
        self.free[queue] = max(time.perf_counter(), self.free[queue]) + seconds

    def record(self, queue: Queue) -> float:
        return self.free[queue]

    def wait(self, queue: Queue, event: float) -> None:
        self.free[queue] = max(self.free[queue], event)

    def synchronize(self, event: float) -> None:
        start = time.perf_counter()
        time.sleep(max(0.0, event - start))
        self.waited += time.perf_counter() - start


def run(model: GPTNeoXForCausalLM, times: Times, directories: list[Path]) -> dict[str, float]:
    """Wall time of the real pipeline over checkpoints, with a computation that sleeps, and that of the simulation."""
    queues = TimedQueues(times)
    loader = WeightLoader(model, queues)
    loader.install(loader.prepare(directories[0]))  # allocates
    reading = 0.0

    def found() -> Iterator[tuple[Revision, Path | Exception]]:
        for step, directory in enumerate(directories):
            yield Revision(step, str(step)), directory

    def prepare(directory: Path, check: Callable[[], None]) -> object:
        nonlocal reading
        start, waited = time.perf_counter(), queues.waited
        prepared = loader.prepare(directory, check)
        reading += time.perf_counter() - start - (queues.waited - waited)
        return prepared

    def load(checkpoint: Any, prepared: Any) -> None:
        loader.install(prepared)

    start = time.perf_counter()
    generator = load_ahead(
        found(),  # type: ignore[arg-type]
        lambda revision, directory: directory,  # type: ignore[arg-type, return-value]
        prepare,  # type: ignore[arg-type]
        load,
        cancel=lambda: None,
        stopped=threading.Event(),
    )
    with closing(generator) as upcoming:
        for _, load_now in upcoming:
            load_now()
            time.sleep(max(0.0, queues.free["compute"] - time.perf_counter()) + times.compute)
    wall = time.perf_counter() - start
    count = len(directories)
    simulated = simulate(replace(times, find=0.0, read=reading / count), count, ahead=True)["wall"]
    return {
        "compute_seconds": times.compute, "bus_gb_s": times.bus / 1e9, "read_seconds": reading / count,
        "wall_seconds": wall, "simulated_seconds": simulated, "error": simulated / wall - 1,
        "in_sequence_seconds": count * (reading / count + times.size / times.bus + times.install + times.compute),
    }  # fmt: skip


def timed(work: Callable[[], object], repeat: int) -> float:
    """Median time of a call, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def flush_seconds(directory: Path) -> float:
    """Median time of a writing of 143 rows of which one is new."""
    records = Records("forward", directory, {"corpus": "random"})
    random = np.random.default_rng(0)
    seconds = []
    for step in range(143):
        scores = Sentences(
            random.uniform(100, 300, PASSAGES), random.uniform(100, 300, PASSAGES),
            random.integers(50, 90, PASSAGES), np.zeros(PASSAGES, np.bool_),
        )  # fmt: skip
        records.add(step, f"commit{step}", Row(scores), {"device": "cuda"})
        start = time.perf_counter()
        records.flush(force=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-20:])


def drop_from_cache(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="70m")
    parser.add_argument("--bus", type=float, default=50.0, help="assumed: GB/s from pinned memory (PCIe 5 x16)")
    parser.add_argument("--pageable", type=float, default=12.0, help="assumed: GB/s from memory that is not pinned")
    parser.add_argument("--memory", type=float, default=3000.0, help="assumed: GB/s of the device's memory")
    parser.add_argument(
        "--compute", type=float, nargs="*", default=[0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0],
        help="assumed: seconds that a checkpoint computes",
    )  # fmt: skip
    parser.add_argument("--checkpoints", type=int, default=20, help="of a run that is compared with the simulation")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--dir", type=Path, help="where the checkpoint is written; default: a temporary directory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoint_pipeline.json")
    options = parser.parse_args()
    model = random_model(options.size)
    model.requires_grad_(False)
    with tempfile.TemporaryDirectory(dir=options.dir) as temporary:
        report = measure(model, Path(temporary), options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(model: GPTNeoXForCausalLM, temporary: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, simulate, and compare both."""
    directory = temporary / "step"
    GPTNeoXForCausalLM(model.config).half().save_pretrained(directory)
    (file,) = directory.glob("*.safetensors")
    parameters = [parameter.nbytes for parameter in model.parameters()]
    expected = Expected.of(model)
    weights = find_weights(expected, directory)
    size = sum(tensor.nbytes for tensor in weights.tensors)
    del weights
    times = Times(
        find=timed(lambda: find_weights(expected, directory), options.repeat),
        read=0.0, direct=timed(lambda: load_weights(model, directory), options.repeat),
        size=size, bus=options.bus * 1e9, install=(size + sum(parameters)) / (options.memory * 1e9), compute=0.0,
    )  # fmt: skip
    loader = WeightLoader(model, TimedQueues(replace(times, bus=math.inf)))
    prepare = timed(lambda: loader.prepare(directory), options.repeat)
    times = replace(times, read=prepare - times.find)

    cold = []
    for _ in range(3):
        drop_from_cache(file)
        start = time.perf_counter()
        loader.prepare(directory)
        cold.append(time.perf_counter() - start)

    comparison = [
        run(model, replace(times, compute=compute, bus=bus), [directory] * options.checkpoints)
        for bus in (times.bus, 1e9)  # the slow one, so that uploads decide as well
        for compute in (0.0, 0.02, 0.05, 0.1, 0.2)
    ]

    # On a GPU, a direct copy goes over the bus in the dtype of the model, from memory that is not pinned.
    on_device = replace(times, direct=times.direct + sum(parameters) / (options.pageable * 1e9))
    writing = replace(on_device, flush=flush_seconds(temporary / "results"))
    not_cached = replace(on_device, find=0.0, read=statistics.median(cold))
    shares = []
    for compute in options.compute:
        entry: dict[str, float] = {"compute_seconds": compute}
        for name, ahead in (("busy", True), ("busy_direct", False)):
            entry[name] = simulate(replace(on_device, compute=compute), 200, ahead=ahead)["busy"]
            entry[f"{name}_with_rows"] = simulate(replace(writing, compute=compute), 200, ahead=ahead)["busy"]
        shares.append(entry)
    return {
        "machine": describe_machine(), "size": options.size, "file_bytes": file.stat().st_size,
        "assumed": {"bus_gb_s": options.bus, "pageable_gb_s": options.pageable, "memory_gb_s": options.memory},
        "measured_seconds": {
            "find": times.find, "find_and_read": prepare, "find_and_read_not_cached": statistics.median(cold),
            "direct": times.direct, "write_rows": writing.flush,
        },
        "read_gb_s": size / times.read / 1e9,
        "times": {name: value for name, value in asdict(writing).items() if name != "compute"},
        "simulation_against_wall_time": comparison,
        "busy": shares,
        "goal": GOAL,
        "least_compute_seconds": {
            "pipeline": least_compute(on_device, ahead=True), "direct": least_compute(on_device, ahead=False),
            "pipeline_not_cached": least_compute(not_cached, ahead=True),
            "pipeline_with_rows": least_compute(writing, ahead=True),
            "direct_with_rows": least_compute(writing, ahead=False),
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
