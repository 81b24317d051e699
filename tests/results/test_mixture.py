"""Results of different weights are not mixed: tensors have folders of their own, other differences are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.walks import walk

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.claims.scorecard import judge
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.compute import Compute


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Results("model", tmp_path)


def history(steps: int = 12, tensor: str = UNEMBEDDING, seed: int = 0) -> History:
    return History.from_array(walk(steps, 30, 8, np.float16, seed), name="model", tensor=tensor)


def test_each_tensor_has_its_folder(results: Results) -> None:
    measure(history(tensor="layernorm"), ["msd"], results)
    assert results.weights().tensor == "layernorm"  # the only one
    measure(history(), ["order"], results)
    assert results.tensors == (UNEMBEDDING, "layernorm")
    assert results.weights().tensor == UNEMBEDDING
    assert not (results.of(UNEMBEDDING).path / "msd.csv").exists()
    verdict = next(verdict for verdict in judge(results) if verdict.claim == "msd-peak")
    assert verdict.verdict == "not testable here"
    assert "msd.csv is missing: run pythia-dyn msd --model model" in verdict.reason
    with pytest.raises(UnknownNameError, match="no measured tensor 'layernrm'"):
        results.of("layernrm").weights()


def test_several_tensors_and_none_known_must_be_named(results: Results) -> None:
    for tensor in ("one", "two"):
        measure(history(tensor=tensor), ["order"], results)
    with pytest.raises(PythiaDynError, match="has results of one, two; name one with --tensor"):
        results.weights()


@pytest.mark.parametrize(
    ("other", "rows", "message"),
    [
        (history(9), None, "density is of 9 steps, order of 12 steps"),
        (history(), 20, "density is of 20 rows, order of all rows"),
    ],
)
def test_claims_refuse_other_steps_and_rows(results: Results, other: History, rows: int | None, message: str) -> None:
    measure(history(), ["order"], results)
    measure(other, ["density"], results, compute=Compute(rows=rows))
    with pytest.raises(PythiaDynError, match=f"mixes results of different weights: {message}") as caught:
        judge(results)
    assert len(str(caught.value).splitlines()) == 1
