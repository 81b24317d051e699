"""Two checkpoints of a model side by side (Garden, Fig 1), and the completions of a phrase (Garden, Fig 5)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.device import matmul_precision
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.checkpoint import CheckpointReader, describe_differences
from pythia_dynamics.evaluation.evaluator import LoadedModel, encode
from pythia_dynamics.evaluation.model import context_length
from pythia_dynamics.evaluation.scoring import head_of
from pythia_dynamics.evaluation.settings import ModelSettings, requested_steps
from pythia_dynamics.evaluation.snapshots import checkpoint_source, snapshots
from pythia_dynamics.evaluation.unmasking import Completion, illustrate
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

__all__ = ["PHRASE", "TEXT", "TOKENS", "completions", "portrait"]

TOKENS = 512
"""Columns of W_U that are shown, those of the first tokens of the vocabulary: as many as in Fig 1 of the paper."""

PHRASE = "New York is the most popular"
"""Default phrase, that of Fig 5 of the paper: its attention is shown, and it is completed from each of its prefixes."""

TEXT = (
    "In a garden of forking paths every choice is taken at once: the traveller who turns left and the one who turns "
    "right both go on, and neither knows of the other. A network that learns does not branch like that. It takes one "
    "step after another, each a little to the side of the last, and what it might have become is lost. Only from far "
    "away, when many thousands of steps lie behind it, can one ask whether it wandered, whether it was led, or whether "
    "at some point on the way the ground divided and it had to choose a side."
)
"""Default text: logits are averaged over its tokens. Saved results depend on every word of it."""


def portrait(
    model: str | Path | Model | Source,
    *,
    steps: str | Sequence[int] | None = None,
    phrase: str = PHRASE,
    text: str = TEXT,
    progress: Progress = silent,
    **settings: Any,
) -> xr.Dataset:
    """Two checkpoints of a model side by side, each with its own config and tokenizer.

    Parameters
    ----------
    model
        An alias, a repository id, a directory of checkpoints, a `Model` or a `Source`.
    steps
        Two steps, as numbers or as ``"1000,143000"``; None takes the first and the last there are.
    phrase
        Sentence of at least two tokens whose attention is shown and which is completed.
    text
        Text whose logits are averaged, over as many tokens as the context of the model holds.
    progress
        Called with the number of revisions that are done and their total.
    **settings
        Fields of `ModelSettings`: device, dtype, head, tf32, source.

    Returns
    -------
    xarray.Dataset
        Float32 variables over `step`, the earlier step first:

        * `unembedding` (step, dimension, token): the first 512 columns of W_U;
        * `attention` (step, head, query, key): attention of the first layer on `phrase`, 0 for later keys;
        * `logits` (step, entry): mean logit of each vocabulary entry over the tokens of `text`.

        The attributes hold the `words` of the phrase and its `completions` at the later step (a list of `Completion`
        as dicts).

    Raises
    ------
    UnknownNameError
        For an unknown model, step or setting.
    PythiaDynError
        For a number of steps other than two, a phrase that is too short, or a checkpoint that cannot be loaded; and
        where the phrase is not cut into the same tokens at both steps, or the models do not have the same size.

    Warns
    -----
    UserWarning
        Where the steps were not run with the same config and a tokenizer of their own.
    """
    import xarray as xr

    chosen_settings = ModelSettings.from_mapping(settings)
    source = checkpoint_source(model, chosen_settings.source)
    available = source.revisions()
    chosen = _two_steps(steps, tuple(available), source.location)
    reader, loaded = CheckpointReader(source, available), LoadedModel(chosen_settings)
    arrays: list[tuple[NDArray[np.float32], ...]] = []
    words: list[list[str]] = []
    identities: dict[int, Mapping[str, Any]] = {}
    progress(0, len(chosen))
    with matmul_precision(tf32=chosen_settings.tf32), torch.inference_mode():
        for revision, found in snapshots(source, [available[step] for step in chosen]):
            if isinstance(found, Exception):
                raise found
            checkpoint = reader.read(revision, found)
            loaded.load(checkpoint)
            identities[revision.step] = checkpoint.identity
            sentence = _phrase_tokens(phrase, loaded.model, loaded.tokenizer)
            words.append([loaded.tokenizer.decode([token]) for token in sentence])
            (long,) = encode(loaded.tokenizer, [text], loaded.model)
            if not long:
                raise PythiaDynError("the text holds no token; logits are averaged over at least one")
            arrays.append(_arrays(loaded.model, sentence, long[: context_length(loaded.model)]))
            progress(len(arrays), len(chosen))
        completed = [asdict(line) for line in illustrate(loaded.model, sentence, loaded.tokenizer.decode)]
    _check_comparable(chosen, words, arrays, source.location)
    if differences := describe_differences(identities):
        warnings.warn(f"{source.name}: {differences}", stacklevel=2)
    variables = {
        "unembedding": (("step", "dimension", "token"), "W_U, first tokens of the vocabulary", "1"),
        "attention": (("step", "head", "query", "key"), "attention of the first layer", "1"),
        "logits": (("step", "entry"), "mean logit", "nat"),
    }
    data = {
        name: (dims, np.stack(parts), {"long_name": long_name, "units": units})
        for (name, (dims, long_name, units)), parts in zip(variables.items(), zip(*arrays, strict=True), strict=True)
    }
    commits = {str(step): available[step].commit for step in chosen}
    about = {"model": source.name, "location": source.location, "commits": commits, "phrase": phrase, "text": text}
    run = {name: getattr(chosen_settings, name) for name in ("dtype", "head", "tf32")}
    attributes = {**about, "words": words[0], "completions": completed, **run}
    return xr.Dataset(data, {"step": np.asarray(chosen, np.int64)}, attributes)


def completions(
    model: str | Path | Model | Source, phrase: str, settings: ModelSettings, *, step: int | None = None
) -> list[Completion]:
    """How a model completes a phrase from each of its prefixes (Garden, Fig 5).

    A step without a tokenizer is run with that of the nearest earlier step that has one, with a warning.

    Parameters
    ----------
    model
        As for `portrait`.
    phrase
        At least two tokens; what exceeds the context of the model is cut.
    settings
        How the checkpoint is loaded and run.
    step
        The checkpoint; None takes the last one.

    Returns
    -------
    list of Completion
        One for each prefix, the shortest first.

    Raises
    ------
    UnknownNameError
        For a step that is not there.
    PythiaDynError
        For a phrase that is too short, or a checkpoint that cannot be loaded.
    """
    source = checkpoint_source(model, settings.source)
    available = source.revisions()
    chosen = max(available) if step is None else step
    _check_step(chosen, available, source.location)
    revision = available[chosen]
    checkpoint = CheckpointReader(source, available).read(revision, source.snapshot(revision))
    loaded = LoadedModel(settings)
    with matmul_precision(tf32=settings.tf32):
        loaded.load(checkpoint)
        tokens = _phrase_tokens(phrase, loaded.model, loaded.tokenizer)
        lines = illustrate(loaded.model, tokens, loaded.tokenizer.decode)
    if differences := describe_differences({chosen: checkpoint.identity}):
        warnings.warn(f"{source.name}: {differences}", stacklevel=2)
    return lines


def _phrase_tokens(phrase: str, model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """At least two tokens, no more than the model's context."""
    tokens = encode(tokenizer, [phrase], model)[0][: context_length(model)]
    if len(tokens) < 2:
        raise PythiaDynError(f"{phrase!r} is {len(tokens)} token; a phrase needs at least two")
    return tokens


def _check_step(step: int, available: Iterable[int], location: str) -> None:
    if step not in available:
        raise UnknownNameError("step", step, available, where=location)


def _two_steps(steps: str | Sequence[int] | None, available: tuple[int, ...], location: str) -> tuple[int, int]:
    """The steps asked for, or the first and the last that are available, in increasing order."""
    requested = requested_steps(steps)
    wanted = (min(available), max(available)) if requested is None else requested
    for step in wanted:
        _check_step(step, available, location)
    if len(set(wanted)) != 2:
        raise PythiaDynError(f"a portrait needs two different steps; {location} gives {', '.join(map(str, wanted))}")
    return wanted[0], wanted[1]


def _check_comparable(
    steps: tuple[int, int],
    words: Sequence[Sequence[str]],
    arrays: Sequence[tuple[NDArray[np.float32], ...]],
    location: str,
) -> None:
    """Raise `PythiaDynError` unless the arrays of both steps have the same shapes and their axes the same labels."""
    both = f"steps {steps[0]} and {steps[1]} of {location} cannot be shown side by side"
    if words[0] != words[1]:
        raise PythiaDynError(f"{both}: their tokenizers cut the phrase into other tokens; give another phrase or steps")
    shapes = [[array.shape for array in parts] for parts in arrays]
    if shapes[0] != shapes[1]:
        raise PythiaDynError(f"{both}: their models have other sizes ({shapes[0]}, {shapes[1]}); give other steps")


def _arrays(model: PreTrainedModel, sentence: list[int], long: list[int]) -> tuple[NDArray[np.float32], ...]:
    """Columns of W_U, attention of the first layer on the sentence, mean logits over the long text."""
    device = head_of(model).weight.device
    # A copy: the weights of the next checkpoint overwrite these.
    weights = head_of(model).weight[:TOKENS].T.float().cpu().numpy().copy()
    model.set_attn_implementation("eager")  # the fused kernels do not return the attention matrix
    attentions = model(torch.tensor([sentence], device=device), output_attentions=True, use_cache=False).attentions
    if not attentions:
        raise CheckpointError(f"{model.config.model_type} models do not return their attention")
    pattern = attentions[0][0].float().cpu().numpy()
    logits = model(torch.tensor([long], device=device), use_cache=False).logits[0].float().mean(dim=0).cpu().numpy()
    model.set_attn_implementation("sdpa")
    return weights, pattern, logits
