"""Geometry of the last hidden states over training: every checkpoint of a model on one text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import EvaluationSettings
from pythia_dynamics.executors import Pool
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["representation"]


def representation(
    model: str | Path | Model | Source,
    *,
    out: str | Path | None = None,
    progress: Progress = silent,
    executor: Pool | None = None,
    workers: int | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Anisotropy, effective ranks and spectral decay of the last hidden states, and their distance from n-grams.

    ``representation("70m", corpus="text.jsonl", limit=100, steps="1000:143000:1000", device="cuda")``

    The states h are the input of the unembedding, after the last normalisation, at all n positions that predict a token
    of the text. Of d dimensions.

    Parameters
    ----------
    model, out, progress, executor, workers
        As for `perplexity`; the files in `out` are ``representation.csv``, ``.json`` and ``.zarr``.
    **settings
        Fields of `EvaluationSettings`, as for `perplexity`. The n-grams are counted in the same passages.

    Returns
    -------
    xarray.Dataset
        Over `step`, as float64:

        * `anisotropy`, the mean cosine of all pairs of states (Godey et al., arXiv 2404.07647);
        * `rankme`, exp of the entropy of σ_k / Σσ, with the singular values σ of the n × d matrix of the states, which
          are not centred (Garrido et al., arXiv 2210.02885, without their 1e-7 in the logarithm);
        * `effective_rank`, the same of the eigenvalues of the covariance. Li et al. (arXiv 2509.23024) call this one
          RankMe, for the state of the last token of each text;
        * `alpha`, the exponent of λ_k ∝ k^−α for these eigenvalues (α-ReQ; Agrawal et al. 2022), fitted to the ranks 11
          to 100 or to half of the possible rank; `alpha_se` is the standard error of the line. NaN for a rank below 40;
        * `kl_unigram` and `kl_bigram`, the mean over positions of KL(n-gram ‖ model) in nats per token, finite without
          smoothing (as Belrose et al., arXiv 2402.04362), and their standard errors over passages, ``kl_…_se``. The
          bigram distribution is that of the tokens after the token of the position, in the same passages: in a short
          text it is little more than the next token itself;
        * `positions`, n, and `nonfinite`, the states that are not finite, or whose predictions are not. All else of a
          step that has any is NaN;
        * for n independent standard normal states in d dimensions: `anisotropy_null_sd`, the standard deviation of an
          anisotropy whose mean is 0, `rankme_null`, `effective_rank_null` and `alpha_null`, from the Marchenko-Pastur
          distribution.

        Over `step` and `component`: `mean_direction` and the eigenvalues; over `step` and `sentence`: the sums of the
        divergences and the number of positions. A step that is missing is NaN, with its reason in ``attrs["missing"]``;
        the other attributes are those of `perplexity`.

    Warns
    -----
    UserWarning
        Where n ≤ d, so that the number of positions bounds the ranks; and as `perplexity`.

    Raises
    ------
    UnknownNameError, CorpusError, CheckpointError, PythiaDynError
        As `perplexity`.
    """
    given = EvaluationSettings.from_mapping(settings)
    found = evaluate(model, ["representation"], given, out=out, progress=progress, executor=executor, workers=workers)[
        "representation"
    ]
    width, count = found.sizes["component"], float(np.nanmin(found["positions"]))
    if count <= width:
        warnings.warn(
            f"{found.attrs['model']}: {count:.0f} positions in {width} dimensions: no rank can be more than "
            f"{count:.0f}, and alpha is of the text; take more passages",
            stacklevel=2,
        )
    return found
