"""The text of an evaluation, LAMBADA or a file, and the tokenizer of a checkpoint.

The paper uses the first 500 passages of the LAMBADA test set (Paperno et al. 2016); `EleutherAI/lambada_openai` is the
variant processed by OpenAI, which lm-evaluation-harness and the published Pythia results use.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_dynamics.errors import CheckpointError, CorpusError, UnknownNameError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["DATASETS", "Corpus", "load_corpus", "load_tokenizer", "loading_from_hub"]

DATASETS: Mapping[str, str] = {
    "lambada": "EleutherAI/lambada_openai",
    "EleutherAI/lambada_openai": "EleutherAI/lambada_openai",
    "cimec/lambada": "cimec/lambada",
}
"""Names that `load_corpus` knows, and the data set of the Hub that each stands for; its ``test`` split is used."""

_JSON_LINES = (".jsonl", ".ndjson")
_OFFLINE_HINT = "give a file instead: --corpus FILE (.jsonl with a `text` field, or plain text, a passage a line)"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages of text.

    Parameters
    ----------
    name
        Name of the file or data set.
    texts
        The passages in order, at least one. A passage may be empty; it is counted as unscored.
    provenance
        Attributes that are written beside a result.

    Raises
    ------
    CorpusError
        When there is no passage.
    """

    name: str
    texts: tuple[str, ...]
    provenance: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.texts:
            raise CorpusError(f"corpus {self.name} holds no passage; give a text with at least one")

    @property
    def sha256(self) -> str:
        """Digest of the passages and the boundaries between them."""
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode("utf-8", errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()


def load_corpus(spec: str | Path | Corpus = "lambada", *, limit: int | None = 500) -> Corpus:
    """The first passages of a corpus.

    Parameters
    ----------
    spec
        A name of `DATASETS`, or a file: ``.jsonl`` with a ``text`` field in every line, or plain UTF-8 text with one
        passage in a line, where blank lines are skipped. Of a `Corpus` the first passages are taken.
    limit
        Number of passages, at least 1; None takes all.

    Raises
    ------
    CorpusError
        For a text that cannot be loaded, and for one without a passage.
    UnknownNameError
        For a name that is neither a data set nor a file.
    """
    if limit is not None and limit < 1:
        raise CorpusError(f"limit must be at least 1 passage, not {limit}")
    if isinstance(spec, Corpus):
        return Corpus(spec.name, spec.texts[:limit], spec.provenance)
    path = Path(spec).expanduser()
    if path.is_file():
        return _from_file(path, limit)
    name = str(spec)
    if not isinstance(spec, Path) and name in DATASETS:
        return _from_hub(DATASETS[name], limit)
    if isinstance(spec, Path) or path.suffix or name.startswith((".", "/", "~")):
        raise CorpusError(f"no corpus file {spec}; {_OFFLINE_HINT}")
    raise UnknownNameError("corpus", name, DATASETS)


def load_tokenizer(content: bytes, path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, without truncation and padding.

    Its callers encode with ``add_special_tokens=False``, so that only tokens of the text are scored.

    Parameters
    ----------
    content
        The bytes of its ``tokenizer.json``.
    path
        Where they are from, for the message.

    Raises
    ------
    CheckpointError
        When they are not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from error
    # The file may store truncation and padding of the training run that wrote it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_file(path: Path, limit: int | None) -> Corpus:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path} as UTF-8 text: {error}") from error
    passages = _json_texts(path, content) if path.suffix.lower() in _JSON_LINES else _plain_texts(content)
    texts = tuple(islice(passages, limit))
    if not texts:
        raise CorpusError(f"{path} holds no passage; {_OFFLINE_HINT}")
    return Corpus(path.name, texts, {"corpus_file": path.name, "corpus_passages": len(texts)})


def _plain_texts(content: str) -> Iterator[str]:
    # Not splitlines(): that also breaks at form feeds and Unicode separators, which occur inside passages.
    return (line.strip() for line in content.split("\n") if line.strip())


def _json_texts(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number} is not JSON: {error.msg}") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise CorpusError(f"{path}, line {number} has no string field `text`")
        yield text


def _from_hub(repository: str, limit: int | None) -> Corpus:
    import datasets

    with loading_from_hub(repository, _OFFLINE_HINT):
        texts = tuple(datasets.load_dataset(repository, split="test")["text"][:limit])
    about: dict[str, str | int] = {"corpus_dataset": repository, "corpus_split": "test", "corpus_passages": len(texts)}
    return Corpus(repository, texts, about)


@contextmanager
def loading_from_hub(repository: str, hint: str) -> Iterator[None]:
    """Show no progress bars of `datasets` and no log of its requests in the ``with`` block, and turn each error in it
    into a `CorpusError`.

    Parameters
    ----------
    repository
        The data set that is loaded in the block; the message names it.
    hint
        What to do where it cannot be loaded, at the end of the message.
    """
    import datasets

    shown, log = not datasets.are_progress_bars_disabled(), logging.getLogger("huggingface_hub")
    level = log.level
    datasets.disable_progress_bars()
    log.setLevel(logging.ERROR)  # it tells each repeated request in two lines
    try:
        yield
    except Exception as error:  # `datasets` lets every error of its own dependencies through
        raise CorpusError(f"cannot load {repository}: {first_line(error)}; {hint}") from error
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
