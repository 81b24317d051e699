"""The same commands in one process, as an array of four jobs and on a Dask cluster, with weights here and in S3.

    OMP_NUM_THREADS=1 python benchmarks/several_workers.py [--out FILE] [--width 2048] [--steps 24]

A suite of `steps` checkpoints with W_U of (8192, width), as safetensors in a directory, is fetched and measured: `msd`,
which is limited by reading, and `rank`, which is limited by arithmetic. The tables must be the same to the byte. S3 is
the server of moto on this machine, in Python: its times say nothing of S3. The jobs of an array run one after the other
here; the time that counts is that of the longest one and of the merge. Speed-ups are against one process with one
thread.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from machine import describe_machine  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from support.daskcluster import DaskProcesses  # noqa: E402
from support.objectstore import s3_server  # noqa: E402

JOBS = 4
MEASURES = ("msd", "rank")
CONFIG = {"model_type": "gpt_neox", "tie_word_embeddings": False}


def build(place: Path, steps: int, width: int) -> Path:
    """The checkpoints of a random walk."""
    rng = np.random.default_rng(0)
    weights = rng.normal(scale=0.02, size=(8192, width)).astype(np.float32)
    for step in range(steps):
        folder = place / f"step{step}"
        folder.mkdir(parents=True)
        weights += rng.normal(scale=0.002, size=weights.shape).astype(np.float32)
        save_file({"embed_out.weight": weights.astype(np.float16)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG))
    return place


def timed(*words: object, **environment: str) -> float:
    """Seconds of a command with one thread."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pythia_dynamics", "-q", *map(str, words)]
    one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    prefix = ["taskset", "-c", "0"] if shutil.which("taskset") and "--dask" not in words else []
    subprocess.run([*prefix, *command], check=True, env={**os.environ, **one, **environment}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="several-workers-"))
    rows = []
    try:
        suite = build(work / "walk", options.steps, options.width)
        with s3_server(work) as s3:
            os.environ.update(s3.environment())
            caches = {"directory": work / "cache", "S3": f"s3://{s3.make('bucket')}/cache"}
            with DaskProcesses(work, workers=2) as dask:
                for kind, cache in caches.items():
                    rows += compare(kind, suite, str(cache), work / f"results-{kind}", dask)
    finally:
        shutil.rmtree(work)
    print(f"{'weights':10} {'command':7} {'one process':>12} {'array of 4':>24} {'Dask, 2 workers':>20}")
    for row in rows:
        array = f"{row['longest job']:.1f} + merge {row['merge']:.1f} s"
        several = f"{row['dask']:.1f} s ({row['one process'] / row['dask']:.2f} ×)"
        print(f"{row['weights']:10} {row['command']:7} {row['one process']:10.1f} s {array:>24} {several:>20}")
    if options.out:
        options.out.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


def compare(kind: str, suite: Path, cache: str, results: Path, dask: DaskProcesses) -> list[dict[str, object]]:
    """The commands in three ways, with weights in one kind of place."""
    rows: list[dict[str, object]] = []
    fetch = ("fetch", "--model", suite, "--cache")
    alone = timed(*fetch, f"{cache}-one")
    jobs = [timed(*fetch, f"{cache}-array", "--shard", f"{number + 1}/{JOBS}") for number in range(JOBS)]
    several = timed(*fetch, cache, "--dask", dask.address)
    found = {"weights": kind, "command": "fetch", "one process": alone, "longest job": max(jobs), "merge": 0.0}
    rows.append({**found, "dask": several})
    for measure in MEASURES:
        asked = (measure, "--model", "walk", *(("--no-two-time",) if measure == "msd" else ()))
        alone = timed(*asked, "--cache", f"{cache}-one", "--results", results / "one")
        parts = (*asked, "--cache", f"{cache}-array", "--results", results / "array")
        jobs = [timed(*parts, "--shard", f"{number + 1}/{JOBS}") for number in range(JOBS)]
        merge = timed("merge", "--results", results / "array")
        there = ("--results", results / "dask", "--dask", dask.address)
        timed(*asked, "--cache", cache, *there)  # the workers import what they need
        several = timed(*asked, "--cache", cache, *there)
        found = {"weights": kind, "command": measure, "one process": alone, "longest job": max(jobs), "merge": merge}
        rows.append({**found, "dask": several})
    assert tables(results / "one") == tables(results / "array") == tables(results / "dask") != {}
    return rows


if __name__ == "__main__":
    main()
