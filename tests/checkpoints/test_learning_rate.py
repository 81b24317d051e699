"""Learning rates that are logged: from files, mappings and schedules, and what a directory of checkpoints states."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pythia_dynamics.checkpoints.learning_rate import (
    LearningRate,
    LoggedLearningRate,
    as_learning_rate,
    rates_at,
    read_learning_rate,
)
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.suite import GENERIC, Suite
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

LOG = [
    {"step": 10, "learning_rate": 1e-3, "loss": 3},
    {"step": 10, "eval_loss": 3},
    {"step": 30, "learning_rate": 3e-3},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "step,learning_rate\n10,0.001\n20,\n30,0.003\n"),
        ("a.csv", "lr,step\n0.003,30\n5,10\n0.001,10\n"),
        ("a.csv", "step,lr,learning_rate\n10,7,0.001\n30,7,0.003\n"),
        ("log.jsonl", "".join(f"{json.dumps(row)}\n" for row in LOG)),
        ("trainer_state.json", json.dumps({"log_history": LOG})),
    ],
)
def test_tables_and_logs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    rate = read_learning_rate(tmp_path / name)
    assert rate == LoggedLearningRate((10, 30), (1e-3, 3e-3))
    assert rate.origin == str(tmp_path / name)
    np.testing.assert_allclose(rate.at([9, 10, 15, 30, 31]), [math.nan, 1e-3, 1.5e-3, 3e-3, math.nan])
    assert as_learning_rate(str(tmp_path / name)) == rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,eta\n1,2\n", r"must have the columns step and learning_rate \(or lr\); it has step, eta"),
        ("step,lr\n", "no step has a learning rate"),
        ("step,lr\n1,\n", "no step has a learning rate"),
        ("step,lr\n1,-1e-3\n", "the learning rate at step 1 is -0.001; it must be finite and at least 0"),
        ("step,lr\n1,inf\n", "at step 1 is inf"),
        ("step,lr\n-1,1\n", "whole numbers, at least 0"),
        ("step,lr\n1.5,1\n", "a whole number in the column step"),
        ("step,lr\n1,much\n", "a number, or nothing, in the column lr"),
        ("", "cannot read learning rates from .*: it is empty"),
    ],
)
def test_other_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "lr.csv"
    path.write_text(text)
    with pytest.raises(PythiaDynError, match=message) as caught:
        read_learning_rate(path)
    assert len(str(caught.value).splitlines()) == 1
    assert "lr.csv" in str(caught.value)


def test_what_a_learning_rate_may_be_given_as() -> None:
    assert as_learning_rate({30: 3, np.int64(10): 1.0}) == LoggedLearningRate((10, 30), (1.0, 3.0))
    assert as_learning_rate({"peak": 1.0, "total_steps": 10}) == LearningRate(1.0, 10)
    assert as_learning_rate(LearningRate(1.0, 10)).origin == "given as a value"
    assert as_learning_rate({1: 1.0}).origin == "given as a mapping"
    wrong: list[tuple[Any, str]] = [
        (3.0, "not a float"),
        ({}, "no step has a learning rate"),
        ({1.5: 1.0}, "each step must be a whole number"),
        ({1: "much"}, "each learning rate a number"),
        ({"peek": 1}, "no key of a learning rate 'peek'; did you mean peak"),
        ({"peak": 1}, "at least peak and total_steps"),
        ({"steps": [1]}, "at least steps and rates"),
        ({"steps": [1], "rates": [1, 2]}, "2 learning rates for 1 steps"),
        ({"steps": 1, "rates": [1]}, "the steps of a learning rate must be a list"),
        ({"steps": [2, 1], "rates": [1, 1]}, "in increasing order"),
    ]
    for value, message in wrong:
        with pytest.raises((PythiaDynError, UnknownNameError), match=message):
            as_learning_rate(value)


def test_a_log_without_any_of_the_steps() -> None:
    rate = LoggedLearningRate((10, 30), (1.0, 1.0), "lr.csv")
    assert rates_at(rate, [0, 20], where="m").tolist()[1] == 1
    with pytest.raises(
        PythiaDynError, match=r"\(lr.csv\) is of steps 10 to 30, but m has steps 40 to 50; none is common"
    ):
        rates_at(rate, [40, 50], where="m")


def test_a_suite_keeps_a_log_and_says_where_it_is_from() -> None:
    rate = LoggedLearningRate((10, 30), (1e-3, 3e-3), "lr.csv")
    suite = Suite().changed({"learning_rate": rate})
    again = GENERIC.changed(json.loads(json.dumps(suite.as_json)))
    assert again == suite
    assert again.learning_rate_from == "lr.csv"
    assert Suite().learning_rate_from == ""
    assert resolve("70m").suite.learning_rate_from == "suite pythia: published configuration"
    assert resolve("olmo2-1b").suite.learning_rate_from == "suite olmo2: published configuration"
    assert (
        resolve("70m").suite.changed({"learning_rate": {"peak": 1, "total_steps": 9}}).learning_rate_from
        == "suite pythia"
    )


# -- what a directory states ------------------------------------------------------------------------------------


def run(place: Path, states: dict[int, object]) -> LocalSource:
    for step, state in states.items():
        (place / f"checkpoint-{step}").mkdir(parents=True)
        (place / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
        if state is not None:
            text = state if isinstance(state, str) else json.dumps({"log_history": state})
            (place / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    return LocalSource(place)


def stated(place: Path) -> Any:
    source = LocalSource(place)
    return source.stated_learning_rate(source.revisions())


def test_the_last_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    run(tmp_path, {10: LOG[:1], 100: LOG, 200: None})
    rate = stated(tmp_path)
    assert rate == LoggedLearningRate((10, 30), (1e-3, 3e-3))
    assert rate.origin == "trainer_state.json of checkpoint-100"


@pytest.mark.parametrize("log", [[], [{"step": 10, "loss": 3}], '{"global_step": 10}'])
def test_a_trainer_that_has_not_logged_it(
    tmp_path: Path, log: list[Any] | str, recwarn: pytest.WarningsRecorder
) -> None:
    run(tmp_path, {10: log})
    assert stated(tmp_path) is None
    assert not recwarn.list


@pytest.mark.parametrize("text", ["{", "[]", '{"log_history": [{"step": 1, "learning_rate": -1}]}'])
def test_a_damaged_state_is_told(tmp_path: Path, text: str) -> None:
    run(tmp_path, {10: text})
    with pytest.warns(UserWarning, match="the learning rate is not known: "):
        assert stated(tmp_path) is None


def test_the_schedule_of_a_suite_goes_first(tmp_path: Path) -> None:
    run(tmp_path, {10: LOG})
    for other in ("[1]", "{", '{"learning_rate": 3}', '{"learning_rate": {"peek": 3}}'):
        (tmp_path / "suite.json").write_text(other)
        assert stated(tmp_path).origin == "trainer_state.json of checkpoint-10"
    (tmp_path / "suite.json").write_text('{"learning_rate": {"peak": 0.1, "total_steps": 20}}')
    assert stated(tmp_path) == LearningRate(0.1, 20)
    assert stated(tmp_path).origin == f"suite.json of {tmp_path.name}"
