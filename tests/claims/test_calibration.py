"""The calibration counts what verdicts and detectors say, shows what is wrong, and can be resumed."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.motions import results_of

from pythia_dynamics.claims import calibration, scorecard
from pythia_dynamics.claims.calibration import CalibrationSettings, CalibrationTable, TruthCounts, calibrate, judge_run
from pythia_dynamics.claims.error_rates import (
    COMMITTED,
    LEAST_RUNS,
    MAX_SHARE_WRONG,
    MAX_UPPER_END,
    Rate,
    error_rates,
    error_rates_of,
    load_calibration,
    read_table,
    write_table,
)
from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError

SMALL = CalibrationSettings(runs=3, records=40, weights=512)


def claim(name: str) -> Claim:
    return Claim(name, name, "", "", "", "The Garden of Forking Paths")


def always(saved: SavedResults) -> Decision:
    """A test that is always wrong where the claim is false."""
    saved.read("msd.csv")
    return Decision("yes", {}, Evidence("the answer", 1, 0.5, "nothing", p=0.0, power=1.0))


def honest(saved: SavedResults) -> Decision:
    """Two modes: half of the weights lie beyond half of the largest, which is so of a split, not of a Gaussian."""
    (density,) = saved.read("density.zarr")
    last, values = density["counts"][-1].to_numpy(), density["value"].to_numpy()
    share = float(last[np.abs(values) > np.abs(values[last > 0]).max() / 2].sum() / last.sum())
    return Decision("counted", {}, Evidence.exact("share", share, 0.6))


def doubtful(saved: SavedResults) -> Decision:
    return Decision("perhaps", {}, Evidence("the answer", 1, 0.5, "nothing", p=0.02, power=1.0))


def untestable(saved: SavedResults) -> Decision:
    raise NotTestableError("never")


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replaces the claims of the scorecard, and the detectors."""

    def replace(**functions: Callable[[SavedResults], Decision]) -> None:
        claims = {claim(name.replace("_", "-")): function for name, function in functions.items()}
        monkeypatch.setattr(scorecard, "CLAIMS", claims)
        calibration._company.cache_clear()
        monkeypatch.setattr(calibration, "_detected", lambda history, saved: {"stop": "not supported"})

    company = calibration._company  # a test may replace it
    yield replace
    company.cache_clear()


# -- what is counted ------------------------------------------------------------------------------------------


def test_a_test_that_always_supports_its_claim_is_shown(tests) -> None:
    tests(msd_peak=always, density_bimodal=honest)
    table = calibrate(SMALL, truths=["walk-cosine", "rotation", "split-all-5"], workers=1)
    rates = error_rates(table)
    wrong = rates["msd-peak"]
    assert [rate.truth for rate in wrong.false] == ["walk-cosine", "split-all-5"]  # a rotation is open for it
    assert (wrong.worst.supported, wrong.worst.runs) == (3, 3)
    assert wrong.broken[0] == "msd-peak: wrong on walk-cosine in 3 of 3, up to 100.0%"
    assert "wrong in 3 of 3 (most often on walk-cosine)" in wrong.text
    right = rates["density-bimodal"]
    assert [(rate.truth, rate.supported) for rate in right.false] == [("walk-cosine", 0), ("rotation", 0)]
    assert (right.weakest.truth, right.weakest.supported) == ("split-all-5", 3)
    assert not right.broken
    assert rates["stop"].broken == ("stop: seen on split-all-5 in 0 of 3 only, denied in 3",)
    assert table.truths[0].counts == {
        "msd-peak": {"supported": 3},
        "density-bimodal": {"not supported": 3},
        "stop": {"not supported": 3},
    }


def test_p_values_are_corrected_for_the_whole_scorecard(tests) -> None:
    """Two tests with p = 0.02 are supported, four are not: also those that only the company of a curve has."""
    tests(one=doubtful, two=doubtful)
    assert judge_run("drift", 0, 30, 512) == {"one": "supported", "two": "supported", "stop": "not supported"}
    tests(one=doubtful, two=doubtful, three=doubtful)
    assert set(judge_run("drift", 0, 30, 512).values()) == {"undecided", "not supported"}
    tests(one=doubtful, two=doubtful, slope_changes=doubtful)
    assert judge_run("loss-power-white-0.03", 0, 30, 512) == {"slope-changes": "undecided"}
    tests(one=untestable, two=untestable, slope_changes=doubtful)
    assert judge_run("loss-power-white-0.03", 0, 30, 512) == {"slope-changes": "supported"}


def test_the_words_are_those_of_the_scorecard(tests, monkeypatch) -> None:
    """A history that has everything, that is no company, is judged as `judge_saved` does it."""
    tests(one=doubtful, two=always, three=honest, four=untestable)
    monkeypatch.setattr(calibration, "_company", lambda *settings: ({}, {}))
    verdicts = {verdict.claim: verdict.verdict for verdict in scorecard.judge_saved(results_of("split-all-5", 4))}
    words = judge_run("split-all-5", 4, 60, 1024)
    assert words == {**verdicts, "stop": "not supported"}
    assert words["four"] == "not testable here"


def test_histories_in_which_a_claim_is_not_testable_are_not_counted(tests) -> None:
    tests(msd_peak=untestable)
    rates = error_rates(calibrate(SMALL, truths=["drift"], workers=1))["msd-peak"]
    assert (rates.false, rates.true, rates.untestable) == ((), (), ("drift",))
    assert rates.text == "not calibrated: no history of known truth tests it"
    assert rates.worst is None
    assert rates.weakest is None
    assert np.isnan(rates.undecided)


def test_every_claim_and_detector_is_judged() -> None:
    """The real tests on one walk and one split, with few steps and weights."""
    walk, split = (judge_run(name, 1, 60, 1024, company=1) for name in ("walk-cosine", "split-all-5"))
    assert set(walk) == {claim.id for claim in scorecard.CLAIMS} | {"bifurcation", "phases", "stop"}
    assert walk["density-bimodal"] != "supported"
    assert walk["bifurcation"] == "not supported"
    assert split["density-bimodal"] == "supported"
    assert split["bifurcation"] == "supported"
    assert walk.keys() == split.keys()


def test_an_error_names_the_history(tests) -> None:
    tests(msd_peak=lambda saved: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        calibrate(SMALL, truths=["drift"], workers=1)
    assert error.value.__notes__ == ["while judging drift, seed 2000000"]


def test_unknown_truths_and_settings(tests) -> None:
    with pytest.raises(UnknownNameError, match="walk-cosin"):
        calibrate(SMALL, truths=["walk-cosin"], workers=1)
    with pytest.raises(PythiaDynError, match="number of processes"):
        calibrate(SMALL, truths=["drift"], workers=0)
    for wrong in ({"runs": 0}, {"records": 2}, {"weights": 1}, {"seed": -1}):
        with pytest.raises(PythiaDynError, match="a calibration needs"):
            CalibrationSettings(**wrong)


# -- files ----------------------------------------------------------------------------------------------------


def test_a_file_is_resumed_by_truth(tests, tmp_path: Path, monkeypatch) -> None:
    tests(msd_peak=always)
    out, done = tmp_path / "table.json", []
    first = calibrate(SMALL, truths=["drift"], workers=1, out=out)
    assert read_table(out) == first
    run = calibration._run
    monkeypatch.setattr(calibration, "_run", lambda task: done.append(task.truth) or run(task))
    seen: list[tuple[int, int]] = []
    both = calibrate(
        SMALL, truths=["drift", "walk-cosine"], workers=1, out=out, progress=lambda *counts: seen.append(counts)
    )
    assert done == ["walk-cosine"]
    assert seen == [(3, 6), (6, 6)]
    assert [truth.name for truth in both.truths] == ["walk-cosine", "drift"]  # in the order of all truths
    assert read_table(out) == both
    other = CalibrationSettings(runs=2, records=40, weights=512)
    with pytest.raises(PythiaDynError, match=r"is of \{'runs': 3.*remove it"):
        calibrate(other, truths=["drift"], workers=1, out=out)
    monkeypatch.setattr(calibration, "code_version", lambda: "9")  # other code judges otherwise
    with pytest.raises(PythiaDynError, match="and version"):
        calibrate(SMALL, truths=["drift"], workers=1, out=out)


def test_the_version_tells_code_apart_but_not_comments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(text: str) -> str:
        (tmp_path / "claims").mkdir(exist_ok=True)
        (tmp_path / "claims" / "one.py").write_text(text)
        monkeypatch.setattr(calibration, "__file__", str(tmp_path / "claims" / "calibration.py"))
        return calibration.code_version.__wrapped__()

    first = version('"""A text."""\nLEAST = 0.1  # why\n')
    assert first == version('"""Another."""\nLEAST = 0.1\n')
    assert first != version('"""A text."""\nLEAST = 0.2  # why\n')


def test_an_interruption_keeps_the_finished_truths(tests, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    tests(msd_peak=always)
    out = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(SMALL, truths=["drift", "walk-cosine"], workers=1, out=out, progress=interrupt)
    assert [truth.name for truth in read_table(out).truths] == ["walk-cosine"]


def test_processes_give_the_counts_of_one(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "CHUNK", 1)
    settings = CalibrationSettings(runs=2, records=41, weights=512)
    names = ["loss-flatter-10-white"]
    assert calibrate(settings, truths=names, workers=2) == calibrate(settings, truths=names, workers=1)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"truths": []}', '{"settings": {}, "version": "1", "truths": [{"name": 1}]}']
)
def test_a_damaged_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=r"table\.json is"):
        read_table(path)


def test_counts_that_cannot_be(tmp_path: Path) -> None:
    for words in ({"perhaps": 1}, {"supported": -1}, {"supported": 0.5}):
        path = write_table(tmp_path / "table.json", table_of(drift=words))
        with pytest.raises(FormatError, match="counts"):
            read_table(path)
    with pytest.raises(PythiaDynError, match="run pythia-dyn calibrate"):
        read_table(tmp_path / "absent.json")


# -- rates ----------------------------------------------------------------------------------------------------


def table_of(number: Any = 143, **counts: Any) -> CalibrationTable:
    """A table of one claim, `msd-peak`: by truth what was said of it. It is true of `turn`, and open for `open`."""
    truths = tuple(
        TruthCounts(
            name,
            f"a {name}",
            "pythia-70m-deduped",
            200,
            ("msd-peak",) if name.startswith("turn") else (),
            ("msd-peak",) if name == "open" else (),
            {"msd-peak": words},
        )
        for name, words in counts.items()
    )
    return CalibrationTable(CalibrationSettings(records=number), "1", truths)


def test_the_interval_of_wilson() -> None:
    assert Rate("drift", 10, 190, 0).interval == pytest.approx((0.02739, 0.08958), abs=1e-5)  # Wilson 1927
    assert Rate("drift", 0, 200, 0).interval == pytest.approx((0, 0.01885), abs=1e-5)
    assert np.isnan(Rate("drift", 0, 0, 0).interval).all()
    assert np.isnan(Rate("drift", 0, 0, 0, 5).share)


def test_promises() -> None:
    def broken(**counts: dict) -> int:
        return len(error_rates(table_of(**counts))["msd-peak"].broken)

    assert not broken(drift={"supported": 8, "not supported": 192})  # 4 %, up to 7.7 %
    assert broken(drift={"supported": 9, "not supported": 191})  # 4.5 %, up to 8.3 %
    assert not broken(drift={"not supported": 3, "not testable here": 197})
    assert broken(drift={"supported": 1, "not supported": 3, "not testable here": 196})
    assert not broken(open={"supported": 200})
    assert not broken(turn={"supported": 160, "not supported": 40})
    assert broken(turn={"supported": 159, "not supported": 41})
    assert broken(turn={"supported": 100, "not supported": 50, "undecided": 50})
    assert not broken(turn={"supported": 100, "not supported": 49, "undecided": 51})


def test_the_worst_and_the_weakest_in_one_line() -> None:
    said = {"drift": {"supported": 4, "undecided": 196}, "walk": {"supported": 6, "not supported": 190}}
    said |= {"turn": {"supported": 180, "undecided": 20}, "turned": {"supported": 199, "not supported": 1}}
    rates = error_rates(table_of(**said, open={"supported": 9}))["msd-peak"]
    assert rates.text == (
        "wrong in 6 of 196 (most often on walk); sees its effect in 180 of 200 (least often on turn, undecided in 20); "
        "histories of 143 steps and 8,192 weights"
    )
    assert rates.undecided == pytest.approx(216 / 796)
    silent = error_rates(table_of(drift={"undecided": 200}))["msd-peak"]
    assert silent.text.startswith("wrong in 0 of 200 of each of 1 kinds; histories")


def test_the_table_of_the_nearest_number_of_steps() -> None:
    tables = [table_of(41, drift={"supported": 1, "undecided": 9}), table_of(143, drift={"undecided": 10})]
    assert error_rates_of("msd-peak", 60, tables).settings.records == 41
    assert error_rates_of("msd-peak", 120, tables).settings.records == 143
    assert error_rates_of("rank-shrinks", 120, tables) is None
    assert error_rates_of("msd-peak", 120, []) is None


# -- the tables of the package, and the page ------------------------------------------------------------------


@pytest.mark.parametrize("records", COMMITTED)
def test_verdicts_are_as_seldom_wrong_as_promised(records: int) -> None:
    table = load_calibration(records)
    assert table.settings.records == records
    assert {truth.name for truth in table.truths} >= set(calibration.calibrated_truths())
    for name, rates in error_rates(table).items():
        for rate in rates.false:
            low, high = rate.interval
            assert low <= MAX_SHARE_WRONG, f"{name} on {rate.truth}"
            if table.settings.runs >= LEAST_RUNS:  # else the interval is too wide for the promise itself
                assert rate.share <= MAX_SHARE_WRONG, f"{name} on {rate.truth}"
                assert not rate.supported or high <= MAX_UPPER_END, f"{name} on {rate.truth}"
        assert not rates.broken


@pytest.mark.parametrize("records", COMMITTED)
def test_the_table_is_of_these_truths(records: int) -> None:
    for truth in load_calibration(records).truths:
        kind = calibration.TRUTHS.get(truth.name) or calibration.CURVE_TRUTHS[truth.name]
        assert (truth.description, truth.model) == (kind.description, kind.model)
        assert set(truth.effects) == kind.effects
        assert set(truth.open) == kind.open


def test_another_number_of_steps_has_no_table() -> None:
    with pytest.raises(UnknownNameError, match="99"):
        load_calibration(99)


def page_script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "calibration_page.py")))


def test_the_page_is_that_of_the_tables() -> None:
    tables = [load_calibration(records) for records in sorted(COMMITTED, reverse=True)]
    script = page_script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(tables)


def test_the_page_says_what_is_wrong() -> None:
    script = page_script()
    said = {
        "drift": {"supported": 40, "undecided": 160},
        "walk": {"not supported": 200},
        "rest": {"not testable here": 9},
    }
    text = script.page([table_of(**said, turn={"supported": 10, "not supported": 190})])
    assert "| msd-peak | 40 of 200 (15.0% to 26.1%) | `drift` | 10 of 200 (2.7% to 9.0%) | `turn` | 0 |" in text
    assert "- msd-peak: wrong on drift in 40 of 200, up to 26.1%" in text
    assert "False, and never supported nor undecided: `walk`." in text
    assert "Not testable: `rest`." in text
    assert "- `turn`: a turn" in text
    assert "All promises are kept." in script.page([table_of(walk={"not supported": 200})])


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command(tests, tmp_path: Path) -> None:
    tests(msd_peak=always, density_bimodal=honest)
    out = tmp_path / "table.json"
    options = ["calibrate", "--runs", "2", "--steps", "30", "--weights", "512", "--seed", "5", "--workers", "1"]
    options += ["--truth", "walk-c*", "--truth", "split-all-5", "--out", str(out)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "3 truths, 2 runs each, 30 steps, 512 weights, seed 5" in result.output
    assert "msd-peak              2 of 2 (walk-constant)" in result.output
    assert "msd-peak: wrong on walk-cosine in 2 of 2, up to 100.0%" in result.output
    facts = json.loads(CliRunner().invoke(main, [*options, "--json"]).output)  # from the file
    seen = facts["calibrate"]["density-bimodal"]["seen"]
    assert [(rate["truth"], rate["supported"], rate["runs"]) for rate in seen] == [("split-all-5", 2, 2)]
    assert any("msd-peak" in sentence for sentence in facts["broken"])
    assert read_table(out).settings == CalibrationSettings(runs=2, records=30, weights=512, seed=5)
    result = CliRunner().invoke(main, [*options[:-4], "--truth", "nothing"])
    assert result.exit_code == 1
    assert "nothing" in result.output


def test_the_command_starts_without_the_library() -> None:
    assert "calibrate" in main.commands
    assert "pythia_dynamics.claims.calibration" in sys.modules  # imported by this file, not by the command
