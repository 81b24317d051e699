"""All tensors of a 70m in one command: against reading the same files, a loop over plain NumPy, and in memory.

    OMP_NUM_THREADS=1 python benchmarks/whole_model.py --dir /scratch [--steps 143] [--rounds 3] [--keep]

The store has the 76 tensors of GPT-NeoX 70m at random, 141 MB a step. Each command is run as a user runs it, with the
import of the package, its result files and its figures, on all cores; so is the reading: a process that opens the maps
of all tensors and adds them up, on all cores, with its own imports; "read alone" is the time without
these and without opening the maps. Each round reads all files first, then times all of
them in turn; the median counts. Memory is the peak of RssAnon of the command, sampled every 20 ms; memory maps of the
store are not in it. The loop over plain NumPy (`baseline.py`) runs over a few tensors and is extrapolated by weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import baseline
import numpy as np
from machine import describe_machine

from pythia_dynamics.history.cache import open_history
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store

WIDTH, VOCABULARY, LAYERS = 512, 50304, 6
COMMANDS = ("msd --no-two-time", "msd", "order", "density")
PLAIN = ("gpt_neox.layers.0.attention.dense.weight", "gpt_neox.layers.3.mlp.dense_h_to_4h.weight")
EDGES = np.linspace(-0.5, 0.5, 513)


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of GPT-NeoX 70m and their shapes."""
    layer = {
        "input_layernorm.weight": (WIDTH,),
        "input_layernorm.bias": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.bias": (WIDTH,),
        "attention.query_key_value.weight": (3 * WIDTH, WIDTH),
        "attention.query_key_value.bias": (3 * WIDTH,),
        "attention.dense.weight": (WIDTH, WIDTH),
        "attention.dense.bias": (WIDTH,),
        "mlp.dense_h_to_4h.weight": (4 * WIDTH, WIDTH),
        "mlp.dense_h_to_4h.bias": (4 * WIDTH,),
        "mlp.dense_4h_to_h.weight": (WIDTH, 4 * WIDTH),
        "mlp.dense_4h_to_h.bias": (WIDTH,),
    }
    names: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (VOCABULARY, WIDTH)}
    names |= {f"gpt_neox.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    names |= {"gpt_neox.final_layer_norm.weight": (WIDTH,), "gpt_neox.final_layer_norm.bias": (WIDTH,)}
    return names | {"embed_out.weight": (VOCABULARY, WIDTH)}


def generate(path: Path, steps: int) -> None:
    """Random walks of float16 weights, standard deviation 0.03, written through the real store."""
    tensors = shapes()
    store = Store.create(path, source="benchmark")
    numbers = range(1000, 1000 * (steps + 1), 1000)
    store.ensure([TensorSpec(name, "float16", shape) for name, shape in tensors.items()], numbers)
    rng = np.random.default_rng(0)
    largest = VOCABULARY * WIDTH
    start = rng.standard_normal(largest, dtype=np.float32) * 0.03
    noise = rng.standard_normal(largest + 1000 * steps, dtype=np.float32) * 0.002
    for name, shape in tensors.items():
        stored, size = step_states(store, name).stored, int(np.prod(shape))
        weights = start[:size].copy()
        for i, step in enumerate(numbers):
            weights += noise[1000 * i : 1000 * i + size]  # another stretch each time: uncorrelated, and quick to make
            if step not in stored:
                store.write(name, step, weights.reshape(shape).astype(np.float16), {"step": step})


def read(store: Path) -> float:
    """Add up every weight of every tensor through the memory maps, on all cores; the seconds without opening."""

    def one(job: tuple[Any, int]) -> int:
        history, index = job
        return int(history.frame(index).reshape(-1).view(np.uint64).sum())

    histories = [open_history(store, tensor=name) for name in shapes()]
    jobs = [(history, index) for history in histories for index in range(len(history.steps))]
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sum(pool.map(one, jobs))
    return time.perf_counter() - start


def together(store: Path) -> None:
    """MSD, density and order parameter of each tensor from one reading, with the library: no files, no figures."""
    from pythia_dynamics.measures.analyse import analyse

    for name in shapes():
        analyse(open_history(store, tensor=name), ("msd", "density", "order"))


def timed(command: list[str], directory: Path) -> dict[str, float]:
    """Seconds, CPU seconds and the peak of RssAnon of one command."""
    with tempfile.TemporaryFile("w+") as output:
        return _timed(command, directory, output)


def _timed(command: list[str], directory: Path, output: Any) -> dict[str, float]:
    start, work = time.perf_counter(), os.times()
    process = subprocess.Popen(command, cwd=directory, stdout=output)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
        peak = max(peak, int(line.split()[1]))
        time.sleep(0.02)
    seconds, done = time.perf_counter() - start, os.times()
    output.seek(0)
    last = output.read().split()[-1:]
    if process.returncode:
        raise SystemExit(f"{command} failed")
    cpu = done.children_user + done.children_system - work.children_user - work.children_system
    found = {"seconds": seconds, "cpu_seconds": cpu, "anonymous_mib": peak / 1024}
    return found | ({"read alone": float(last[0])} if "--read" in command else {})


def plain(store: Path) -> dict[str, float]:
    """Nanoseconds a weight of plain NumPy, over a few tensors."""
    histories = [open_history(store, tensor=name) for name in PLAIN]
    weights = sum(len(history.steps) * int(np.prod(history.frame_shape)) for history in histories)
    found = {}
    for name in ("msd", "density", "order_parameter"):
        start = time.perf_counter()
        for history in histories:
            frames = [history.frame(i) for i in range(len(history.steps))]
            if name == "density":
                baseline.density(frames, EDGES)
            else:
                getattr(baseline, name)(frames)
        found[name] = (time.perf_counter() - start) / weights * 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("cache"))
    parser.add_argument("--steps", type=int, default=143)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", default=";".join(COMMANDS))
    parser.add_argument("--keep", action="store_true", help="leave the generated store in --dir")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--together", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.together:
        together(options.together)
        return
    if options.read:
        print(read(options.read))
        return
    store = (options.dir / "cache" / f"whole-{options.steps}.zarr").resolve()
    store.parent.mkdir(parents=True, exist_ok=True)
    size = 2 * options.steps * sum(int(np.prod(shape)) for shape in shapes().values())
    print(f"{options.steps} steps of {len(shapes())} tensors, {size / 1e9:.1f} GB in {store}")
    generate(store, options.steps)
    works = {"read": [sys.executable, str(Path(__file__).resolve()), "--read", str(store)]}
    for name in options.commands.split(";"):
        works[name] = [sys.executable, "-m", "pythia_dynamics", *name.split(), "--model", str(store), "--tensor", "all"]
    works["msd+density+order, library"] = [*works["read"][:2], "--together", str(store)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    try:
        for _ in range(options.rounds):
            read(store)
            for name, command in works.items():
                found[name].append(timed(command, options.dir))
                print(f"{name:20} {found[name][-1]}", flush=True)
        report: dict[str, Any] = {
            "machine": describe_machine(),
            "steps": options.steps,
            "bytes": size,
            "command": f"python benchmarks/whole_model.py --steps {options.steps} --rounds {options.rounds}",
            "runs": found,
            "plain_ns_per_weight": plain(store),
        }
    finally:
        if not options.keep:
            shutil.rmtree(store)
    median = {name: float(np.median([each["seconds"] for each in runs])) for name, runs in found.items()}
    alone = float(np.median([each["read alone"] for each in found["read"]]))
    loop = {name: value * size / 2 / 1e9 for name, value in report["plain_ns_per_weight"].items()}
    report["summary"] = {
        name: {
            "seconds": seconds,
            "cpu_seconds": float(np.median([each["cpu_seconds"] for each in found[name]])),
            "gb_per_second": size / seconds / 1e9,
            "share of the rate of the reading process": median["read"] / seconds,
            "share of the read rate": alone / seconds,
            "anonymous_mib": max(each["anonymous_mib"] for each in found[name]),
        }
        for name, seconds in median.items()
    }
    report["plain_seconds_extrapolated"] = loop | {"together": sum(loop.values())}
    print(json.dumps([report["summary"], report["plain_seconds_extrapolated"]], indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
