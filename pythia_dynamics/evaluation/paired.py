"""Two steps of a run, compared passage by passage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PairedDifference", "paired_difference"]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The change of the NLL between two steps, over the passages that both scored.

    Parameters
    ----------
    first, second
        The steps.
    sentences
        Number S of passages.
    difference
        Mean over passages of the NLL at `second` minus that at `first`: nats per token; of last words, nats per word.
    standard_error
        Of the mean: the standard deviation of the S differences / √S; NaN for a single passage.
    t_p
        Two-sided p-value of Student's paired t-test that the mean is 0; NaN where no difference varies.
    signed_rank_p
        Two-sided p-value of Wilcoxon's signed-rank test that the differences are symmetric about 0.
    """

    first: int
    second: int
    sentences: int
    difference: float
    standard_error: float
    t_p: float
    signed_rank_p: float


def paired_difference(perplexity: xr.Dataset, first: int, second: int) -> PairedDifference:
    """Compare two steps passage by passage.

    Passages differ far more among each other than one passage does between two steps, so the standard error of the
    difference is much smaller than those of the two means. Passages are taken as independent.

    Parameters
    ----------
    perplexity
        The result of `pythia_dynamics.perplexity`.
    first, second
        Two of its steps.

    Raises
    ------
    UnknownNameError
        A step is not among those of the result.
    PythiaDynError
        No passage has a finite NLL at both steps.
    """
    from scipy import stats

    known = perplexity["step"].to_numpy().tolist()
    for step in (first, second):
        if step not in known:
            raise UnknownNameError("step", step, known)
    pair = perplexity.sel(step=[first, second])
    counts = pair["sentence_tokens"].to_numpy()
    counts = np.minimum(counts, 1) if perplexity.attrs["mode"] == "last-word" else counts
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = pair["sentence_nll"].to_numpy() / counts
    differences = (other - one)[np.isfinite(one) & np.isfinite(other)]
    count = len(differences)
    if not count:
        raise PythiaDynError(f"no passage has an NLL at both of the steps {first} and {second}")
    varies = count > 1 and np.ptp(differences) > 0
    return PairedDifference(
        first=first,
        second=second,
        sentences=count,
        difference=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else np.nan,
        t_p=float(stats.ttest_1samp(differences, 0).pvalue) if varies else np.nan,
        signed_rank_p=float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
    )
