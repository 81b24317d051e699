"""Where in a model a tensor is, and what it is for: its layer and its kind, from its name. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pythia_dynamics.checkpoints.roles import EMBEDDING, UNEMBEDDING, find_roles

__all__ = ["KINDS", "PARTS", "Kind", "Place", "find_place", "module_of", "part_name", "split_part"]

Kind = Literal[
    "embedding",
    "position",
    "query",
    "key",
    "value",
    "query-key-value",
    "attention-out",
    "mlp-in",
    "mlp-gate",
    "mlp-gate-in",
    "mlp-out",
    "norm",
    "unembedding",
    "other",
]
"""What a tensor is for. ``query-key-value`` and ``mlp-gate-in`` are fused: one tensor holds what others keep apart."""

KINDS: tuple[Kind, ...] = get_args(Kind)

PARTS: Mapping[str, Kind] = {"query": "query", "key": "key", "value": "value", "gate": "mlp-gate", "up": "mlp-in"}
"""The parts of fused tensors by the word that names them, and their kinds."""

_PART = re.compile(rf"(?P<tensor>.+?)(?:\.(?P<kind>{'|'.join(PARTS)}))?(?:\.head(?P<head>\d{{1,6}}))?")
"""The name of a part. A tensor's own name ends in ``.weight`` or ``.bias``, in all architectures with parts."""

_MODULES: Mapping[Kind, tuple[str, ...]] = {
    "query-key-value": (
        *("query_key_value", "qkv_proj", "att_proj", "attn.c_attn", "Wqkv", "in_proj", "W_pack", "wqkv", "qkv"),
    ),
    "query": ("q_proj", "attention.wq", "self.query", "SelfAttention.q", "q_lin", "attn.q"),
    "key": ("k_proj", "attention.wk", "self.key", "SelfAttention.k", "k_lin", "attn.k"),
    "value": ("v_proj", "attention.wv", "self.value", "SelfAttention.v", "v_lin", "attn.v"),
    "attention-out": (
        *("attention.dense", "self_attention.dense", "self_attn.dense", "attn.c_proj", "o_proj", "attn_out"),
        *("attention.wo", "attention.out_proj", "self_attn.out_proj", "attention.output.dense", "SelfAttention.o"),
        *("attn.projection", "attn.out_proj", "out_lin"),
    ),
    "mlp-gate-in": ("ff_proj", "gate_up_proj"),
    "mlp-gate": ("gate_proj", "feed_forward.w1", "swiglu.w_0", "DenseReluDense.wi_0"),
    "mlp-in": (
        *("dense_h_to_4h", "mlp.c_fc", "up_proj", "fc_in", "fc1", "feed_forward.w3", "intermediate.dense", "up"),
        *("swiglu.w_1", "DenseReluDense.wi", "DenseReluDense.wi_1", "ffn.lin1"),
    ),
    "mlp-out": (
        *("dense_4h_to_h", "mlp.c_proj", "down_proj", "fc_out", "fc2", "feed_forward.w2", "ff_out", "output.dense"),
        *("swiglu.w_2", "DenseReluDense.wo", "ffn.lin2", "down"),
    ),
    "position": ("wpe", "embed_positions", "position_embeddings"),
}
"""Ends of the names of modules: of GPT-NeoX, Llama and OLMo 2, GPT-2, OPT, Phi, BLOOM, OLMo 1, BERT, T5, Pico and the
nanoGPT of this package. An end that another one ends with comes after it."""

_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln_?\w*)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is in a model.

    Parameters
    ----------
    layer
        Number of its block, from 0; None outside of the blocks.
    kind
        What it is for.
    is_bias
        Whether it is the bias of its module, not the weight.
    head
        Number of the head of attention, from 0; None for a tensor, or a part of it, of all heads.
    """

    layer: int | None
    kind: Kind
    is_bias: bool
    head: int | None = None

    @property
    def order(self) -> tuple[int, int, int, bool, int]:
        """Sorts tensors as the data flows: the embeddings, the blocks one after the other, the last norm and W_U."""
        first = {"embedding": 0, "position": 0}.get(self.kind, 2) if self.layer is None else 1
        return first, self.layer or 0, KINDS.index(self.kind), self.is_bias, -1 if self.head is None else self.head


def split_part(name: str) -> tuple[str, str | None, int | None]:
    """The tensor, the part and the head that a name means: ``….query_key_value.weight.query.head5``.

    Parameters
    ----------
    name
        The name of a tensor, or of a part of one.

    Returns
    -------
    tuple
        The name of the tensor; one of `PARTS`, or None; the number of the head, or None.
    """
    match = _PART.fullmatch(name)
    if match is None or not match["tensor"].endswith((".weight", ".bias")):
        return name, None, None
    return match["tensor"], match["kind"], None if match["head"] is None else int(match["head"])


def part_name(tensor: str, kind: str | None, head: int | None) -> str:
    """The name of a part of a tensor, which `split_part` reads.

    Parameters
    ----------
    tensor
        The name of the tensor.
    kind
        One of `PARTS`, or None.
    head
        Number of the head, or None.
    """
    return tensor + (f".{kind}" if kind else "") + ("" if head is None else f".head{head}")


def module_of(tensor: str) -> str:
    """The name of a tensor without ``.weight`` or ``.bias``.

    Parameters
    ----------
    tensor
        Its name.
    """
    return tensor.removesuffix(".weight").removesuffix(".bias")


def find_place(tensor: str) -> Place:
    """The layer and the kind of a tensor.

    The layer is the first number in its name. The kind comes from the name of its module; ``other`` where that is not
    one of the architectures that this package knows.

    Parameters
    ----------
    tensor
        Its name: ``gpt_neox.layers.3.mlp.dense_h_to_4h.weight``; or that of a part of it, as `part_name` has it.
    """
    tensor, part, head = split_part(tensor)
    layer = next((int(word) for word in tensor.split(".") if word.isdecimal()), None)
    kind = _kind(module_of(tensor), layer) if part is None else PARTS[part]
    return Place(layer, kind, tensor.split(".")[-1] == "bias", head)


def _kind(module: str, layer: int | None) -> Kind:
    if layer is None:
        roles = find_roles([f"{module}.weight"])
        if UNEMBEDDING in roles:
            return "unembedding"
        if EMBEDDING in roles:
            return "embedding"
    if _NORM.search(module):
        return "norm"
    for kind, ends in _MODULES.items():
        if any(module == end or module.endswith(f".{end}") for end in ends):
            return kind
    return "other"
