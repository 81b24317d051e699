"""The claims that something drops at the bifurcation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.claims import drops
from pythia_dynamics.claims.bifurcation_step import ReferenceStep
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Decision, NotTestableError, decision_of
from pythia_dynamics.evaluation.rows import CURVES
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.results.folder import Results

STEPS = np.arange(1, 144) * 1000
SMOOTH = 3 + 2 * np.exp(-np.arange(143) / 40)


@pytest.fixture(autouse=True)
def at_the_paper_s_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """How the step is found is tested elsewhere."""
    monkeypatch.setattr(drops, "reference_step", lambda saved: ReferenceStep(80_000, "paper"))


def saved(name: str = "pythia-70m-deduped", **tables: xr.Dataset) -> SavedResults:
    return SavedResults.in_memory(name, {f"{kind.replace('_', '-')}.csv": table for kind, table in tables.items()})


def errors(seed: int, size: float = 0.01, shape: tuple[int, ...] = (143,)) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=shape)


def fall(share: float, since: int = 80_000) -> np.ndarray:
    return np.log(1 - share) * (since <= STEPS)


def scores(nll: np.ndarray, **others: float) -> xr.Dataset:
    columns = {"ppl_corpus": np.exp(nll), "nonfinite": np.zeros(len(nll)), "overflow": np.zeros(len(nll))}
    columns |= {name: np.full(len(nll), value) for name, value in others.items()}
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": STEPS[: len(nll)]})


def test_a_drop_of_the_perplexity() -> None:
    table = scores(SMOOTH + errors(0) + fall(0.4))
    for test, kind in ((drops.perplexity_drops, "forward"), (drops.unmasking_drops, "unmask")):
        decision = test(saved(perplexity_forward=table) if kind == "forward" else saved(perplexity_unmask=table))
        assert decision.verdict == "supported"
        assert decision.evidence is not None
        assert decision.evidence.low < 0.4 < decision.evidence.high
        assert decision.evidence.effect == pytest.approx(0.4, abs=0.02)
        assert decision.numbers["change"] == -decision.evidence.effect
        assert (decision.numbers["start"], decision.numbers["end"]) == (79_000, 80_000)
        # EleutherAI's own numbers beside it: late training hurts.
        assert decision.numbers["published_last"] > decision.numbers["published_best"]
        assert "EleutherAI's last-word perplexity" in decision.reason


def test_no_drop_and_one_elsewhere() -> None:
    for added, word in (
        (fall(0.0), "not supported"),
        (fall(0.4, 120_000), "not supported"),
        (-fall(0.4), "not supported"),
    ):
        decision = drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH + errors(1, 0.003) + added)))
        assert decision.verdict == word
    decision = drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH + errors(1) + fall(0.4, 120_000))))
    assert decision.refuted
    assert "likelier than the one here" in decision.reason


def spike(records: int, size: float) -> np.ndarray:
    return np.where((np.arange(143) >= 30) & (np.arange(143) < 30 + records), size, 0.0)


@pytest.mark.parametrize(
    ("other", "removed"),
    [(spike(1, 1.5), 1), (spike(6, 0.7), 6), (0.6 * (STEPS >= 31_000), 0), (fall(0.2, 30_000), 0)],
    ids=["bad record", "loss spike", "earlier rise", "smaller drop"],
)
def test_a_drop_beside_another_change(other: np.ndarray, removed: int) -> None:
    for seed in range(3):
        drop = drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH + errors(seed) + fall(0.4) + other)))
        assert drop.verdict == "supported"
        assert drop.numbers["removed"] == removed
        assert drop.evidence is not None
        assert drop.evidence.effect == pytest.approx(0.4, abs=0.02)
        none = drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH + errors(seed) + other)))
        assert none.verdict == "not supported"


def test_a_larger_drop_elsewhere_leaves_a_drop_open() -> None:
    curve = SMOOTH + errors(0) + fall(0.4) + fall(0.6, 30_000)
    decision = drops.perplexity_drops(saved(perplexity_forward=scores(curve)))
    assert decision.verdict == "undecided"
    assert decision.open
    assert not decision.refuted
    assert decision.evidence is not None
    assert decision.evidence.p < 0.001
    assert decision.evidence.effect == pytest.approx(0.4, abs=0.02)
    assert decision.numbers["elsewhere_start"] == 29_000
    assert decision.numbers["elsewhere"] == pytest.approx(-0.6, abs=0.03)
    assert "about as likely, or more so" in decision.reason


def test_the_noise_of_a_drop_that_is_found_is_what_it_leaves() -> None:
    curve = SMOOTH + errors(0, 0.003)
    without, with_drop = (
        drops.perplexity_drops(saved(perplexity_forward=scores(each))).evidence for each in (curve, curve + fall(0.4))
    )
    assert without is not None
    assert with_drop is not None
    assert without.power > 0.9
    assert with_drop.power > 0.9


def test_noise_that_hides_a_drop_leaves_the_claim_undecided() -> None:
    decision = drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH + errors(2, 0.2))))
    assert decision.verdict == "undecided"
    assert "noise of this curve" in decision.reason


def test_values_that_are_no_perplexity_make_no_drop() -> None:
    nll = SMOOTH + errors(3, 0.003)
    nll[80:] = -40
    decision = decision_of(drops.perplexity_drops, saved(perplexity_forward=scores(nll)))
    assert decision.verdict == "not testable here"


def test_missing_and_short_tables() -> None:
    with pytest.raises(NotTestableError, match=r"perplexity-forward\.csv is missing: run pythia-dyn perplexity"):
        drops.perplexity_drops(saved())
    with pytest.raises(NotTestableError, match="12 records are too few") as caught:
        drops.perplexity_drops(saved(perplexity_forward=scores(SMOOTH[:12])))
    assert caught.value.numbers["bifurcation_step"] == 80_000


def test_below_one_is_refuted_and_counts_what_has_no_perplexity() -> None:
    good = drops.perplexity_below_one(saved(perplexity_forward=scores(SMOOTH, nonfinite=2)))
    assert good.verdict == "not supported"
    assert good.numbers["nonfinite"] == 2 * 143
    assert good.evidence is not None
    assert good.evidence.is_exact
    spoilt = SMOOTH.copy()
    spoilt[-1] = np.log(1e-18)
    bad = drops.perplexity_below_one(saved(perplexity_forward=scores(SMOOTH), perplexity_unmask=scores(spoilt)))
    assert bad.verdict == "not supported"
    assert "unmask 1e-18" in bad.reason
    with pytest.raises(NotTestableError, match="no finite perplexity"):
        drops.perplexity_below_one(saved(perplexity_forward=scores(np.full(143, np.nan))))


def prefixes(extra: float, seed: int = 0) -> xr.Dataset:
    """30 prefix lengths, of which few sentences have the last five; longer ones drop by `extra` at the step."""
    length = np.arange(1, 31)
    nll = SMOOTH[:, None] + 0.01 * length + errors(seed, 0.01, (143, 30)) + fall(0.2)[:, None]
    nll[:, 20:] += fall(extra)[:, None]
    nll[:, 25:] += errors(seed + 1, 5, (143, 5))
    counts = np.broadcast_to(np.where(length > 25, 3.0, 200.0), nll.shape)
    variables = {"nll_mean": (("step", "prefix"), nll), "sentences": (("step", "prefix"), counts)}
    return xr.Dataset({**variables, "entropy": (("step", "prefix"), nll)}, {"step": STEPS, "prefix": length})


def sharper(extra: float) -> Decision:
    return drops.sharper_at_the_end(saved(perplexity_unmask_prefix=prefixes(extra)))


def test_a_drop_that_is_sharper_for_long_prefixes() -> None:
    assert sharper(0.4).verdict == "supported"
    assert sharper(0.0).verdict == "not supported"
    assert sharper(0.4).numbers["short_prefixes"] == 8
    assert sharper(0.4).numbers["long_prefixes"] == 18
    with pytest.raises(NotTestableError, match="run pythia-dyn perplexity --mode unmask"):
        drops.sharper_at_the_end(saved())
    with pytest.raises(NotTestableError, match="prefix lengths are too few"):
        drops.sharper_at_the_end(saved(perplexity_unmask_prefix=prefixes(0.4).isel(prefix=slice(0, 4))))


def test_the_table_of_prefixes_as_it_is_saved(tmp_path: Path) -> None:
    results, table = Results("suite", tmp_path), prefixes(0.4)
    columns = Table(("step", "prefix", *CURVES), keys=("step", "prefix"))
    results.write_table("perplexity-unmask-prefix", columns, table)
    read = results.read_table("perplexity-unmask-prefix")
    assert read.sizes == {"step": read.sizes["step"], "prefix": read.sizes["prefix"]}
    assert results.command_for("perplexity-unmask-prefix").startswith("pythia-dyn perplexity --mode unmask --model")
    assert drops.sharper_at_the_end(saved(perplexity_unmask_prefix=read)).verdict == "supported"


def ranks(mean: np.ndarray, error: float = 0.05, batch: int = 64) -> xr.Dataset:
    dims = ("step", "batch_size", "tolerance", "convention")
    values = np.broadcast_to(mean[:, None, None, None], (143, 1, 2, 2))
    coords = {"step": STEPS, "batch_size": [batch], "tolerance": [0.1, 1.0], "convention": ["absolute", "relative"]}
    return xr.Dataset({"rank": (dims, values), "rank_se": (dims, np.full(values.shape, error))}, coords)


def order(width: int) -> xr.Dataset:
    norm, rows = np.ones(143), 500
    columns = {"frobenius_norm": norm, "order_parameter": norm / width, "rms": norm / np.sqrt(rows * width)}
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": STEPS})


def test_a_rank_that_drops() -> None:
    gone = STEPS >= 80_000
    assert drops.rank_shrinks(saved(rank=ranks(40 - 10 * gone + errors(0, 0.1)))).verdict == "supported"
    assert drops.rank_shrinks(saved(rank=ranks(40 + errors(0, 0.1)))).verdict == "not supported"
    # Without noise, as the same projections are drawn at every step.
    assert drops.rank_shrinks(saved(rank=ranks(12 - 5.0 * gone))).verdict == "supported"
    # Of a rank of 4, 10 % is less than a direction.
    assert drops.rank_shrinks(saved(rank=ranks(4 - 0.6 * gone))).verdict == "not supported"
    # The error over the projections hides what is smaller.
    unsure = drops.rank_shrinks(saved(rank=ranks(40 + errors(0, 0.1), error=8.0)))
    assert unsure.verdict == "undecided"


def fork(rng: np.random.Generator, first: float, dip: float) -> np.ndarray:
    """The rank of weights that split: it rises over ten records from the bifurcation on, after a dip."""
    since = np.arange(143) - 79
    known = [-143, -1, 0, 2, 9, 143]
    rank = np.interp(since, known, [1.9, first, first - dip, first - dip, 19, 19])
    return np.asarray(np.round(40 * (rank + 0.02 * rng.normal(size=143))) / 40)


def test_a_rank_that_rises_has_no_drop() -> None:
    for seed in range(4):
        decision = drops.rank_shrinks(saved(rank=ranks(fork(np.random.default_rng(seed), 2.65, 0.3), error=0.25)))
        assert decision.verdict == "not supported"
        assert decision.evidence is not None
        assert abs(decision.evidence.effect) < 0.05
        assert abs(float(decision.numbers["elsewhere"] or 0)) < 0.1
        assert decision.evidence.p > 0.0005
        assert "a rise of the curve is likelier" in decision.reason


def test_a_rank_that_falls_and_rises_further_is_left_open() -> None:
    decision = drops.rank_shrinks(saved(rank=ranks(fork(np.random.default_rng(0), 12.8, 4.0), error=0.25)))
    assert decision.verdict == "undecided"
    assert "rises there as well" in decision.reason
    assert decision.evidence is not None
    assert 0.1 < decision.evidence.effect < 1
    assert abs(float(decision.numbers["elsewhere"] or 0)) < 0.1


@pytest.mark.parametrize(("batch", "width", "named"), [(64, 512, "B − 1 = 63"), (64, 12, "d = 12")])
def test_a_rank_at_its_ceiling(batch: int, width: int, named: str) -> None:
    full = np.full(143, float(min(batch - 1, width)))
    with pytest.raises(NotTestableError, match=named):
        drops.rank_shrinks(saved(rank=ranks(full, batch=batch), order=order(width)))
