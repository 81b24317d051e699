"""Fetch against a plain parallel ranged GET of the same bytes, from one loopback Hub in another process.

    python benchmarks/fetch_loopback.py [--revisions 48] [--vocab 50304] [--d-model 512] [--workers 16]
                                        [--hub-latency 0.08] [--latency 0.03] [--bandwidth 4e7] [--total 2.5e8]
                                        [--layout safetensors] [--out FILE]

The plain GET knows every offset beforehand, asks huggingface_hub's own HTTP client for the tensors' bytes with as
many threads and writes them to files: no header, no check, no checksum, no store. Rounds alternate; the best of each
is compared. With ``--total``, the fetch is also compared with the floor: the list of branches, one redirect and one
answer of the storage, and the tensors' bytes at that rate. Peak memory is that of the fetch alone, above an idle
interpreter that has imported it.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from machine import describe_machine  # noqa: E402

from pythia_dynamics.history.request import WORKERS  # noqa: E402

REPO = "local/model"
HEAD = "embed_out.weight"
DISTINCT = 6


def build(directory: Path, options: argparse.Namespace) -> int:
    """Checkpoints on disk whose W_U differ and whose other half is ballast; the bytes of one W_U."""
    import torch
    from support.checkpoints import checkpoint

    shape = (options.vocab, options.d_model)
    bulk = torch.randn(shape).to(torch.float16)
    for k in range(min(options.revisions, DISTINCT)):
        tensors = {"gpt_neox.embed_in.weight": bulk, "other": bulk[: shape[0] // 2].clone(), HEAD: bulk + k}
        folder = directory / f"step{k + 1}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(tensors, options.layout).items():
            (folder / name).write_bytes(content)
    for k in range(DISTINCT, options.revisions):  # the same files again: the server has them in its page cache
        shutil.copytree(directory / f"step{k % DISTINCT + 1}", directory / f"step{k + 1}", copy_function=os.link)
    return bulk.numel() * 2


@contextmanager
def serve(directory: Path, options: argparse.Namespace) -> Iterator[str]:
    """The Hub in a process of its own."""
    command = [sys.executable, "-m", "support.hubserver", str(directory), "--repo", REPO]
    for name in ("latency", "hub_latency", "bandwidth", "total", "jitter", "limit", "window"):
        if getattr(options, name, None) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def plain(slices: list[tuple[str, int, int]], target: Path, workers: int, *, durable: bool) -> float:
    """Seconds a plain parallel ranged GET takes; a durable one waits for the disk, as the store does."""
    from huggingface_hub import get_session, hf_hub_url

    endpoint = os.environ["HF_ENDPOINT"]
    target.mkdir()

    def get(job: tuple[int, tuple[str, int, int]]) -> None:
        number, (address, start, stop) = job
        commit, file = address.split("/", 1)
        url = hf_hub_url(REPO, file, revision=commit, endpoint=endpoint)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with (
            get_session().stream("GET", url, headers=headers) as response,
            (target / str(number)).open("wb") as out,
        ):
            for piece in response.iter_raw():
                out.write(piece)
            if durable:
                out.flush()
                os.fsync(out.fileno())

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(get, enumerate(slices)))
    seconds = time.perf_counter() - began
    assert all((target / str(k)).stat().st_size == stop - start for k, (_, start, stop) in enumerate(slices))
    return seconds


MEASURE = """
import json, resource, sys
import pythia_dynamics.checkpoints.hub, huggingface_hub.hf_api, httpx2
from pythia_dynamics.history.fetch import download
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024
before = peak()
r = download(sys.argv[1], cache=sys.argv[2], workers=int(sys.argv[3]))
assert r.complete
print(json.dumps(dict(seconds=r.seconds, bytes=r.bytes, requests=r.requests, api=r.api, peak=peak() - before)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revisions", type=int, default=48)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layout", default="safetensors")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--hub-latency", type=float)
    parser.add_argument("--bandwidth", type=float)
    parser.add_argument("--total", type=float)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="fetch-benchmark-"))
    try:
        tensor = build(work / "hub", options)
        total = tensor * options.revisions
        print(
            f"{options.revisions} revisions of {options.layout}, W_U {tensor / 1e6:.1f} MB each, {total / 1e9:.2f} GB"
        )
        with serve(work / "hub", options) as endpoint:
            os.environ["HF_ENDPOINT"] = endpoint
            plains: list[float] = []
            durables: list[float] = []
            fetches: list[dict[str, Any]] = []
            for number in range(options.rounds):
                cache = work / f"cache{number}"
                run = subprocess.run(
                    [sys.executable, "-c", MEASURE, REPO, str(cache), str(options.workers)],
                    check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                fetches.append(json.loads(run.stdout))
                from pythia_dynamics.history.store import Store

                records = Store.open(cache / "model.zarr").records(HEAD).values()
                slices = [(f"{r['commit']}/{r['file']}", r["start"], r["stop"]) for r in records]
                shutil.rmtree(cache)
                for times, durable in ((plains, False), (durables, True)):
                    times.append(plain(slices, work / "plain", options.workers, durable=durable))
                    shutil.rmtree(work / "plain")
                rates = [total / 1e6 / seconds for seconds in (plains[-1], durables[-1], fetches[-1]["seconds"])]
                print("  plain {:5.0f} MB/s, with fsync {:5.0f} MB/s, fetch {:5.0f} MB/s".format(*rates), flush=True)
        best = min(fetches, key=lambda fetch: fetch["seconds"])
        for name, times in (("plain", plains), ("plain with fsync", durables)):
            share = 100 * min(times) / best["seconds"]
            print(
                f"best fetch {best['seconds']:.2f} s, best {name} {min(times):.2f} s: {share:.0f} % of its throughput"
            )
        floor = None
        if options.total:
            hub_latency = options.latency if options.hub_latency is None else options.hub_latency
            floor = 2 * hub_latency + options.latency + total / options.total
            print(f"floor {floor:.2f} s: the fetch takes {best['seconds'] / floor:.2f} x that")
        print(f"moved {best['bytes']:,} bytes for {total:,} of tensors ({best['bytes'] / total:.5f}x)")
        print(f"{best['requests']} file requests, {best['api']} API requests; peak memory +{best['peak'] / 1e6:.0f} MB")
        if options.out:
            found = {
                "machine": describe_machine(),
                "options": {key: value for key, value in vars(options).items() if key != "out"},
                "tensor_bytes": total,
                "plain_seconds": plains,
                "plain_with_fsync_seconds": durables,
                "fetches": fetches,
                "floor_seconds": floor,
                "share_of_plain": min(plains) / best["seconds"],
                "share_of_plain_with_fsync": min(durables) / best["seconds"],
            }
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
