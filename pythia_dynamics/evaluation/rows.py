"""The row of a checkpoint in a table of an evaluation: its columns, its text, and the dataset of several rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.evaluation.archive import Field
from pythia_dynamics.evaluation.hidden_states import HiddenStates
from pythia_dynamics.evaluation.last_word import last_word_row
from pythia_dynamics.evaluation.scoring import Sentences, summarise
from pythia_dynamics.evaluation.settings import Mode
from pythia_dynamics.tables import csv_text

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "COLUMNS",
    "CURVES",
    "FIELDS",
    "AnyRow",
    "Row",
    "curve_lines",
    "dataset_of",
    "header",
    "line",
    "row_from",
    "stem",
]

_SENTENCES = (
    *("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "sentences", "nonfinite", "overflow", "tokens", "entropy"),
    *("ppl_mean_se", "ppl_corpus_se", "nll_mean_se"),
)
COLUMNS: Mapping[Mode, tuple[str, ...]] = {
    "forward": _SENTENCES,
    "unmask": _SENTENCES,
    "last-word": ("ppl", "accuracy", "sentences", "nonfinite", "overflow", "ppl_se", "accuracy_se"),
    "representation": (
        *("anisotropy", "rankme", "effective_rank", "alpha", "kl_unigram", "kl_bigram", "positions", "nonfinite"),
        *("alpha_se", "kl_unigram_se", "kl_bigram_se"),
        *("anisotropy_null_sd", "rankme_null", "effective_rank_null", "alpha_null"),
    ),
}
"""Columns of the table of a mode after `step`, and variables of the mode's dataset."""

CURVES = {"nll_mean": "prefix_nll", "entropy": "prefix_entropy", "sentences": "prefix_sentences"}
"""Columns of ``perplexity-unmask-prefix.csv`` after `step` and `prefix`, and their names in datasets and archives."""

_COUNTS = ("sentences", "nonfinite", "overflow", "tokens", "positions")
"""Columns that are written as integers."""

_UNITS_AND_NAMES: Mapping[str, tuple[str, str]] = {
    "ppl": ("1", "perplexity of the last word"),
    "ppl_se": ("1", "standard error of the perplexity of the last word"),
    "ppl_mean": ("1", "mean perplexity of a sentence"),
    "ppl_mean_se": ("1", "standard error of the mean perplexity of a sentence"),
    "ppl_median": ("1", "median perplexity of a sentence"),
    "ppl_corpus": ("1", "perplexity over all tokens"),
    "ppl_corpus_se": ("1", "standard error of the perplexity over all tokens"),
    "nll_mean": ("nat", "mean over sentences of the NLL per token"),
    "nll_mean_se": ("nat", "standard error of the mean NLL per token"),
    "accuracy": ("1", "share of last words that greedy decoding gives"),
    "accuracy_se": ("1", "standard error of the accuracy"),
    "sentences": ("1", "sentences with a valid perplexity"),
    "nonfinite": ("1", "sentences whose NLL is not finite, or below 0"),
    "overflow": ("1", "sentences whose perplexity is beyond the range of float64"),
    "tokens": ("1", "tokens scored"),
    "entropy": ("nat", "mean over sentences of the entropy per predicted token"),
    "anisotropy": ("1", "mean cosine of two hidden states"),
    "anisotropy_null_sd": ("1", "standard deviation of the mean cosine of isotropic states"),
    "rankme": ("1", "RankMe: exp of the entropy of the singular values"),
    "rankme_null": ("1", "RankMe of isotropic Gaussian states"),
    "effective_rank": ("1", "effective rank: exp of the entropy of the eigenvalues of the covariance"),
    "effective_rank_null": ("1", "effective rank of isotropic Gaussian states"),
    "alpha": ("1", "exponent of the decay of the eigenvalues of the covariance"),
    "alpha_se": ("1", "standard error of the fit of the exponent"),
    "alpha_null": ("1", "exponent of isotropic Gaussian states"),
    "kl_unigram": ("nat", "KL(unigram ‖ model) per token"),
    "kl_unigram_se": ("nat", "standard error of KL(unigram ‖ model)"),
    "kl_bigram": ("nat", "KL(bigram ‖ model) per token"),
    "kl_bigram_se": ("nat", "standard error of KL(bigram ‖ model)"),
    "positions": ("1", "hidden states"),
}
_NONFINITE_POSITIONS = "hidden states that are not finite, or whose predictions are not"

_NLL = Field("float64", "sentence", "nat", "NLL of the scored tokens of a sentence")
_ENTROPY = Field("float64", "sentence", "nat", "entropy of the scored tokens of a sentence")
_TOKENS = Field("int32", "sentence", "1", "scored tokens of a sentence")
_GREEDY = Field("int8", "sentence", "1", "whether every scored token is the likeliest one")
_PREFIX: Mapping[str, Field] = {
    "prefix_nll": Field("float64", "prefix", "nat", "mean NLL per generated token"),
    "prefix_entropy": Field("float64", "prefix", "nat", "mean entropy per generated token"),
    "prefix_sentences": Field("float64", "prefix", "1", "sentences longer than the prefix"),
}
_SCORES: Mapping[str, Field] = {
    "sentence_nll": _NLL,
    "sentence_entropy": _ENTROPY,
    "sentence_tokens": _TOKENS,
    "sentence_greedy": _GREEDY,
}
FIELDS: Mapping[Mode, Mapping[str, Field]] = {
    "forward": _SCORES,
    "unmask": {**_SCORES, **_PREFIX},
    "last-word": _SCORES,
    "representation": {
        "mean_direction": Field("float64", "component", "1", "mean of the hidden states divided by their norms"),
        "moment_eigenvalues": Field("float64", "component", "1", "eigenvalues of the mean outer product of a state"),
        "covariance_eigenvalues": Field("float64", "component", "1", "eigenvalues of the covariance of the states"),
        "sentence_kl_unigram": Field("float64", "sentence", "nat", "sum over a sentence of KL(unigram ‖ model)"),
        "sentence_kl_bigram": Field("float64", "sentence", "nat", "sum over a sentence of KL(bigram ‖ model)"),
        "sentence_tokens": _TOKENS,
        "sentence_nonfinite": Field("int32", "sentence", "1", _NONFINITE_POSITIONS),
    },
}
"""Arrays of the archive of a mode, and variables of its dataset beside the columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """The perplexity of one checkpoint in one mode.

    Parameters
    ----------
    scores
        Scores of every passage.
    curves
        Only of unmasking: for each column of `CURVES` the values by prefix length 1 … K, shape (K,), float64.
    """

    scores: Sentences
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def values(self, mode: Mode) -> dict[str, float]:
        """The value of each column of `COLUMNS`; NaN where there is none."""
        return last_word_row(self.scores) if mode == "last-word" else summarise(self.scores)

    def fields(self, mode: Mode) -> dict[str, NDArray[Any]]:
        """The values of each field of `FIELDS`."""
        scores = self.scores
        arrays = {
            "sentence_nll": scores.nll,
            "sentence_entropy": scores.entropy,
            "sentence_tokens": scores.tokens,
            "sentence_greedy": scores.greedy,
        }
        return arrays | ({name: self.curves[column] for column, name in CURVES.items()} if mode == "unmask" else {})

    @classmethod
    def from_fields(cls, fields: Mapping[str, NDArray[Any]]) -> Row:
        """The row with these fields, as an archive has them."""
        tokens, greedy = fields["sentence_tokens"].astype(np.int64), fields["sentence_greedy"] != 0
        scores = Sentences(fields["sentence_nll"], fields["sentence_entropy"], tokens, greedy)
        if "prefix_sentences" not in fields:
            return cls(scores)
        length = int(np.count_nonzero(np.isfinite(fields["prefix_sentences"])))
        return cls(scores, {column: fields[name][:length] for column, name in CURVES.items()})


AnyRow = Row | HiddenStates
"""The result of one checkpoint in one mode."""


def stem(mode: Mode) -> str:
    """Name of the files of a mode, without the suffix: ``perplexity-forward``, ``representation``."""
    return mode if mode == "representation" else f"perplexity-{mode}"


def row_from(mode: Mode, fields: Mapping[str, NDArray[Any]]) -> AnyRow:
    """The row with these fields, as an archive has them."""
    return HiddenStates.from_fields(fields) if mode == "representation" else Row.from_fields(fields)


def header(mode: Mode) -> tuple[str, str]:
    """The first lines of the table and of the table of the curves."""
    return csv_text(("step", *COLUMNS[mode]), ()), csv_text(("step", "prefix", *CURVES), ())


def line(mode: Mode, step: int, row: AnyRow | None) -> str:
    """The line of a step in the table; without a row it has the step alone."""
    columns = COLUMNS[mode]
    values = {} if row is None else row.values(mode)
    cells = (_cell(name, values[name]) if name in values else None for name in columns)
    return _lines(("step", *columns), [(step, *cells)])


def curve_lines(step: int, row: AnyRow) -> str:
    """The lines of a step in the table of the curves."""
    curves = row.curves if isinstance(row, Row) else {}
    values = zip(*(curves[name].tolist() for name in CURVES), strict=True) if curves else ()
    rows = (
        (step, prefix, *(_cell(name, value) for name, value in zip(CURVES, found, strict=True)))
        for prefix, found in enumerate(values, start=1)
    )
    return _lines(("step", "prefix", *CURVES), rows)


def dataset_of(mode: Mode, rows: Mapping[int, AnyRow | None]) -> xr.Dataset:
    """Rows as a dataset.

    Parameters
    ----------
    mode
        The mode.
    rows
        The row of each step; None for a step that has none, which is NaN.

    Returns
    -------
    xarray.Dataset
        Over `step` one float64 variable for each of `COLUMNS`. The fields of `FIELDS` over `step` and `sentence`,
        `prefix` or `component`, as float64, NaN where a step has none or no prefix is so long.
    """
    import xarray as xr

    found = {step: None if row is None else (row.values(mode), row.fields(mode)) for step, row in rows.items()}
    variables: dict[str, Any] = {}
    for name in COLUMNS[mode]:
        values = [np.nan if each is None else each[0][name] for each in found.values()]
        units, long_name = _UNITS_AND_NAMES[name]
        if (mode, name) == ("representation", "nonfinite"):
            long_name = _NONFINITE_POSITIONS
        variables[name] = ("step", np.array(values, np.float64), {"units": units, "long_name": long_name})
    for name, field_ in FIELDS[mode].items():
        width = max((len(each[1][name]) for each in found.values() if each is not None), default=0)
        padded = np.full((len(found), width), np.nan)
        for out, each in zip(padded, found.values(), strict=True):
            if each is not None:
                out[: len(each[1][name])] = each[1][name]
        attributes = {"units": field_.units, "long_name": field_.long_name}
        variables[name] = (("step", field_.axis), padded, attributes)
    coordinates: dict[str, Any] = {"step": np.array(list(rows), np.int64)}
    if mode == "unmask":
        longest = variables["prefix_nll"][1].shape[1]
        coordinates["prefix"] = ("prefix", np.arange(1, longest + 1), {"long_name": "tokens given"})
    return xr.Dataset(variables, coordinates)


def _cell(name: str, value: float) -> float:
    """A value as its column is written: counts as integers."""
    return int(value) if name in _COUNTS and not math.isnan(value) else float(value)


def _lines(columns: Sequence[str], rows: Iterable[Sequence[float | None]]) -> str:
    """The rows as CSV text without the line of the columns."""
    return csv_text(columns, rows).removeprefix(csv_text(columns, ()))
