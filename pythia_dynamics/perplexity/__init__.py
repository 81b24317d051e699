"""Perplexity of a model's checkpoints by three definitions: forward, causal unmasking, last word.

`pythia_dynamics.perplexity.perplexity` runs them over training; the engines take any model in memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pythia_dynamics.perplexity.corpus import Corpus, load_corpus
    from pythia_dynamics.perplexity.published import published
    from pythia_dynamics.perplexity.runner import completions, perplexity

__all__ = ["Corpus", "completions", "load_corpus", "perplexity", "published"]

_HOMES = {
    "Corpus": "corpus",
    "completions": "runner",
    "load_corpus": "corpus",
    "perplexity": "runner",
    "published": "published",
}


def __getattr__(name: str) -> Any:
    # Late, so that `pythia_dynamics.perplexity` does not import torch before it is needed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
