"""Counts of the tokens of a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import TEXTS, model, write_checkpoint
from tokenizers import Tokenizer

from pythia_dynamics.errors import CheckpointError, CorpusError, PythiaDynError
from pythia_dynamics.evaluation.token_counts import token_counts
from pythia_dynamics.history.history import History


def test_counts_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    for step in (1000, 2000):
        write_checkpoint(tmp_path / "suite" / f"step{step}", model(0))
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(TEXTS[:3]))
    tokenizer = next((tmp_path / "suite").rglob("tokenizer.json"))
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_truncation()
    encoder.no_padding()
    expected = np.zeros(5000, np.int64)
    for text in TEXTS[:3]:
        for line in filter(str.strip, text.split("\n")):
            for token in encoder.encode(line.strip(), add_special_tokens=False).ids:
                expected[token] += 1
    history = History.from_array(np.zeros((1, 5000, 2), np.float32))
    history = replace(history, provenance={"source": str(tmp_path / "suite")})
    np.testing.assert_array_equal(token_counts(history, corpus), expected)
    for given in (tokenizer, tokenizer.parent):
        np.testing.assert_array_equal(token_counts(history, corpus, tokenizer=given), expected)
    assert token_counts(history, corpus, limit=1).sum() < expected.sum()
    small = replace(history, frame_shape=(2, 2))
    with pytest.raises(PythiaDynError, match="has token"):
        token_counts(small, corpus)
    with pytest.raises(CorpusError):
        token_counts(history, tmp_path / "none.txt")
    with pytest.raises(CheckpointError, match="neither a directory nor a repository"):
        token_counts(history, corpus, tokenizer=tmp_path / "none.json")
    unknown = replace(history, provenance={"source": "array"})
    with pytest.raises(PythiaDynError, match="the tokenizer of array is not known"):
        token_counts(unknown, corpus)
