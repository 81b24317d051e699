"""A hundred SIGKILLs at random moments of a fetch; after each, and at the end, the store must hold no wrong byte.

    python benchmarks/fetch_kill.py [--kills 100] [--seed 0] [--layout safetensors]

A store that becomes complete is compared with an undisturbed one, file by file, and a new one is begun.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
REPO = "org/tiny"
FETCH = f"from pythia_dynamics.history.fetch import download; download({REPO!r}, workers=4)"


def chunks(store: object) -> dict[str, bytes]:
    folder = Path(str(store))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("c/*/*/*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", default="safetensors")
    options = parser.parse_args()

    from support.checkpoints import HEAD, suite
    from support.hubserver import HubServer

    from pythia_dynamics.history.fetch import download
    from pythia_dynamics.history.store import Store

    generator = random.Random(options.seed)
    steps = range(1000, 61_000, 1000)
    work = Path(tempfile.mkdtemp(prefix="fetch-kill-"))
    with HubServer() as hub:
        hub.add(REPO, suite(steps, options.layout, vocab=2048, d_model=48, layers=1))
        os.environ["HF_ENDPOINT"] = hub.url
        expected = chunks(download(REPO, cache=work / "undisturbed").path)
        assert len(expected) == len(steps)
        hub.bandwidth = 600_000
        kills = completed = early = round_number = 0
        began = time.monotonic()
        while kills < options.kills:
            round_number += 1
            cache = work / f"round{round_number}"
            store = cache / "tiny.zarr"
            while kills < options.kills and len(chunks(store)) < len(steps):
                requests = len(hub.log)
                process = subprocess.Popen(
                    [sys.executable, "-c", FETCH], env={**os.environ, "PYTHIA_DYN_CACHE": str(cache)}
                )
                # From the first request on: at any moment of surveying, writing, renaming and recording.
                while len(hub.log) == requests and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(generator.uniform(0, 1.2))
                early += process.poll() is None
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                found = chunks(store)
                wrong = [name for name, content in found.items() if expected.get(name) != content]
                assert not wrong, f"after kill {kills}: wrong bytes in {wrong}"
                if kills % 10 == 0:
                    print(
                        f"{kills} kills, {completed} stores completed, {len(found)}/{len(steps)} chunks here",
                        flush=True,
                    )
            held = len(Store.open(store).records(HEAD)) if (store / HEAD).is_dir() else 0
            report = download(REPO, cache=cache)
            assert report.complete
            assert len(report.present) == held
            assert chunks(store) == expected, "a resumed store differs from the undisturbed one"
            for step in steps:
                Store.open(store).check(HEAD, step)
            assert not [path for path in cache.rglob("*.partial") if path.is_file()], "partial files were left"
            completed += 1
            shutil.rmtree(cache)
    shutil.rmtree(work)
    print(f"{kills} kills ({early} while running) in {time.monotonic() - began:.0f} s; "
          f"{completed} stores completed, all byte-identical to the undisturbed one")  # fmt: skip


if __name__ == "__main__":
    main()
