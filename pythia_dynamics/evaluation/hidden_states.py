"""Geometry of the last hidden states of a model on a text, and how far its predictions are from n-grams.

The states are those that the unembedding reads, after the last normalisation: what the model predicts is a function of
them alone, and they are what Godey et al. (arXiv 2404.07647) and Li et al. (arXiv 2509.23024) describe. Li et al. take
the state of the last token of each text; here every position that predicts a token of the text counts alike.

The states of a text are never held at once. Of each batch only sums are kept, in float64: of the states, of their outer
products (d × d) and of their directions. So the result does not depend on the batches but for rounding: in float32 by
less than 1e-5 of the value, because the forward pass itself rounds otherwise in another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pythia_dynamics.evaluation.batching import Batch, evaluate_in_batches, no_report
from pythia_dynamics.evaluation.geometry import (
    decay_exponent,
    entropy_rank,
    gaussian_eigenvalues,
    mean_cosine,
    mean_cosine_sd,
    resolved,
)
from pythia_dynamics.evaluation.memory import free_cached_memory, is_out_of_memory
from pythia_dynamics.evaluation.ngrams import NGrams, bigram_energy, unigram_energy
from pythia_dynamics.evaluation.scoring import (
    default_batch_tokens,
    final_states,
    head_of,
    logit_chunks,
    mean_per_token,
)

__all__ = ["HiddenStates", "hidden_states"]

_STATE_ROWS = 2048
"""States that are converted to float64 at once: 84 MB for the 5,120 dimensions of a 12b."""

_OF_FINITE = (
    *("anisotropy", "rankme", "effective_rank", "alpha", "kl_unigram", "kl_bigram"),
    *("alpha_se", "kl_unigram_se", "kl_bigram_se"),
    *("anisotropy_null_sd", "rankme_null", "effective_rank_null", "alpha_null"),
)


@dataclass(frozen=True, slots=True, eq=False)
class HiddenStates:
    """What is kept of the n last hidden states of a text in d dimensions.

    Parameters
    ----------
    mean_direction
        Mean of the states divided by their norms, float64, shape (d,). NaN where a state is 0 or not finite.
    moment_eigenvalues
        Eigenvalues of Σ h hᵀ / n, descending, float64, shape (d,): the squares of the singular values of the matrix of
        the states, divided by n. NaN where a state is not finite.
    covariance_eigenvalues
        Of Σ (h − h̄)(h − h̄)ᵀ / n, as `moment_eigenvalues`.
    kl_unigram, kl_bigram
        Sum of KL(n-gram ‖ model) over the positions of each of S passages, nats, float64, shape (S,).
    tokens
        Number of positions of each passage, int64, shape (S,).
    nonfinite
        Positions of each passage whose state, or one of whose divergences, is not finite; int64, shape (S,).
    """

    mean_direction: NDArray[np.float64]
    moment_eigenvalues: NDArray[np.float64]
    covariance_eigenvalues: NDArray[np.float64]
    kl_unigram: NDArray[np.float64]
    kl_bigram: NDArray[np.float64]
    tokens: NDArray[np.int64]
    nonfinite: NDArray[np.int64]

    def values(self, mode: str = "representation") -> dict[str, float]:
        """The row of ``representation.csv``, without the step.

        Returns
        -------
        dict
            ``positions``, n, and ``nonfinite``, how many of them are not finite. Where there is any, and where n is 0,
            all others are NaN:

            ``anisotropy`` the mean cosine of all pairs of states; ``rankme`` and ``effective_rank``, see `geometry`;
            ``alpha`` of α-ReQ, and ``alpha_se``; ``kl_unigram`` and ``kl_bigram`` the mean over positions, nats per
            token, and their standard errors over passages, ``kl_unigram_se`` and ``kl_bigram_se``.

            For independent standard normal states of the same n and d: ``anisotropy_null_sd``, the standard deviation
            of the anisotropy, whose mean is 0; ``rankme_null``, ``effective_rank_null`` and ``alpha_null``.
        """
        count, width = int(self.tokens.sum()), len(self.moment_eigenvalues)
        counts = {"positions": count, "nonfinite": int(self.nonfinite.sum())}
        if not count or counts["nonfinite"]:
            return dict.fromkeys(_OF_FINITE, np.nan) | counts
        rank = min(width, count - 1)  # of a covariance of n states
        alpha, alpha_se = decay_exponent(self.covariance_eigenvalues, rank)
        scored = self.tokens > 0
        unigram, unigram_se = mean_per_token(self.kl_unigram[scored], self.tokens[scored])
        bigram, bigram_se = mean_per_token(self.kl_bigram[scored], self.tokens[scored])
        centred_null = gaussian_eigenvalues(count - 1, width)
        found = (
            mean_cosine(self.mean_direction, count),
            entropy_rank(np.sqrt(self.moment_eigenvalues)),
            entropy_rank(self.covariance_eigenvalues),
            *(alpha, unigram, bigram, alpha_se, unigram_se, bigram_se),
            mean_cosine_sd(count, width),
            entropy_rank(np.sqrt(gaussian_eigenvalues(count, width))),
            entropy_rank(centred_null),
            decay_exponent(centred_null, rank)[0],
        )
        return dict(zip(_OF_FINITE, found, strict=True)) | counts

    def fields(self, mode: str = "representation") -> dict[str, NDArray[Any]]:
        """The arrays that the row is computed from, by their names in ``representation.zarr``."""
        return {
            "mean_direction": self.mean_direction,
            "moment_eigenvalues": self.moment_eigenvalues,
            "covariance_eigenvalues": self.covariance_eigenvalues,
            "sentence_kl_unigram": self.kl_unigram,
            "sentence_kl_bigram": self.kl_bigram,
            "sentence_tokens": self.tokens,
            "sentence_nonfinite": self.nonfinite,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, NDArray[Any]]) -> HiddenStates:
        """The inverse of `fields`. Of a step with fewer dimensions than others the archive has NaN after the last."""
        spectra = [fields[name] for name in ("mean_direction", "moment_eigenvalues", "covariance_eigenvalues")]
        known = [len(each) - int(np.argmax(np.isfinite(each[::-1]))) for each in spectra if np.isfinite(each).any()]
        mean, moment, covariance = (each[: max(known, default=0)] for each in spectra)
        return cls(
            mean,
            moment,
            covariance,
            fields["sentence_kl_unigram"],
            fields["sentence_kl_bigram"],
            fields["sentence_tokens"].astype(np.int64),
            fields["sentence_nonfinite"].astype(np.int64),
        )


def hidden_states(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    ngrams: NGrams,
    *,
    batch_tokens: int | None = None,
    reduced: Callable[[int], None] = no_report,
) -> HiddenStates:
    """The last hidden states of passages.

    Parameters
    ----------
    model
        A model in evaluation mode.
    sequences
        Token ids of each of S passages, no longer than the model's context. One of fewer than two tokens has none.
    ngrams
        Those of the same passages.
    batch_tokens
        Bound on the tokens read at once, padding included; None chooses by device.
    reduced
        Called with each smaller bound that memory makes necessary.

    Raises
    ------
    PythiaDynError
        When a single passage does not fit in memory.
    """
    device, width = head_of(model).weight.device, head_of(model).in_features
    members = [i for i, sequence in enumerate(sequences) if len(sequence) > 1]
    divergence = _Divergence(ngrams, device)
    kl, counts = np.zeros((2, len(sequences))), np.zeros((2, len(sequences)), np.int64)
    sums = _Sums(width, device)

    def evaluate(batch: Batch, budget: int) -> tuple[_Sums, NDArray[np.float64], NDArray[np.int64]]:
        return _evaluate_batch(model, [sequences[members[i]] for i in batch.members], divergence)

    def restart(budget: int) -> None:
        nonlocal sums
        sums = _Sums(width, device)  # all batches come again
        reduced(budget)

    lengths = [len(sequences[i]) for i in members]
    bound = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    free = partial(free_cached_memory, device)
    with torch.inference_mode():
        for batch, (found, found_kl, found_counts) in evaluate_in_batches(
            lengths, bound, evaluate, out_of_memory=is_out_of_memory, free=free, reduced=restart
        ):
            where = [members[i] for i in batch.members]
            sums.add(found)
            kl[:, where], counts[:, where] = found_kl, found_counts
    return HiddenStates(*sums.spectra(int(counts[0].sum())), *kl, *counts)


class _Sums:
    """Sums over states in float64: of their directions, of themselves and of their outer products."""

    def __init__(self, width: int, device: torch.device) -> None:
        place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self._directions = torch.zeros(width, dtype=torch.float64, device=place)
        self._states = torch.zeros_like(self._directions)
        self._products = torch.zeros((width, width), dtype=torch.float64, device=place)

    def add_states(self, hidden: torch.Tensor) -> None:
        """Add states, shape (N, d)."""
        for part in torch.split(hidden, _STATE_ROWS):
            exact = part.to(self._products.device).double()
            self._products.addmm_(exact.T, exact)
            self._states += exact.sum(dim=0)
            self._directions += (exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True)).sum(dim=0)

    def add(self, other: _Sums) -> None:
        """Add the sums over other states."""
        self._directions += other._directions
        self._states += other._states
        self._products += other._products

    def spectra(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The first three fields of `HiddenStates` for a number n of states."""
        scale = max(count, 1)
        sums = self._directions, self._states, self._products
        direction, mean, moment = (each.cpu().numpy() / scale for each in sums)
        with np.errstate(invalid="ignore", over="ignore"):  # of states that are not finite it is NaN
            covariance = moment - np.outer(mean, mean)
        rounding = float(np.trace(moment))  # errors of the covariance, a difference, have the size of the moment
        return direction, _eigenvalues(moment, count, rounding), _eigenvalues(covariance, count - 1, rounding)


def _eigenvalues(matrix: NDArray[np.float64], rank: int, size: float) -> NDArray[np.float64]:
    """Eigenvalues, descending; 0 beyond the possible rank and where they are rounding errors. NaN of what is NaN."""
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return resolved(np.linalg.eigvalsh(matrix).astype(np.float64), max(rank, 0), size)


class _Divergence:
    """KL(n-gram ‖ model) at every position, for both n-grams of a text."""

    def __init__(self, ngrams: NGrams, device: torch.device) -> None:
        self._ngrams = ngrams
        self._tokens = torch.from_numpy(ngrams.tokens).to(device)
        self._unigram = torch.from_numpy(ngrams.unigram).float().to(device)

    def of(self, model: PreTrainedModel, hidden: torch.Tensor, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Unigram and bigram divergence of states, nats, shape (2, N); `tokens` is the last token each has seen."""
        parts = []
        for start, logits in logit_chunks(model, hidden):
            shifted = logits.float()
            shifted -= shifted.amax(dim=-1, keepdim=True)  # nothing else reads the logits
            energy = unigram_energy(shifted, self._tokens, self._unigram)
            bigram = bigram_energy(shifted, self._ngrams, tokens[start : start + len(shifted)])
            log_partition = shifted.exp_().sum(dim=-1).log()
            # One transfer to the host, and float64 only there: MPS has none.
            exact, unigram = torch.stack([log_partition, energy]).cpu().double().numpy()
            parts.append(np.stack([exact - unigram, exact - bigram]))
        entropies = np.stack([np.full(len(tokens), self._ngrams.entropy), self._ngrams.bigram_entropy[tokens]])
        return np.asarray(np.concatenate(parts, axis=1) - entropies, np.float64)


def _evaluate_batch(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], divergence: _Divergence
) -> tuple[_Sums, NDArray[np.float64], NDArray[np.int64]]:
    """Sums over the states of a batch; the divergences, and the numbers of positions and of those that are not finite,
    of each of its B passages, shape (2, B) each."""
    states = final_states(model, sequences, [1] * len(sequences))
    kl = divergence.of(model, states.hidden, states.tokens.cpu().numpy())
    finite = torch.isfinite(states.hidden).all(dim=1).cpu().numpy() & np.isfinite(kl).all(axis=0)
    sums = _Sums(states.hidden.shape[1], states.hidden.device)
    sums.add_states(states.hidden)
    per_passage = [np.bincount(states.rows, weights=weights) for weights in (*kl, np.ones(len(finite)), ~finite)]
    return sums, np.stack(per_passage[:2]), np.stack(per_passage[2:]).astype(np.int64)
