"""Texts to train on: a file, the reference manual in Python's standard library, tiny Shakespeare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pythia_dynamics.errors import CorpusError
from pythia_dynamics.evaluation.corpus import loading_from_hub

__all__ = ["SHAKESPEARE", "Text", "python_reference", "read_text", "tiny_shakespeare"]

SHAKESPEARE = "karpathy/tiny_shakespeare"
"""The data set on the Hub with the training text of the blog."""

_OWN_TEXT = "give a text of your own with --corpus FILE"

_MAX_AS_LINES = 20
"""A text with at most so many paragraphs is divided by lines: 10 % of 20 paragraphs are 2, too few to hold out."""


@dataclass(frozen=True)
class Text:
    """A text to train on.

    Parameters
    ----------
    name
        Its name in ``suite.json`` and in messages.
    content
        Its characters.
    """

    name: str
    content: str

    @classmethod
    def of(cls, name: str, passages: tuple[str, ...]) -> Text:
        """The text `name` of these `passages`, with an empty line between them."""
        return cls(name, "\n\n".join(passages))

    @property
    def characters(self) -> int:
        """Length of the content."""
        return len(self.content)

    @cached_property
    def passages(self) -> tuple[str, ...]:
        """The paragraphs in order with normalised white space; the lines where there are at most 20 paragraphs.

        A repeated passage is listed once. Otherwise it could be in both parts of a split.
        """
        paragraphs = _passages(self.content.split("\n\n"))
        return paragraphs if len(paragraphs) > _MAX_AS_LINES else _passages(self.content.split("\n"))

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        return hashlib.sha256(self.content.encode("utf-8", errors="surrogatepass")).hexdigest()

    def split_passages(self, held_out: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The passages in two parts. The second has the last ones, with a share `held_out` of the characters."""
        passages = self.passages
        cut, seen, limit = len(passages), 0, held_out * sum(map(len, passages))
        while cut > 1 and seen < limit:
            cut -= 1
            seen += len(passages[cut])
        return passages[:cut], passages[cut:]

    def split_content(self, held_out: float) -> tuple[str, str]:
        """The content in two parts. The second has the last characters, a share `held_out` of them."""
        place = int((1 - held_out) * len(self.content))
        return self.content[:place], self.content[place:]


def python_reference() -> Text:
    """The Python reference manual that CPython ships for ``help()``: 465,000 characters of English.

    Raises `CorpusError` where the Python installation does not have it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(f"this Python has no module pydoc_data.topics; {_OWN_TEXT}") from None
    return Text("Python reference (pydoc_data.topics)", "\n\n".join(topics[key] for key in sorted(topics)))


def read_text(path: Path | str) -> Text:
    """The UTF-8 text file at `path`. Raises `CorpusError` where it cannot be read."""
    path = Path(path)
    try:
        return Text(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CorpusError(f"cannot read the text {path}: {reason}") from None


def tiny_shakespeare() -> Text:
    """Tiny Shakespeare from the Hub, its three parts concatenated. Raises `CorpusError` where it cannot be loaded."""
    import datasets

    with loading_from_hub(SHAKESPEARE, _OWN_TEXT):
        parts = datasets.load_dataset(SHAKESPEARE)
        content = "".join("".join(parts[name]["text"]) for name in ("train", "validation", "test"))
    return Text("tiny Shakespeare", content)


def _passages(blocks: list[str]) -> tuple[str, ...]:
    """The blocks that are not empty, with normalised white space, each once."""
    return tuple(dict.fromkeys(passage for block in blocks if (passage := " ".join(block.split()))))
