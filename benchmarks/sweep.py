"""Every weight statistic against a plain NumPy script and against reading, on a generated history of a real shape.

    python benchmarks/sweep.py --dir /scratch [--shape 70m|1b|small] [--steps N] [--repeats 5] [--baseline] [--scaling]
                               [--cases "msd;density;…"] [--device cuda] [--keep] [--out benchmarks/results/sweep.json]

Each case runs in a process of its own on a store in `--dir`: once to warm up, then `--repeats` times, of which the best
counts; on a machine shared with others, the CPU seconds tell how much of the time was ours. `anonymous_mib` is the peak
of RssAnon above the same process with everything imported and compiled: the memory maps of the store are not in it.
`--baseline` also runs `baseline.py` on all of the history, once, and compares the results; `--scaling` shows how the
cost grows with the number of steps and of weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pythia_dynamics.sweep.compute import Compute

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import baseline  # noqa: E402

SHAPES = {"tiny": (300, 64), "small": (1024, 512), "70m": (50304, 512), "1b": (50304, 2048)}
TENSOR = "embed_out.weight"
EDGES = np.linspace(-0.5, 0.5, 513)


# -- the history ------------------------------------------------------------------------------------------------


def generate(path: Path, shape: tuple[int, int], steps: int) -> None:
    """A random walk of float16 weights, standard deviation 0.03, written through the real store."""
    from pythia_dynamics.history.spec import TensorSpec
    from pythia_dynamics.history.states import step_states
    from pythia_dynamics.history.store import Store

    store = Store.create(path, source="benchmark")
    numbers = range(1000, 1000 * (steps + 1), 1000)
    store.ensure([TensorSpec(TENSOR, "float16", shape)], numbers)
    stored = step_states(store, TENSOR).stored
    rng = np.random.default_rng(0)
    size = shape[0] * shape[1]
    weights = rng.standard_normal(size, dtype=np.float32) * 0.03
    noise = rng.standard_normal(size + 1000 * steps, dtype=np.float32) * 0.002
    for i, step in enumerate(numbers):
        weights += noise[1000 * i : 1000 * i + size]  # another stretch each time: uncorrelated, and quick to make
        if step not in stored:
            store.write(TENSOR, step, weights.reshape(shape).astype(np.float16), {"step": step})


# -- the cases --------------------------------------------------------------------------------------------------


def cases(history: Any, device: str, rows: int | None = None) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    import pythia_dynamics.measures.analyse as together
    from pythia_dynamics.measures.density import density
    from pythia_dynamics.measures.displacement import msd
    from pythia_dynamics.measures.order import order_parameter
    from pythia_dynamics.measures.rank import covariance_rank
    from pythia_dynamics.measures.spectrum import spectrum
    from pythia_dynamics.measures.two_time import two_time

    return {
        "read, mapped": lambda: read_mapped(history),
        "read, system calls": lambda: read_calls(history),
        "msd": lambda: msd(history),
        "density": lambda: density(history, bins=EDGES),
        "order": lambda: order_parameter(history),
        "msd+density+order": lambda: together.analyse(
            history, ("msd", "density", "order"), options={"density": {"bins": EDGES}}, compute=Compute(rows=rows)
        ),
        "gram": lambda: two_time(history, compute=Compute(device=device)),
        "spectrum": lambda: spectrum(history, compute=Compute(device=device)),
        "rank": lambda: covariance_rank(history, compute=Compute(device=device)),
        "rank+spectrum": lambda: together.analyse(history, ("rank", "spectrum"), compute=Compute(device=device)),
    }


def read_mapped(history: Any) -> int:
    """Touch every byte of the memory maps, on all cores: the least any sweep can take."""

    def one(index: int) -> int:
        return int(np.bitwise_xor.reduce(history.frame(index).reshape(-1).view(np.uint64)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(one, range(len(history.steps))))


def read_calls(history: Any) -> int:
    """Read the same files into a buffer of 1 MiB with plain system calls, on all cores."""

    def one(path: Path) -> int:
        buffer = bytearray(1 << 20)
        total = 0
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
        return total

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(one, history.frames))


PLAIN = {
    "msd": baseline.msd,
    "density": lambda frames: baseline.density(frames, EDGES),
    "order": baseline.order_parameter,
}


# -- measuring --------------------------------------------------------------------------------------------------


class AnonymousMemory:
    """The peak of RssAnon of this process while the context is open, in MiB above its start."""

    def __enter__(self) -> AnonymousMemory:
        self.start = self.peak = self.now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024


def child(options: argparse.Namespace) -> None:
    """One case in this process; its figures as JSON on standard output."""
    from pythia_dynamics.history.cache import open_history

    history = open_history(options.store)
    history = history.select(history.steps[: options.steps].tolist())
    if options.case.startswith("plain "):
        name = options.case.removeprefix("plain ")
        frames = [history.frame(i) for i in range(len(history.steps))]
        start, work = time.perf_counter(), time.process_time()
        result = PLAIN[name](frames)
        seconds, cpu = [time.perf_counter() - start], [time.process_time() - work]
        found = cases(history, "cpu")[name]()
        mine = {
            "msd": lambda: found["msd"].values,
            "order": lambda: found["order_parameter"].values,
            "density": lambda: found["histogram"].values,
        }[name]()
        reference = np.asarray(result, dtype=np.float64)
        error = float(np.max(np.abs(mine - reference) / np.maximum(np.abs(reference), 1)))
        if name != "density":
            error = float(np.max(np.abs(mine / reference - 1)))
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "disagreement": error}))
        return
    run = cases(history, options.device, options.rows)[options.case]
    warm = cases(history.select(history.steps[:2].tolist()), options.device)[options.case]
    warm()  # compiles, and starts the threads of BLAS
    seconds, cpu = [], []
    with AnonymousMemory() as memory:
        for _ in range(options.repeats):
            gc.collect()  # datasets have cycles: the one before would still be in memory
            start, work = time.perf_counter(), time.process_time()
            run()
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - work)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "anonymous_mib": round(memory.peak),
                "before_mib": round(memory.start),
            }
        )
    )


def measure(case: str, store: Path, options: argparse.Namespace, **changes: object) -> dict[str, Any]:
    """The figures of one case, from a process of its own."""
    arguments = {"case": case, "store": store, "repeats": options.repeats, "device": options.device, **changes}
    command = [sys.executable, __file__, "--child"]
    command += [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found["best"] = min(found["seconds"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("cache"))
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    parser.add_argument("--steps", type=int, default=143)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--cases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="leave the generated history in --dir")
    parser.add_argument("--out", type=Path)
    for name, kind in (("case", str), ("store", Path), ("rows", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return

    from machine import describe_machine

    shape = SHAPES[options.shape]
    size = 2 * options.steps * shape[0] * shape[1]
    store = options.dir / f"benchmark-{options.shape}-{options.steps}.zarr"
    print(f"{options.shape}: {options.steps} × {shape[0]} × {shape[1]} float16, {size / 1e9:.1f} GB in {store}")
    generate(store, shape, options.steps)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "shape": [options.steps, *shape],
        "bytes": size,
        "command": "python " + " ".join(["benchmarks/sweep.py", *sys.argv[1:]]),
        "cases": {},
    }
    try:
        names = options.cases.split(";") if options.cases else list(cases(None, "cpu"))
        for name in names:
            found = report["cases"][name] = measure(name, store, options, steps=options.steps)
            print(
                f"{name:20} {found['best']:8.2f} s  {size / found['best'] / 1e9:6.1f} GB/s  "
                f"median {np.median(found['seconds']):6.2f} s  {min(found['cpu_seconds']):6.2f} s of CPU  "
                f"{found['anonymous_mib']:5} MiB anonymous",
                flush=True,
            )
        if options.baseline:
            report["baseline"] = {}
            for name in PLAIN:
                found = report["baseline"][name] = measure(f"plain {name}", store, options, steps=options.steps)
                print(f"plain {name:14} {found['best']:8.2f} s   largest disagreement {found['disagreement']:.1e}")
            summarise(report)
        if options.scaling:
            report["scaling"] = scaling(store, options, shape)
    finally:
        if not options.keep:
            shutil.rmtree(store)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def summarise(report: dict[str, Any]) -> None:
    """Ratios to the plain script and to reading."""
    fast = {name: found["best"] for name, found in report["cases"].items()}
    plain = {name: found["best"] for name, found in report["baseline"].items()}
    plain["msd+density+order"] = sum(plain.values())
    report["ratios"] = {name: plain[name] / fast[name] for name in plain if name in fast}
    for name, ratio in report["ratios"].items():
        print(f"{name:20} {ratio:6.1f} × the plain script")
    for kind in ("read, mapped", "read, system calls"):
        if {kind, "msd+density+order"} <= set(fast):
            share = report["ratios"][f"share of {kind}"] = fast[kind] / fast["msd+density+order"]
            print(f"msd+density+order runs at {share:.0%} of the rate of: {kind}")


def scaling(store: Path, options: argparse.Namespace, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Time of one pass against steps and weights."""
    rows = []
    for steps, part in ((4, 1), (2, 1), (1, 1), (1, 2), (1, 4)):
        count, kept = options.steps // steps, shape[0] // part
        found = measure("msd+density+order", store, options, steps=count, rows=kept)
        weights = count * kept * shape[1]
        rows.append(
            {"steps": count, "rows": kept, "best": found["best"], "ns_per_weight": found["best"] / weights * 1e9}
        )
        print(f"{count:4} steps × {kept:6} rows {found['best']:8.2f} s  {rows[-1]['ns_per_weight']:.3f} ns per weight")
    return rows


if __name__ == "__main__":
    main()
