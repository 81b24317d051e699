"""Results of different weights are not mixed: tensors have folders of their own, other differences are refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.walks import walk

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims.scorecard import judge
from pythia_dynamics.errors import FormatError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.reading import computed
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.compute import Compute


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Results("model", tmp_path)


def history(steps: int = 12, tensor: str = EMBED_OUT, seed: int = 0) -> History:
    return History.from_array(walk(steps, 30, 8, np.float16, seed), name="model", tensor=tensor)


def test_each_tensor_has_its_folder(results: Results) -> None:
    measure(history(tensor="layernorm"), ["msd"], results)
    assert results.weights().tensor == "layernorm"  # the only one
    measure(history(), ["order"], results)
    assert results.tensors == (EMBED_OUT, "layernorm")
    assert results.weights().tensor == EMBED_OUT
    assert not (results.of(EMBED_OUT).path / "msd.csv").exists()
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe\n", "it is not text"),
        (b"step,msd\n1,2\n", "no column msd_null"),
        (b"step;msd\n1;2\n", "no column step"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement,more\n0,1,1,1,1,1,1\n", "unknown column more"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement\nabc,1,1,1,1,1\n", "step is 'abc' in line 2"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement\n1,much,1,1,1,1\n", "msd is 'much' in line 2"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement\n1,1,1,1,1,1\n1,1,1,1,1,1\n", "occur twice"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement\n2,1,1,1,1,1\n1,1,1,1,1,1\n", "increasing order"),
        (b"step,msd,msd_null,msd_time,msd_time_null,displacement\n1,1,1,1,1,1\n2,1,1", "its last line is cut off"),
        (
            b"step,msd,msd_null,msd_time,msd_time_null,displacement\n0,1,1,1,1,1\n",
            "1 steps; .* records 12",
        ),
    ],
)
def test_a_damaged_table_is_named_with_its_command(results: Results, content: bytes, reason: str) -> None:
    measure(history(), ["msd"], results)
    path = results.weights().path / "msd.csv"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=reason) as caught:
        judge(results)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("): run pythia-dyn msd --model model")
    with pytest.raises(FormatError, match=reason):  # damage is not taken for "not computed"
        list(computed(results.weights().read_table, ["msd"]))


@pytest.mark.parametrize(
    ("file", "length", "reason"),
    [
        ("zarr.json", None, "it has no zarr.json"),
        ("zarr.json", 0, "no JSON"),
        ("gram/zarr.json", 0, "no JSON"),
        ("gram/zarr.json", None, "gram"),
        ("gram/c/0/0", 20, "decompression"),
        ("gram/c/0/0", None, "chunks of gram are missing"),
    ],
)
def test_a_damaged_array_is_named_with_its_command(
    results: Results, file: str, length: int | None, reason: str
) -> None:
    measure(history(), ["two_time"], results)
    array = results.weights().path / "two_time.zarr"
    path = array / file
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError, match=reason) as caught:
        results.weights().read_zarr("two_time")
    assert str(caught.value).startswith(f"{array} is damaged (")
    assert str(caught.value).endswith("): run pythia-dyn two-time --model model")
    assert len(str(caught.value).splitlines()) == 1


def test_without_provenance_the_steps_of_the_files_are_compared(results: Results) -> None:
    measure(history(), ["order"], results)
    measure(history(9), ["msd"], results)
    folder = results.weights()
    path = folder.path / "provenance.json"
    path.unlink()
    with pytest.raises(PythiaDynError, match=r"msd is of 9 steps, order of 12 steps; run pythia-dyn msd --model model"):
        folder.require_same_weights()
    path.write_text("")
    with pytest.raises(FormatError, match=r"provenance.json is damaged: run pythia-dyn msd .* && pythia-dyn order"):
        folder.require_same_weights()


def test_the_remedy_is_a_command(results: Results) -> None:
    measure(history(), ["msd", "order"], results, compute=Compute(rows=20))
    measure(history(), ["density"], results)
    with pytest.raises(PythiaDynError, match=r"; run pythia-dyn density --model model --drop-padding 20$"):
        judge(results)
    folder = results.weights()
    folder.record("density", {"tensor": "other"})
    with pytest.raises(PythiaDynError, match=r"density is of other, .*; run pythia-dyn density .*-padding 20$"):
        folder.require_same_weights()
    folder.record("density", {"commits": {}})
    folder.record("stop", {"commits": {"1000": "a"}})
    with pytest.raises(PythiaDynError, match=r"stop of other commits"):
        folder.require_same_weights()


def test_a_full_disk_is_one_line_and_leaves_nothing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = results.weights()
    folder.write_zarr("density", xr.Dataset({"a": ("step", [1.0])}, {"step": [0]}))

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"density.zarr: the disk is full; free some space or name another directory$"):
        folder.write_zarr("density", xr.Dataset({"a": ("step", [2.0])}, {"step": [0]}))
    assert [path.name for path in folder.path.iterdir()] == ["density.zarr"]
    assert folder.read_zarr("density")["a"].values.tolist() == [1.0]
