"""The distribution of Hartigan's dip under the null, which `pythia_dynamics/dip.py` interpolates.

    python benchmarks/dip_table.py [--draws 1000000] [--seed 0]

Draws uniform samples of 2,000 numbers (no distribution of one mode has a greater dip, asymptotically), and prints the
dip that each share of them exceeds. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pythia_dynamics.measures.dip import SAMPLE_SIZE, TAIL_PROBABILITIES, dip

CHUNK = 10_000


def draw(seed: np.random.SeedSequence) -> NDArray[np.float64]:
    """The dips of one chunk of samples."""
    rng = np.random.default_rng(seed)
    return np.array([dip(rng.random(SAMPLE_SIZE)) for _ in range(CHUNK)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seeds = np.random.SeedSequence(options.seed).spawn(-(-options.draws // CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        dips = np.concatenate(list(pool.map(draw, seeds)))
    for share, value in zip(TAIL_PROBABILITIES, np.quantile(dips, 1 - np.array(TAIL_PROBABILITIES)), strict=True):
        print(f"{share:8g} {value:.6f}")


if __name__ == "__main__":
    main()
