"""What an evaluator holds at once where memory runs short, and what it notes of that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import TEXTS, model, write_checkpoint

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.evaluation import scoring
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings, Mode
from pythia_dynamics.evaluation.unmasking import Unmasker

SETTINGS: dict[str, Any] = {"corpus": Corpus("texts", TEXTS * 3), "device": "cpu", "max_tokens": 24}


@pytest.fixture
def suite(tmp_path: Path) -> LocalSource:
    for step in (1, 2):
        write_checkpoint(tmp_path / "tiny" / f"step{step}", model(step))
    return LocalSource(tmp_path / "tiny")


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that ran out of memory, each time: it has room for 80 tokens, and for 2,000 cached positions.

    The second batch of a run is the first that fails, so that there are results of the first one by then.
    """
    seen: list[str] = []
    score_batch, complete_batch = scoring._score_batch, Unmasker._complete
    calls = {"read": 0, "unmask": 0}

    def fails(kind: str, needed: int, room: int) -> bool:
        calls[kind] += 1
        if calls[kind] == 1 or needed <= room:
            return False
        seen.append(kind)
        return True

    def score(model: Any, members: Sequence[int], sequences: Sequence[Sequence[int]], *more: Any) -> None:
        if fails("read", len(members) * max(len(sequences[i]) for i in members), 80):
            raise MemoryError
        score_batch(model, members, sequences, *more)

    def complete(self: Unmasker, sentences: Sequence[Sequence[int]], *more: Any) -> Any:
        if fails("unmask", len(sentences) * max(map(len, sentences)) ** 2, 2000):
            raise MemoryError
        return complete_batch(self, sentences, *more)

    monkeypatch.setattr(scoring, "_score_batch", score)
    monkeypatch.setattr(Unmasker, "_complete", complete)
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_a_row_can_be_computed_again_with_the_number_that_is_noted(
    suite: LocalSource, failures: list[str], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"unmask": 6000}.get(mode, 200)
    settings = EvaluationSettings(**SETTINGS, batch_tokens=given)
    with pytest.warns(UserWarning, match="out of memory; goes on with --batch-tokens") as warned:
        short = evaluate(suite, [mode], settings)[mode]
    noted = short.attrs["batch_tokens"]
    assert 0 < noted < given
    assert str(noted) in str(warned[-1].message)
    assert "notes_by_step" not in short.attrs  # the second step began with it
    count = len(failures)
    again = evaluate(suite, [mode], EvaluationSettings(**SETTINGS, batch_tokens=noted))[mode]
    assert len(failures) == count
    assert again.identical(short)
    other = {"unmask": 700}.get(mode, 10)
    whole = evaluate(suite, [mode], EvaluationSettings(**SETTINGS, batch_tokens=other))[mode]
    np.testing.assert_allclose(whole["ppl" if mode == "last-word" else "ppl_mean"], short[next(iter(short))], rtol=1e-5)


def test_modes_have_a_number_each(suite: LocalSource, failures: list[str]) -> None:
    with pytest.warns(UserWarning, match="out of memory"):
        results = evaluate(suite, ["forward", "unmask"], EvaluationSettings(**SETTINGS, batch_tokens=6000))
    assert results["forward"].attrs["batch_tokens"] != results["unmask"].attrs["batch_tokens"] < 6000
