"""The files of a mode, to the letter, and when they are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pythia_dynamics.evaluation import records
from pythia_dynamics.evaluation.records import Records, Row

SETTINGS = {"corpus": "text", "dtype": "float32", "max_tokens": None, "tf32": False}
VALUES: dict[str, Any] = {
    "ppl_mean": np.float64(2.5), "ppl_median": 1 / 3, "ppl_corpus": 1e300, "nll_mean": math.nan,
    "sentences": 3, "nonfinite": np.int64(0), "tokens": 12.0, "entropy": 7.0,
}  # fmt: skip
CURVES = {
    "nll_mean": np.array([0.5, np.nan]),
    "entropy": np.array([1.0, 2.0]),
    "sentences": np.array([3.0, 0.0]),
}
HEADER = "step,ppl_mean,ppl_median,ppl_corpus,nll_mean,sentences,nonfinite,tokens,entropy\n"
LINE = "2.5,0.3333333333333333,1e+300,,3,0,12,7.0\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which tests set."""
    now = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def test_tables_have_integers_for_counts_and_empty_fields_for_nan(tmp_path: Path) -> None:
    made = Records("unmask", tmp_path, SETTINGS)
    made.add(10, "abc", Row(VALUES, CURVES), {"unscored": 1})
    made.add(2, None, Row(VALUES, CURVES), {"unscored": 1})
    made.add_missing(3, "no weights … here")
    made.flush(force=True)
    assert (tmp_path / "perplexity-unmask.csv").read_text() == f"{HEADER}2,{LINE}3,,,,,,,,\n10,{LINE}"
    curves = "step,prefix,nll_mean,entropy,sentences\n2,1,0.5,1.0,3\n2,2,,2.0,0\n10,1,0.5,1.0,3\n10,2,,2.0,0\n"
    assert (tmp_path / "perplexity-unmask-prefix.csv").read_text() == curves
    assert json.loads((tmp_path / "perplexity-unmask.json").read_text()) == {
        "settings": SETTINGS,
        "notes": {"unscored": 1},
        "missing": {"3": "no weights … here"},
        "revisions": {"2": None, "10": "abc"},
    }


def test_a_later_run_reads_the_same_rows_and_writes_the_same_text(tmp_path: Path) -> None:
    first = Records("unmask", tmp_path, SETTINGS)
    first.add(2, "abc", Row(VALUES, CURVES))
    first.add_missing(3, "gone")
    first.flush(force=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = Records("unmask", tmp_path, SETTINGS)
    assert second.has(2, "abc")
    assert not second.has(2, "other")
    assert not second.has(3, None)
    assert second.missing == {3: "gone"}
    assert second.dataset([2, 3], {}).identical(first.dataset([2, 3], {}))
    second.add_missing(3, "gone")
    second.flush(force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_notes_belong_to_rows(tmp_path: Path) -> None:
    file = tmp_path / "perplexity-forward.json"
    first = Records("forward", tmp_path, SETTINGS)
    for step, notes in ((4, {"cut": 1}), (2, {"cut": 0}), (3, {"cut": 0})):
        first.add(step, None, Row(VALUES), notes)
    first.flush(force=True)
    assert json.loads(file.read_text())["notes"] == {"cut": 0}
    assert json.loads(file.read_text())["notes_by_step"] == {"4": {"cut": 1}}
    again = Records("forward", tmp_path, SETTINGS)
    assert [again.notes(step) for step in (1, 2, 3, 4)] == [{}, {"cut": 0}, {"cut": 0}, {"cut": 1}]
    everything = again.dataset([1, 2, 3, 4], {}).attrs
    assert (everything["cut"], everything["notes_by_step"]) == (0, {"4": {"cut": 1}})
    assert again.dataset([4], {}).attrs["cut"] == 1
    assert "notes_by_step" not in again.dataset([4], {}).attrs
    again.add(1, None, Row(VALUES), {"cut": 1})
    again.add_missing(2, "gone")
    again.flush(force=True)
    written = json.loads(file.read_text())
    assert (written["notes"], written["notes_by_step"]) == ({"cut": 1}, {"3": {"cut": 0}})
    assert list(written["missing"]) == ["2"]


def test_a_row_that_is_replaced_or_lost_is_written_so(tmp_path: Path) -> None:
    made = Records("forward", tmp_path, SETTINGS)
    made.add(2, None, Row(VALUES))
    made.flush(force=True)
    made.add(2, None, Row({**VALUES, "ppl_mean": 4.0}))
    made.flush(force=True)
    assert (tmp_path / "perplexity-forward.csv").read_text() == f"{HEADER}2,{LINE.replace('2.5', '4.0')}"
    made.add_missing(2, "gone")
    made.flush(force=True)
    assert (tmp_path / "perplexity-forward.csv").read_text() == f"{HEADER}2,,,,,,,,\n"
    assert not (tmp_path / "perplexity-forward-prefix.csv").exists()


def test_files_are_written_once_a_second_at_most(tmp_path: Path, clock: list[float]) -> None:
    made, table = Records("forward", tmp_path, SETTINGS), tmp_path / "perplexity-forward.csv"
    made.flush(force=True)
    assert not table.exists()  # nothing has changed
    for step, now, lines in ((1, 0.9, 0), (2, 1.0, 3), (3, 1.9, 3), (4, 2.0, 5)):
        clock[0] = now
        made.add(step, None, Row(VALUES))
        made.flush()
        assert (len(table.read_text().splitlines()) if table.exists() else 0) == lines


def test_only_new_rows_are_formatted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formatted: list[int] = []
    curve_rows = records._curve_rows
    monkeypatch.setattr(records, "_curve_rows", lambda step, row: formatted.append(step) or curve_rows(step, row))
    made = Records("unmask", tmp_path, SETTINGS)
    for step in (1, 2, 3):
        made.add(step, None, Row(VALUES, CURVES))
        made.flush(force=True)
    assert formatted == [1, 2, 3]
