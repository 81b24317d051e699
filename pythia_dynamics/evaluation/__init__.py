"""Evaluation of whole models: forward, causal-unmasking and last-word perplexity, hidden states, and the portrait."""

from __future__ import annotations

__all__: list[str] = []
