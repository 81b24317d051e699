"""What a model looks like at its first step and at its last (Garden, Fig 1), and how it completes a phrase (Fig 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.registry import Model, parse_steps, resolve
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.device import matmul_precision, resolve_device
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.evaluator import Options, encode, load, prepare
from pythia_dynamics.evaluation.model import context_length
from pythia_dynamics.evaluation.scoring import head_of
from pythia_dynamics.evaluation.snapshots import snapshots
from pythia_dynamics.evaluation.unmasking import illustrate
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

__all__ = ["PHRASE", "TEXT", "TOKENS", "portrait"]

TOKENS = 512
"""Columns of W_U that are shown: the first tokens of the vocabulary."""

PHRASE = "The weights of a model move while it learns to read the world"
"""The sentence whose attention is shown, and which is completed from each of its prefixes."""

TEXT = (
    "In a garden of forking paths every choice is taken at once: the traveller who turns left and the one who turns "
    "right both go on, and neither knows of the other. A network that learns does not branch like that. It takes one "
    "step after another, each a little to the side of the last, and what it might have become is lost. Only from far "
    "away, when many thousands of steps lie behind it, can one ask whether it wandered, whether it was led, or whether "
    "at some point on the way the ground divided and it had to choose a side."
)
"""The long sentence over which logits are averaged."""


def portrait(
    model: str | Path | Model | Source,
    *,
    steps: str | Sequence[int] | None = None,
    phrase: str = PHRASE,
    text: str = TEXT,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    source: str = "hub",
    progress: Progress = silent,
) -> xr.Dataset:
    """Two checkpoints of a model side by side: the first and the last, or the two of `steps`.

    Returns a dataset over `step`:

    * `unembedding` (step, dimension, token): the first 512 columns of W_U, float32;
    * `attention` (step, head, query, key): what each token of `phrase` attends to in the first layer, 0 for
      those ahead;
    * `logits` (step, entry): the mean over the tokens of `text` (as many as the model's context takes) of the logit of
      each vocabulary entry.

    The attributes hold the `words` of the phrase and its `completions` at the later step, from each of its prefixes (a
    list of `Completion` as dicts). `progress` counts revisions. Raises `UnknownNameError` for a step that is not
    there, and what stands in the way of loading either checkpoint.
    """
    import xarray as xr

    if isinstance(model, str | Path):
        model = resolve(model)
    origin = open_source(model, source) if isinstance(model, Model) else model
    available = origin.revisions()
    chosen = _two(steps, tuple(available), origin.location)
    options = Options(resolve_device(device), dtype)
    taken: list[tuple[NDArray[np.float32], ...]] = []
    loaded: PreTrainedModel | None = None
    tokenizer: Tokenizer | None = None
    words: list[str] = []
    completions: list[dict[str, Any]] = []
    progress(0, len(chosen))
    with matmul_precision(tf32=False), torch.inference_mode():
        for revision, found in snapshots(origin, [available[step] for step in chosen]):
            if isinstance(found, Exception):
                raise found
            if loaded is None or tokenizer is None:
                loaded, tokenizer = prepare(found, options)
            load(loaded, found, options)
            sentence, long = encode(tokenizer, [phrase, text], loaded)
            sentence, long = sentence[: context_length(loaded)], long[: context_length(loaded)]
            if len(sentence) < 2 or not long:
                raise PythiaDynError(f"{phrase!r} is {len(sentence)} token; a phrase needs at least two")
            taken.append(_taken(loaded, sentence, long))
            if revision.step == chosen[-1]:
                words = [tokenizer.decode([token]) for token in sentence]
                completions = [asdict(line) for line in illustrate(loaded, sentence, tokenizer.decode)]
            progress(len(taken), len(chosen))
    weights, attention, logits = (np.stack(parts) for parts in zip(*taken, strict=True))
    return xr.Dataset(
        {
            "unembedding": (
                ("step", "dimension", "token"),
                weights,
                {"long_name": "W_U, first tokens of the vocabulary", "units": "1"},
            ),
            "attention": (
                ("step", "head", "query", "key"),
                attention,
                {"long_name": "attention of the first layer", "units": "1"},
            ),
            "logits": (("step", "entry"), logits, {"long_name": "mean logit", "units": "nat"}),
        },
        coords={"step": np.asarray(chosen, np.int64)},
        attrs={
            "model": origin.name,
            "location": origin.location,
            "commits": {str(step): available[step].commit for step in chosen},
            "phrase": phrase,
            "text": text,
            "words": words,
            "completions": completions,
            "dtype": dtype,
        },
    )


def _two(steps: str | Sequence[int] | None, available: tuple[int, ...], location: str) -> tuple[int, int]:
    wanted = parse_steps(steps) if isinstance(steps, str) else steps
    if wanted is None:
        wanted = (min(available), max(available))
    for step in wanted:
        if step not in available:
            raise UnknownNameError("step", step, available, where=location)
    first, last = min(wanted), max(wanted)
    if first == last or len(set(wanted)) > 2:
        raise PythiaDynError(f"a portrait needs two different steps; {location} gives {', '.join(map(str, wanted))}")
    return first, last


def _taken(model: PreTrainedModel, sentence: list[int], long: list[int]) -> tuple[NDArray[np.float32], ...]:
    device = head_of(model).weight.device
    weights = (
        head_of(model).weight[:TOKENS].T.float().cpu().numpy().copy()
    )  # the next checkpoint is loaded in its place
    model.set_attn_implementation("eager")  # the fused kernels never form the pattern
    attentions = model(torch.tensor([sentence], device=device), output_attentions=True, use_cache=False).attentions
    if not attentions:
        raise CheckpointError(f"{model.config.model_type} models do not give their attention")
    pattern = attentions[0][0].float().cpu().numpy()
    logits = model(torch.tensor([long], device=device), use_cache=False).logits[0].float().mean(dim=0).cpu().numpy()
    model.set_attn_implementation("sdpa")
    return weights, pattern, logits
