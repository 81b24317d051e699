"""The list of claims of the two works, their verdicts for a model, and the file ``claims.json``.

Every claim is tested by one function, which every study, page and command calls through this list. A verdict is
*supported*, *not supported*, *undecided* or *not testable here* (`claims.evidence`); the p-values of a scorecard are
corrected for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pythia_dynamics.claims.density import DENSITY_BIMODAL, SYMMETRIC_MODES, density_bimodal, symmetric_modes
from pythia_dynamics.claims.displacement import (
    changes_at_the_end,
    msd_peak,
    msd_time_peak,
    quasi_linear_msd,
    two_regimes,
)
from pythia_dynamics.claims.drops import (
    perplexity_below_one,
    perplexity_drops,
    rank_shrinks,
    sharper_at_the_end,
    unmasking_drops,
)
from pythia_dynamics.claims.order import ORDER_CLAIMS
from pythia_dynamics.claims.rest import stationary, stop_when_stationary
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.ternary import TERNARY_DENSITY, TERNARY_FUNCTION, ternary_density, ternary_function
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict, corrected, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_json, write_json

__all__ = ["CLAIMS", "judge", "judge_saved", "read", "save"]

_garden = partial(Claim, work="The Garden of Forking Paths")
_bifurcation = partial(_garden, bifurcation=True)

_NO_FORK = (
    "Eq 4 integrates w itself, so weights that settle at ±a make it grow: no fork in the textbook sense gives the fall "
    "of Fig 3. A turn of the weight vector, or a return to its first value, does."
)
_SCAN = (
    "Likeliest drop near S over all widths (1 to 40 of 143 records), by restricted likelihood ratio against a smooth "
    "trend with autocorrelated noise (white noise to random walk); p from the same search in 1,999 simulated curves of "
    "each likely noise. Likelier changes elsewhere are fitted beside it and spikes left out; no other drop may score "
    "as much, and no rise near S that is as large or likelier."
)
_AT_S = "the same step: the first half of the drop within 10 % of training of S"
_LOGISTIC = "A logistic fall much shorter than 60 % of the training, with its middle near S, may count as a drop."

CLAIMS: Mapping[Claim, Callable[[SavedResults], Decision]] = {
    _bifurcation(
        "msd-peak",
        "The mean squared displacement (Eq 4, demeaned over the weights) peaks at an interior step and falls after it "
        "(paper: about 80,000 for 70M, 105,000 for 160M).",
        "Fig 3",
        "Prominence of the peak, beyond the median of random walks with the measured sizes, number of directions and "
        "persistence of steps; what makes the peak (a turn, a return, motion in few directions) is named.",
        "10 %; 70M and 160M: within 10 % of training of the paper's step",
        remark=_NO_FORK,
    ): msd_peak,
    _bifurcation(
        "msd-time-peak",
        "Demeaned over time, the displacement peaks where a random walk's does not.",
        "Fig 3",
        "Prominence of the peak of the ratio to the mean of such random walks, beyond their median; the curve itself "
        "peaks mid-way by construction.",
        "10 %; the ratio and the curve peak at the same step, within 10 % of training",
        remark=_NO_FORK,
    ): msd_time_peak,
    _bifurcation(
        "quasi-linear-msd",
        "Before the bifurcation S the mean squared displacement grows quasi-linearly.",
        "§4.1, Fig 3",
        "Log-log exponent of the MSD (Eq 4) against the record number up to S; null: exponents that differ from 1 by "
        "0.25 (two one-sided tests).",
        "a difference from 1 of at most 0.25",
        remark="The MSD of Eq 4 is of the integral of w: weights that hardly move give 2, a random walk up to 3.",
    ): quasi_linear_msd,
    _bifurcation(
        "two-regimes",
        "Training has two regimes: the weights diffuse before S, and move deterministically after it.",
        "§4.1",
        "Log-log exponents of the displacement over the lag in ∫η², before and after S; nulls: random walks with the "
        "measured steps, and walks that go on after S as before it, with noise of single records.",
        "before S within 0.5 of 1, after S further from it by 0.25 than before and than the walks, and 0.5 or less "
        "(rest) or 1.5 or more (ballistic)",
    ): two_regimes,
    _garden(
        "changes-at-the-end",
        "The 410M model moves otherwise at the end of its training than before.",
        "§4.1",
        "Squared displacement per ∫η² in the last tenth of the steps against that before it, the two tenths before and "
        "their trend; null: random walks whose squared displacement per ∫η² is the same throughout.",
        "a measured factor of 1.5 either way; 410M only",
    ): changes_at_the_end,
    DENSITY_BIMODAL: density_bimodal,
    SYMMETRIC_MODES: symmetric_modes,
    _bifurcation(
        "perplexity-drops",
        "The forward perplexity drops at S.",
        "Fig 4",
        f"Logarithm of the corpus perplexity. {_SCAN}",
        f"a drop by 10 %; {_AT_S}",
        remark=_LOGISTIC,
    ): perplexity_drops,
    _bifurcation(
        "unmasking-drops",
        "The causal-unmasking perplexity drops at S.",
        "Fig 6",
        f"Logarithm of the corpus perplexity. {_SCAN}",
        f"a drop by 10 %; {_AT_S}",
        remark=_LOGISTIC,
    ): unmasking_drops,
    _bifurcation(
        "sharper-at-the-end",
        "The drop of the causal-unmasking perplexity is sharper for long prefixes, towards the end of the sentence.",
        "§4.2.2, Fig 6",
        "The same search for a drop in the difference of log perplexities between the long and the short third of the "
        "prefix lengths that at least half of the sentences have.",
        f"an extra drop by 10 %; {_AT_S}",
    ): sharper_at_the_end,
    _bifurcation(
        "perplexity-below-one",
        "Perplexity falls towards zero, far below 1 (the paper draws values down to 1e-18).",
        "Fig 4",
        "Least value of all perplexity tables. exp(mean NLL) of a probability is at least 1: this cannot be supported.",
        "none",
    ): perplexity_below_one,
    _bifurcation(
        "rank-shrinks",
        "The covariance rank of randomly projected weights shrinks at S.",
        "Fig 7",
        f"Mean rank over the paper's absolute tolerances (0.1 to 1), largest batch. {_SCAN}",
        f"a drop by 10 % of the greatest rank, or by one direction if that is more; {_AT_S}; not testable where the "
        "rank is at its ceiling, B − 1 or d",
    ): rank_shrinks,
    _bifurcation(
        "stationary",
        "The weights become stationary.",
        "Fig 3",
        "From some record to the end the displacement between two records no longer grows with their distance in ∫η², "
        "and the diffusion is small against that before; the search for that record is repeated in random walks whose "
        "steps follow the learning rate, with the measured number of directions, persistence and noise of records.",
        "growth (0 saturated, 1 a random walk) and diffusion relative to before at most 0.35; without a learning rate "
        "only equilibrium from the first record on can be judged",
    ): stationary,
    _bifurcation(
        "stop-when-stationary",
        "Training may stop once the weights are stationary.",
        "§5",
        "Fall of the loss from the beginning of the rest to the end, of a parabola fitted to it, with the correlation "
        "of neighbouring losses; null: a fall by 1 %. p is the larger of that of the rest and that of the loss.",
        "a gain of at most 1 %",
    ): stop_when_stationary,
    TERNARY_DENSITY: ternary_density,
    TERNARY_FUNCTION: ternary_function,
    **ORDER_CLAIMS,
}
"""Every claim, and the function that tests it on the saved results."""


def judge(results: Results) -> tuple[Verdict, ...]:
    """Test every claim on the saved results of a model.

    Parameters
    ----------
    results
        The folder of the model, or of one tensor of it (see `Results.weights`).

    Returns
    -------
    tuple of Verdict
        One for each of `CLAIMS`, in their order.

    Raises
    ------
    PythiaDynError
        Where the model has no results, or its tables are of different weights.
    """
    if not results.path.is_dir():
        raise PythiaDynError(f"no results in {results.path}; run pythia-dyn msd --model {results.name}")
    results.weights().require_same_weights()
    return judge_saved(SavedResults(results))


def judge_saved(saved: SavedResults) -> tuple[Verdict, ...]:
    """Test every claim on results, with p-values corrected for the number of tests.

    Parameters
    ----------
    saved
        The results of one model.

    Returns
    -------
    tuple of Verdict
        One for each of `CLAIMS`, in their order.
    """
    decisions = corrected([decision_of(test, saved) for test in CLAIMS.values()])
    return tuple(Verdict.of(claim, decision) for claim, decision in zip(CLAIMS, decisions, strict=True))


def save(results: Results, verdicts: tuple[Verdict, ...]) -> Path:
    """Write `verdicts` to ``claims.json`` in the folder `results`; numbers that are not finite become null."""
    content = {"model": results.name, "claims": [asdict(verdict) for verdict in verdicts]}
    return write_json(results.path / "claims.json", content)


def read(results: Results) -> tuple[Verdict, ...] | None:
    """The verdicts in ``claims.json`` of the folder `results`; None where the file is missing or damaged."""
    try:
        return tuple(Verdict(**entry) for entry in read_json(results.path / "claims.json")["claims"])
    except (OSError, ValueError, KeyError, TypeError, PythiaDynError):
        return None
