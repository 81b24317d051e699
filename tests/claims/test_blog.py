"""The blog's claims over seeds and sizes, and the agreement with its published curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.claims.blog import CLAIMS, _in_one_direction, decide
from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.order import OrderCurve, judge_loss_falls, judge_slope_changes
from pythia_dynamics.claims.published_curves import judge_published_curves
from pythia_dynamics.claims.seeds import over_models, over_seeds
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Verdict
from pythia_dynamics.results.published_blog import published_blog
from pythia_dynamics.studies.order_parameter import expected_b
from pythia_dynamics.training.plan import SIZES

CURVES = ("order_parameter", "train_loss", "validation_loss")


def initial(size: str) -> dict[str, dict[str, float]]:
    found = {}
    for kind in ("pytorch", "neox"):
        b, spread = expected_b(kind, 65, SIZES[size]["d_model"])
        found[kind] = {"expected": b, "spread": spread, "measured": b + spread}
    return found


def judge(runs: Mapping[str, tuple[xr.Dataset, ...]], **changes: dict[str, dict[str, float]]) -> dict[str, Verdict]:
    begun = {size: changes.get(size, initial(size)) for size in runs}
    verdicts = decide(runs, begun, dict.fromkeys(runs, "pytorch"))
    assert [verdict.claim for verdict in verdicts] == [claim.id for claim in CLAIMS]
    assert all(verdict.reason for verdict in verdicts)
    return {verdict.claim: verdict for verdict in verdicts}


def altered(size: str, **curves: object) -> xr.Dataset:
    table = published_blog(size)
    return table.assign({name: ("step", np.asarray(values)) for name, values in curves.items()})


def seeds_of(size: str, count: int, seed: int, *, share: float = 0.003, common: float = 0.0) -> tuple[xr.Dataset, ...]:
    """Runs about the published curves: deviations with a standard deviation of `share`; `common` of it is per run."""
    rng = np.random.default_rng(seed)
    table = published_blog(size)
    runs = []
    for _ in range(count):
        steps = rng.standard_normal((3, 20)) * np.sqrt(1 - common**2) + rng.standard_normal((3, 1)) * common
        runs.append(
            table.assign({name: table[name] * (1 + share * each) for name, each in zip(CURVES, steps, strict=True)})
        )
    return tuple(runs)


# -- the published numbers ------------------------------------------------------------------------------------


def test_the_published_numbers() -> None:
    found = judge({size: (published_blog(size),) for size in SIZES})
    words = {claim: verdict.verdict for claim, verdict in found.items()}
    assert words["b-initial"] == words["b-monotone"] == words["loss-falls-with-b"] == "supported"
    # 19 points cannot tell the steeper fall of the two small models from a logistic curve or an exponential one.
    assert words["slope-changes"] == "undecided"
    assert "steeper" in found["slope-changes"].reason
    assert words["published-curves"] == "not testable here"


@pytest.mark.parametrize("size", list(SIZES))
def test_one_claim_has_one_verdict(size: str) -> None:
    table = published_blog(size)
    curve = OrderCurve.of(table, "train_loss")
    found = judge({size: (table,)})
    assert found["loss-falls-with-b"].verdict == judge_loss_falls(curve).verdict
    reason = judge_slope_changes(curve).reason
    assert reason in found["slope-changes"].reason


def test_each_claim_can_fail() -> None:
    small = {size: (published_blog(size),) for size in ("10k", "0.1m")}
    b, loss = (published_blog("10k")[name].to_numpy() for name in ("order_parameter", "train_loss"))
    falling = {**small, "10k": (altered("10k", order_parameter=np.append(b[:-1], b[10])),)}
    assert judge(falling)["b-monotone"].verdict == "not supported"
    rising = {**small, "10k": (altered("10k", train_loss=np.append(loss[:-1], loss[0])),)}
    assert judge(rising)["loss-falls-with-b"].verdict == "not supported"
    smooth = {**small, "10k": (altered("10k", train_loss=2 + np.exp(-(b - b[0]) / 0.2)),)}
    assert judge(smooth)["slope-changes"].verdict != "supported"
    elsewhere = initial("10k")
    elsewhere["pytorch"]["measured"] *= 1.2
    assert judge(small, **{"10k": elsewhere})["b-initial"].verdict == "not supported"


def test_a_short_run_cannot_tell_and_a_large_model_is_not_asked() -> None:
    early = {size: (published_blog(size).sel(step=slice(0, 10_000)),) for size in ("10k", "0.1m")}
    assert judge(early)["slope-changes"].verdict == "not testable here"
    large = judge({"1m": (published_blog("1m"),)})["slope-changes"]
    assert large.verdict == "not testable here"
    assert "1m (no claim)" in large.reason
    assert judge({"10k": (published_blog("10k").isel(step=slice(0, 4)),)})["slope-changes"].verdict == (
        "not testable here"
    )


# -- over seeds -----------------------------------------------------------------------------------------------


def measured(effect: float, p: float, power: float = 0.9, *, at_most: bool = False) -> Decision:
    return Decision("", {}, Evidence("", effect, 1.5, p=p, power=power, at_most=at_most))


def exact(effect: float) -> Decision:
    return Decision("", {}, Evidence.exact("", effect, 0.01, at_most=True))


def test_seeds_that_agree_say_more_than_one() -> None:
    one = measured(2.0, 0.1, 0.5)
    assert one.verdict == "undecided"
    found = over_seeds([one, measured(2.2, 0.08, 0.5), measured(1.8, 0.1, 0.5)], logarithmic=True)
    assert found.verdict == "supported"
    assert found.evidence is not None
    assert found.evidence.effect == pytest.approx((2.0 * 2.2 * 1.8) ** (1 / 3))
    assert found.reason.startswith("0 of 3 seeds support it (3 undecided); mean effect 1.99 ×/÷")
    assert found.evidence.low < found.evidence.effect < found.evidence.high


def test_undecided_seeds_are_not_counted_against_a_claim() -> None:
    undecided = [measured(1.2, 0.6, 0.2) for _ in range(3)]
    assert over_seeds(undecided).verdict == "undecided"
    able = [measured(1.1, 0.6, 0.7), measured(1.12, 0.6, 0.7), measured(1.15, 0.5, 0.7)]
    assert {decision.verdict for decision in able} == {"undecided"}
    assert over_seeds(able).verdict == "not supported"  # three such tests together have the power
    assert over_seeds([undecided[0]]) is undecided[0]


def test_the_level_over_seeds_is_kept() -> None:
    rng = np.random.default_rng(0)
    found = [over_seeds([measured(2.0, p) for p in rng.uniform(size=5)]).verdict for _ in range(400)]
    assert 0.02 <= found.count("supported") / 400 <= 0.08


def test_one_seed_with_an_effect_does_not_support_a_claim_about_the_mean() -> None:
    seeds = [measured(4.0, 0.0005), measured(1.3, 0.5), measured(1.3, 0.5)]
    found = over_seeds(seeds, logarithmic=True)
    assert found.evidence is not None
    assert found.reason.startswith("1 of 3 seeds support it")
    assert found.verdict == "undecided"
    assert found.evidence.p == pytest.approx(0.231, abs=0.002)  # twice that of t = 1.7 with two degrees of freedom


def test_the_level_of_a_mean_is_kept_where_single_seeds_have_effects() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):  # the logarithms have the mean 0; each seed is known well
        ratios = np.exp(rng.normal(0, 0.8, 4))
        found.append(over_seeds([measured(ratio, 0.0005) for ratio in ratios], logarithmic=True).verdict)
    assert found.count("supported") / 400 <= 0.05


def test_a_mean_that_supports_a_claim_has_an_interval_without_no_effect() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        seeds = [measured(ratio, 0.01) for ratio in np.exp(rng.normal(0.6, 0.4, 3))]
        found = over_seeds(seeds, logarithmic=True)
        assert found.evidence is not None
        assert found.verdict != "supported" or found.evidence.low > 1


def test_a_small_rise_must_be_small_for_the_mean() -> None:
    seeds = [measured(rise, 0.01, at_most=True) for rise in (0.0, 0.0, 1.4)]
    found = over_seeds(seeds)
    assert found.evidence is not None
    assert found.evidence.p > 0.05
    assert over_seeds([measured(rise, 0.01, at_most=True) for rise in (0.0, 0.1, 0.2)]).verdict == "supported"


def test_kinks_of_different_directions_are_not_pooled() -> None:
    def kink(ratio: float, direction: str) -> Decision:
        evidence = Evidence("", ratio, 1.5, p=0.001, power=0.9, low=ratio / 1.1, high=ratio * 1.1)
        return Decision("", {"direction": direction}, evidence)

    steeper = [kink(ratio, "steeper") for ratio in (2.0, 2.2, 2.1)]
    assert over_seeds(_in_one_direction(steeper), logarithmic=True).verdict == "supported"
    mixed = _in_one_direction([*steeper[:2], kink(2.0, "flatter")])
    assert [part.evidence.effect for part in mixed if part.evidence] == [2.0, 2.2, 0.5]
    assert mixed[2].evidence is not None
    assert mixed[2].evidence.low == pytest.approx(1 / 2.2)
    assert mixed[2].evidence.p == 0.9995
    assert over_seeds(mixed, logarithmic=True).verdict != "supported"
    tied = _in_one_direction([kink(2.0, "steeper"), kink(3.0, "flatter")])
    assert [part.evidence.effect for part in tied if part.evidence] == [0.5, 3.0]


def test_exact_seeds() -> None:
    assert over_seeds([exact(0.001), exact(0.002), exact(0.0)]).verdict == "supported"
    assert over_seeds([exact(0.3), exact(0.35)]).verdict == "not supported"
    assert over_seeds([exact(0.0), exact(0.3)]).verdict == "undecided"
    mixed = over_seeds([exact(0.0)] * 8 + [exact(0.012)])
    assert mixed.verdict == "supported"
    assert mixed.reason.startswith("8 of 9 seeds support it (8 supported, 1 not supported)")


def test_seeds_and_models_that_cannot_be_tested() -> None:
    nothing = Decision("too few", {})
    assert over_seeds([nothing, exact(0.0)]).verdict == "supported"
    with pytest.raises(NotTestableError, match="too few"):
        over_seeds([nothing, nothing])
    worst = over_models({"a": exact(0.0), "b": nothing, "c": exact(0.5)})
    assert worst.verdict == "not supported"
    assert worst.reason == "a: ; b: too few; c: "
    with pytest.raises(NotTestableError, match="b: too few"):
        over_models({"b": nothing})


def test_two_seeds_one_of_which_falls_decide_nothing() -> None:
    b = published_blog("10k")["order_parameter"].to_numpy()
    runs = {"10k": (published_blog("10k"), altered("10k", order_parameter=np.append(b[:-1], b[10])))}
    assert judge(runs)["b-monotone"].verdict == "undecided"


def test_seeds_count_the_direction_of_their_kinks() -> None:
    found = judge({"10k": seeds_of("10k", 3, 0, share=0.0005)})["slope-changes"]
    assert "of 3 seeds support it" in found.reason
    assert "steeper after the kink in 3 of 3" in found.reason


# -- the published curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [0.0, 0.7, 1.0])
def test_one_more_seed_agrees(common: float) -> None:
    verdicts = []
    for seed in range(60):
        runs = {}
        for number, size in enumerate(("10k", "0.1m")):
            _, *others = seeds_of(size, 4, 100 * seed + number, common=common)
            rng = np.random.default_rng(10_000 + 100 * seed + number)
            # The published run deviates from the truth as well: all runs are moved by that deviation.
            each, all_steps = rng.standard_normal((3, 20)), rng.standard_normal((3, 1))
            moves = 1 + 0.003 * (np.sqrt(1 - common**2) * each + common * all_steps)
            runs[size] = [
                run.assign({name: run[name] / move for name, move in zip(CURVES, moves, strict=True)}) for run in others
            ]
        verdicts.append(judge_published_curves(runs).verdict)
    assert verdicts.count("supported") / 60 >= 0.9


def test_a_loss_that_is_9_percent_off_does_not_agree() -> None:
    for seed in range(10):
        runs = [run.assign(train_loss=run["train_loss"] * 0.91) for run in seeds_of("0.1m", 3, seed)]
        decision = judge_published_curves({"0.1m": runs})
        assert decision.verdict == "not supported"
        assert "training loss -9." in decision.reason


def test_short_runs_few_seeds_and_equal_seeds_cannot_be_compared() -> None:
    runs = seeds_of("10k", 3, 0)
    with pytest.raises(NotTestableError, match="10k has 2 of 3 runs"):
        judge_published_curves({"10k": runs[:2]})
    with pytest.raises(NotTestableError, match="10k has 0 of 3 runs"):
        judge_published_curves({"10k": [run.sel(step=slice(0, 18_000)) for run in runs]})
    with pytest.raises(NotTestableError, match="do not differ"):
        judge_published_curves({"10k": [runs[0]] * 3})
    part = judge_published_curves({"10k": runs, "1m": seeds_of("1m", 1, 0)})
    assert part.verdict == "supported"
    assert part.reason.endswith("1m has 1 of 3 runs that have every published step")


def test_agreement_with_random_values_has_a_p_value_and_a_power() -> None:
    runs = {"10k": seeds_of("10k", 3, 0), "0.1m": seeds_of("0.1m", 3, 1)}
    found = judge(runs)
    for claim in ("b-initial", "published-curves"):
        evidence = found[claim].evidence
        assert found[claim].verdict == "supported"
        assert evidence is not None
        assert 0 < evidence["p"] <= 0.01
        assert 0.8 <= evidence["power"] < 1
        assert evidence["low"] <= evidence["effect"] <= evidence["high"]
        assert found[claim].p_corrected >= evidence["p"]  # it is counted


def test_seeds_that_spread_widely_leave_the_agreement_open() -> None:
    decision = judge_published_curves({"10k": seeds_of("10k", 3, 0, share=0.05, common=1.0)})
    assert decision.verdict == "undecided"
    assert decision.evidence is not None
    assert decision.evidence.power < 0.8


def test_a_small_difference_that_seeds_do_not_have_refutes_the_agreement() -> None:
    runs = [run.assign(train_loss=run["train_loss"] * 0.98) for run in seeds_of("0.1m", 4, 0, share=0.001)]
    decision = judge_published_curves({"0.1m": runs})
    assert decision.evidence is not None
    assert decision.evidence.word() == "supported"  # within 5 %
    assert decision.verdict == "not supported"
