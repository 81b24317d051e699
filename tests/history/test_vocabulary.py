"""The entries of a tokenizer, where steps have tokenizers of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history import vocabulary
from pythia_dynamics.history.history import History
from pythia_dynamics.history.vocabulary import tokenizer_entries


def history(directory: Path) -> History:
    return History.from_array(np.zeros((1, 64, 1), np.float16), name=str(directory))


def write(folder: Path, entries: int, *, token: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    vocabulary = {token: 0} | {f"w{k}": k for k in range(1, entries)}
    Tokenizer(models.WordLevel(vocabulary, unk_token=token)).save(str(folder / "tokenizer.json"))


def test_steps_that_do_not_agree_are_named(tmp_path: Path) -> None:
    for step, entries in ((2, 7), (10, 7), (300, 9)):
        write(tmp_path / f"step{step}", entries, token=f"t{step}")
    (tmp_path / "step1").mkdir()
    with pytest.raises(PythiaDynError) as caught:
        tokenizer_entries(history(tmp_path))
    message = str(caught.value)
    assert "7 entries at step 2 and 9 at step 300" in message
    assert message.endswith("give --drop-padding a number of rows")
    assert "\n" not in message
    write(tmp_path / "step300", 7, token="other")  # another tokenizer, of as many entries
    assert tokenizer_entries(history(tmp_path)) == 7


def test_one_of_the_directory_stands_for_all_steps(tmp_path: Path) -> None:
    write(tmp_path / "step2", 7)
    write(tmp_path / "step3", 9)
    write(tmp_path, 11)
    assert tokenizer_entries(history(tmp_path)) == 11


def test_equal_files_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    entries = vocabulary._entries
    monkeypatch.setattr(vocabulary, "_entries", lambda content, file: parsed.append("") or entries(content, file))
    for step in range(5):
        write(tmp_path / f"step{step}", 7)
    assert tokenizer_entries(history(tmp_path)) == 7
    assert len(parsed) == 1
