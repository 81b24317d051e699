"""All tensors of a model measured while they pass, against fetch-then-measure, from a Hub on the loopback.

    python benchmarks/streaming.py [--revisions 36] [--vocab 50304] [--d-model 128] [--layers 4] [--scratch 2e8]
                                   [--measures msd,density,order] [--rounds 2] [--hub-latency 0.08] [--latency 0.03]
                                   [--bandwidth 4e7] [--total 2.5e8] [--out FILE]

Each way runs in a process of its own: `download` of all tensors and `analyse` of each history; and `stream`. Rounds
alternate; the fastest of each is compared. Memory is the peak of anonymous memory above that of the idle
interpreter: mapped weights are not in it. Disk is the peak of all files below the cache, seen every 5 ms. Both ways
must give the same numbers: the digests of all variables are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from fetch_loopback import DISTINCT, REPO, serve  # noqa: E402
from machine import describe_machine  # noqa: E402

CHILD = """
import hashlib, json, os, sys, threading, time, warnings
from pathlib import Path
way, repo, cache, scratch, measures = sys.argv[1:]
import numba, xarray, zarr, huggingface_hub.hf_api, httpx2
import pythia_dynamics.checkpoints.hub
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.request import FetchRequest
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.stream import stream
from pythia_dynamics.checkpoints.hub import HubSource
measures = measures.split(",")
import numpy as np
analyse(np.random.randn(3, 80, 32).astype(np.float16), measures)  # compile, or load what was compiled
memory = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024
def disk():
    total = 0
    for place, _, names in os.walk(cache):
        for name in names:
            try: total += os.stat(os.path.join(place, name)).st_size
            except OSError: pass
    return total
idle, seen, stop = memory(), [(0, 0)], threading.Event()
def watch():
    while not stop.wait(0.005):
        seen.append((memory(), disk()))
watcher = threading.Thread(target=watch); watcher.start()
source, began = HubSource(repo), time.perf_counter()
options = dict(tensors="all", steps="all", source=source, cache=cache)
if way == "store":
    report = download(repo, **options)
    fetched = time.perf_counter() - began
    found = {name: analyse(history, measures) for name, history in report.histories().items()}
else:
    fetched, found = None, stream(repo, measures, scratch=int(float(scratch)), **options)
seconds = time.perf_counter() - began
stop.set(); watcher.join()
digest = hashlib.sha256()
for tensor in sorted(found):
    for name in measures:
        for key, values in sorted(found[tensor][name].variables.items()):
            digest.update(f"{tensor} {name} {key}".encode() + np.ascontiguousarray(values.to_numpy()).tobytes())
print(json.dumps(dict(seconds=seconds, fetch_seconds=fetched, **source.traffic.counts(),
    memory=max(m for m, _ in seen) - idle, disk=max(d for _, d in seen), digest=digest.hexdigest())))
"""


def build(directory: Path, options: argparse.Namespace) -> int:
    """Checkpoints on disk, `DISTINCT` of them different; the bytes of all tensors of one."""
    import torch
    from support.checkpoints import checkpoint

    d = options.d_model
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (options.vocab, d)}
    for layer in range(options.layers):
        name = f"gpt_neox.layers.{layer}"
        shapes |= {f"{name}.attention.query_key_value.weight": (3 * d, d), f"{name}.attention.dense.weight": (d, d)}
        shapes |= {f"{name}.mlp.dense_h_to_4h.weight": (4 * d, d), f"{name}.mlp.dense_4h_to_h.weight": (d, 4 * d)}
    shapes |= {"gpt_neox.final_layer_norm.weight": (d,), "embed_out.weight": (options.vocab, d)}
    generator = torch.Generator().manual_seed(0)
    now = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for k in range(min(options.revisions, DISTINCT)):
        now = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in now.items()}
        folder = directory / f"step{k + 1}"
        folder.mkdir(parents=True)
        for name, content in checkpoint({name: w.half() for name, w in now.items()}).items():
            (folder / name).write_bytes(content)
    for k in range(DISTINCT, options.revisions):  # the same files again: the server has them in its page cache
        shutil.copytree(directory / f"step{k % DISTINCT + 1}", directory / f"step{k + 1}", copy_function=os.link)
    return sum(2 * w.numel() for w in now.values())


def run(way: str, folder: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """One way, in a process and a cache of its own."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_TOKEN", None)
    cache = folder / way
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        CHILD,
        way,
        REPO,
        cache,
        f"{options.scratch:.0f}",
        options.measures,
    ]
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(cache, ignore_errors=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revisions", type=int, default=36)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--scratch", type=float, default=2e8)
    parser.add_argument("--measures", default="msd,density,order")
    parser.add_argument("--rounds", type=int, default=2)
    for name in ("latency", "hub-latency", "bandwidth", "total"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        nbytes = build(folder / "repository", options)
        with serve(folder / "repository", options) as url:
            runs: dict[str, list[dict[str, Any]]] = {"store": [], "stream": []}
            for _ in range(options.rounds):
                for way, found in runs.items():
                    found.append(run(way, folder, url, options))
    digests = {one["digest"] for found in runs.values() for one in found}
    if len(digests) != 1:
        raise SystemExit("the two ways give different numbers")
    best = {way: min(found, key=lambda one: one["seconds"]) for way, found in runs.items()}
    result = {
        "weights_bytes": nbytes * options.revisions,
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "fastest": {way: {key: one[key] for key in one if key != "digest"} for way, one in best.items()},
        "seconds": {way: [one["seconds"] for one in found] for way, found in runs.items()},
        "time_ratio": best["stream"]["seconds"] / best["store"]["seconds"],
        "disk_ratio": best["stream"]["disk"] / best["store"]["disk"],
        "same_numbers": True,
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
