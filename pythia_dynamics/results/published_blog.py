"""The published numbers of "A Large Language Model Order Parameter"."""

from __future__ import annotations

from importlib import resources

import numpy as np
import xarray as xr

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.measures.order import backward_derivative, derivative
from pythia_dynamics.tables import read_csv
from pythia_dynamics.training.plan import SIZES

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
        Over `step`: `order_parameter`, `train_loss` and `validation_loss` (nats per character), and dL/db of the
        training loss: `dloss_db` by central differences, and `dloss_db_backward`, the backward difference. The blog
        publishes the latter, without the first 1,000 steps.

    Raises
    ------
    UnknownNameError
        For another size.
    """
    training = _table("blog_train_loss_vs_order_parameter.csv", size)
    validation = _table("blog_order_parameter.csv", size)
    if not training:
        raise UnknownNameError("published size", size, SIZES)
    steps = sorted(training)
    b, train_loss, validation_loss = (
        np.array([float(table[step][column]) for step in steps])
        for table, column in ((training, "order_param_b"), (training, "train_loss"), (validation, "validation_loss"))
    )
    slope = derivative(np.array(steps, dtype=np.int64), b, train_loss)
    losses = {"train_loss": train_loss, "validation_loss": validation_loss}
    data = {"order_parameter": b, **losses, "dloss_db": slope, "dloss_db_backward": backward_derivative(b, train_loss)}
    variables = {name: ("step", values) for name, values in data.items()}
    return xr.Dataset(variables, {"step": steps}, {"model": size, "source": SOURCE})


def _table(name: str, size: str) -> dict[int, dict[str, str]]:
    """The rows of a size in a published table, by step."""
    with resources.as_file(resources.files("pythia_dynamics") / "data" / name) as path:
        return {int(row["step"]): row for row in read_csv(path) if row["model"].lower() == size.lower()}
