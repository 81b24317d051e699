"""The blog's figures, from the saved runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.plates import Plate
from pythia_dynamics.results.published_blog import published_blog

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.results.folder import Results

__all__ = ["plates", "saved_runs"]


def saved_runs(results: Results) -> Mapping[str, tuple[xr.Dataset, ...]]:
    """The curves of ``runs.csv`` over `step`, by size, one for each seed. Raises `PythiaDynError` where it is not."""
    import pandas as pd

    path = results.path / "runs.csv"
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise PythiaDynError(f"no {path}; run pythia-dyn reproduce order-parameter") from None
    return {
        str(size): tuple(
            one.drop(columns=["model", "seed"]).set_index("step").sort_index().to_xarray()
            for _, one in several.groupby("seed")
        )
        for size, several in table.groupby("model", sort=False)
    }


def plates(results: Results) -> list[Plate]:
    """Losses against the step (Fig 3) and against b (Fig 4), and the slope (Fig 5), beside what the blog published."""
    runs = saved_runs(results)
    theirs = {size: published_blog(size) for size in runs}
    ends = ", ".join(
        f"{size} from {float(several[0]['order_parameter'][0]):.3g} to {float(several[0]['order_parameter'][-1]):.3g}"
        for size, several in runs.items()
    )
    markers = "Markers: the blog's own numbers."

    def against_order(axes: Any) -> None:
        figures.runs_against_order(axes[0], runs, theirs)
        figures.runs_against_order(axes[1], runs, theirs, part="validation_loss")

    return [
        Plate(
            results.path / "loss",
            "Loss during training (blog, Fig 3)",
            f"Training and validation loss (dashed) against the step. {markers}",
            lambda ax: figures.losses(ax, runs, theirs),
            width=5.2,
            height=3.8,
        ),
        Plate(
            results.path / "loss_against_order",
            "Loss against the order parameter (blog, Fig 4)",
            f"Training (left) and validation loss against b, which goes {ends}. {markers}",
            against_order,
            columns=2,
        ),
        Plate(
            results.path / "slope_against_order",
            "Slope of the loss (blog, Fig 5)",
            f"dL/db of the training loss against b, without the untrained model. {markers}",
            lambda ax: figures.slope_against_order(ax, runs, theirs),
            width=5.2,
            height=3.8,
        ),
    ]
