"""Forward perplexity: that of a given text under the model (Garden, Eq 6).

PPL = exp(−1/T Σ_{i=1}^{T} log p(x_i | x_{<i})); the first token x_0 is context only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from pythia_dynamics.evaluation.batching import no_report
from pythia_dynamics.evaluation.scoring import Sentences, score

__all__ = ["forward_scores"]


def forward_scores(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    reduced: Callable[[int], None] = no_report,
) -> Sentences:
    """NLL of every token but the first, summed per sentence.

    Parameters
    ----------
    model
        A model in evaluation mode.
    sequences
        Token ids of each sentence, no longer than the model's context. One of fewer than two tokens is not scored.
    batch_tokens
        Bound on the tokens read at once, padding included; None chooses by device.
    reduced
        Called with each smaller bound that memory makes necessary.

    Raises
    ------
    PythiaDynError
        When a single sentence does not fit in memory.
    """
    return score(model, sequences, [1] * len(sequences), batch_tokens=batch_tokens, reduced=reduced)
