from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest

from pythia_dynamics.cli.perplexity import perplexity as command
from pythia_dynamics.device import DEVICE_KINDS, DTYPES
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.settings import (
    HEADS,
    MODES,
    PRODUCTS,
    EvaluationSettings,
    ModelSettings,
    check_modes,
    requested_steps,
)

DEFAULTS = {
    "device": "auto",
    "dtype": "float32",
    "head": "as-is",
    "tf32": False,
    "source": "hub",
    "corpus": "lambada",
    "limit": 500,
    "steps": None,
    "batch_tokens": None,
    "max_tokens": None,
    "products": "auto",
    "disk_budget": None,
    "overwrite": False,
}


def test_the_defaults_are_those_of_the_paper_and_safe_for_pythia() -> None:
    assert asdict(EvaluationSettings()) == DEFAULTS
    assert asdict(ModelSettings()) == dict(list(DEFAULTS.items())[:5])


def test_the_command_has_the_same_defaults_and_choices() -> None:
    given = command.make_context("perplexity", []).params
    names = {field.name for field in fields(EvaluationSettings)}
    assert {name: given[name] for name in names} == {name: DEFAULTS[name] for name in names}
    assert given["modes"] == ("forward",)
    options = {parameter.name: parameter for parameter in command.params}
    choices = {
        name: tuple(getattr(options[name].type, "choices", ())) for name in ("modes", "head", "dtype", "products")
    }
    assert choices == {"modes": MODES, "head": HEADS, "dtype": DTYPES, "products": PRODUCTS}


def test_the_closed_sets() -> None:
    assert MODES == ("forward", "unmask", "last-word")
    assert HEADS == ("as-is", "ternary")
    assert PRODUCTS == ("auto", "plain", "packed")
    assert DTYPES == ("float32", "bfloat16", "float16")
    assert DEVICE_KINDS == ("auto", "cuda", "mps", "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"dtype": "fp16"}, "no dtype 'fp16'; did you mean float16"),
        ({"head": "ternery"}, "no head 'ternery'; did you mean ternary"),
        ({"products": "pact"}, "no products 'pact'; did you mean packed"),
        ({"limits": 3}, "no setting 'limits'; did you mean limit"),
    ],
)
def test_unknown_names_list_the_nearest(values: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        EvaluationSettings.from_mapping(values)


@pytest.mark.parametrize(("name", "least"), [("limit", 1), ("batch_tokens", 1), ("max_tokens", 2), ("disk_budget", 0)])
def test_numbers_have_a_least_value(name: str, least: Any) -> None:
    assert getattr(EvaluationSettings(**{name: least}), name) == least
    with pytest.raises(PythiaDynError, match=f"{name} must be at least {least}, not {least - 1}"):
        EvaluationSettings(**{name: least - 1})


def test_steps_are_read_at_once() -> None:
    with pytest.raises(PythiaDynError, match="cannot read steps"):
        EvaluationSettings(steps="some")
    assert requested_steps("1000:3000:1000") == (1000, 2000, 3000)
    assert requested_steps([3, 1, 3]) == (1, 3)
    assert requested_steps([]) == ()
    assert requested_steps("all") is None
    assert requested_steps(None) is None


def test_settings_do_not_change() -> None:
    settings = EvaluationSettings.from_mapping({"corpus": Path("text.txt"), "limit": None})
    assert (settings.corpus, settings.limit, settings.dtype) == (Path("text.txt"), None, "float32")
    with pytest.raises(FrozenInstanceError):
        settings.limit = 3  # type: ignore[misc]


def test_modes_keep_their_order_and_are_not_repeated() -> None:
    assert check_modes(["unmask", "forward", "unmask"]) == ("unmask", "forward")
    with pytest.raises(UnknownNameError, match="did you mean last-word"):
        check_modes(["forward", "last_word"])
    with pytest.raises(UnknownNameError, match="known: forward, unmask, last-word"):
        check_modes([])
