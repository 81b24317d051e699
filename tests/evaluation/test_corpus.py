from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
from support.tiny_models import tokenizer

from pythia_dynamics.errors import CheckpointError, CorpusError, UnknownNameError
from pythia_dynamics.evaluation.corpus import Corpus, load_corpus, load_tokenizer


def test_plain_text_is_a_passage_a_line(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one\n\n  two words \r\n\x0cthree\u2028still three\n\n\n", encoding="utf-8")
    corpus = load_corpus(file)
    assert corpus.texts == ("one", "two words", "three\u2028still three")
    assert corpus.name == "text.txt"
    assert load_corpus(str(file), limit=2).texts == corpus.texts[:2]
    assert load_corpus(file, limit=None).texts == corpus.texts


def test_json_lines_are_taken_verbatim(tmp_path: Path) -> None:
    texts = [" leading", "two\nlines", "", "the \u2028 end"]
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": t, "other": 1}, ensure_ascii=False) for t in texts) + "\n\n")
    assert load_corpus(file).texts == tuple(texts)


@pytest.mark.parametrize("line", ["{", "[]", '{"txt": "a"}', '{"text": 3}', '"text"'])
def test_bad_json_lines_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(CorpusError, match="line 2"):
        load_corpus(file)


def test_only_the_lines_that_are_wanted_are_read(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "good"}\nnot json\n')
    assert load_corpus(file, limit=1).texts == ("good",)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="--corpus FILE"):
        load_corpus(tmp_path / "none.txt")
    with pytest.raises(CorpusError, match="--corpus FILE"):
        load_corpus("none.txt")
    with pytest.raises(UnknownNameError, match="lambada"):
        load_corpus("lambda")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="UTF-8"):
        load_corpus(binary)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(CorpusError, match="no passage"):
        load_corpus(empty)
    with pytest.raises(CorpusError, match="limit"):
        load_corpus(binary, limit=0)


@pytest.mark.parametrize(
    ("name", "repository"), [("lambada", "EleutherAI/lambada_openai"), ("cimec/lambada", "cimec/lambada")]
)
def test_lambada_comes_through_datasets(monkeypatch: pytest.MonkeyPatch, name: str, repository: str) -> None:
    asked = []

    def load_dataset(path: str, *, split: str) -> datasets.Dataset:
        asked.append((path, split, datasets.are_progress_bars_disabled()))
        return datasets.Dataset.from_dict({"text": [f"passage {i}" for i in range(600)]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus(name)
    assert asked == [(repository, "test", True)]
    assert not datasets.are_progress_bars_disabled()
    assert corpus.texts == tuple(f"passage {i}" for i in range(500))
    assert corpus.provenance["corpus_dataset"] == repository


def test_without_a_network_the_error_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, *, split: str) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach the Hub\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match=r"Couldn't reach the Hub; .*--corpus FILE") as caught:
        load_corpus("lambada")
    assert "\n" not in str(caught.value)


def test_the_digest_sees_passages_and_their_borders() -> None:
    digests = {Corpus("a", texts).sha256 for texts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("c", "ab")]}
    assert len(digests) == 5
    assert Corpus("a", ("x",)).sha256 == Corpus("b", ("x",)).sha256
    with pytest.raises(CorpusError, match="no passage"):
        Corpus("none", ())


def test_a_corpus_passes_through_and_is_limited() -> None:
    corpus = Corpus("mine", ("a", "b", "c"), {"corpus_file": "x"})
    assert load_corpus(corpus, limit=2) == Corpus("mine", ("a", "b"), {"corpus_file": "x"})


def test_tokenizers_come_without_truncation_and_padding() -> None:
    with pytest.raises(CheckpointError, match=r"cannot read here/tokenizer\.json"):
        load_tokenizer(b"{}", "here/tokenizer.json")
    from tokenizers import Tokenizer

    cutting = Tokenizer.from_str(tokenizer().to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding(length=8)
    text = "the cat sat on the mat and looked at the moon"
    assert load_tokenizer(cutting.to_str().encode(), "tokenizer.json").encode(text).ids == tokenizer().encode(text).ids


@pytest.mark.skipif("PYTHIA_DYN_SHARED" not in os.environ, reason="PYTHIA_DYN_SHARED (real data) is not set")
def test_the_real_tokenizer_on_the_real_text() -> None:
    shared = Path(os.environ["PYTHIA_DYN_SHARED"])
    real = load_tokenizer((shared / "20B_tokenizer.json").read_bytes(), "20B_tokenizer.json")
    corpus = load_corpus(shared / "lambada_test_first600.jsonl")
    assert len(corpus.texts) == 500
    encoded = real.encode_batch(list(corpus.texts), add_special_tokens=False)
    assert [real.decode(e.ids) for e in encoded] == list(corpus.texts)
    lengths = sorted(len(e.ids) for e in encoded)
    assert real.get_vocab_size() == 50277
    assert 20 < lengths[0] < lengths[-1] < 300
