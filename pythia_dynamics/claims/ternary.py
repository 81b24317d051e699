"""Claims that the weights quantise themselves to three values (Garden of Forking Paths, Fig 2 and §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.density import known_density
from pythia_dynamics.claims.evidence import LEVEL, Evidence
from pythia_dynamics.claims.saved import Curve, SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Number

__all__ = ["TERNARY_DENSITY", "TERNARY_FUNCTION", "ternary_density", "ternary_error", "ternary_function"]

_garden = partial(Claim, work="The Garden of Forking Paths")

_MAX_TERNARY_ERROR = 0.05
"""Largest rounding error of weights that count as quantised: less than half of a uniform density's 0.11."""

_LEAST_OUTER_SHARE = 0.05
"""Least share of the weights at −s, and at +s. All weights about one value, such as the scales of a LayerNorm at 1,
round to it with little error, and are not quantised."""

_MAX_TERNARY_COST = 0.05
"""Largest relative increase of the perplexity that counts as "as good"."""

TERNARY_DENSITY = _garden(
    "ternary-density",
    "The head quantises itself: its weights gather at −s, 0 and +s.",
    "Fig 2",
    "Share of Σw² that rounding to the best {−s, 0, +s} leaves as error, from the exact counts.",
    "at most 5 % at the last step, and half of that at the first; 5 % of the weights at −s, and at +s",
)
TERNARY_FUNCTION = _garden(
    "ternary-function",
    "The head quantises itself: with its weights rounded to three values the model is as good.",
    "§5",
    "Forward perplexity of the last step with W_U rounded to {−1, 0, +1}·mean|w| against that with W_U as it is, "
    "passage by passage: t-test that the increase is 5 % or more.",
    "an increase by at most 5 %; undecided without the scores of passages",
)


def ternary_density(saved: SavedResults) -> Decision:
    """Rounding to the best {−s, 0, +s} loses at most 5 % of Σw² at the last step, and half of the loss at the first.

    Parameters
    ----------
    saved
        The results of a model.

    Raises
    ------
    NotTestableError
        There is no step with finite weights.
    """
    density = known_density(saved)
    if not density.sizes["step"]:
        raise NotTestableError("density.zarr has no step with finite weights")
    values = density["value"].to_numpy()
    ends = density["counts"].transpose("step", "value").to_numpy()[[0, -1]].astype(np.float64)
    _, first = ternary_error(values, ends[0])
    scale, last = ternary_error(values, ends[1])
    low, high = (float(ends[1][side].sum() / ends[1].sum()) for side in (values < -scale / 2, values > scale / 2))
    finding = (
        f"rounding the last step's weights to {{−s, 0, +s}} with the best s = {scale:.3g} loses {last:.1%} of their "
        f"square (first step {first:.1%}; Gaussian 19 %, uniform 11 %); {low:.0%} of them are at −s, {high:.0%} at +s"
    )
    numbers = {"error_first": first, "error_last": last, "scale": scale, "share_low": low, "share_high": high}
    evidence = Evidence.exact(
        "share of Σw² that rounding to three values leaves as error", last, _MAX_TERNARY_ERROR, at_most=True
    )
    gathered = last <= first / 2 and first > 0 and min(low, high) >= _LEAST_OUTER_SHARE
    return Decision(finding, numbers, evidence, refuted=not gathered)


def ternary_error(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The best scale s and the share of Σw² that rounding the weights to {−s, 0, +s} leaves as error.

    The share is 0 for weights with two or three such values, 1/9 for a uniform density and 0.19 for a Gaussian
    (Max 1960).

    Parameters
    ----------
    values
        float64, shape (k,).
    counts
        float64, shape (k,): how often each value occurs; their sum is not 0.

    Returns
    -------
    tuple of float
        s, the best of 2,048 scales between 0 and max |w| or 4 rms, and the share. Both are 0 where all weights are 0.
    """
    sizes = np.abs(values)
    order = np.argsort(sizes)
    sizes, weights = sizes[order], counts[order] / counts.sum()
    total = float(weights @ sizes**2)
    if total == 0:
        return 0.0, 0.0
    # Above the threshold s/2 a weight w leaves (|w| − s)², below it w²: the gain is Σ (2 s |w| − s²) over those above.
    above_mass = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    above_size = np.append(np.cumsum((weights * sizes)[::-1])[::-1], 0.0)
    scales = np.linspace(0, 1, 1025)[1:] * sizes[-1]
    scales = np.union1d(scales, np.linspace(0, 1, 1025)[1:] * 4 * np.sqrt(total))
    cut = np.searchsorted(sizes, scales / 2, side="right")
    gain = 2 * scales * above_size[cut] - scales**2 * above_mass[cut]
    best = int(np.argmax(gain))
    return float(scales[best]), float(max(1 - gain[best] / total, 0.0))


@dataclass(frozen=True)
class _Scores:
    """What passages score at one step: NLL in nats, and numbers of tokens, shapes (S,)."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.float64]


def ternary_function(saved: SavedResults) -> Decision:
    """Rounding W_U to {−1, 0, +1}·scale raises the forward perplexity of the last step by at most 5 %.

    Parameters
    ----------
    saved
        The results of a model.

    Raises
    ------
    NotTestableError
        One of the two perplexities is not known.
    """
    table, rounded = saved.read("perplexity-forward.csv", "ternary/perplexity-forward.csv")
    curve, ternary = Curve.of(table["ppl_corpus"]), Curve.of(rounded["ppl_corpus"])
    if not len(ternary) or saved.settings("ternary/perplexity-forward").get("head") != "ternary":
        raise NotTestableError("ternary/perplexity-forward.csv has no perplexity with W_U rounded to three values")
    step, perplexity = int(ternary.steps[-1]), float(ternary.values[-1])
    if step not in curve.steps:
        raise NotTestableError(f"the perplexity of step {step:,} with W_U as it is is not known")
    exact = curve.at(step)
    finding = f"at step {step:,} rounding W_U to three values takes the perplexity from {exact:.4g} to {perplexity:.4g}"
    numbers: dict[str, Number] = {"step": step, "ppl": exact, "ppl_ternary": perplexity, "cost": perplexity / exact - 1}
    statistic = "relative increase of the perplexity with W_U rounded to three values"
    pair = [_scores(saved, file, step) for file in ("perplexity-forward.zarr", "ternary/perplexity-forward.zarr")]
    if pair[0] is not None and pair[1] is not None and np.array_equal(pair[0].tokens, pair[1].tokens):
        evidence, numbers["passages"] = _cost(statistic, pair[0], pair[1])
        if evidence is not None:
            return Decision(finding, numbers, evidence)
    evidence = Evidence(statistic, perplexity / exact - 1, _MAX_TERNARY_COST, at_most=True)
    finding += "; without the scores of two passages or more, at both, the error of that is not known"
    return Decision(finding, numbers, evidence, open=True)


def _scores(saved: SavedResults, file: str, step: int) -> _Scores | None:
    """The scores of one step, None where they are not saved."""
    archive = saved.find(file)
    if archive is None or not {"sentence_nll", "sentence_tokens"} <= set(archive.data_vars):
        return None
    rows = np.flatnonzero(archive["step"].to_numpy() == step)
    if not len(rows):
        return None
    row = archive.isel(step=int(rows[-1]))  # a step that is evaluated again gets a new row
    nll, tokens = (row[name].to_numpy().astype(np.float64) for name in ("sentence_nll", "sentence_tokens"))
    return _Scores(nll, tokens)


def _cost(statistic: str, exact: _Scores, rounded: _Scores) -> tuple[Evidence | None, int]:
    """The evidence on the increase of the corpus perplexity, from the passages with finite scores; their number.

    The perplexity increases by less than 5 % where Σ (NLL of the rounded − NLL − log 1.05 · tokens) is negative.
    Passages are taken as independent. None for fewer than two of them.
    """
    from scipy import stats

    known = np.isfinite(exact.nll) & np.isfinite(rounded.nll) & (exact.tokens > 0)
    more, tokens = (rounded.nll - exact.nll)[known], exact.tokens[known]
    count = len(more)
    if count < 2:
        return None, count
    rate = float(more.sum() / tokens.sum())
    error = float((more - rate * tokens).std(ddof=1) / math.sqrt(count) / tokens.mean())
    largest, freedom = math.log1p(_MAX_TERNARY_COST), count - 1
    if error == 0:
        p, power, low, high = float(rate > largest), 1.0, rate, rate
    else:
        p = float(stats.t.cdf((rate - largest) / error, freedom))
        power = float(stats.t.cdf(largest / error - stats.t.ppf(1 - LEVEL, freedom), freedom))
        low, high = (rate + sign * error * float(stats.t.ppf(0.975, freedom)) for sign in (-1, 1))
    evidence = Evidence(
        statistic,
        effect=_relative(rate),
        least=_MAX_TERNARY_COST,
        null="an increase by 5 % or more",
        p=p,
        power=power,
        low=_relative(low),
        high=_relative(high),
        at_most=True,
    )
    return evidence, count


def _relative(nats: float) -> float:
    """A difference of nats per token as a relative difference of perplexities."""
    return float(np.expm1(min(nats, 700.0)))  # e^700 is near the greatest float64
