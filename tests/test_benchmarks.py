"""The benchmark of a GPU runs its whole course without one, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself is run")
@pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not in a source distribution")
def test_the_gpu_benchmark_holds_each_mode_against_float64(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, SCRIPT, "--smoke", "--out", out], check=True, timeout=300)
    report = json.loads(out.read_text())
    assert report["smoke"] is True
    check = report["sizes"]["70m"]["check"]
    assert check["forward"] < 1e-6
    assert check["last_word"] < 1e-6
    assert check["unmask_replay_tokens_differing"] == 0
    assert check["unmask_gap_to_likeliest"] < 1e-5  # each token is the likeliest of the model in float64
    assert check["unmask_nll"] < 1e-5
    assert check["unmask_entropy"] < 1e-5
    for precision in ("float32", "tf32", "bfloat16"):
        for mode in ("forward", "last_word", "unmask"):
            assert report["sizes"]["70m"][precision][mode]["tokens_per_second"] > 0
    assert report["suite"]["unmask"]["seconds_per_checkpoint"] > 0
