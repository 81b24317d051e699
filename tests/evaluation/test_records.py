"""The files of a mode, to the letter, when they are written, and what several processes make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation import records, rows
from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.rows import COLUMNS, FIELDS, Row, dataset_of
from pythia_dynamics.evaluation.scoring import Sentences
from pythia_dynamics.evaluation.settings import MODES, Mode

SETTINGS = {"corpus": "text", "dtype": "float32", "max_tokens": None, "tf32": False}
CURVES = {
    "nll_mean": np.array([0.5, np.nan]),
    "entropy": np.array([1.0, 2.0]),
    "sentences": np.array([3.0, 0.0]),
}


def scores(nll: float = 2.0) -> Sentences:
    """Two passages: one with an NLL per token of `nll`, and one that overflows."""
    return Sentences(np.array([3 * nll, 3000.0]), np.array([6.0, 1.0]), np.array([3, 1]), np.array([True, False]))


ROW, CURVED = Row(scores()), Row(scores(), CURVES)
HEADER = ",".join(("step", *COLUMNS["forward"])) + "\n"
LINE = f"{math.exp(2)},{math.exp(2)},{math.exp(2)},2.0,1,0,1,3,2.0,,,\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which tests set."""
    now = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def table(tmp_path: Path, mode: Mode = "forward") -> list[str]:
    return (tmp_path / f"perplexity-{mode}.csv").read_text().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_tables_have_integers_for_counts_and_empty_fields_for_nan(tmp_path: Path) -> None:
    made = Records("unmask", tmp_path, SETTINGS)
    made.add(10, "abc", CURVED, {"unscored": 1})
    made.add(2, None, CURVED, {"unscored": 1})
    made.add_missing(3, "no weights … here")
    made.flush(force=True)
    assert (tmp_path / "perplexity-unmask.csv").read_text() == f"{HEADER}2,{LINE}3,,,,,,,,,,,,\n10,{LINE}"
    curves = "step,prefix,nll_mean,entropy,sentences\n2,1,0.5,1.0,3\n2,2,,2.0,0\n10,1,0.5,1.0,3\n10,2,,2.0,0\n"
    assert (tmp_path / "perplexity-unmask-prefix.csv").read_text() == curves
    assert json.loads((tmp_path / "perplexity-unmask.json").read_text()) == {
        "settings": SETTINGS,
        "notes": {"unscored": 1},
        "missing": {"3": "no weights … here"},
        "revisions": {"2": None, "10": "abc"},
        "indices": {"2": 0, "10": 1},
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_later_run_reads_the_same_rows_and_writes_the_same_text(tmp_path: Path, mode: Mode) -> None:
    row = CURVED if mode == "unmask" else ROW
    first = Records(mode, tmp_path, SETTINGS)
    first.add(2, "abc", row)
    first.add_missing(3, "gone")
    first.flush(force=True)
    before = contents(tmp_path)
    second = Records(mode, tmp_path, SETTINGS)
    assert second.has(2, "abc")
    assert not second.has(2, "other")
    assert not second.has(3, None)
    assert second.missing == {3: "gone"}
    assert second.added_elsewhere == set()
    assert second.dataset([2, 3], {}).identical(first.dataset([2, 3], {}))
    second.flush(force=True)
    assert contents(tmp_path) == before
    second.add_missing(3, "gone")
    second.flush(force=True)
    assert contents(tmp_path) == before


def test_the_archive_is_a_dataset_of_xarray(tmp_path: Path) -> None:
    made = Records("unmask", tmp_path, SETTINGS)
    longer = Row(scores(1.0), {name: np.arange(300.0) for name in CURVES})
    for step, row in ((5, CURVED), (2, longer), (9, CURVED)):
        made.add(step, None, row)
        made.flush(force=True)
    with xr.open_zarr(tmp_path / "perplexity-unmask.zarr", consolidated=False) as archive:
        found = archive.sortby("step").load()
    wanted = made.dataset([2, 5, 9], {})
    for name, field in FIELDS["unmask"].items():
        assert found[name].dims == ("step", field.axis)
        np.testing.assert_array_equal(found[name].astype(np.float64), wanted[name])
        assert found[name].attrs["long_name"] == field.long_name
    assert found["sentence_nll"].attrs["units"] == "nat"
    assert found["step"].values.tolist() == [2, 5, 9]


def test_notes_belong_to_rows(tmp_path: Path) -> None:
    file = tmp_path / "perplexity-forward.json"
    first = Records("forward", tmp_path, SETTINGS)
    for step, notes in ((4, {"cut": 1}), (2, {"cut": 0}), (3, {"cut": 0})):
        first.add(step, None, ROW, notes)
    first.flush(force=True)
    assert json.loads(file.read_text())["notes"] == {"cut": 0}
    assert json.loads(file.read_text())["notes_by_step"] == {"4": {"cut": 1}}
    again = Records("forward", tmp_path, SETTINGS)
    assert [again.notes(step) for step in (1, 2, 3, 4)] == [{}, {"cut": 0}, {"cut": 0}, {"cut": 1}]
    everything = again.dataset([1, 2, 3, 4], {}).attrs
    assert (everything["cut"], everything["notes_by_step"]) == (0, {"4": {"cut": 1}})
    assert again.dataset([4], {}).attrs["cut"] == 1
    assert "notes_by_step" not in again.dataset([4], {}).attrs
    again.add(1, None, ROW, {"cut": 1})
    again.flush(force=True)
    written = json.loads(file.read_text())
    assert (written["notes"], written["notes_by_step"]) == ({"cut": 1}, {"2": {"cut": 0}, "3": {"cut": 0}})


def test_a_row_that_is_replaced_is_written_so_and_one_that_fails_again_is_kept(tmp_path: Path) -> None:
    made = Records("forward", tmp_path, SETTINGS)
    made.add(2, "a", ROW)
    made.flush(force=True)
    made.add(2, "b", Row(scores(1.0)))
    made.flush(force=True)
    (line,) = table(tmp_path)[1:]
    assert line.startswith(f"2,{math.e},{math.e}")
    again = Records("forward", tmp_path, SETTINGS)
    again.add_missing(2, "its files are gone")
    again.add_missing(3, "never was there")
    again.flush(force=True)
    assert table(tmp_path)[1:] == [line, "3" + "," * 12]
    assert again.missing == {2: "its files are gone", 3: "never was there"}
    assert np.isnan(again.dataset([2, 3], {})["ppl_mean"]).all()  # none of the checkpoints that are there now
    later = Records("forward", tmp_path, SETTINGS)
    assert (later.has(2, "b"), later.missing) == (True, {3: "never was there"})
    assert later.dataset([2], {})["ppl_mean"].values.tolist() == [pytest.approx(math.e)]
    assert not (tmp_path / "perplexity-forward-prefix.csv").exists()


def test_files_are_written_once_a_second_at_most(tmp_path: Path, clock: list[float]) -> None:
    made, path = Records("forward", tmp_path, SETTINGS), tmp_path / "perplexity-forward.csv"
    made.flush(force=True)
    assert not path.exists()  # nothing has changed
    for step, now, lines in ((1, 0.9, 0), (2, 1.0, 3), (3, 1.9, 3), (4, 2.0, 5)):
        clock[0] = now
        made.add(step, None, ROW)
        made.flush()
        assert (len(path.read_text().splitlines()) if path.exists() else 0) == lines


def test_only_new_rows_are_formatted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formatted: list[int] = []
    curve_lines = rows.curve_lines
    monkeypatch.setattr(records, "curve_lines", lambda step, row: formatted.append(step) or curve_lines(step, row))
    made = Records("unmask", tmp_path, SETTINGS)
    for step in (1, 2, 3):
        made.add(step, None, CURVED)
        made.flush(force=True)
    assert formatted == [1, 2, 3]


# -- several processes ----------------------------------------------------------------------------------------


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    one, other = Records("forward", tmp_path, SETTINGS), Records("forward", tmp_path, SETTINGS)
    one.add(1, "a", ROW, {"torch": "2"})
    other.add(2, "a", Row(scores(1.0)), {"torch": "3"})
    one.flush(force=True)
    other.flush(force=True)
    one.add(3, "a", ROW, {"torch": "2"})
    one.add_missing(4, "gone")
    one.flush(force=True)
    assert [line.split(",")[0] for line in table(tmp_path)[1:]] == ["1", "2", "3", "4"]
    assert (one.added_elsewhere, other.added_elsewhere) == ({2}, {1})
    other.refresh()
    assert other.added_elsewhere == {1, 3}
    assert other.has(3, "a")
    last = Records("forward", tmp_path, SETTINGS)
    assert [last.notes(step) for step in (1, 2, 3)] == [{"torch": "2"}, {"torch": "3"}, {"torch": "2"}]
    for seen in (one, other):
        assert seen.dataset([1, 2, 3], {}).identical(last.dataset([1, 2, 3], {}))


def test_the_later_row_of_a_step_is_kept_once(tmp_path: Path) -> None:
    one, other = Records("forward", tmp_path, SETTINGS), Records("forward", tmp_path, SETTINGS)
    one.add(1, "a", ROW)
    other.add_missing(1, "the Hub did not answer")
    one.flush(force=True)
    other.flush(force=True)
    assert len(table(tmp_path)) == 2
    assert Records("forward", tmp_path, SETTINGS).has(1, "a")
    other.add(1, "a", Row(scores(1.0)))
    other.flush(force=True)
    one.refresh()
    assert one.dataset([1], {})["nll_mean"].values.tolist() == [1.0]
    assert len(table(tmp_path)) == 2


def test_rows_of_other_settings_that_come_in_between_are_not_mixed(tmp_path: Path) -> None:
    one = Records("forward", tmp_path, SETTINGS)
    other = Records("forward", tmp_path, {**SETTINGS, "dtype": "bfloat16"})
    one.add(1, "a", ROW)
    one.flush(force=True)
    before = contents(tmp_path)
    other.add(2, "a", ROW)
    with pytest.raises(PythiaDynError, match=r"has 1 row of other settings \(dtype: float32 → bfloat16\)"):
        other.flush(force=True)
    assert contents(tmp_path) == before
    replacing = Records("forward", tmp_path, {**SETTINGS, "dtype": "bfloat16"}, overwrite=True)
    replacing.add(2, "a", ROW)
    replacing.flush(force=True)
    replacing.add(3, "a", ROW)
    replacing.flush(force=True)
    assert [line.split(",")[0] for line in table(tmp_path)[1:]] == ["2", "3"]
    one.add(4, "a", ROW)
    with pytest.raises(PythiaDynError, match="other settings"):
        one.flush(force=True)


def test_rows_that_another_process_has_replaced_are_written_whole_again(tmp_path: Path) -> None:
    """Rows that were read or written before are in memory only by then."""
    one = Records("forward", tmp_path, SETTINGS, overwrite=True)
    one.add(1, "a", ROW)
    one.flush(force=True)
    other = Records("forward", tmp_path, {**SETTINGS, "dtype": "bfloat16"}, overwrite=True)
    other.add(2, "a", ROW)
    other.flush(force=True)
    one.add(3, "a", Row(scores(1.0)))
    one.flush(force=True)
    again = Records("forward", tmp_path, SETTINGS)
    assert again.dataset([1, 2, 3], {})["nll_mean"].values.tolist() == [2.0, pytest.approx(math.nan, nan_ok=True), 1.0]


def test_what_a_killed_process_left_of_another_corpus_does_no_harm(tmp_path: Path) -> None:
    many = Row(Sentences(np.ones(9), np.ones(9), np.ones(9, np.int64), np.ones(9, np.bool_)))
    killed = Records("forward", tmp_path, {**SETTINGS, "passages": 9})
    killed.add(1, "a", many)
    killed.flush(force=True)
    for path in tmp_path.glob("*.[cj]s*"):  # it had come to the archive and no further
        path.unlink()
    made = Records("forward", tmp_path, SETTINGS)
    made.add(1, "a", ROW)
    made.flush(force=True)
    found = Records("forward", tmp_path, SETTINGS).dataset([1], {})
    assert dict(found.sizes) == {"step": 1, "sentence": 2}
    assert found["nll_mean"].values.tolist() == [2.0]


def test_settings_without_rows_bind_nobody(tmp_path: Path) -> None:
    one = Records("forward", tmp_path, SETTINGS)
    one.add_missing(1, "gone")
    one.flush(force=True)
    other = Records("forward", tmp_path, {**SETTINGS, "dtype": "bfloat16"})
    assert other.missing == {}
    other.add(2, "a", ROW)
    other.flush(force=True)
    assert [line.split(",")[0] for line in table(tmp_path)[1:]] == ["2"]


@pytest.mark.parametrize("lost", ["csv", "prefix", "both"])
def test_tables_that_a_killed_process_did_not_write_are_made(tmp_path: Path, lost: str) -> None:
    made = Records("unmask", tmp_path, SETTINGS)
    made.add(1, "a", CURVED)
    made.flush(force=True)
    earlier = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    made.add(2, "a", CURVED)
    made.flush(force=True)
    expected = contents(tmp_path)
    for path, content in earlier.items():
        if lost == "both" or ("prefix" in path.name) == (lost == "prefix"):
            path.write_bytes(content)
    Records("unmask", tmp_path, SETTINGS).flush(force=True)
    assert contents(tmp_path) == expected


def test_rows_are_values_of_the_scores() -> None:
    made = dataset_of("last-word", {1: ROW, 2: None})
    assert made["ppl"].values.tolist() == [pytest.approx(math.exp(6)), pytest.approx(math.nan, nan_ok=True)]
    assert made["sentence_greedy"].values[0].tolist() == [1, 0]
    assert dict(dataset_of("forward", {}).sizes) == {"step": 0, "sentence": 0}
