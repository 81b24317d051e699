"""What to fetch, as one value that `preview` and `download` take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.learning_rate import RateLike, as_learning_rate
from pythia_dynamics.checkpoints.open import HUB, REGISTRY, open_source
from pythia_dynamics.checkpoints.registry import PAPER_STEPS, Model, parse_steps
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import model_with_suite, store_path
from pythia_dynamics.objects import Place
from pythia_dynamics.shard import Shard

__all__ = ["WORKERS", "FetchRequest"]

WORKERS = 16
"""Revisions that are fetched at once. At 80 ms to the Hub and 40 MB/s a connection, 8 take 1.19 times as long as the
line allows and 16 take 1.10 times; more than 20 connections the HTTP client does not keep for the next request."""


@dataclass(frozen=True)
class FetchRequest:
    r"""Which tensors of which steps of a model to fetch, from where, and into which cache.

    Parameters
    ----------
    model
        An alias (``70m``, ``160m-seed3``), a repository id, the name of a store in the cache, a directory of
        checkpoints, or a `Model`.
    tensors
        Roles (``unembedding``, ``embedding``), names of tensors in the checkpoint files, globs
        (``*.attention.dense.weight``), ``all``. Default: the unembedding.
    steps
        ``paper``, ``all``, ``1000,2000``, ``1000:143000:1000``, or step numbers. Default: the 143 steps of the papers
        for Pythia, all steps for other models.
    source
        ``"hub"``; ``"registry"`` (for `preview` only); a directory of the model's checkpoints; or an open `Source`.
        A model that is a directory is its own source.
    cache
        Directory of the stores, or a URL: ``s3://bucket/cache``, ``gs://…``, ``az://…``. Default: the environment's
        ``PYTHIA_DYN_CACHE``, else ``cache``.
    suite
        How its checkpoints are named and found, where the registry or the store does not know: values of
        `pythia_dynamics.checkpoints.suite.Suite` by name (``{"pattern": r"^run-(\d+)$", "stage": "2"}``), or a TOML
        file with them. The store keeps it.
    learning_rate
        The learning rate of its training: a CSV file, a ``.jsonl`` log or a ``trainer_state.json`` with the columns
        step and learning_rate (or lr), a mapping of step to learning rate, or a schedule. It replaces that of the
        suite, and the store keeps it.
    verify_whole
        Whether to download each safetensors file whole, once, and compare it with the SHA-256 that the Hub states of
        it: such a file has no checksum of one tensor. Steps in the store that were not checked so are fetched again.
        Torch files are not, since they have a checksum of each tensor; nor what the source states no checksum of.
    refresh
        Whether to fetch again what has been replaced at the source since it was fetched. Otherwise the weights that
        are there stay, and are reported as superseded.

    virtual
        Whether only the places of the weights are recorded: commit, file, offset and length. They are read from the
        source whenever they are measured.
    shard
        The part of the steps that one job of an array fetches. Default: all.

    Raises
    ------
    UnknownNameError
        There is no such model.
    PythiaDynError
        No tensor or no step is named, or `steps` or `learning_rate` cannot be read.
    """

    model: str | Path | Model
    tensors: str | Iterable[str] = (UNEMBEDDING,)
    steps: str | Iterable[int] | None = None
    source: str | Path | Source = HUB
    cache: str | Place | None = None
    suite: Mapping[str, Any] | str | Path | None = None
    learning_rate: RateLike | None = None
    verify_whole: bool = False
    refresh: bool = False
    virtual: bool = False
    shard: Shard | None = None

    def __post_init__(self) -> None:
        tensors = (self.tensors,) if isinstance(self.tensors, str) else tuple(self.tensors)
        object.__setattr__(self, "tensors", tensors)
        if self.steps is not None and not isinstance(self.steps, str):
            object.__setattr__(self, "steps", tuple(sorted({int(step) for step in self.steps})))
        if not all(isinstance(tensor, str) for tensor in tensors):
            raise PythiaDynError(f"a tensor is given by its name or a glob, not as {tensors[0]!r}")
        if not tensors:
            raise PythiaDynError(f"no tensor is named; name at least one, for instance {UNEMBEDDING}")
        if self.virtual and self.verify_whole:
            raise PythiaDynError("whole files are compared only when their weights are stored, not with virtual")
        if self.steps == ():
            raise PythiaDynError("no step is named; name at least one, or leave out the steps")
        _ = self.resolved, self.wanted

    @classmethod
    def of(
        cls, model: str | Path | Model | FetchRequest, options: Mapping[str, Any], *, others: Iterable[str] = ()
    ) -> FetchRequest:
        """The request that a call with keyword arguments means.

        Parameters
        ----------
        model
            The first argument of the call: a model, or a request of which `options` replace fields.
        options
            Values of fields, by name.
        others
            The other keywords of the call, as suggestions for a name that is not known.

        Raises
        ------
        UnknownNameError
            `options` has a name that is no field.
        """
        known = [field.name for field in fields(cls)[1:]]
        for name in options:
            if name not in known:
                raise UnknownNameError("option", name, (*known, *others))
        return replace(model, **options) if isinstance(model, FetchRequest) else cls(model, **options)

    @cached_property
    def resolved(self) -> Model:
        """The model that `model` means."""
        if isinstance(self.model, Model):
            found = self.model.changed(self.suite)
        else:
            found = model_with_suite(self.model, self.cache, self.suite)
        rate = None if self.learning_rate is None else as_learning_rate(self.learning_rate)
        return found if rate is None else found.changed({"learning_rate": rate})

    @property
    def patterns(self) -> tuple[str, ...]:
        """The tensors, as names and globs."""
        return tuple(self.tensors)

    @property
    def path(self) -> Place:
        """The store that the weights go to."""
        return store_path(self.resolved.name, self.cache)

    @cached_property
    def wanted(self) -> tuple[int, ...] | None:
        """The requested steps, in increasing order; None for all that the source has, or a shard of those."""
        if self.steps is None:
            chosen = PAPER_STEPS if self.resolved.is_pythia else None
        else:
            chosen = parse_steps(self.steps) if isinstance(self.steps, str) else tuple(self.steps)
        return chosen if chosen is None else self.own(chosen)

    def own(self, steps: Iterable[int]) -> tuple[int, ...]:
        """Those of all steps that the shard has."""
        return tuple(steps) if self.shard is None else tuple(self.shard.take(tuple(steps)))

    @property
    def names_each_step(self) -> bool:
        """Whether each step was given by its number, not by a range, a word or the default."""
        if isinstance(self.steps, str):
            return all(part.strip().isdigit() for part in self.steps.split(","))
        return self.steps is not None

    def open_source(self) -> Source:
        """Open the source. No network is used yet.

        Raises
        ------
        CheckpointError
            The directory does not exist.
        PythiaDynError
            The source is the registry, which has no weights.
        """
        if self.source == REGISTRY:
            raise PythiaDynError("the registry has no weights; name hub or a directory of checkpoints as the source")
        if isinstance(self.source, (str, Path)):
            return open_source(self.resolved, str(self.source))
        return self.source
