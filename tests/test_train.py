import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from pythia_dynamics.errors import CorpusError, PythiaDynError
from pythia_dynamics.train import (
    HELD_OUT,
    LOSSES,
    SUITE,
    Suite,
    Text,
    TrainingPlan,
    python_reference,
    read_text,
    train_suite,
)

PLAN = TrainingPlan(
    d_model=16, layers=1, heads=2, context=16, vocab=300, batch=4, max_steps=30, checkpoints=6, warmup_steps=2
)
FOLDERS = [f"step{step}" for step in (5, 10, 15, 20, 25, 30)]


@pytest.fixture(scope="module")
def text() -> Text:
    whole = python_reference()
    return Text(whole.name, whole.passages[:400])


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, text: Text) -> Path:
    seen: list[tuple[int, int]] = []
    trained = train_suite(
        tmp_path_factory.mktemp("train") / "suite", text, PLAN, progress=lambda *done: seen.append(done)
    )
    assert trained.fresh
    assert seen == [(step, 30) for step in range(1, 31)]
    return trained.path


def test_the_suite_has_the_layout_of_the_hub(suite: Path) -> None:
    assert sorted(path.name for path in suite.iterdir()) == sorted([*FOLDERS, HELD_OUT, LOSSES, SUITE, "tokenizer"])
    for folder in FOLDERS:
        names = {path.name for path in (suite / folder).iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
        with safe_open(suite / folder / "model.safetensors", framework="pt") as file:
            assert file.get_tensor("embed_out.weight").dtype == torch.float16
            assert file.get_tensor("embed_out.weight").shape == (300, 16)


def test_every_checkpoint_is_a_model_that_transformers_loads(suite: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(suite / "step30")
    model = GPTNeoXForCausalLM.from_pretrained(suite / "step30", dtype=torch.float32)
    inputs = tokenizer("The Python reference", return_tensors="pt")
    assert model(inputs["input_ids"]).logits.shape[-1] == len(tokenizer) == 300


def test_the_loss_goes_down_and_the_weights_move(suite: Path) -> None:
    losses = Suite(suite, fresh=False).losses
    assert [step for step, _ in losses] == [5, 10, 15, 20, 25, 30]
    assert losses[0][1] > losses[-1][1] + 0.1
    heads = []
    for folder in FOLDERS:
        with safe_open(suite / folder / "model.safetensors", framework="np") as file:
            heads.append(file.get_tensor("embed_out.weight").astype(np.float32))
    assert all(np.abs(b - a).max() > 1e-4 for a, b in pairwise(heads))


def test_held_out_text_is_not_trained_on(suite: Path, text: Text) -> None:
    training, held_out = text.split(PLAN.held_out)
    assert training.passages + held_out.passages == text.passages
    assert held_out.characters == pytest.approx(0.1 * text.characters, rel=0.3)
    texts = [json.loads(line)["text"] for line in (suite / HELD_OUT).read_text().splitlines()]
    assert len(texts) >= 3
    for passage in texts:
        assert any(whole.startswith(passage) for whole in held_out.passages)
    assert not set(held_out.passages) & set(training.passages)


def test_a_finished_suite_is_kept_another_plan_replaces_it(tmp_path: Path, text: Text) -> None:
    small = TrainingPlan(
        d_model=8, layers=1, heads=1, context=8, vocab=270, batch=1, max_steps=2, checkpoints=2, warmup_steps=0
    )
    out = train_suite(tmp_path / "s", text, small).path
    before = (out / "step2" / "model.safetensors").stat().st_mtime_ns
    content = (out / "step2" / "model.safetensors").read_bytes()
    assert not train_suite(out, text, small).fresh
    assert (out / "step2" / "model.safetensors").stat().st_mtime_ns == before
    again = train_suite(tmp_path / "t", text, small).path
    assert (again / "step2" / "model.safetensors").read_bytes() == content  # seeded
    train_suite(out, text, replace(small, seed=1))
    assert (out / "step2" / "model.safetensors").read_bytes() != content


def test_other_peoples_directories_are_left_alone(tmp_path: Path, text: Text) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PythiaDynError, match="not a suite made by pythia-dyn"):
        train_suite(tmp_path, text, PLAN)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_lies_beside_a_suite_stays(tmp_path: Path, text: Text) -> None:
    small = TrainingPlan(
        d_model=8, layers=1, heads=1, context=8, vocab=270, batch=1, max_steps=2, checkpoints=2, warmup_steps=0
    )
    out = train_suite(tmp_path / "s", text, small).path
    (out / "notes.txt").write_text("mine")
    before = (out / "step2" / "model.safetensors").read_bytes()
    with pytest.raises(CorpusError):
        train_suite(out, Text("short", ("One passage here.",) * 5), small)
    assert (out / "step2" / "model.safetensors").read_bytes() == before
    train_suite(out, text, replace(small, max_steps=3, checkpoints=1))
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.glob("step*")) == ["step3"]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / SUITE).write_text('{"mine": 1}')
    with pytest.raises(PythiaDynError, match="not a suite"):
        train_suite(tmp_path / "t", text, small)


def test_any_text_has_something_to_hold_out(tmp_path: Path) -> None:
    verse = Text("verse", tuple(f"line {k} of numbers 12 34 {k}" for k in range(2000)))
    out = train_suite(
        tmp_path / "s",
        verse,
        TrainingPlan(
            d_model=8, layers=1, heads=1, context=16, vocab=270, batch=1, max_steps=2, checkpoints=1, warmup_steps=0
        ),
    ).path
    assert len((out / HELD_OUT).read_text().splitlines()) > 20


def test_a_text_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="at least 320"):
        train_suite(tmp_path / "s", Text("short", ("One passage here.",) * 30), PLAN)


def test_plans_that_cannot_be(text: Text) -> None:
    with pytest.raises(PythiaDynError, match="multiple of the 3 heads"):
        TrainingPlan(d_model=16, heads=3)
    with pytest.raises(PythiaDynError, match="do not fit"):
        TrainingPlan(max_steps=10, checkpoints=11)
    assert TrainingPlan().saved_steps == tuple(range(10, 1431, 10))


def test_texts_are_read(tmp_path: Path) -> None:
    assert python_reference().characters > 300_000
    (tmp_path / "a.txt").write_text(
        "first\nstill first\n\n\nsecond\n\nsecond\n" + "".join(f"\n\n{k}" for k in range(20))
    )
    assert read_text(tmp_path / "a.txt").passages[:3] == ("first still first", "second", "0")
    (tmp_path / "b.txt").write_text("one\ntwo\nthree\n")
    assert read_text(tmp_path / "b.txt").passages == ("one", "two", "three")
    with pytest.raises(CorpusError, match="cannot read the text"):
        read_text(tmp_path / "absent.txt")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_text(tmp_path / "c.bin")
