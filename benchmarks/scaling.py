"""The model of `pythia_dynamics.history.scaling` against measured runs at small scale.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--rounds 3] [--out benchmarks/results/scaling.json]

Fetches are from the loopback Hub of the tests, in a process of its own, whose latencies vary by half of their mean as
those of a network do. Passes are over stores of random walks; of them the CPU time counts. The constants of the machine
are from one configuration of each: fetches by one worker without latency or limits, of a large and of a small
tensor; passes on one core over 24 steps of (50304, 128). All other runs are predicted. The median of the rounds counts.
With ``--only`` the other half of the table in ``--out`` stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from fetch_loopback import REPO, build, serve  # noqa: E402
from machine import describe_machine  # noqa: E402

from pythia_dynamics.history.scaling import cost, cost_of_array  # noqa: E402
from pythia_dynamics.history.workload import Limits, Resources, Work  # noqa: E402

JITTER = 0.5
"""Share of a latency by which it varies; without, workers stay in step, which no network does."""

FETCH = """
import json, sys, time
import pythia_dynamics.checkpoints.hub, huggingface_hub.hf_api, httpx2
from pythia_dynamics.history.fetch import download
from pythia_dynamics.shard import Shard
print("ready", flush=True)
sys.stdin.readline()
began = time.process_time()
shard = Shard.parse(sys.argv[4])
report = download(sys.argv[1], cache=sys.argv[2], workers=int(sys.argv[3]), shard=None if shard.is_whole else shard)
assert report.complete
cpu = time.process_time() - began
print(json.dumps(dict(cpu=cpu, bytes=report.bytes, requests=report.requests, api=report.api)))
"""


@dataclass(frozen=True)
class Files:
    """Checkpoints of a loopback Hub: how many, and the shape of the tensor to fetch."""

    revisions: int
    vocab: int
    d_model: int

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return 2 * self.vocab * self.d_model


LARGE, MEDIUM, SMALL = Files(12, 50304, 512), Files(24, 50304, 128), Files(60, 2048, 16)


@dataclass(frozen=True)
class Fetch:
    """One fetch: its name, the files, the line, workers of a job and jobs."""

    name: str
    files: Files
    workers: int = 1
    jobs: int = 1
    latency: tuple[float, float] = (0.0, 0.0)
    bandwidth: float = inf
    connection: float = inf
    limits: Limits = field(default_factory=lambda: Limits(inf, inf, 0.0))

    @property
    def work(self) -> Work:
        """What it does: one GET a revision."""
        n = self.files.revisions
        return Work(n, n, n, 1, n * self.files.bytes, n * self.files.bytes)

    def resources(self, machine: Resources) -> Resources:
        """What there is to do it with, on a machine."""
        return replace(
            machine,
            workers=self.workers,
            bandwidth=self.bandwidth,
            connection=self.connection,
            hub_latency=self.latency[0],
            storage_latency=self.latency[1],
            limits=self.limits,
        )

    def predicted(self, machine: Resources) -> float:
        """Seconds by the model. Jobs on one machine share its disk, not its cores."""
        own = self.resources(machine)
        if self.jobs > 1:
            return cost_of_array(self.work, replace(own, disk=own.disk / self.jobs), self.jobs).seconds
        return cost(self.work, own).seconds


CALIBRATION = (Fetch("calibration: large", LARGE), Fetch("calibration: small", SMALL))

FAR = (0.08, 0.03)
NARROW: dict[str, Any] = {"latency": FAR, "connection": 4e7, "bandwidth": 1e8}
LIMITED: dict[str, Any] = {"latency": (0.02, 0.01), "limits": Limits(20, inf, 5.0)}
FETCHES = (
    *(Fetch("no latency", MEDIUM, n) for n in (1, 2, 4)),
    *(Fetch("80/30 ms", MEDIUM, n, latency=FAR) for n in (1, 2, 4, 16)),
    *(Fetch("80/30 ms, small", SMALL, n, latency=FAR) for n in (1, 2, 4)),
    *(Fetch("80/30 ms, 40/100 MB/s", MEDIUM, n, **NARROW) for n in (1, 2, 4, 16)),
    *(Fetch("80/30 ms, 40/100 MB/s", MEDIUM, 2, jobs, **NARROW) for jobs in (2, 4)),
    *(Fetch("20 requests in 5 s", SMALL, n, **LIMITED) for n in (1, 2, 4)),
    Fetch("20 requests in 5 s", SMALL, 2, 2, **LIMITED),
)


@dataclass(frozen=True)
class Ran:
    """What was measured of a fetch."""

    seconds: float
    cpu: float


def fetch(run: Fetch, endpoint: str, cache: Path) -> Ran:
    """Run the jobs of a fetch at once, imports excluded."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, REPO, str(cache), str(run.workers), f"{k + 1}/{run.jobs}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint},
        )
        for k in range(run.jobs)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    seconds = time.perf_counter() - began
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    return Ran(seconds, sum(each["cpu"] for each in said))


def fetches(runs: tuple[Fetch, ...], work: Path, rounds: int) -> dict[Fetch, list[Ran]]:
    """Measure fetches, each from a server of its own."""
    found: dict[Fetch, list[Ran]] = {run: [] for run in runs}
    for run in runs:
        files = work / f"hub-{run.files.bytes}"
        if not files.exists():
            build(files, argparse.Namespace(**asdict(run.files), layout="safetensors"))
        for _ in range(rounds):
            options = argparse.Namespace(
                latency=run.latency[1],
                hub_latency=run.latency[0],
                jitter=JITTER,
                bandwidth=None if run.connection == inf else run.connection,
                total=None if run.bandwidth == inf else run.bandwidth,
                limit=None if run.limits.requests == inf else int(run.limits.requests),
                window=run.limits.seconds,
            )
            with serve(files, options) as endpoint:
                found[run].append(fetch(run, endpoint, work / "cache"))
            shutil.rmtree(work / "cache")
        print(run.name, run.workers, run.jobs, [round(each.seconds, 2) for each in found[run]], flush=True)
    return found


def machine_of(found: dict[Fetch, list[Ran]]) -> Resources:
    """The constants of this machine, from the calibration."""
    large, small = (
        (statistics.median(each.seconds for each in runs), statistics.median(each.cpu for each in runs))
        for runs in found.values()
    )
    request = small[0] / SMALL.revisions
    nbytes = LARGE.revisions * LARGE.bytes
    return Resources(
        request_seconds=request,
        fetch_nanoseconds=max(large[1] - LARGE.revisions * request, 0.0) / nbytes * 1e9,
        disk=nbytes / max(large[0] - large[1], 1e-3),
    )


# -- passes -------------------------------------------------------------------------------------------------------

MEASURES = ("msd", "density", "msd,density,order")
CALIBRATED = ((50304, 128), 24)
PASSES = (
    ((50304, 128), 24, 2),
    ((50304, 128), 96, 1),
    ((50304, 128), 96, 2),
    ((50304, 512), 48, 1),
    ((50304, 512), 48, 2),
    ((8192, 512), 96, 1),
    ((8192, 512), 96, 2),
)


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median CPU time of a work that has been done once before, of all its threads together."""
    work()
    times = []
    for _ in range(2 * rounds + 1):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def passes(directory: Path, rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The constants of each measure, and rows of measured and predicted passes."""
    from sweep import generate  # type: ignore[attr-defined]

    from pythia_dynamics.history.cache import open_history
    from pythia_dynamics.measures.analyse import analyse
    from pythia_dynamics.measures.displacement import Integral
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.sweep.counts import Counts
    from pythia_dynamics.sweep.sweep import sweep

    engine: dict[str, list[Any]] = {
        "msd": [Integral()],
        "density": [Counts()],
        "msd,density,order": [Integral(), Counts()],
    }

    def history_of(shape: tuple[int, int], steps: int) -> Any:
        path = directory / f"{shape[0]}x{shape[1]}x{steps}.zarr"
        if not path.exists():
            generate(path, shape, steps)
        return open_history(path)

    constants: dict[str, dict[str, Any]] = {}
    rows = []
    (shape, steps), one = CALIBRATED, Compute(threads=1)
    history = history_of(shape, steps)
    for name in MEASURES:
        alone = cpu_seconds(lambda name=name: sweep(history, engine[name], one), rounds)  # type: ignore[misc]
        all_of_it = cpu_seconds(lambda name=name: analyse(history, tuple(name.split(",")), compute=one), rounds)  # type: ignore[misc]
        constants[name] = {
            "nanoseconds": alone / (shape[0] * shape[1] * steps) * 1e9,
            "frame_seconds": max(all_of_it - alone, 0.0) / steps,
        }
    for shape, steps, threads in PASSES:
        history = history_of(shape, steps)
        for name in MEASURES:
            compute = Compute(threads=threads)
            seconds = cpu_seconds(lambda: analyse(history, tuple(name.split(",")), compute=compute), rounds)  # noqa: B023
            task = replace(Work(weights=shape[0] * shape[1] * steps, frames=steps), **constants[name])
            rows.append(
                {
                    "what": f"{name.replace(',', ', ')}: {steps} steps of ({shape[0]}, {shape[1]})",
                    "with": f"{threads} thread{'s' * (threads > 1)}, CPU time",
                    "measured": seconds,
                    "predicted": cost(task, Resources(cores=threads)).cpu_seconds,
                }
            )
            print(rows[-1], flush=True)
    return constants, rows


def measured_fetches(work: Path, rounds: int) -> dict[str, Any]:
    """The constants of this machine, and rows of measured and predicted fetches."""
    machine = machine_of(fetches(CALIBRATION, work, rounds))
    rows = []
    for run, ran in fetches(FETCHES, work, rounds).items():
        workers = f"{run.workers} worker{'s' * (run.workers > 1)}"
        what = f"{run.files.revisions} × {run.files.bytes / 1e6:.3g} MB, {run.name.removesuffix(', small')}"
        rows.append(
            {
                "what": what,
                "with": workers if run.jobs == 1 else f"{run.jobs} jobs of {workers}",
                "measured": statistics.median(each.seconds for each in ran),
                "predicted": run.predicted(machine),
            }
        )
    return {"fetch": {name: getattr(machine, name) for name in CONSTANTS}, "fetch_rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("fetches", "passes"))
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="scaling-benchmark-"))
    found: dict[str, Any] = {}
    if options.only:
        found = json.loads(options.out.read_text())
    try:
        if options.only != "passes":
            found |= measured_fetches(work, options.rounds)
        if options.only != "fetches":
            constants, rows = passes(work, options.rounds)
            found |= {"passes": constants, "pass_rows": rows}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rows = found["fetch_rows"] + found["pass_rows"]
    for row in rows:
        row["ratio"] = row["predicted"] / row["measured"]
        print(f"{row['what']:52} {row['with']:20} {row['measured']:8.3f} {row['predicted']:8.3f} {row['ratio']:6.2f}")
    outside = [row for row in rows if abs(row["ratio"] - 1) > 0.2]
    print(f"{len(rows) - len(outside)} of {len(rows)} within 20 %")
    if options.out:
        found |= {"machine": describe_machine(), "command": "OMP_NUM_THREADS=1 python benchmarks/scaling.py"}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


CONSTANTS = ("fetch_nanoseconds", "request_seconds", "disk")

if __name__ == "__main__":
    main()
