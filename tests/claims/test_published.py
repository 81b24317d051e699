"""EleutherAI's published LAMBADA table, judged as it is; and its tests on curves of known truth."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pythia_dynamics.claims.lambada_curve import PublishedCurve, chosen_best_p, plateaus, scatter_of
from pythia_dynamics.claims.populations import OVER_MODELS
from pythia_dynamics.claims.published import (
    DROPS,
    HURTS,
    SMALL_MODELS,
    TOWARDS_ZERO,
    PublishedScorecard,
    drops_after_bifurcation,
    judge_published,
    late_training_hurts,
    small_models,
)
from pythia_dynamics.claims.scorecard import CLAIMS
from pythia_dynamics.claims.verdict import NotTestableError, Verdict
from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.results.published_lambada import LAST_SUSPECT_STEP, published_lambada, published_models

WRITTEN = (("×", "factor", ".2f"), ("", "z", ".1f"))
"""Sign, number and format of a column of the page."""

SMALL = ("pythia-70m", "pythia-70m-deduped", "pythia-160m", "pythia-160m-deduped")


@pytest.fixture(scope="module")
def card() -> PublishedScorecard:
    return judge_published()


def verdict(card: PublishedScorecard, model: str, claim: str) -> Verdict:
    return next(found for found in card.models[model] if found.claim == claim)


def test_late_training_hurts_small_models_only(card: PublishedScorecard) -> None:
    assert set(card.models) == set(published_models())
    for model in card.models:
        found = verdict(card, model, HURTS.id)
        factor, z = (float(str(found.numbers[name])) for name in ("factor", "z"))
        if model in SMALL:
            assert found.verdict == "supported"
            assert 1.3 <= factor <= 1.65
            assert 5 <= z <= 8.5
            assert found.p_corrected is not None
            assert found.p_corrected < 1e-4
        else:
            assert found.verdict == "not supported"
            assert 1.0 <= factor <= 1.055
            assert z < 1.5
        assert "2404.07647" in found.remark
        assert "2602.20433" in found.remark
    (over,) = card.over_models
    assert (over.claim, over.verdict) == (SMALL_MODELS.id, "supported")
    assert over.evidence is not None
    assert over.evidence["p"] == pytest.approx(
        1 / math.comb(16, 4)
    )  # the four small ones have the four largest factors


def test_no_perplexity_drops_to_zero(card: PublishedScorecard) -> None:
    for model in card.models:
        drops = verdict(card, model, DROPS.id)
        assert drops.verdict == ("not supported" if model in SMALL else "not testable here")
        zero = verdict(card, model, TOWARDS_ZERO.id)
        assert zero.verdict == "not supported"
        assert float(str(zero.numbers["least"])) > 3
    assert float(str(verdict(card, "pythia-70m-deduped", DROPS.id).numbers["fall"])) < -0.4


def test_the_scorecard_counts_its_tests(card: PublishedScorecard) -> None:
    everything = [*(found for verdicts in card.models.values() for found in verdicts), *card.over_models]
    assert card.tests == sum(found.p_corrected is not None for found in everything) == 16 + 4 + 1
    for found in everything:
        if found.p_corrected is not None:
            assert found.evidence is not None
            assert found.p_corrected >= found.evidence["p"]


def test_suspect_rows_are_no_evidence() -> None:
    curve = PublishedCurve.of("pythia-2.8b-deduped")
    assert curve.suspect[-1] == LAST_SUSPECT_STEP["pythia-2.8b-deduped"] == 43_000
    assert curve.steps[0] == 53_000
    assert PublishedCurve.of("pythia-2.8b").suspect == ()


def test_the_1b_model_has_another_name_in_the_table() -> None:
    assert published_lambada("EleutherAI/pythia-1b").attrs["model"] == "pythia-1b-bf16"
    with pytest.raises(UnknownNameError, match="published model"):
        PublishedCurve.of("pythia-31m")


def curve(
    seed: int, *, error: float = 0.025, scatter: float = 0.025, factor: float = 1.0, phi: float = 0.0
) -> PublishedCurve:
    """A plateau after a fast fall, with noise; its last 50,000 steps may be worse by a factor."""
    real = PublishedCurve.of("pythia-160m")
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(len(real.steps)) * scatter
    for place in range(1, len(noise)):
        noise[place] = phi * noise[place - 1] + math.sqrt(1 - phi**2) * noise[place]
    log = 3.4 + 4 * np.exp(-real.steps / 3000) + noise
    log += math.log(factor) * np.clip((real.steps - 93_000) / 20_000, 0, 1)
    return replace(real, log=log, error=np.full(len(log), error))


@pytest.mark.parametrize(("error", "scatter"), [(0.025, 0.025), (0.04, 0.04), (0.025, 0.1)])
def test_a_plateau_does_not_hurt(error: float, scatter: float) -> None:
    words = [late_training_hurts(curve(seed, error=error, scatter=scatter)).verdict for seed in range(40)]
    assert words.count("supported") <= 4  # 5 % expected at most; 4 of 40 is the 95 % quantile


def test_what_hurts_by_half_is_seen() -> None:
    words = [late_training_hurts(curve(seed, scatter=0.04, factor=1.5)).verdict for seed in range(20)]
    assert words.count("supported") >= 16


def test_one_checkpoint_that_stands_out_decides_nothing() -> None:
    log = curve(1, scatter=0.08).log.copy()
    log[-1] += 0.15
    log[-3:-1] -= 0.1
    found = late_training_hurts(replace(curve(1), log=log))
    assert found.evidence is not None
    assert found.evidence.large_enough
    assert found.verdict == "undecided"


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_noise_is_no_drop_and_a_drop_is_one(phi: float) -> None:
    flat = [drops_after_bifurcation(curve(seed, scatter=0.06, phi=phi)).verdict for seed in range(20)]
    assert flat.count("supported") <= 3
    rises = [drops_after_bifurcation(curve(seed, scatter=0.04, factor=1.4, phi=phi)).verdict for seed in range(10)]
    assert set(rises) == {"not supported"}
    falls = [drops_after_bifurcation(curve(seed, scatter=0.03, factor=0.5, phi=phi)).verdict for seed in range(10)]
    assert falls.count("supported") >= 8


def test_p_counts_the_choice_of_the_best_step() -> None:
    flat = curve(0)
    alone = 1 - 0.5 * (1 + math.erf(0.1 / (0.025 * math.sqrt(2)) / math.sqrt(2)))
    chosen = chosen_best_p(flat, 0.1)
    draws = 0.025 * np.random.default_rng(1).standard_normal((20_000, flat.log[flat.late].size))
    assert chosen == pytest.approx(np.mean(draws[:, -1] - draws.min(axis=1) >= 0.1), abs=0.01)
    assert chosen > 2 * alone
    assert chosen_best_p(flat, 0.0) == 1.0


def test_plateaus_have_their_persistence() -> None:
    for persistence in (0.0, 0.6):
        drawn = plateaus(13, persistence)
        assert drawn.std() == pytest.approx(1, abs=0.02)
        assert np.mean(drawn[:, 5] * drawn[:, 6]) == pytest.approx(persistence, abs=0.03)
    assert scatter_of(np.arange(9.0)) == 0


def test_too_little_is_said_so() -> None:
    real = PublishedCurve.of("pythia-70m")
    short = replace(
        real, steps=real.steps[-4:], log=real.log[-4:], error=real.error[-4:], accuracy=real.accuracy[:, -4:]
    )
    for test in (late_training_hurts, drops_after_bifurcation):
        with pytest.raises(NotTestableError, match="few"):
            test(short)
    with pytest.raises(NotTestableError, match="fewer than two"):
        small_models([real])


def test_the_page_on_verdicts_lists_every_claim() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text(encoding="utf-8")
    table = page.partition("<!-- claims -->")[2].partition("<!-- /claims -->")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == [claim.id for claim in CLAIMS]
    for claim in OVER_MODELS:
        assert f"`{claim.id}`" in page


def test_the_page_on_verdicts_has_the_numbers_of_the_table(card: PublishedScorecard) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text(encoding="utf-8")
    for name in ("70m", "160m"):
        numbers = [verdict(card, f"pythia-{name}{end}", HURTS.id).numbers for end in ("", "-deduped")]
        factors, zs = (", ".join(f"{sign}{each[key]:{form}}" for each in numbers) for sign, key, form in WRITTEN)
        assert f"| {name}, {name}-deduped | {factors} | {zs} | supported |" in page
