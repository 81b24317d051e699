"""One pass over a history on one core against reading: MSD, exact density with the order parameter, and all together.

    OMP_NUM_THREADS=1 python benchmarks/one_core.py --dir /scratch [--shape 70m] [--steps 143] [--rounds 7]

All works run in turn in one process on a history in the page cache, and each has its CPU seconds (user and kernel) per
weight: the median of the rounds, and the least. There are two roofs. "read" adds up each frame from its start to its
end, the way for which processors are made. "read in blocks" adds up the same maps in the order in which statistics
over steps need them: 2,048 weights of each step, then the next 2,048. Both add 64-bit words in Numba.
"""

# The annotations of Numba are incomplete:
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined, call-arg, unreachable, arg-type"

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numba as nb
import numpy as np
from machine import describe_machine
from sweep import SHAPES, generate

from pythia_dynamics.history.cache import open_history
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.displacement import Integral
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import Frames
from pythia_dynamics.sweep.intrinsics import pointer
from pythia_dynamics.sweep.sweep import sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("cache"))
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    parser.add_argument("--steps", type=int, default=143)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="leave the generated history in --dir")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    store = options.dir / f"benchmark-{options.shape}-{options.steps}.zarr"
    generate(store, shape, options.steps)
    try:
        report = {
            "machine": describe_machine(),
            "shape": [options.steps, *shape],
            "command": f"python benchmarks/one_core.py --shape {options.shape} --steps {options.steps}",
            **measure(store, options.rounds),
        }
    finally:
        if not options.keep:
            shutil.rmtree(store)
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(store: Path, rounds: int) -> dict[str, Any]:
    """Nanoseconds a weight of each work, and the ratios."""
    history = open_history(store)
    frames = Frames(history, history.frame_shape[0])
    one = Compute(threads=1)
    both: list[Any] = [Integral(), Counts()]
    works: dict[str, Callable[[], object]] = {
        "read": lambda: _read(frames.addresses, frames.size, frames.size),
        "read in blocks": lambda: _read(frames.addresses, frames.size, kernels.BLOCK),
        "msd": lambda: sweep(history, [Integral()], one),
        "counts": lambda: sweep(history, [Counts()], one),
        "msd and counts": lambda: sweep(history, both, one),
        "msd+density+order": lambda: analyse(history, ("msd", "density", "order"), compute=one),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = process_time()
            work()
            times[name].append((process_time() - start) / (frames.size * len(frames)) * 1e9)
    median = {name: float(np.median(found[1:])) for name, found in times.items()}
    return {
        "ns_per_weight": {name: {"median": median[name], "least": min(times[name][1:])} for name in works},
        "msd / read in blocks": median["read in blocks"] / median["msd"],
        "msd / read": median["read"] / median["msd"],
        "together / sum of both": median["msd and counts"] / (median["msd"] + median["counts"]),
    }


@nb.njit(nogil=True)
def _read(addresses: Any, size: int, block: int) -> Any:
    """The sum of all weights, 64 bits at a time, in blocks of each frame in turn."""
    total = np.uint64(0)
    for begin in range(0, size, block):
        n = min(block, size - begin) // 4
        for t in range(addresses.size):
            words = nb.carray(pointer(addresses[t] + np.uint64(2 * begin), np.empty(0, np.uint64)), (n,))
            for j in range(n):
                total += words[j]
    return total


if __name__ == "__main__":
    main()
