"""The works and lines of docs/scaling.md: Pythia and PolyPythias by the registry's shapes."""

from __future__ import annotations

from math import ceil

from pythia_dynamics.checkpoints.registry import ALL_STEPS, SIZES, Architecture, aliases
from pythia_dynamics.history.workload import Resources, Work, evaluation_operations

__all__ = [
    "LINE",
    "PASSAGES",
    "POLY",
    "SHARD_BYTES",
    "SIMULATED",
    "evaluation",
    "one_tensor",
    "total",
    "unembedding",
    "whole",
]

SHARD_BYTES = 10 * 10**9
"""Largest file of a checkpoint: the default of transformers when Pythia was published."""

PASSAGES = [80.0] * 500
"""Tokens of the passages that are evaluated: the first 500 of LAMBADA, about 80 each."""

SMALL_FILES = 5
"""Files of a checkpoint beside its weights that are downloaded with them: config, tokenizer."""

STEPS = len(ALL_STEPS)

POLY = tuple(name for name in aliases() if "-seed" in name and name.partition("-")[0] in SIZES)
"""PolyPythias: nine seeds of five sizes, three seeds of the data and three of the weights of 160m."""

LINE = Resources(bandwidth=250e6, connection=40e6, hub_latency=0.08, storage_latency=0.03, cores=2)
"""A good line: 80 ms to the Hub and 30 ms to its storage, 40 MB/s a connection and 250 MB/s in all."""


def shape_of(name: str) -> Architecture:
    """The shape of a Pythia model by an alias."""
    return SIZES[name.partition("-")[0]]


def files(shape: Architecture) -> int:
    """Weight files of a checkpoint."""
    return ceil(shape.checkpoint_bytes / SHARD_BYTES)


def tensors(shape: Architecture) -> int:
    """Tensors of a checkpoint: twelve of each block, two embeddings, and the final layer norm."""
    return 12 * shape.layers + 4


def one_tensor(name: str, weights: int) -> Work:
    """One tensor of all published steps: the file that has it, and the index where there are several."""
    requests = STEPS * (1 if files(shape_of(name)) == 1 else 2)
    nbytes = 2 * STEPS * weights
    return Work(STEPS, requests, requests, 1, nbytes, nbytes, STEPS * weights, frames=STEPS)


def unembedding(name: str) -> Work:
    """W_U of all published steps."""
    return one_tensor(name, shape_of(name).unembedding_parameters)


def whole(name: str) -> Work:
    """All tensors of all published steps, without the masks that the files have."""
    shape = shape_of(name)
    requests = STEPS * (files(shape) + (files(shape) > 1))
    nbytes = 2 * STEPS * shape.parameters
    return Work(STEPS, requests, requests, 1, nbytes, nbytes, STEPS * shape.parameters, frames=STEPS * tensors(shape))


def evaluation(name: str) -> Work:
    """The three perplexities of all published steps."""
    shape = shape_of(name)
    weights = shape.parameters - shape.unembedding_parameters
    return Work(
        api_requests=1,
        checkpoints=STEPS,
        checkpoint_bytes=STEPS * shape.checkpoint_bytes,
        checkpoint_requests=STEPS * (files(shape) + (files(shape) > 1) + SMALL_FILES),
        operations=STEPS * evaluation_operations(weights, PASSAGES),
        largest_model=shape.parameters,
    )


def total(works: list[Work]) -> Work:
    """All of them."""
    return sum(works[1:], works[0])


SIMULATED = {
    "W_U of PolyPythias": [unembedding(name) for name in POLY],
    "one layer norm of PolyPythias": [one_tensor(name, shape_of(name).d_model) for name in POLY],
}
"""The works of the simulation: 7,854 requests each, of large and of small tensors."""
