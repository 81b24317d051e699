"""Loss along the straight line between two checkpoints, and its barrier (Frankle et al. 2020, arXiv 1912.05671).

θ(α) = (1 − α)·θ_A + α·θ_B for all parameters; buffers that are no parameters stay those of A. The weights of both
checkpoints are read from mapped files, and the model holds θ(α), so that no third copy of the weights is in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.device import matmul_precision
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.checkpoint import Checkpoint, CheckpointReader
from pythia_dynamics.evaluation.corpus import Corpus, load_corpus, load_tokenizer
from pythia_dynamics.evaluation.evaluator import LoadedModel, encode
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.model import context_length
from pythia_dynamics.evaluation.scoring import Sentences
from pythia_dynamics.evaluation.settings import EvaluationSettings
from pythia_dynamics.evaluation.snapshots import checkpoint_source
from pythia_dynamics.evaluation.weights import Expected, FoundTensor, Weights, find_weights
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedModel

__all__ = ["barrier", "interpolation"]

_RESAMPLES = 2000
"""Bootstrap samples of the texts. The ends of an interval of 95 % are then quantiles of 50 samples each, whose own
error is a tenth of the standard error."""

_BOOTSTRAP_SEED = 0
"""Fixed, so that the same scores give the same interval."""

Place = tuple[str | Path | Model | Source, int]
"""A model, and a step of it."""


def interpolation(
    a: Place,
    b: Place,
    points: int = 11,
    *,
    progress: Progress = silent,
    **settings: Any,
) -> xr.Dataset:
    """Mean NLL per token at points on the straight line between two checkpoints, in float32.

    ``interpolation(("160m-seed1", 1000), ("160m-seed2", 1000), 11, corpus="text.jsonl", limit=100)``

    Parameters
    ----------
    a, b
        Model and step of each checkpoint. The model is an alias, a repository id, a directory of checkpoints, a `Model`
        or a `Source`.
    points
        Number N of values of α, evenly spaced, both ends included; at least 3.
    progress
        Called with the number of points that are done and their total.
    **settings
        Fields of `EvaluationSettings`: corpus, limit, device, batch_tokens, max_tokens, tf32, source. dtype is float32
        and W_U is as it is.

    Returns
    -------
    xarray.Dataset
        Over `alpha`, in nats per token:

        * ``nll``, Σ NLL / Σ tokens over the texts: at α = 0 and 1 the logarithm of ``ppl_corpus`` of the two
          checkpoints; ``nll_se``, its standard error over texts;
        * ``chord`` = (1 − α)·L_A + α·L_B; ``excess`` = ``nll`` − ``chord``, and ``excess_se``, paired over texts.

        The attributes have those of `barrier`, ``sentences``, the number of texts in all of it, and ``left_out``, that
        of texts without a finite NLL at some α, which are left out at every α.

    Raises
    ------
    UnknownNameError
        For an unknown model, step or setting.
    CheckpointError
        The two are of different architectures, or cut the texts into different tokens, or one cannot be loaded.
    PythiaDynError
        Fewer than 3 points, another dtype or head, or no text that has a finite NLL at every α.
    """
    import xarray as xr

    given = EvaluationSettings.from_mapping(settings)
    if points < 3:
        raise PythiaDynError(f"an interpolation needs at least 3 points, both ends included; got {points}")
    if given.dtype != "float32" or given.head != "as-is":
        raise PythiaDynError("an interpolation is computed in float32, with W_U as it is; leave dtype and head out")
    if len(given.devices) > 1:
        raise PythiaDynError(f"an interpolation runs on one device, not {given.device}")
    corpus = load_corpus(given.corpus, limit=given.limit)
    places = [(checkpoint_source(model, given.source), step) for model, step in (a, b)]
    labels = [f"{source.name}@{step}" for source, step in places]
    alphas = np.linspace(0, 1, points)
    progress(0, points)
    with ExitStack() as stack:
        first, second = (stack.enter_context(_checkpoint(source, step)) for source, step in places)
        _check_same_architecture(first, second, labels)
        stack.enter_context(matmul_precision(tf32=given.tf32))
        loaded = LoadedModel(given)
        loaded.load(first)
        model, expected = loaded.model, Expected.of(loaded.model)
        weights = [_by_parameter(model, find_weights(expected, each.directory)) for each in (first, second)]
        sequences = _sequences(loaded, corpus, first, second, labels, given.max_tokens)
        scores = []
        for done, alpha in enumerate(alphas.tolist(), 1):
            _set_weights(model, weights[0], weights[1], alpha)
            scores.append(forward_scores(model, sequences, batch_tokens=given.batch_tokens))
            progress(done, points)
    data, attrs = _losses(alphas, scores)
    if attrs["left_out"]:
        warnings.warn(
            f"{attrs['left_out']} texts have no finite NLL at some α and are left out at every α", stacklevel=2
        )
    about: dict[str, Any] = {"a": labels[0], "b": labels[1], **corpus.provenance, "corpus": corpus.name}
    about |= {"passages": len(corpus.texts), "corpus_sha256": corpus.sha256, "max_tokens": given.max_tokens}
    for side, (source, step) in zip("ab", places, strict=True):
        about |= {f"location_{side}": source.location, f"commit_{side}": source.revisions()[step].commit}
    return xr.Dataset(data, {"alpha": ("alpha", alphas, {"units": "1"})}, {**about, **attrs})


def barrier(
    alphas: NDArray[np.float64], nll: NDArray[np.float64], tokens: NDArray[np.int64]
) -> tuple[dict[str, float], NDArray[np.float64], NDArray[np.float64]]:
    """The loss barrier: max over α of L(α) − ((1 − α)·L(0) + α·L(1)).

    The texts are the same at every α, and differ far more among each other than one text does along the line. So the
    excess of each text over its own chord is what varies: its standard error is that of a ratio of sums (the first
    order of the delta method), and the bootstrap draws whole texts.

    Parameters
    ----------
    alphas
        N numbers from 0 to 1, ascending; the first is 0 and the last is 1.
    nll
        Sums over the tokens of each text, nats, shape (N, S), finite.
    tokens
        Number of tokens of each text, shape (S,), at least 1.

    Returns
    -------
    tuple
        The ``barrier`` (nats per token; 0 at least, since the ends have no excess), ``barrier_alpha``, where it is,
        ``barrier_se``, the standard error at that α, and ``barrier_low`` and ``barrier_high``, the interval of 95 % of
        2,000 bootstrap samples of the texts, each with its own maximum (percentiles). Then the excess and its standard
        error at each α, shape (N,); NaN for a single text.
    """
    chord = np.outer(1 - alphas, nll[0]) + np.outer(alphas, nll[-1])
    chord[0], chord[-1] = nll[0], nll[-1]
    excess_of_text = nll - chord
    excess = excess_of_text.sum(axis=1) / tokens.sum()
    texts = len(tokens)
    error = np.full(len(alphas), np.nan)
    found: dict[str, float] = {}
    best = int(np.argmax(excess))
    low = high = np.nan
    if texts > 1:
        residuals = (excess_of_text - np.outer(excess, tokens)) / tokens.mean()
        error = residuals.std(axis=1, ddof=1) / np.sqrt(texts)
        draws = np.random.default_rng(_BOOTSTRAP_SEED).multinomial(texts, np.full(texts, 1 / texts), _RESAMPLES)
        resampled = (draws @ excess_of_text.T) / (draws @ tokens)[:, None]
        low, high = np.quantile(resampled.max(axis=1), [0.025, 0.975])
    found = {"barrier": float(excess[best]), "barrier_alpha": float(alphas[best]), "barrier_se": float(error[best])}
    found |= {"barrier_low": float(low), "barrier_high": float(high)}
    return found, excess, error


def _losses(alphas: NDArray[np.float64], scores: list[Sentences]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables over α, and the attributes, from the scores of every text at every α."""
    nll, tokens = np.stack([each.nll for each in scores]), scores[0].tokens
    scored = tokens > 0
    known = scored & np.isfinite(nll).all(axis=0) & (nll >= 0).all(axis=0)
    if not known.any():
        raise PythiaDynError(f"none of {int(scored.sum())} texts has a finite NLL at every point; nothing to compare")
    nll, counts = nll[:, known], tokens[known]
    found, excess, error = barrier(alphas, nll, counts)
    loss = nll.sum(axis=1) / counts.sum()
    chord = loss - excess
    if len(counts) > 1:
        residuals = (nll - np.outer(loss, counts)) / counts.mean()
        loss_error = residuals.std(axis=1, ddof=1) / np.sqrt(len(counts))
    else:
        loss_error = np.full(len(alphas), np.nan)
    titles = {
        "nll": ("mean NLL per token", loss),
        "nll_se": ("standard error of the NLL over texts", loss_error),
        "chord": ("NLL on the line between the ends", chord),
        "excess": ("NLL above the line between the ends", excess),
        "excess_se": ("standard error of the excess, paired over texts", error),
    }
    data = {name: ("alpha", values, {"long_name": title, "units": "nat"}) for name, (title, values) in titles.items()}
    attrs = {**found, "sentences": int(known.sum()), "left_out": int((scored & ~known).sum())}
    return data, attrs | {"tokens": int(counts.sum()), "unscored": int((~scored).sum())}


@contextmanager
def _checkpoint(source: Source, step: int) -> Iterator[Checkpoint]:
    """A checkpoint with its config and tokenizer, on disk in this block; what was downloaded for it is then removed."""
    available = source.revisions()
    if step not in available:
        raise UnknownNameError("step", step, available, where=source.location)
    revision = available[step]
    try:
        yield CheckpointReader(source, available).read(revision, source.snapshot(revision))
    finally:
        source.evict(revision)


def _check_same_architecture(first: Checkpoint, second: Checkpoint, labels: list[str]) -> None:
    """Raise `CheckpointError` where the configs differ in what the model computes."""
    if first.config_sha256 != second.config_sha256:
        raise CheckpointError(
            f"{labels[0]} and {labels[1]} have other configs: only models of one architecture can be interpolated"
        )


def _sequences(
    loaded: LoadedModel, corpus: Corpus, first: Checkpoint, second: Checkpoint, labels: list[str], width: int | None
) -> list[list[int]]:
    """The token ids of the texts, which both tokenizers give."""
    sequences = encode(loaded.tokenizer, corpus.texts, loaded.model)
    if first.tokenizer.sha256 != second.tokenizer.sha256:
        other = load_tokenizer(second.tokenizer.content, second.tokenizer.path)
        if encode(other, corpus.texts, loaded.model) != sequences:
            raise CheckpointError(f"{labels[0]} and {labels[1]} cut the texts into different tokens: no common loss")
    context = context_length(loaded.model)
    return [sequence[: min(context, width or context)] for sequence in sequences]


def _by_parameter(model: PreTrainedModel, weights: Weights) -> dict[str, FoundTensor | None]:
    """What each parameter becomes, by the first of its names; None for zeros. Tied names are one parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, FoundTensor | None] = {names[id(parameters[tensor.name])]: tensor for tensor in weights.tensors}
    return found | {names[id(parameters[name])]: None for name in weights.absent}


def _set_weights(
    model: PreTrainedModel,
    first: Mapping[str, FoundTensor | None],
    second: Mapping[str, FoundTensor | None],
    alpha: float,
) -> None:
    """Give a model the weights θ(α). At the ends they are those of the checkpoint, to the bit."""
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if alpha in (0.0, 1.0):
                _copy(parameter, (second if alpha else first)[name])
                continue
            one, other = torch.empty_like(parameter), torch.empty_like(parameter)
            _copy(one, first[name])
            _copy(other, second[name])
            parameter.copy_(one.mul_(1 - alpha).add_(other, alpha=alpha))


def _copy(target: torch.Tensor, found: FoundTensor | None) -> None:
    """Copy one tensor of a file, converted to the dtype of the target."""
    if found is None:
        target.zero_()
        return
    content = found.read()
    target.copy_(content.T if found.is_turned else content)
