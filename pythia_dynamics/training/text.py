"""Texts to train on: a file, the manual that Python ships, tiny Shakespeare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pythia_dynamics.errors import CorpusError

__all__ = ["SHAKESPEARE", "Text", "python_reference", "read_text", "tiny_shakespeare"]

SHAKESPEARE = "karpathy/tiny_shakespeare"
"""The data set of the Hub with the training text of the blog."""

_FEW = 20  # paragraphs; a text with fewer is taken by its lines


@dataclass(frozen=True)
class Text:
    """A text to train on: its name and its content."""

    name: str
    content: str

    @classmethod
    def of(cls, name: str, passages: tuple[str, ...]) -> Text:
        """A text of these passages."""
        return cls(name, "\n\n".join(passages))

    @property
    def characters(self) -> int:
        """Length of the content."""
        return len(self.content)

    @cached_property
    def passages(self) -> tuple[str, ...]:
        """The paragraphs in order, white space normalised (the lines, where there are hardly any paragraphs).

        Each once: a repeated one could be trained on and held out.
        """
        paragraphs = _passages(self.content.split("\n\n"))
        return paragraphs if len(paragraphs) > _FEW else _passages(self.content.split("\n"))

    @property
    def sha256(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(self.content.encode("utf-8", errors="surrogatepass")).hexdigest()

    def split(self, held_out: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The passages without, and with only, the last ones; `held_out` is their share of the characters."""
        passages = self.passages
        cut, seen, limit = len(passages), 0, held_out * sum(map(len, passages))
        while cut > 1 and seen < limit:
            cut -= 1
            seen += len(passages[cut])
        return passages[:cut], passages[cut:]

    def cut(self, held_out: float) -> tuple[str, str]:
        """The content cut in two at a character; the second part has the share `held_out` of them."""
        place = int((1 - held_out) * len(self.content))
        return self.content[:place], self.content[place:]


def python_reference() -> Text:
    """The Python reference manual that CPython itself ships for ``help()``: 465,000 characters of English.

    Raises `CorpusError` where the interpreter came without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(
            "this Python comes without pydoc_data.topics; give a text of your own with --corpus"
        ) from None
    return Text("Python reference (pydoc_data.topics)", "\n\n".join(topics[key] for key in sorted(topics)))


def read_text(path: Path | str) -> Text:
    """A UTF-8 text file. Raises `CorpusError`."""
    path = Path(path)
    try:
        return Text(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CorpusError(f"cannot read the text {path}: {reason}") from None


def tiny_shakespeare() -> Text:
    """Tiny Shakespeare from the Hub, its three parts put together again. Raises `CorpusError`."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        parts = datasets.load_dataset(SHAKESPEARE)
        content = "".join("".join(parts[name]["text"]) for name in ("train", "validation", "test"))
    except Exception as error:  # `datasets` lets every error of its own dependencies through
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CorpusError(f"cannot load {SHAKESPEARE}: {reason}; give a text of your own with --corpus FILE") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return Text("tiny Shakespeare", content)


def _passages(blocks: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(passage for block in blocks if (passage := " ".join(block.split()))))
