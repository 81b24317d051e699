"""Tokenizers made for a text: a byte-level BPE as Pythia's, or one token per character as the blog's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["byte_pairs", "character_ids", "characters"]

_END = "<|endoftext|>"


def byte_pairs(passages: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, the kind Pythia's own tokenizer is, with as many entries as the text is worth."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=_END, eos_token=_END, unk_token=_END, model_max_length=10**9
    )


def characters(content: str) -> PreTrainedTokenizerFast:
    """A token for each character of the text, in the order of their code points, and no other.

    There is no entry for unknown characters, because W_U would get a row that is never trained and enters its norm.
    A character of another text that this one lacks is read as a space (or, where that is lacking too, as the first).
    """
    alphabet = sorted(set(content))
    unknown = " " if " " in alphabet else alphabet[0]
    vocabulary = {character: token for token, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=10**9
    )


def character_ids(content: str, alphabet: str) -> NDArray[np.int64]:
    """The tokens that `characters` of `alphabet` gives a text made of its characters; a hundred times as fast."""
    known = _code_points("".join(sorted(set(alphabet))))
    ids: NDArray[np.int64] = np.searchsorted(known, _code_points(content)).astype(np.int64)
    return ids


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
