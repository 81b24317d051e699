"""Which tensor of a checkpoint is the unembedding W_U, and which the input embedding, from names and config. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = [
    "ALL",
    "EMBEDDING",
    "ROLES",
    "UNEMBEDDING",
    "Role",
    "Roles",
    "config_is_needed",
    "find_roles",
    "prefixes_removed",
]

Role = Literal["unembedding", "embedding"]
"""What a tensor is for: the unembedding W_U makes logits of hidden states, the embedding makes vectors of tokens."""

ROLES: tuple[Role, ...] = get_args(Role)
UNEMBEDDING, EMBEDDING = ROLES

ALL = "all"
"""Stands for every tensor where tensors are named."""

_HEADS = (
    *("embed_out", "lm_head", "transformer.ff_out", "predictions.decoder", "lm_head.decoder", "head.decoder"),
    *("generator_lm_head", "vocab_projector", "output_projection", "pred_layer.proj", "lm_loss", "proj_out"),
)
"""Ends of names of the unembedding, without ``.weight``: GPT-NeoX, most architectures, OLMo 1, BERT and others. Names
inside a numbered block are never meant: in OLMo 1 every block has an ``ff_out`` too."""

_WHOLE_HEADS = ("output", "head", "decoder")
"""Whole names of the unembedding (of LLaMA's own files, RWKV, ModernBERT); inside other modules they mean other things.
"""

_EMBEDDINGS = (
    *("embed_in", "wte", "shared", "decoder.embed_tokens", "embed_tokens", "word_embeddings", "tok_embeddings"),
    *("tokens_embed", "word_embedding", "input_embedding", "transformer.w", "embeddings"),
)
"""Ends of names of the input embedding, without ``.weight``, in order of preference."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.", "state_dict.")
"""What wrappers put before the names of a model: data parallelism, `torch.compile`, Lightning and others."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The tensors of a checkpoint that have a role.

    Parameters
    ----------
    tensors
        Role → tensor.
    complete
        Whether all roles are known. If not, the config would say whether the embedding is the unembedding too.
    """

    tensors: Mapping[Role, str]
    complete: bool

    def of(self, tensor: str) -> tuple[Role, ...] | None:
        """What a tensor is for; None where that is not known."""
        return tuple(role for role, name in self.tensors.items() if name == tensor) if self.complete else None


def prefixes_removed(name: str) -> Iterator[str]:
    """The name of a tensor without one, two … of the prefixes that wrappers of a model add.

    Parameters
    ----------
    name
        ``module._orig_mod.lm_head.weight`` gives ``_orig_mod.lm_head.weight``, then ``lm_head.weight``.
    """
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
        yield name


def config_is_needed(names: Collection[str]) -> bool:
    """Whether the roles of tensors depend on ``config.json``: there is an embedding, but no unembedding beside it.

    Parameters
    ----------
    names
        Names of all tensors of a checkpoint.
    """
    return not _heads(names) and len(_ending_with(names, _EMBEDDINGS)) == 1


def find_roles(names: Collection[str], config: Mapping[str, Any] | None = None) -> dict[Role, str]:
    """The tensors of a checkpoint that have a role.

    The unembedding is the tensor with a usual name of an output head. Without one it is the embedding, if the config
    ties the two. Where the config says nothing of it, the default of its ``model_type`` in transformers counts.

    Parameters
    ----------
    names
        Names of all tensors of the checkpoint.
    config
        The content of its ``config.json``, for which `config_is_needed` asks; None where it is not known.

    Returns
    -------
    dict of Role to str
        Names of the tensors. A role that no tensor has, or that several could have, is left out.
    """
    of_role = {UNEMBEDDING: _heads(names), EMBEDDING: _ending_with(names, _EMBEDDINGS)}
    if not of_role[UNEMBEDDING] and config is not None and _is_tied(config):
        of_role[UNEMBEDDING] = of_role[EMBEDDING]
    return {role: found[0] for role, found in of_role.items() if len(found) == 1}


def _heads(names: Collection[str]) -> list[str]:
    """The names that are of an output head; several where it cannot be told which of them."""
    whole = {f"{end}.weight" for end in _WHOLE_HEADS}
    return _ending_with(names, _HEADS) or [name for name in names if [name, *prefixes_removed(name)][-1] in whole]


def _ending_with(names: Iterable[str], ends: Iterable[str]) -> list[str]:
    """The names with the first of these ends that one has: those in the fewest modules."""
    outside = [name for name in names if not any(part.isdigit() for part in name.split("."))]
    for end in ends:
        if found := [name for name in outside if f".{name}".endswith(f".{end}.weight")]:
            depth = min(name.count(".") for name in found)
            return [name for name in found if name.count(".") == depth]
    return []


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config, or else the default of its type in transformers, ties the two matrices.

    Models of text and images have a config of their own for the text.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("weight_tying", "tie_word_embeddings"):  # the first is that of OLMo 1
            if key in part:
                return bool(part[key])
    from transformers import CONFIG_MAPPING

    try:
        return bool(getattr(CONFIG_MAPPING[str(config.get("model_type", ""))](), "tie_word_embeddings", False))
    except Exception:  # a type that transformers does not have, or one without a default configuration
        return False
