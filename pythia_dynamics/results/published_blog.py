"""The published numbers of "A Large Language Model Order Parameter"."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.measures.order import derivative
from pythia_dynamics.tables import read_csv
from pythia_dynamics.training.plan import SIZES

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SOURCE", "published_blog"]

SOURCE = "rohitium/LLM-order-param, results/: b, training and validation loss of four models at 20 steps"


def published_blog(size: str) -> xr.Dataset:
    """The blog's numbers for one of its models, every 1,000 steps from 0 to 19,000.

    Parameters
    ----------
    size
        ``10k``, ``0.1m``, ``1m`` or ``10m``.

    Returns
    -------
    xarray.Dataset
        Over `step`: `order_parameter`, `train_loss` and `validation_loss` (nats per character), and `dloss_db` of the
        training loss.

    Raises
    ------
    UnknownNameError
        For another size.
    """
    import xarray as xr

    rows = {int(row["step"]): row for row in _table("blog_train_loss_vs_order_parameter.csv", size)}
    others = {int(row["step"]): row for row in _table("blog_order_parameter.csv", size)}
    if not rows:
        raise UnknownNameError("published size", size, SIZES)
    steps = np.array(sorted(rows), dtype=np.int64)
    b = np.array([float(rows[step]["order_param_b"]) for step in steps.tolist()])
    training = np.array([float(rows[step]["train_loss"]) for step in steps.tolist()])
    validation = np.array([float(others[step]["validation_loss"]) for step in steps.tolist()])
    data = {
        "order_parameter": b,
        "train_loss": training,
        "validation_loss": validation,
        "dloss_db": derivative(steps, b, training),
    }
    return xr.Dataset(
        {name: ("step", values) for name, values in data.items()}, {"step": steps}, {"model": size, "source": SOURCE}
    )


def _table(name: str, size: str) -> list[dict[str, str]]:
    """The rows of a size in a published table."""
    with resources.as_file(resources.files("pythia_dynamics") / "data" / name) as path:
        return [row for row in read_csv(path) if row["model"].lower() == size.lower()]
