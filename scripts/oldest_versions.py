"""Install the oldest allowed version of every dependency and run the tests that use them.

    python scripts/oldest_versions.py [--venv DIR] [--torch VERSION] [pytest arguments]

Run it with the oldest Python of ``requires-python``. Every ``name>=version`` of pyproject.toml becomes
``name==version``; what those need in turn is resolved by pip. The tests are those of the rooms that call other
libraries. Warnings are not errors here: an old library warns of what a new one no longer does.

What each bound rests on:

- torch: 2.13.0 is the oldest that was tested. transformers 5.18 allows 2.6; nothing here is known to need more.
  ``--torch 2.6.0`` tests another version, where it can be installed.
- transformers 5.21 is the first with the slice of logits that the model of nanoGPT calls; 5.18, the first that allows
  huggingface_hub 2, needs safetensors 0.8.
- huggingface_hub 2.0 is the first on httpx2, whose exceptions checkpoints/http.py catches; 2.2 the first whose
  snapshots of the tests' Hub are complete.
- google-crc32c 1.7 is the first with a compiled wheel for each of Python 3.11, 3.12 and 3.13: 1.5 has none for 3.12,
  1.6 none for 3.13. From source it is pure Python where there is no C library, a thousand times slower.
- pandas 3.1 is the first that reads a CSV number back to the last bit without an option (which 3.1 deprecates).
- filelock 3.24 is the first whose lock takes a poll interval; accelerate 1.3 the first with what transformers
  calls of it; tokenizers 0.23.3 and click 8.4.2 the first that go with huggingface_hub 2.
- zarr 3.1.4 is the first with a generic ObjectStore, as objects.py names it; with 3.1.2 a process that opens a store
  may read an empty metadata file.
- xarray 2025.7.1 writes with zarr 3.1; 2025.4 does not.
- numba 0.62 is the first whose kernels keep to 1e-6: with 0.61 the MSD of bfloat16 weights is wrong by 5e-6.
- obstore 0.8 is the oldest that was tested; tensorstore 0.1.73 is the first that lets a process fork.
- trackio 0.43 is the first that allows huggingface_hub 2; wandb 0.20 goes with its protobuf, 0.19 does not.
- The others are what the tests pass with; their older versions were not tried.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("checkpoints", "history", "sweep", "measures", "evaluation", "training", "results", "figures")
EXTRAS = ("dask", "remote", "report", "train", "trackers", "test")


def oldest(requirement: str) -> str | None:
    """``name==bound`` of a requirement ``name>=bound``; None for an extra of this package."""
    if requirement.startswith("pythia-dynamics["):
        return None
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(f"{requirement} in pyproject.toml has no lower bound of the form name>=version")
    return f"{found[1]}=={found[2]}"


def requirements() -> list[str]:
    """The oldest version of every dependency, those of the extras that the tests need included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    return [pinned for line in [*project["dependencies"], *extras] if (pinned := oldest(line))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-oldest")
    parser.add_argument("--torch", help="test this version of torch instead of the bound")
    options, arguments = parser.parse_known_args()
    pinned = requirements()
    if options.torch:
        pinned = [line for line in pinned if not line.startswith("torch==")] + [f"torch=={options.torch}"]
    print("\n".join(pinned), flush=True)
    python = options.venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", options.venv], check=True)
    # torch first and alone, so that pip takes the build that the machine's configuration prefers.
    torch = [line for line in pinned if line.startswith("torch==")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *torch], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pinned], check=True)
    tests = arguments or [str(ROOT / "tests" / room) for room in ROOMS]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", *tests]
    raise SystemExit(subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}).returncode)


if __name__ == "__main__":
    main()
