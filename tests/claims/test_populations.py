"""Claims over models and over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.claims import bifurcation_step
from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.populations import (
    OVER_MODELS,
    Population,
    count_over_seeds,
    judge_over_models,
    own_steps,
    save_over_models,
    shifts_with_data,
    shifts_with_size,
)
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict
from pythia_dynamics.results.folder import Results

SIZES = np.array([70e6, 160e6, 410e6, 1e9, 1.4e9, 2.8e9, 6.9e9, 12e9])


def population(shift: Sequence[float], names: Sequence[str] | None = None) -> Population:
    count = len(shift)
    return Population(tuple(names or map(str, range(count))), SIZES[:count], np.array(shift, float), {"none": "why"})


def test_a_shift_with_size_is_seen() -> None:
    found = shifts_with_size(population([0.4, 0.45, 0.55, 0.6, 0.72]))
    assert found.verdict == "supported"
    assert found.evidence is not None
    assert found.evidence.p == pytest.approx(1 / math.factorial(5))  # one order of all of them
    assert found.evidence.effect == pytest.approx(0.32, abs=0.05)
    assert "none of its own in none" in found.reason
    falling = shifts_with_size(population([0.72, 0.6, 0.55, 0.45, 0.4]))
    assert falling.verdict == "not supported"


def test_many_models_are_compared_with_random_orders() -> None:
    sizes = np.concatenate([SIZES, 2 * SIZES])
    found = shifts_with_size(Population(tuple(map(str, sizes)), sizes, 0.2 + np.log(sizes) / 50, {}))
    assert found.evidence is not None
    assert found.evidence.p == pytest.approx(1e-4)


def test_equal_steps_do_not_shift() -> None:
    found = shifts_with_size(population([0.5, 0.51, 0.5, 0.49, 0.5, 0.505, 0.5, 0.5]))
    assert found.verdict == "not supported"
    assert shifts_with_size(population([0.5] * 6)).verdict == "not supported"


def test_noise_rarely_shifts() -> None:
    generator = np.random.default_rng(4)
    words = [
        shifts_with_size(population((0.5 + 0.1 * generator.standard_normal(6)).tolist())).verdict for _ in range(40)
    ]
    assert words.count("supported") <= 4


def test_few_models_decide_nothing() -> None:
    for shift in ([], [0.5], [0.4, 0.5, 0.6]):
        with pytest.raises(NotTestableError, match="bifurcation of its own"):
            shifts_with_size(population(shift))
    with pytest.raises(NotTestableError, match="one size"):
        shifts_with_size(Population(("a", "b", "c", "d"), np.full(4, 1e9), np.arange(4.0), {}))


def pairs(differences: Sequence[float]) -> Population:
    names = [f"pythia-{size}" for size in ("70m", "160m", "410m", "1.4b", "2.8b", "6.9b", "12b")[: len(differences)]]
    both = [*names, *(f"{name}-deduped" for name in names)]
    shift = np.array([*[0.5] * len(names), *(0.5 + difference for difference in differences)])
    return Population(tuple(both), np.ones(len(both)), shift, {})


def test_data_shifts_in_either_direction() -> None:
    for sign in (1, -1):
        found = shifts_with_data(pairs([sign * x for x in (0.2, 0.22, 0.18, 0.21, 0.25, 0.19, 0.2)]))
        assert found.verdict == "supported"
        assert found.evidence is not None
        assert found.evidence.p == pytest.approx(2 / 2**7)
        assert 0.1 < found.evidence.low < found.evidence.effect < found.evidence.high
    assert shifts_with_data(pairs([0.01, -0.01, 0.02, 0.0, -0.02, 0.01, 0.0])).verdict == "not supported"
    assert shifts_with_data(pairs([0.2, 0.25, 0.22])).verdict == "undecided"  # three signs cannot show it
    with pytest.raises(NotTestableError, match="2 are needed"):
        shifts_with_data(pairs([0.2]))


def saved(name: str, step: int | None) -> SavedResults:
    msd = xr.Dataset({"msd": ("step", np.zeros(3))}, {"step": [1000, 70_000, 140_000]})
    columns = {"frobenius_norm": [8.0], "order_parameter": [2.0], "rms": [1.0]}
    order = xr.Dataset({key: ("step", value) for key, value in columns.items()}, {"step": [1000]})
    found = SavedResults.in_memory(name, {"msd.csv": msd, "order.csv": order})
    vars(found)["planted"] = step
    return found


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(found: SavedResults) -> Any:
        step = vars(found)["planted"]
        if step is None:
            raise NotTestableError("no detector")
        return SimpleNamespace(step=abs(step), origin="paper" if step < 0 else "detectors")

    monkeypatch.setattr(bifurcation_step, "reference_step", reference)


@pytest.mark.usefixtures("planted")
def test_each_model_has_its_own_step() -> None:
    steps = {"pythia-160m-seed1": 70_000, "pythia-160m-seed2": 98_000, "pythia-70m-deduped": -80_000}
    found = own_steps([*(saved(name, step) for name, step in steps.items()), saved("pythia-410m", None)])
    assert found.names == ("pythia-160m",)  # seeds are one model
    assert found.shift.tolist() == [pytest.approx(0.6)]
    assert found.sizes[0] == pytest.approx(162e6, rel=0.01)
    assert set(found.without) == {"pythia-70m-deduped", "pythia-410m"}
    own = own_steps([saved("mine", 70_000), saved("pythia-70m", 70_000)])
    assert own.sizes.tolist() == [64, 64]  # the weights of the measured matrix, since the registry lacks one of them


@pytest.mark.usefixtures("planted")
def test_verdicts_over_models_and_their_file(tmp_path: Path) -> None:
    steps = {
        "pythia-70m": 40_000,
        "pythia-160m": 60_000,
        "pythia-410m": 75_000,
        "pythia-1b": 90_000,
        "pythia-12b": 120_000,
    }
    verdicts = judge_over_models([saved(name, step) for name, step in steps.items()])
    assert [found.claim for found in verdicts] == [claim.id for claim in OVER_MODELS]
    assert [found.verdict for found in verdicts] == ["supported", "not testable here"]
    path = save_over_models(tmp_path / "over.json", [Results(name, tmp_path) for name in steps], verdicts, ())
    content = json.loads(path.read_text())
    assert content["models"] == list(steps)
    assert content["claims"][0]["evidence"]["effect"] > 0.4


def run(effect: float, verdict: str = "") -> Verdict:
    claim = Claim("moves", "It moves.", "Fig 1", "test", "none", "The Garden of Forking Paths")
    if verdict == "not testable here":
        return Verdict.of(claim, Decision("no data", {}))
    evidence = Evidence("effect", effect, 1.0, p=0.01, power=0.9 if verdict != "undecided" else 0.1)
    return Verdict.of(claim, Decision("reason", {}, evidence))


def test_seeds_are_counted_with_the_undecided_apart() -> None:
    runs = {
        "m": [run(1.2)],
        "m-seed1": [run(1.4)],
        "m-data-seed2": [run(0.5)],
        "m-weight-seed3": [run(0.9, "undecided")],
        "m-seed4": [run(0, "not testable here")],
        "other": [run(2.0)],
    }
    (counted,) = count_over_seeds(runs)
    assert (counted.model, counted.claim) == ("m", "moves")
    assert (counted.supported, counted.decided, counted.undecided, counted.untestable) == (2, 3, 1, 1)
    assert counted.mean == pytest.approx(1.0)
    assert counted.error == pytest.approx(np.std([1.2, 1.4, 0.5, 0.9], ddof=1) / 2)
    assert counted.text == "2 of 3; 1 undecided; 1 not testable; mean effect 1 ± 0.2"
