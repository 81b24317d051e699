"""Verdicts on weights that quantise themselves: their density, and the function of the model."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.ternary import ternary_density, ternary_error, ternary_function
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.evaluation.archive import Archive
from pythia_dynamics.evaluation.rows import FIELDS
from pythia_dynamics.measures.density import DENSITY, density
from pythia_dynamics.results.folder import Results

RNG = np.random.default_rng(0)
GAUSSIAN = 0.02 * RNG.normal(size=(100, 40))
TERNARY = 0.05 * RNG.choice([-1, 0, 1], (100, 40)) * (1 + 0.05 * RNG.normal(size=(100, 40)))


def of_density(first, last):
    assert DENSITY.on_save is not None
    found = DENSITY.on_save(density(np.stack([first, last]).astype(np.float16)))
    return ternary_density(SavedResults.in_memory("suite", {"density.zarr": found}))


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [
        (GAUSSIAN, TERNARY, "supported"),
        (GAUSSIAN, 1.5 * GAUSSIAN, "not supported"),
        (TERNARY, TERNARY, "not supported"),  # it was so
        (np.ones((100, 40)), np.ones((100, 40)), "not supported"),
        (GAUSSIAN, 1 + GAUSSIAN, "not supported"),  # all about one value
        (GAUSSIAN, np.abs(TERNARY), "not supported"),
        (np.zeros((100, 40)), np.zeros((100, 40)), "not supported"),
    ],
)
def test_three_values(first, last, verdict):
    decision = of_density(first, last)
    assert decision.verdict == verdict, decision.reason
    assert decision.evidence.is_exact


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (np.linspace(-1, 1, 20_001), 1 / 9),
        (np.random.default_rng(1).normal(size=200_000), 0.190),
        (np.array([-2.0, 0, 2, 2]), 0),
        (np.zeros(3), 0),
    ],
)
def test_the_error_of_three_values(sample, error):
    values, counts = np.unique(sample, return_counts=True)
    assert ternary_error(values, counts.astype(float))[1] == pytest.approx(error, abs=0.002)


def tables(cost, count=60, *, spread=0.02, seed=0, scores=True):
    """Two perplexities at step 2000: mean and standard deviation over passages of the increase, in nats per token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 90, count)
    nll = np.stack([np.full(count, np.nan), tokens * rng.normal(3, 0.8, count)])
    rounded = nll + tokens * rng.normal(cost, spread, count)
    found = {}
    for head, values in (("", nll), ("ternary/", rounded)):
        ppl = np.exp(values[1].sum() / tokens.sum())
        found[f"{head}perplexity-forward.csv"] = xr.Dataset(
            {"ppl_corpus": ("step", [np.nan, ppl])}, {"step": [1000, 2000]}
        )
        if scores:
            parts = {"sentence_nll": values, "sentence_tokens": np.tile(tokens, (2, 1))}
            found[f"{head}perplexity-forward.zarr"] = xr.Dataset(
                {name: (("step", "sentence"), part) for name, part in parts.items()}, {"step": [2000, 2000]}
            )
    return found


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(SavedResults, "settings", lambda self, kind: {"head": "ternary"})
    return lambda found: ternary_function(SavedResults.in_memory("suite", found))


@pytest.mark.parametrize(("cost", "verdict"), [(0.0, "supported"), (-0.01, "supported"), (0.3, "not supported")])
def test_the_cost_of_three_values(judge, cost, verdict):
    for seed in range(5):
        decision = judge(tables(cost, seed=seed))
        assert decision.verdict == verdict, decision.reason
        assert decision.numbers["passages"] == 60
        assert decision.evidence.low <= np.expm1(cost) * 1.02 + 0.02
        assert decision.evidence.effect == pytest.approx(decision.numbers["cost"], rel=1e-9)


def test_five_percent_more_is_seldom_called_as_good(judge):
    words = [judge(tables(np.log(1.0501), seed=seed)).verdict for seed in range(200)]
    assert words.count("supported") <= 20  # 5 % of 200, and three standard deviations


def test_noisy_passages_leave_it_undecided(judge):
    assert judge(tables(0.0, 12, spread=0.5)).verdict == "undecided"


@pytest.mark.parametrize("cost", [0.0, 0.3])
def test_without_scores_of_passages_it_is_undecided(judge, cost):
    decision = judge(tables(cost, scores=False))
    assert decision.verdict == "undecided"
    assert "without the scores" in decision.reason
    one = judge(tables(cost, 1))
    assert one.verdict == "undecided"


def test_equal_scores_have_no_error(judge):
    decision = judge(tables(0.0, spread=0.0))
    assert (decision.verdict, decision.evidence.p) == ("supported", 0)


def test_scores_of_other_passages_are_not_compared(judge):
    found = tables(0.0)
    found["perplexity-forward.zarr"]["sentence_tokens"] += 1
    assert judge(found).verdict == "undecided"


def test_what_cannot_be_tested(judge, monkeypatch):
    with pytest.raises(NotTestableError, match="--head ternary"):
        judge({})
    found = tables(0.0)
    with pytest.raises(NotTestableError, match="as it is is not known"):
        judge({**found, "perplexity-forward.csv": found["perplexity-forward.csv"].isel(step=[0])})
    monkeypatch.setattr(SavedResults, "settings", lambda self, kind: {})
    with pytest.raises(NotTestableError, match="rounded to three values"):
        judge(found)


def test_scores_are_read_from_a_folder(tmp_path):
    results = Results("suite", tmp_path)
    row = {
        "sentence_nll": [1.5, 2],
        "sentence_entropy": [1.0, 1],
        "sentence_tokens": [3, 4],
        "sentence_overflow": [0, 0],
    }
    fields = {name: np.array(row.get(name, [0, 0])) for name in FIELDS["forward"]}
    for head in ("", "ternary"):
        path = results.path / head
        path.mkdir(parents=True)
        Archive(path / "perplexity-forward.zarr", FIELDS["forward"]).write({2000: fields}, 0)
    saved = SavedResults(results)
    for file in ("perplexity-forward.zarr", "ternary/perplexity-forward.zarr"):
        assert saved.find(file)["sentence_nll"].sel(step=2000).values.tolist() == [1.5, 2]
