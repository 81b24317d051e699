"""The blog "A Large Language Model Order Parameter", done again: its models, figures, numbers and claims.

It trains four character-level GPTs on tiny Shakespeare and looks at b = ‖W‖_F / d_model of the head, W. Ours are
GPT-NeoX models of the same sizes and the same training; their heads begin as the blog's do (``pytorch``), unless told.
"""

from __future__ import annotations

from pythia_dynamics.blog.plates import plates, saved_runs
from pythia_dynamics.blog.published import SOURCE, expected_b, published
from pythia_dynamics.blog.reproduction import QUICK, QUICK_SIZES, Report, reproduce
from pythia_dynamics.blog.verdicts import CLAIMS, SMALL, decide

__all__ = [
    "CLAIMS",
    "QUICK",
    "QUICK_SIZES",
    "SMALL",
    "SOURCE",
    "Report",
    "decide",
    "expected_b",
    "plates",
    "published",
    "reproduce",
    "saved_runs",
]
