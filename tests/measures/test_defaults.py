"""The defaults that decide a number: those of the papers, and those that the calibrations of the docstrings rest on."""

from __future__ import annotations

import pytest

from pythia_dynamics.measures.catalogue import BUILT_IN
from pythia_dynamics.measures.phases import PHASES, TOLERANCE

DEFAULTS = {
    "density": {"bins": 512, "quantiles": (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)},
    "msd": {},
    "two_time": {"components": 5, "longest": 0.1, "confidence": 0.95},
    "angles": {"weight_decay": None, "beta1": 0.9},
    "order": {"loss": None},
    "rank": {
        "batch_sizes": (16, 32, 64),
        "tolerances": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "draws": 8,
        "seed": 0,
    },
    "spectrum": {},
    "tails": {},
    "rows": {"frequencies": None},
}


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_defaults_of_a_measure(name: str) -> None:
    assert {option.name: option.default for option in BUILT_IN[name].options.values()} == DEFAULTS[name]


def test_what_is_saved_and_what_is_computed_from_gram_matrices() -> None:
    arrays = [name for name, measure in BUILT_IN.items() if measure.saves_array]
    grams = [name for name, measure in BUILT_IN.items() if measure.uses_gram]
    assert arrays == ["density", "two_time", "spectrum", "rows"]
    assert grams == ["two_time", "rank", "spectrum", "tails"]
    assert all(measure.saves for measure in BUILT_IN.values())


def test_defaults_of_the_phases() -> None:
    assert {option.name: option.default for option in PHASES.options.values()} == {"strength": 7.0}
    assert TOLERANCE == 0.05
