"""Norm and drift of each row of W_U against the frequency of its token, and the unigram direction.

Godey, de la Clergerie & Sagot, "Why do small language models underperform?", arXiv 2404.07647.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, first_line
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset
from pythia_dynamics.sweep.row_sums import RowSums
from pythia_dynamics.tables import read_csv

if TYPE_CHECKING:
    import xarray as xr

    Frequencies = Mapping[int, float] | Sequence[float] | NDArray[Any] | str | Path

__all__ = ["read_frequencies", "rows", "unigram_direction"]

_KINDS = ("norm", "drift", "update")
_WORDS = {
    "norm": "norm of a row",
    "drift": "distance of a row from the first step",
    "update": "distance of a row from the step before",
}

CORRELATIONS = tuple(f"spearman_{kind}{suffix}" for kind in _KINDS for suffix in ("", "_p"))
UNIGRAM = ("unigram_r2", "unigram_r2_null", "unigram_mean_cosine")
"""The variables that are there only where frequencies are given."""

MOST_VALUES = 1 << 23
"""Values of a variable over rows and steps that are kept, 34 MB in float32. It holds the 7.2 million of 143 steps of
Pythia's 50,304 rows; a longer history keeps evenly spaced steps of the rows, and every step of everything else."""

_DECILES = 10
_PERMUTATIONS = 4
"""Random orders of the frequencies for the null of the unigram direction: each costs as much as the direction itself,
and a mean of four is near enough to see whether the share is larger than by chance."""

_FEWEST_TOKENS = 10
"""Tokens with a frequency. Deciles of fewer do not exist."""

_BLOCK = 1 << 22
"""Weights that are widened to float32 at a time: 17 MB."""


def rows(
    history: Any,
    *,
    frequencies: Annotated[
        Frequencies | None,
        Flag(
            "CSV with token_id and count; or a text, whose tokens are counted with the tokenizer of the checkpoints.",
            is_file=True,
        ),
    ] = None,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Norm and drift of each row of the weights, and how they depend on the frequency of its token.

    Row i of W_U belongs to token i. At each step, ‖w_i‖, the drift ‖w_i − w_i(0)‖ from the first present step, and the
    update ‖w_i − w_i(s)‖ from the present step s before. With frequencies p_i, over the tokens with p_i > 0:

    * the rank correlation (Spearman) of each of the three with p_i, and its p-value for tokens without any relation;
    * means of the three by decile of p_i, decile 10 the most frequent; decile 0 are the tokens that do not occur;
    * the unigram direction u = Σ_i (ln p_i − mean) (w_i − w̄), the direction of the rows that covaries most with ln p_i
      (the first component of partial least squares). `unigram_r2` is the share of the variance of ln p_i that the
      coordinate w_i·u explains; `unigram_r2_null` the same for frequencies in random order; `unigram_mean_cosine` the
      cosine of u with the mean row w̄ (see `unigram_direction`).

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, v, d).
    frequencies : mapping, sequence, str or Path, optional
        The count of each token: by token number; one value per row; or a CSV with the columns ``token_id`` and
        ``count``. Tokens that are not named have none. Counts of a text: `pythia_dynamics.token_counts`.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute. Rows of padding are left out by its `rows`.

    Returns
    -------
    xarray.Dataset
        Over `step`, NaN at missing steps and at steps with weights that are not finite: `norm`, `drift` and `update`,
        means over rows, in units of weight, and with frequencies `spearman_norm`, `spearman_norm_p` …, `unigram_r2`,
        `unigram_r2_null`, `unigram_mean_cosine`; over (step, decile) `decile_norm`, `decile_drift`, `decile_update`.
        Over (row_step, row), float32: `row_norm`, `row_drift`, `row_update`, where row_step are all steps, or evenly
        spaced ones where there are more than 8 million values. `update` is NaN at the first present step.

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite; the frequencies cannot be read, are negative or not finite, name a
        token that has no row, or belong to fewer than ten tokens.
    """
    return ROWS(history, frequencies=frequencies, steps=steps, compute=compute)


def _finish(history: History, sums: RowSums, *, frequencies: Frequencies | None) -> xr.Dataset:
    at, count = sums.indices, sums.rows
    total = np.sqrt(sums.total)
    bad = ~np.isfinite(total[:, :, 0]).all(axis=1)
    total[bad] = np.nan  # no step is finite, so the sweep left out none
    total[:1, :, 2] = np.nan  # there is no step before
    means = total.mean(axis=1, dtype=np.float64)
    variables = {kind: Variable(means[:, i], f"mean {_WORDS[kind]}", "weight") for i, kind in enumerate(_KINDS)}
    coords: dict[str, Any] = {}
    if frequencies is not None:
        known = read_frequencies(frequencies, count)
        variables |= _against(known, total) | _unigram(history, at[~bad], ~bad, known)
        coords["decile"] = np.arange(_DECILES + 1)
    kept = _kept(len(at), count)
    for i, kind in enumerate(_KINDS):
        label = _WORDS[kind]
        variables[f"row_{kind}"] = Variable(total[kept, :, i], label, "weight", ("row_step", "row"))
    return step_dataset(history, variables, at=at, coords={**coords, "row_step": history.steps[at[kept]]})


def _kept(length: int, count: int) -> NDArray[np.intp]:
    """Positions of the steps whose rows are kept, the first and the last among them."""
    most = max(MOST_VALUES // count, 1)
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.intp))


def read_frequencies(frequencies: Frequencies, count: int) -> NDArray[np.float64]:
    """The count of each token, in the order of the rows.

    Parameters
    ----------
    frequencies
        As for `rows`.
    count
        Number of rows, v.

    Returns
    -------
    array of float64, shape (v,)
        Zero for a token without a count.

    Raises
    ------
    PythiaDynError
        As `rows` does.
    """
    where = "the frequencies"
    if isinstance(frequencies, (str, Path)):
        where = str(frequencies)
        try:
            lines = read_csv(Path(frequencies))
            frequencies = {int(line["token_id"]): float(line["count"]) for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PythiaDynError(
                f"{where} is no table of token_id and count: {first_line(error) or type(error).__name__}"
            ) from error
    if not isinstance(frequencies, Mapping):
        given = np.asarray(frequencies, dtype=np.float64)
        if given.ndim != 1:
            raise PythiaDynError(f"{where} must have one value per row; got shape {given.shape}")
        frequencies = dict(enumerate(given.tolist()))
    known = np.zeros(count)
    for token, value in frequencies.items():
        if not np.isfinite(value) or value < 0:
            raise PythiaDynError(f"{where}: the count of token {token} is {value:g}")
        if not 0 <= token < count and value > 0:
            raise PythiaDynError(f"{where}: token {token} has no row; there are {count}")
        if value > 0:
            known[token] = value
    if np.count_nonzero(known) < _FEWEST_TOKENS:
        raise PythiaDynError(f"{where}: only {np.count_nonzero(known)} tokens occur; {_FEWEST_TOKENS} are needed")
    return known


def _against(known: NDArray[np.float64], total: NDArray[Any]) -> dict[str, Variable]:
    """Rank correlations with the frequency, and means by its decile."""
    from scipy.stats import rankdata
    from scipy.stats import t as student

    seen = np.flatnonzero(known)
    size = len(seen)
    order = rankdata(known[seen])
    decile = np.zeros(len(known), dtype=np.intp)
    decile[seen[np.argsort(known[seen], kind="stable")]] = 1 + np.arange(size) * _DECILES // size
    members = np.bincount(decile, minlength=_DECILES + 1)
    variables = {}
    for i, kind in enumerate(_KINDS):
        values = total[:, :, i].astype(np.float64)
        correlation = np.array([_correlation(rankdata(row[seen]), order) for row in values])
        correlation[~np.isfinite(values).all(axis=1)] = np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.abs(correlation) * np.sqrt((size - 2) / np.maximum(1 - correlation**2, 0))
            by_decile = np.array([np.bincount(decile, row, _DECILES + 1) for row in values]) / members
        words = f"{_WORDS[kind]}, rank correlation with the frequency of its token"
        variables[f"spearman_{kind}"] = Variable(correlation, words)
        variables[f"spearman_{kind}_p"] = Variable(2 * student.sf(statistic, size - 2), f"p-value: {words}")
        label = f"mean {_WORDS[kind]} by decile of the frequency"
        variables[f"decile_{kind}"] = Variable(by_decile, label, "weight", ("step", "decile"))
    return variables


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    a, b = first - first.mean(), second - second.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else np.nan


def unigram_direction(
    weights: NDArray[Any], targets: NDArray[np.float64], chosen: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The directions u = Σ_i (y_i − ȳ)(w_i − w̄) of rows that covary most with targets y, and what they explain.

    Parameters
    ----------
    weights
        Shape (v, d).
    targets
        Shape (n, K): K targets of n rows.
    chosen
        The n rows, increasing.

    Returns
    -------
    tuple of array
        u, shape (d, K); the squared correlation of the coordinates w_i·u with y, shape (K,), NaN where the rows do not
        differ; and the mean w̄ of the chosen rows, shape (d,).
    """
    block = max(_BLOCK // weights.shape[1], 1)
    blocks = [slice(start, start + block) for start in range(0, len(chosen), block)]
    targets = targets - targets.mean(axis=0)
    mean, direction = np.zeros(weights.shape[1]), np.zeros((weights.shape[1], targets.shape[1]))
    for part in blocks:
        values = weights[chosen[part]].astype(np.float32)
        mean += values.sum(axis=0, dtype=np.float64) / len(chosen)
        direction += values.T @ targets[part].astype(np.float32)
    direction -= np.outer(mean, targets.sum(axis=0))  # rounding: centred targets have the sum zero
    scale = np.abs(direction).max(axis=0)
    unit = (direction / np.where(scale > 0, scale, 1)).astype(np.float32)
    shift = mean.astype(np.float32)
    coordinates = np.concatenate([(weights[chosen[part]].astype(np.float32) - shift) @ unit for part in blocks])
    explained = [_correlation(one.astype(np.float64), y) ** 2 for one, y in zip(coordinates.T, targets.T, strict=True)]
    return direction, np.array(explained), mean


def _unigram(
    history: History, at: NDArray[np.intp], good: NDArray[np.bool_], known: NDArray[np.float64]
) -> dict[str, Variable]:
    """What the unigram direction explains at each step, and in random order; its cosine with the mean row."""
    chosen = np.flatnonzero(known)
    log = np.log(known[chosen])
    rng = np.random.default_rng(0)
    targets = np.column_stack([log, *(rng.permutation(log) for _ in range(_PERMUTATIONS))])
    found = np.full((len(good), 3), np.nan)
    for place, index in zip(np.flatnonzero(good), at.tolist(), strict=True):
        frame = history.frame(index)
        assert frame is not None  # only present steps are in use
        matrix = frame.reshape(-1, frame.shape[-1]) if frame.ndim > 1 else frame.reshape(-1, 1)
        direction, explained, mean = unigram_direction(matrix, targets, chosen)
        lengths = float(np.linalg.norm(direction[:, 0]) * np.linalg.norm(mean))
        cosine = float(direction[:, 0] @ mean) / lengths if lengths > 0 else np.nan
        found[place] = explained[0], explained[1:].mean(), cosine
    labels = (
        "share of the variance of log frequency along the unigram direction",
        "share of the variance of log frequency in random order along its direction",
        "cosine of the unigram direction with the mean row",
    )
    return {name: Variable(found[:, i], labels[i]) for i, name in enumerate(UNIGRAM)}


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    facts: dict[str, Any] = {kind: ends(dataset[kind]) for kind in _KINDS}
    sentence = f"mean norm of a row {format_ends(facts['norm'])}, mean drift {format_ends(facts['drift'])}"
    if "unigram_r2" in dataset:
        names = ("spearman_norm", "spearman_drift", "unigram_r2", "unigram_r2_null")
        facts |= {name: ends(dataset[name]) for name in names}
        sentence += (
            f"; rank correlation of norm and frequency {format_ends(facts['spearman_norm'], 3)}; the unigram direction "
            f"explains {format_ends(facts['unigram_r2'], 3)} of log frequency, in random order "
            f"{format_ends(facts['unigram_r2_null'], 3)}"
        )
    return sentence, facts


ROWS = Measure(
    name="rows",
    title="Rows of W_U",
    source="Godey et al., arXiv 2404.07647",
    function=rows,
    accumulators=(RowSums,),
    finish=_finish,
    tables={  # without a title: too wide for a printed page of the report
        "rows": Table(("step", *_KINDS, *CORRELATIONS, *UNIGRAM), optional=(*CORRELATIONS, *UNIGRAM))
    },
    saves_array=True,
    summarise=_summarise,
)
