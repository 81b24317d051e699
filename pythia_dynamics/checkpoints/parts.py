"""The parts of a fused tensor, and the heads of attention, as ranges of its rows or columns. No I/O.

Where a part lies is what the modules of transformers do with the output of the layer: GPT-NeoX, BLOOM and Falcon store
head by head (queries, a key, a value), GPT-2, Phi-3, MPT and OLMo 1 all queries, all keys, all values. GPT-2 stores the
transposed matrix, so that a part of it is a range of columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.modules import PARTS, find_place, module_of, part_name
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

__all__ = ["Attention", "HeadsUnknownError", "Part", "head_parts", "kind_parts", "may_have_parts", "part_of"]


class HeadsUnknownError(PythiaDynError):
    """Which rows of a tensor belong to a head is not known, because the number of heads is not."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What must be known of the attention of a model to tell its heads apart.

    Parameters
    ----------
    heads
        Heads of a block: of the queries, where keys and values have fewer.
    head_size
        Width of a head. None where it is not known; it is then d_model / heads.
    model_type
        The architecture, as ``config.json`` names it; empty where it is not known.

    Raises
    ------
    PythiaDynError
        `heads` or `head_size` is no whole number above 0.
    """

    heads: int
    head_size: int | None = None
    model_type: str = ""

    def __post_init__(self) -> None:
        for value, what in ((self.heads, "number of heads"), (self.head_size or 1, "size of a head")):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise PythiaDynError(f"the {what} must be a whole number above 0; got {value!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Attention | None:
        """What a ``config.json`` says; None where it does not say how many heads there are.

        Parameters
        ----------
        config
            Its content. Models of text and images have a config of their own for the text.
        """
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config

        def number(*names: str) -> int | None:
            found = [config[name] for name in names if type(config.get(name)) is int and config[name] > 0]
            return found[0] if found else None

        heads, width = number("num_attention_heads", "n_head", "n_heads", "num_heads"), None
        if heads is None:
            return None
        width = number("hidden_size", "n_embd", "d_model")
        size = number("head_dim", "d_kv") or (width // heads if width and width % heads == 0 else None)
        return cls(heads, size, str(config.get("model_type") or ""))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tensor: blocks of equal length at equal distances along one axis.

    Parameters
    ----------
    kind
        One of `PARTS`; None for a head of a tensor that is not fused.
    head
        Number of the head; None for all heads.
    axis
        The axis that is divided: 0 are rows, 1 columns.
    start, length
        Begin of the first block, and length of each.
    count
        Number of blocks. The axis has this many sections of equal length with a block in each.
    """

    kind: str | None
    head: int | None
    axis: int
    start: int
    length: int
    count: int = 1

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part of a tensor of the shape `whole`."""
        return (*whole[: self.axis], self.length * self.count, *whole[self.axis + 1 :])

    def segments(self, whole: NDArray[Any]) -> NDArray[Any]:
        """The part as runs of elements that are adjacent in memory.

        Parameters
        ----------
        whole
            The tensor, C-contiguous.

        Returns
        -------
        array, shape (runs, elements of a run)
            A view of `whole`. Its elements in row-major order are those of the part.
        """
        section = whole.shape[self.axis] // self.count
        outer, inner = whole.shape[: self.axis], int(np.prod(whole.shape[self.axis + 1 :], dtype=np.int64))
        runs = whole.reshape(int(np.prod(outer, dtype=np.int64)) * self.count, section * inner)
        return runs[:, self.start * inner : (self.start + self.length) * inner]

    def ranges(self, whole: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
        """Where elements of the part are in the tensor.

        Parameters
        ----------
        whole
            The shape of the tensor.
        start, stop
            The elements of the part, in its row-major order.

        Returns
        -------
        list of tuple
            Ranges (start, stop) of elements of the tensor in its row-major order, which together are these.
        """
        section, inner = whole[self.axis] // self.count, math.prod(whole[self.axis + 1 :])
        run, found = self.length * inner, []
        while start < stop:
            number, inside = divmod(start, run)
            count = min(run - inside, stop - start)
            first = (number * section + self.start) * inner + inside
            found.append((first, first + count))
            start += count
        return found

    def of(self, whole: NDArray[Any]) -> NDArray[Any]:
        """The part of a tensor, C-contiguous: a view where it is one run, else a copy."""
        return np.ascontiguousarray(self.segments(whole)).reshape(self.shape(whole.shape))


@dataclass(frozen=True, slots=True)
class _Fused:
    """How modules of one name are fused.

    `order` are the parts. `by_head`: sections with the queries of some heads, their key and their value; else all of
    one part, then all of the next. `equal`: keys and values have as many heads as queries. `models`: the architectures
    for which this was compared with their source; another one that a config names is left fused.
    """

    name: re.Pattern[str]
    models: tuple[str, ...]
    order: tuple[str, ...] = ("query", "key", "value")
    by_head: bool = False
    equal: bool = True


_BLOCK = r"(?:^|\.){}$"
_FUSED = tuple(
    _Fused(re.compile(_BLOCK.format(name)), models, **more)
    for name, models, more in (
        (r"layers\.\d+\.attention\.query_key_value", ("gpt_neox", "gpt_neox_japanese"), {"by_head": True}),
        (r"h\.\d+\.self_attention\.query_key_value", ("bloom",), {"by_head": True}),
        (r"h\.\d+\.self_attention\.query_key_value", ("falcon",), {"by_head": True, "equal": False}),
        (r"layers\.\d+\.self_attn\.query_key_value", ("persimmon",), {"by_head": True}),
        (r"h\.\d+\.attn\.c_attn", ("gpt2", "imagegpt", "openai-gpt", "decision_transformer"), {}),
        (r"h\.\d+\.attn\.query_key_value", ("nanogpt",), {}),
        (r"layers\.\d+\.self_attn\.qkv_proj", ("phi3", "phi4_multimodal"), {"equal": False}),
        (r"blocks\.\d+\.attn\.Wqkv", ("mpt",), {}),
        (r"layers\.\d+\.attn\.Wqkv", ("modernbert",), {}),
        (r"blocks\.\d+\.norm_attn_norm\.attn\.Wqkv", ("dbrx",), {"equal": False}),
        (r"transformer\.blocks\.\d+\.att_proj", ("hf_olmo", "olmo"), {"equal": False}),
        (r"layers\.\d+\.mlp\.gate_up_proj", ("phi3", "glm", "glm4"), {"order": ("gate", "up")}),
        (r"transformer\.blocks\.\d+\.ff_proj", ("hf_olmo", "olmo"), {"order": ("up", "gate")}),
    )
)
"""Each was compared with the code of transformers, those of OLMo 1 with its conversion to transformers."""


def _rule(tensor: str, attention: Attention | None) -> _Fused | None:
    """How a tensor is fused; None where it is not, or not in a way that is known."""
    rules = [rule for rule in _FUSED if rule.name.search(module_of(tensor))]
    if attention is not None and attention.model_type:
        rules = [rule for rule in rules if attention.model_type in rule.models]
    # Without the architecture: where two have one name, the rule that does not take equal numbers of heads for granted.
    return min(rules, key=lambda rule: rule.equal, default=None)


def may_have_parts(tensor: str) -> bool:
    """Whether a tensor of this name is fused, or has a block for each head of attention.

    Parameters
    ----------
    tensor
        Its name in the checkpoint files.
    """
    return _rule(tensor, None) is not None or find_place(tensor).kind in ("query", "key", "value")


def kind_parts(tensor: str, shape: Sequence[int], attention: Attention | None) -> tuple[Part, ...]:
    """The parts of a fused tensor, in its order; empty for one that is not fused, or not in a way that is known.

    Parameters
    ----------
    tensor
        Its name in the checkpoint files.
    shape
        Its shape.
    attention
        The heads of the model, where they are known.

    Raises
    ------
    HeadsUnknownError
        The parts depend on the number of heads, and that is not known.
    PythiaDynError
        The shape cannot be divided so.
    """
    rule = _rule(tensor, attention)
    return () if rule is None else tuple(_kinds(tensor, shape, attention, rule))


def head_parts(tensor: str, shape: Sequence[int], attention: Attention | None) -> tuple[Part, ...]:
    """Each head of a tensor of attention: of query, key and value where it is fused. Empty for another tensor.

    Parameters
    ----------
    tensor, shape, attention
        As for `kind_parts`.

    Raises
    ------
    PythiaDynError
        As `kind_parts`; `HeadsUnknownError` wherever the number of heads is not known.
    """
    rule, kind = _rule(tensor, attention), find_place(tensor).kind
    if rule is not None and rule.order[0] == "query":
        return tuple(_heads_of_fused(tensor, shape, _known(tensor, attention), rule))
    if rule is None and kind in ("query", "key", "value"):
        known = _known(tensor, attention)
        size = known.head_size or (shape[1] if kind != "query" and len(shape) > 1 else shape[0]) / known.heads
        count = shape[0] / size
        if int(size) != size or int(count) != count or (kind == "query" and count != known.heads):
            raise _does_not_fit(tensor, shape, known)
        return tuple(Part(None, head, 0, head * int(size), int(size)) for head in range(int(count)))
    return ()


def part_of(tensor: str, shape: Sequence[int], kind: str | None, head: int | None, attention: Attention | None) -> Part:
    """One part of a tensor.

    Parameters
    ----------
    tensor, shape, attention
        As for `kind_parts`.
    kind
        One of `PARTS`; None where the tensor is not fused.
    head
        Number of the head, from 0; None for all.

    Raises
    ------
    PythiaDynError
        As `kind_parts`; or the tensor has no such part.
    """
    if kind is not None and kind not in PARTS:
        raise UnknownNameError("part", kind, PARTS)
    parts = kind_parts(tensor, shape, attention) if head is None else head_parts(tensor, shape, attention)
    found = [part for part in parts if (part.kind, part.head) == (kind, head)]
    if found:
        return found[0]
    if any(part.kind == kind for part in parts):
        count = sum(part.kind == kind for part in parts)
        raise PythiaDynError(f"{part_name(tensor, kind, None)} has the heads 0 to {count - 1}; got {head}")
    kinds = dict.fromkeys(part.kind for part in parts if part.kind)
    if kinds:
        raise PythiaDynError(f"{tensor} has the parts {', '.join(kinds)}; name one of them")
    if attention is not None and attention.model_type and _rule(tensor, None) is not None:
        raise PythiaDynError(f"how {tensor} is fused is not known for the architecture {attention.model_type}")
    what = "is not fused" if kind is not None or head is None else "is not of query, key or value: it has no heads"
    raise PythiaDynError(f"{tensor} {what}")


def _known(tensor: str, attention: Attention | None) -> Attention:
    if attention is None:
        raise HeadsUnknownError(
            f"the number of attention heads of {tensor} is not known: give --heads (in Python heads=), or fetch it "
            "again from checkpoints with a config.json"
        )
    return attention


def _does_not_fit(tensor: str, shape: Sequence[int], attention: Attention) -> PythiaDynError:
    size = "" if attention.head_size is None else f" of size {attention.head_size}"
    return PythiaDynError(f"{tensor} {list(shape)} cannot be divided among {attention.heads} heads{size}")


def _axis(shape: Sequence[int]) -> int:
    """The fused axis of an attention without fewer keys: that of three times the other one; of a vector its only."""
    return 1 if len(shape) == 2 and shape[1] == 3 * shape[0] else 0


def _sizes(tensor: str, shape: Sequence[int], attention: Attention, rule: _Fused) -> tuple[int, int, int]:
    """Axis, width of a head, and number of heads of the keys."""
    axis, heads = _axis(shape) if rule.equal and not rule.by_head else 0, attention.heads  # sections are of rows
    if rule.equal:
        size = shape[axis] / (3 * heads)
    elif attention.head_size is None and len(shape) == 1:
        raise PythiaDynError(f"the size of a head of {tensor} is not known: its config.json does not say")
    else:
        size = attention.head_size or shape[1] / heads
    keys = (shape[axis] / size - heads) / 2
    known = attention.head_size or size
    if int(size) != size or size != known or int(keys) != keys or keys < 1 or heads % keys:
        raise _does_not_fit(tensor, shape, attention)
    return axis, int(size), int(keys)


def _kinds(tensor: str, shape: Sequence[int], attention: Attention | None, rule: _Fused) -> Iterator[Part]:
    """The parts of a fused tensor."""
    if rule.order[0] != "query" or (rule.equal and not rule.by_head):  # equal shares, whatever the heads
        share = len(rule.order)
        axis = _axis(shape) if share == 3 else 0
        if shape[axis] % share or (share == 3 and len(shape) == 2 and shape[axis] != 3 * shape[1 - axis]):
            raise PythiaDynError(f"{tensor} {list(shape)} cannot be divided into {', '.join(rule.order)}")
        length = shape[axis] // share
        yield from (Part(kind, None, axis, i * length, length) for i, kind in enumerate(rule.order))
        return
    known = _known(tensor, attention)
    axis, size, keys = _sizes(tensor, shape, known, rule)
    count = keys if rule.by_head else 1
    start = 0
    for kind in rule.order:
        length = size * (known.heads if kind == "query" else keys) // count
        yield Part(kind, None, axis, start, length, count)
        start += length


def _heads_of_fused(tensor: str, shape: Sequence[int], attention: Attention, rule: _Fused) -> Iterator[Part]:
    """Each head of each part, in the order of the heads of a part."""
    _, size, _ = _sizes(tensor, shape, attention, rule)
    for part in _kinds(tensor, shape, attention, rule):
        section, inside = shape[part.axis] // part.count, part.length // size
        for head in range(part.count * inside):
            start = head // inside * section + part.start + head % inside * size
            yield Part(part.kind, head, part.axis, start, size)
