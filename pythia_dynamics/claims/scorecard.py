"""The list of claims of the two works, their verdicts for a model, and the file ``claims.json``.

A verdict is *supported*, *not supported*, or *not testable here*, with its numbers and its reason. Claims about the
bifurcation are tested at the step where the MSD peaks beyond its null, else at the paper's step (70M and 160M).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pythia_dynamics.claims import losses, motion
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_json, write_json

__all__ = ["CLAIMS", "judge", "read", "save"]

_garden = partial(Claim, work="The Garden of Forking Paths")
_bifurcation = partial(_garden, bifurcation=True)
_order = partial(Claim, work="A Large Language Model Order Parameter")
_SAME = "the same step: within 10 % of the training that was looked at"
_DROP = (
    "change of the mean over windows of 5 % of training, beyond the trend of the windows beside them; it must be "
    "greater than at every other place"
)

CLAIMS: Mapping[Claim, Callable[[SavedResults], Decision]] = {
    _bifurcation(
        "msd-peak",
        "The mean squared displacement (Eq 4, demeaned over the weights) peaks at an interior step and falls after it "
        "(paper: about 80,000 for 70M, 105,000 for 160M).",
        "Fig 3",
        "Rise to and fall after the peak, relative to it, against those of a random walk with the same step sizes.",
        "10 %, or 4 √(2/v) if more (the spread of the walk with v independent rows); 70M and 160M: within 10 % of "
        "training of the paper's step",
    ): motion.msd_peak,
    _bifurcation(
        "msd-time-peak",
        "Demeaned over time, the displacement peaks where a random walk's does not.",
        "Fig 3",
        "The ratio to the walk's own curve, which peaks mid-way by construction: greater than 1, with an interior peak "
        "where the curve has its own.",
        "10 %, or 4 √(2/v) if more; " + _SAME,
    ): motion.msd_time_peak,
    _bifurcation(
        "density-bimodal",
        "The density of the weights turns bimodal at the step of that peak.",
        "Fig 2",
        "First step from which a kernel density estimate of the exact counts has two modes at every step to the end.",
        "second mode: 5 % of the highest, or 4 standard deviations of the estimate for v rows; lasting: a tenth of the "
        "steps; " + _SAME,
    ): motion.density_bimodal,
    _bifurcation(
        "perplexity-drops",
        "The forward perplexity drops at the step of that peak.",
        "Fig 4",
        f"Logarithm of the corpus perplexity: {_DROP}.",
        "a drop by 10 %; " + _SAME,
    ): losses.perplexity_drops,
    _bifurcation(
        "unmasking-drops",
        "The causal-unmasking perplexity drops at the step of that peak.",
        "Fig 6",
        f"Logarithm of the corpus perplexity: {_DROP}.",
        "a drop by 10 %; " + _SAME,
    ): losses.unmasking_drops,
    _bifurcation(
        "perplexity-below-one",
        "Perplexity falls towards zero, far below 1 (the paper draws values down to 1e-18).",
        "Fig 4",
        "Least value of all perplexity tables. exp(mean NLL) of a probability is at least 1: this cannot be supported.",
        "none",
    ): losses.below_one,
    _bifurcation(
        "rank-shrinks",
        "The covariance rank of randomly projected weights shrinks at the step of that peak.",
        "Fig 7",
        f"Mean rank over the paper's absolute tolerances (0.1 to 1), largest batch: {_DROP}.",
        "a drop by 10 % of the greatest rank, by 1, or by 3 standard errors, whichever is most; " + _SAME,
    ): motion.rank_shrinks,
    _bifurcation(
        "stationary",
        "After the step of that peak the weights are stationary.",
        "Fig 3",
        "Log-log exponent of the time-averaged displacement between two steps, from 10 % of training after it on, "
        "over lags from 1/8 to 1/2 of what is left: 0 where stationary, 1 for a random walk.",
        "upper end of its 95 % interval (jackknife over waiting times) below 0.5",
    ): motion.stationary,
    _bifurcation(
        "stop-when-stationary",
        "Training may stop once the weights are stationary.",
        "§5",
        "Loss at the end against that at the bifurcation, where the weights are stationary after it.",
        "a gain of at most 1 %",
    ): losses.nothing_to_gain,
    _garden(
        "ternary-density",
        "The head quantises itself: its weights gather at −s, 0 and +s.",
        "Fig 2",
        "Share of Σw² that rounding to the best {−s, 0, +s} leaves as error, from the exact counts.",
        "at most 5 % at the last step, and half of that at the first",
    ): motion.ternary_density,
    _garden(
        "ternary-function",
        "The head quantises itself: with its weights rounded to three values the model is as good.",
        "§5",
        "Forward perplexity of the last step with W_U rounded to {−1, 0, +1}·mean|w| against that with W_U as it is.",
        "5 % more",
    ): motion.ternary_function,
    _order(
        "b-monotone",
        "The order parameter b = ‖W‖/d_model grows monotonically during training.",
        "Fig 4",
        "Largest fall of b below a value it had before, relative to its range; last value above the first.",
        "1 % of the range",
    ): losses.b_monotone,
    _order(
        "loss-falls-with-b",
        "The loss falls monotonically with b.",
        "Fig 4",
        "Spearman's rank correlation, and the largest rise of the loss above an earlier value in the order of b.",
        "correlation ≤ −0.9, rise ≤ 5 % of the range",
    ): losses.loss_falls_with_b,
    _order(
        "slope-changes",
        "The slope dL/db changes during training in small models.",
        "Fig 5",
        "Line with one break against one line (Monte-Carlo F test), and against a cubic of as many parameters.",
        "p ≤ 0.01, slopes that differ twofold or in sign, and at most 0.8 of the cubic's residual",
    ): losses.slope_changes,
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
    saved = SavedResults(results)
    return tuple(Verdict.of(claim, decision_of(test, saved)) for claim, test in CLAIMS.items())


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
