"""Statistics of weights. Each file defines one measure, a value with everything that the package knows about it.

`MEASURES` lists their names. `pythia_dynamics.measures.catalogue` has the values, and those that other packages
register in the entry-point group ``pythia_dynamics.measures``.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COMMANDS", "MEASURES"]

MEASURES: Mapping[str, str] = {
    "density": "Weight density over training: exact counts, moments, number of modes (Garden, Fig 2).",
    "msd": "Mean squared displacement, demeaned in two ways, each with its null (Fig 3); also two_time.",
    "two_time": "All pairs of steps: displacement, ageing, cosine, trajectory.",
    "angles": "Angle between neighbouring steps, norm, and the equilibrium of AdamW's decay.",
    "order": "Order parameter b = ‖W‖_F / d_model, and dL/db if a loss is known.",
    "rank": "Covariance rank of random projections, for batch sizes and tolerances (Fig 7).",
    "spectrum": "Singular values: entropy, effective and stable rank, condition number, power law.",
    "tails": "Tail of the eigenvalues: power law against lognormal and truncated power law.",
    "rows": "Norm and drift of each row against the frequency of its token; the unigram direction.",
}
"""A description of each measure by name, in the order in which results are shown. It is separate from the values, so
that ``pythia-dyn --help`` does not import them."""

COMMANDS = frozenset(
    {
        *(
            "alignment",
            "calibrate",
            "claims",
            "compare",
            "demo",
            "fetch",
            "figures",
            "gather",
            "ls",
            "merge",
            "models",
            "perplexity",
            "phases",
            "plan",
            "portrait",
            "report",
            "representation",
        ),
        *("reproduce", "stop", "train", "verify"),
    }
)
"""The commands that are not of a measure. A measure or a table must not have such a name: several of them write files
of their name."""
