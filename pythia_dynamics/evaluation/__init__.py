"""Evaluation of whole models: forward, causal-unmasking and last-word perplexity, and the portrait of two steps."""

from __future__ import annotations

__all__: list[str] = []
