"""Alignment of the embedding with the unembedding of one model, beside the null of permuted tokens.

Linear CKA: Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414. Null: the
exact mean and variance over all permutations (Hoeffding 1951, "A combinatorial central limit theorem").
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.roles import EMBEDDING, UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history, open_history
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset
from pythia_dynamics.sweep.frames import warn_missing, warn_nonfinite

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["COLUMNS", "TABLE", "align_rows", "alignment", "summarise"]

_LABELS = {
    "cosine": "mean cosine of the two rows of a token",
    "cosine_null": "mean cosine of rows of different tokens",
    "cosine_null_sd": "standard deviation of the mean cosine over permutations of the tokens",
    "cka": "linear CKA of embedding and unembedding",
    "cka_null": "linear CKA for permuted tokens",
}

COLUMNS = tuple(_LABELS)
TABLE = Table(("step", *COLUMNS), title="Alignment of embedding and unembedding")
"""The table ``alignment.csv``."""

_BLOCK = 1 << 22
"""Weights that are widened to float32 at a time: 17 MB."""


def alignment(
    unembedding: Any,
    embedding: Any = None,
    *,
    rows: int | None = None,
    cache: Path | str | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """How the rows of the embedding E and of the unembedding U of a model are aligned, at every step.

    Row i of either belongs to token i; v is the number of rows.

    * `cosine` (1/v) Σ_i cos(E_i, U_i). `cosine_null` is its mean over all permutations π of the tokens of one of the
      two, the product of the means of the unit rows, and `cosine_null_sd` its standard deviation over them,
      √(‖ÊÛᵀ‖² / (v²(v − 1))) with the centred unit rows Ê and Û. Both are exact; no permutation is drawn.
    * `cka` ‖E_cᵀU_c‖² / (‖E_cᵀE_c‖ ‖U_cᵀU_c‖), with the columns of E and U centred: linear CKA, from 0 to 1, which no
      rotation of either changes. `cka_null` is its mean over permutations, tr(E_cᵀE_c) tr(U_cᵀU_c) / ((v − 1)
      ‖E_cᵀE_c‖ ‖U_cᵀU_c‖).

    The cosine asks whether both use the same axes of the model, the CKA whether both arrange the tokens alike.

    Parameters
    ----------
    unembedding : History, str, Path or array_like
        U: a history or an array of shape (T, v, d); or the name or path of a fetched model, whose tensors of the two
        roles are taken.
    embedding : History or array_like, optional
        E. Needed unless `unembedding` names a model.
    rows : int, optional
        Use the first `rows` rows of both, without the padding of the vocabulary. Default: all.
    cache : path, optional
        Directory of the weight stores, where a model is named.
    progress : Progress
        Counts steps.

    Returns
    -------
    xarray.Dataset
        Over the steps of U. NaN at a step that one of the two lacks, or where it has weights that are not finite; the
        cosines are of the tokens whose rows are both not zero, NaN with fewer than two.

    Raises
    ------
    PythiaDynError
        The two have different numbers of rows or columns, or are one tensor (tied weights); no embedding is given; or
        there are not so many rows.
    """
    if embedding is None:
        if not isinstance(unembedding, (str, Path)):
            raise PythiaDynError("an alignment is of two tensors: give the embedding as well, or the name of a model")
        name = unembedding
        unembedding, embedding = (open_history(name, role, cache=cache) for role in (UNEMBEDDING, EMBEDDING))
    heads, inputs = as_history(unembedding), as_history(embedding)
    _check(heads, inputs, rows)
    for history in (heads, inputs):
        warn_missing(history)
    at = {int(step): index for index, step in enumerate(inputs.steps)}
    found = np.full((len(heads.steps), len(COLUMNS)), np.nan)
    nonfinite = []
    for index, step in enumerate(heads.steps.tolist()):
        head, other = heads.frame(index), inputs.frame(at[step]) if step in at else None
        if head is not None and other is not None:
            found[index] = align_rows(other[:rows], head[:rows])
            if np.isnan(found[index]).all():
                nonfinite += [step] if not (np.isfinite(head).all() and np.isfinite(other).all()) else []
        progress(index + 1, len(heads.steps))
    warn_nonfinite(heads, nonfinite)
    variables = {name: Variable(found[:, i], label) for i, (name, label) in enumerate(_LABELS.items())}
    return step_dataset(heads, variables, attrs={"embedding": inputs.tensor})


def _check(heads: History, inputs: History, rows: int | None) -> None:
    """Raise `PythiaDynError` where the two cannot be compared."""
    pairs = list(zip(heads.frames, inputs.frames, strict=False))
    if all(one is other or (isinstance(one, Path) and one == other) for one, other in pairs):
        raise PythiaDynError(f"{heads.name} has one tensor for both, {heads.tensor}: tied weights have no alignment")
    if heads.frame_shape != inputs.frame_shape or len(heads.frame_shape) != 2:
        raise PythiaDynError(
            f"an alignment is of two matrices of one shape; got {inputs.tensor} {inputs.frame_shape} and "
            f"{heads.tensor} {heads.frame_shape}"
        )
    if rows is not None and not 1 <= rows <= heads.frame_shape[0]:
        raise PythiaDynError(f"rows must be from 1 to {heads.frame_shape[0]}; got {rows}")


def align_rows(embedding: NDArray[Any], unembedding: NDArray[Any]) -> tuple[float, float, float, float, float]:
    """The values of one step, in the order of `COLUMNS`.

    Parameters
    ----------
    embedding, unembedding
        Shape (v, d) each. Blocks are multiplied in float32 and added in float64.

    Returns
    -------
    tuple of float
        NaN where the weights are not all finite.
    """
    plain, unit = _Products(embedding.shape[1]), _Products(embedding.shape[1])
    cosines, block = 0.0, max(_BLOCK // embedding.shape[1], 1)
    for start in range(0, len(embedding), block):
        pair = [part[start : start + block].astype(np.float64) for part in (embedding, unembedding)]
        lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in pair]
        if not all(np.isfinite(length).all() for length in lengths):
            return (np.nan,) * 5
        plain.add(*pair)
        both = (lengths[0][:, 0] > 0) & (lengths[1][:, 0] > 0)
        first, second = (part[both] / length[both] for part, length in zip(pair, lengths, strict=True))
        unit.add(first, second)
        cosines += float(np.sum(first * second))
    cosine = null = spread = np.nan
    if unit.count > 1:
        of_first, of_second, _ = unit.centred()
        cosine = cosines / unit.count
        null = float(unit.sums[0] @ unit.sums[1]) / unit.count**2
        spread = np.sqrt(max(float(np.sum(of_first * of_second)), 0) / (unit.count**2 * (unit.count - 1)))
    cka = cka_null = np.nan
    of_first, of_second, cross = plain.centred()
    scale = float(np.linalg.norm(of_first) * np.linalg.norm(of_second))
    if scale > 0 and plain.count > 1:
        cka = float(np.sum(cross**2)) / scale
        cka_null = float(np.trace(of_first) * np.trace(of_second)) / ((plain.count - 1) * scale)
    return cosine, null, float(spread), cka, cka_null


class _Products:
    """The Gram matrices of two matrices with the same rows, their cross product, and their sums of rows."""

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.sums = np.zeros((2, columns))
        self.grams = np.zeros((3, columns, columns))

    def add(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
        """Add rows."""
        self.count += len(first)
        self.sums += first.sum(axis=0), second.sum(axis=0)
        one, other = first.astype(np.float32), second.astype(np.float32)
        self.grams += one.T @ one, other.T @ other, one.T @ other

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The three products of the matrices minus their mean rows."""
        pairs = ((0, 0), (1, 1), (0, 1))
        one, other, cross = (
            gram - np.outer(self.sums[i], self.sums[j]) / max(self.count, 1)
            for gram, (i, j) in zip(self.grams, pairs, strict=True)
        )
        return one, other, cross


def summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    """One sentence and the facts of a result of `alignment`.

    Parameters
    ----------
    dataset
        The result.
    """
    facts: dict[str, Any] = {name: ends(dataset[name]) for name in COLUMNS}
    return (
        f"cosine of the rows of a token {format_ends(facts['cosine'], 3)} (of different tokens "
        f"{format_ends(facts['cosine_null'], 3)}), CKA {format_ends(facts['cka'], 3)} (permuted "
        f"{format_ends(facts['cka_null'], 3)})"
    ), facts
