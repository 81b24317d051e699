"""Statistics of weights, one file each; `pythia_dynamics.measures.analyse` computes several in one reading."""

from __future__ import annotations

__all__: list[str] = []
