"""Training a suite: its layout, its numbers against a loop written out by hand, and going on after an interruption."""

import errno
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, GPTNeoXForCausalLM, TrainerCallback, get_scheduler

import pythia_dynamics as pyd
from pythia_dynamics.errors import CorpusError, NonFiniteError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.evaluation.corpus import load_tokenizer
from pythia_dynamics.training.loop import new_model, train_suite
from pythia_dynamics.training.plan import SIZES, TrainingPlan, plan_named, plan_of_size
from pythia_dynamics.training.sample import sample_text
from pythia_dynamics.training.suite import HELD_OUT, LOSSES, SUITE, Suite, prepare_text
from pythia_dynamics.training.text import SHAKESPEARE, Text, python_reference, read_text, tiny_shakespeare
from pythia_dynamics.training.tokenizer import character_ids, character_tokenizer

PLAN = TrainingPlan(
    d_model=16, layers=1, heads=2, context=16, vocab=300, batch=4, max_steps=30, checkpoints=6, warmup_steps=2
)
FOLDERS = [f"step{step}" for step in (5, 10, 15, 20, 25, 30)]
SMALL = TrainingPlan(
    d_model=8, layers=1, heads=1, context=8, vocab=270, batch=1, max_steps=2, checkpoints=2, warmup_steps=0
)


@pytest.fixture(scope="module")
def text() -> Text:
    whole = python_reference()
    return Text.of(whole.name, whole.passages[:400])


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, text: Text) -> Path:
    seen: list[tuple[int, int]] = []
    trained = train_suite(
        tmp_path_factory.mktemp("train") / "suite", text, PLAN, progress=lambda *done: seen.append(done)
    )
    assert trained.fresh
    assert seen == [(step, 30) for step in range(1, 31)]
    return trained.path


def weights(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- what a suite is ------------------------------------------------------------------------------------------


def test_the_suite_has_the_layout_of_the_hub(suite: Path) -> None:
    assert sorted(path.name for path in suite.iterdir()) == sorted([*FOLDERS, HELD_OUT, LOSSES, SUITE, "tokenizer"])
    for folder in FOLDERS:
        names = {path.name for path in (suite / folder).iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
        head = weights(suite / folder)["embed_out.weight"]
        assert (head.dtype, head.shape) == (np.dtype(np.float16), (300, 16))


def test_its_learning_rate_arrives_in_a_store(suite: Path, tmp_path: Path) -> None:
    history = pyd.fetch(suite, cache=tmp_path / "cache")
    assert history.provenance["learning_rate"] == "suite.json of suite"
    np.testing.assert_allclose(history.coordinates["learning_rate"], PLAN.learning_rate_schedule.at(range(5, 31, 5)))


@pytest.mark.parametrize("plan", [PLAN, SMALL, replace(PLAN, schedule="constant"), replace(PLAN, warmup_steps=40)])
def test_the_schedule_is_that_of_the_trainer(plan: TrainingPlan) -> None:
    kind = "cosine" if plan.schedule == "cosine" else "constant_with_warmup"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=plan.learning_rate)
    scheduler = get_scheduler(kind, optimizer, plan.warmup_steps, plan.max_steps)
    expected = []
    for _ in range(plan.max_steps + 1):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(plan.learning_rate_schedule.at(range(plan.max_steps + 1)), expected, atol=1e-12)


def test_every_checkpoint_is_a_model_that_transformers_loads(suite: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(suite / "step30")
    model = GPTNeoXForCausalLM.from_pretrained(suite / "step30", dtype=torch.float32)
    inputs = tokenizer("The Python reference", return_tensors="pt")
    assert model(inputs["input_ids"]).logits.shape[-1] == len(tokenizer) == 300


def test_the_loss_goes_down_and_the_weights_move(suite: Path) -> None:
    losses = Suite(suite, fresh=False).losses
    assert [row.step for row in losses] == [5, 10, 15, 20, 25, 30]
    assert losses[0].train > losses[-1].train + 0.1
    assert losses[0].validation > losses[-1].validation + 0.1
    heads = [weights(suite / folder)["embed_out.weight"].astype(np.float32) for folder in FOLDERS]
    assert all(np.abs(b - a).max() > 1e-4 for a, b in pairwise(heads))


def test_held_out_text_is_not_trained_on(suite: Path, text: Text) -> None:
    training, held_out = text.split_passages(PLAN.held_out)
    assert training + held_out == text.passages
    assert sum(map(len, held_out)) == pytest.approx(0.1 * text.characters, rel=0.3)
    texts = [json.loads(line)["text"] for line in (suite / HELD_OUT).read_text().splitlines()]
    assert len(texts) >= 3
    for passage in texts:
        assert any(whole.startswith(passage) for whole in held_out)
    assert not set(held_out) & set(training)


def test_a_finished_suite_is_kept_another_plan_replaces_it(tmp_path: Path, text: Text) -> None:
    out = train_suite(tmp_path / "s", text, SMALL).path
    before = content(out)
    assert not train_suite(out, text, SMALL).fresh
    assert content(out) == before
    again = train_suite(tmp_path / "t", text, SMALL).path
    assert content(again) == before  # seeded
    train_suite(out, text, replace(SMALL, seed=1))
    assert content(out)["step2/model.safetensors"] != before["step2/model.safetensors"]
    assert Suite(out, fresh=False).about["plan"]["seed"] == 1
    other = Text(text.name, text.content[:-1] + "x")  # as long, of the same name
    assert train_suite(out, other, replace(SMALL, seed=1)).fresh


def test_other_peoples_directories_are_left_alone(tmp_path: Path, text: Text) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(PythiaDynError, match="not a suite made by pythia-dyn"):
        train_suite(tmp_path / "mine", text, PLAN)
    assert content(tmp_path / "mine") == {"thesis.tex": b"years of work"}


def test_what_lies_beside_a_suite_stays(tmp_path: Path, text: Text) -> None:
    out = train_suite(tmp_path / "s", text, SMALL).path
    (out / "notes.txt").write_text("mine")
    before = (out / "step2" / "model.safetensors").read_bytes()
    with pytest.raises(CorpusError):
        train_suite(out, Text("short", "One passage here.\n\n" * 5), SMALL)
    assert (out / "step2" / "model.safetensors").read_bytes() == before
    train_suite(out, text, replace(SMALL, max_steps=3, checkpoints=1))
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.glob("step*")) == ["step3"]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / SUITE).write_text('{"mine": 1}')
    with pytest.raises(PythiaDynError, match="not a suite"):
        train_suite(tmp_path / "t", text, SMALL)


# -- the numbers ----------------------------------------------------------------------------------------------


def test_a_training_is_what_a_loop_written_out_gives(tmp_path: Path, text: Text) -> None:
    plan = replace(
        PLAN,
        tokenizer="characters",
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta2=0.999,
        max_grad_norm=0.0,
        max_steps=6,
        checkpoints=2,
        step_zero=True,
        dtype="float32",
    )
    out = train_suite(tmp_path / "s", text, plan).path
    material = prepare_text(text, plan)
    model = new_model(plan, len(material.tokenizer))
    for name, tensor in weights(out / "step0").items():
        assert np.array_equal(tensor, model.state_dict()[name.replace("embed_out", "lm_head")].numpy()), name
    starts = np.random.default_rng(plan.seed).integers(0, len(material.training) - 16, size=24).reshape(6, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    for row in starts:
        windows = torch.from_numpy(np.stack([material.training[start : start + 16] for start in row]))
        logits = model(input_ids=windows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = weights(out / "step6")
    for name, tensor in model.state_dict().items():
        # a bias of the keys has no gradient but rounding, which Adam makes a step of; hence the absolute tolerance
        np.testing.assert_allclose(final[name.replace("lm_head", "embed_out")], tensor, rtol=2e-4, atol=2e-5)
    rng = np.random.default_rng((plan.seed, 1))
    last = Suite(out, fresh=False).losses[-1]
    for measured, part in ((last.train, material.training), (last.validation, material.validation)):
        losses = []
        for start in rng.integers(0, len(part) - 16, size=plan.eval_batches * plan.batch):
            window = torch.from_numpy(part[start : start + 16])
            with torch.no_grad():
                logits = model.eval()(input_ids=window[None]).logits[0, :-1].double()
            losses.append(float(torch.nn.functional.cross_entropy(logits, window[1:])))
        assert measured == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_steps_of_the_papers(text: Text) -> None:
    assert TrainingPlan().saved_steps == tuple(range(10, 1431, 10))
    blog = plan_of_size("10k")
    assert blog.saved_steps == tuple(range(0, 20_001, 500))
    assert plan_of_size("10k", max_steps=700).saved_steps == (0, 500, 700)
    assert plan_named("demo") == TrainingPlan()
    assert len(plan_named("Demo", seed=3).saved_steps) == 143
    assert plan_named("demo", every=500).saved_steps == (500, 1000, 1430)
    assert plan_named("10K", seed=2) == plan_of_size("10k", seed=2)
    pythia = plan_of_size("0.1m", max_steps=143_000, checkpoints=143, log_spaced=True)
    assert pythia.saved_steps == (0, *(2**k for k in range(10)), *range(1000, 143_001, 1000))
    assert replace(blog, max_steps=9, log_spaced=True).saved_steps == (0, 1, 2, 4, 8, 9)


@pytest.mark.parametrize(("size", "parameters"), [("10k", 16928), ("0.1m", 108_416), ("1m", 810_000), ("10m", 10.7e6)])
def test_the_four_sizes(size: str, parameters: float) -> None:
    plan = plan_of_size(size)
    assert (plan.context, plan.batch, plan.learning_rate, plan.dropout, plan.max_steps) == (256, 64, 3e-4, 0.2, 20_000)
    model = new_model(plan, 65)
    assert model.num_parameters() == pytest.approx(parameters, rel=0.01)
    assert (model.config.num_attention_heads, model.config.hidden_size) == (plan.heads, plan.d_model)
    assert model.config.hidden_dropout == model.config.attention_dropout == 0.2


def test_the_two_ways_to_initialise() -> None:
    neox, pytorch = (new_model(plan_of_size("1m", initialisation=kind), 65) for kind in ("neox", "pytorch"))
    for name, tensor in neox.named_parameters():
        if name.endswith("weight") and tensor.ndim == 2:
            assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.05), name
    head = pytorch.get_output_embeddings().weight.detach()
    bound = 128**-0.5
    assert float(head.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(head.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    state = torch.get_rng_state()
    new_model(plan_of_size("10k"), 65)
    assert torch.equal(state, torch.get_rng_state())


def test_a_token_per_character(text: Text) -> None:
    sample = "To be,\nor not  to be — that\tis\n\n?"
    tokenizer = character_tokenizer(sample)
    assert len(tokenizer) == len(set(sample))
    ids = tokenizer(sample)["input_ids"]
    assert ids == [sorted(set(sample)).index(character) for character in sample]
    np.testing.assert_array_equal(character_ids(sample, sample), ids)
    assert tokenizer.decode(ids) == sample
    assert tokenizer.decode(tokenizer("or§be")["input_ids"]) == "or be"  # what it does not know is a space
    assert character_tokenizer("ba").decode(character_tokenizer("ba")("xb")["input_ids"]) == "ab"


def test_a_suite_of_characters_keeps_the_lines(tmp_path: Path) -> None:
    play = "".join(
        f"ROMEO {k}:\nIt is the east, and Juliet is\nthe sun number {k} in all the sky.\n\n" for k in range(90)
    )
    plan = replace(PLAN, tokenizer="characters", context=64, max_steps=4, checkpoints=1, step_zero=True, dropout=0.2)
    made = train_suite(tmp_path / "s", Text("play", play), plan)
    texts = [json.loads(line)["text"] for line in (made.path / HELD_OUT).read_text().splitlines()]
    assert len(texts) == 8  # the cut goes through another one
    assert all(passage in play for passage in texts)
    assert all("\n" in passage and len(passage) <= 48 for passage in texts)
    file = made.path / "step0" / "tokenizer.json"
    tokenizer = load_tokenizer(file.read_bytes(), file)
    assert tokenizer.decode(tokenizer.encode(texts[0]).ids) == texts[0]
    assert weights(made.path / "step0")["embed_out.weight"].shape == (len(set(play)), 16)
    written = sample_text(made, 4, samples=2)
    assert [len(part) for part in written.rstrip("\n").split("\n----------\n")] == [63, 63]
    assert set(written) <= set(play) | {"-"}
    assert sample_text(made, 4, samples=2) == written != sample_text(made, 4, samples=2, seed=1)


# -- interruptions --------------------------------------------------------------------------------------------

INTERRUPTED = replace(PLAN, dropout=0.3, max_steps=24, checkpoints=4, step_zero=True, dtype="float32")


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, text: Text) -> None:
    undisturbed = content(train_suite(tmp_path / "a" / "s", text, INTERRUPTED).path)
    out = tmp_path / "b" / "s"

    def interrupt(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_suite(out, text, INTERRUPTED, resume_seconds=0, progress=interrupt)
    assert not out.exists()
    seen: list[int] = []
    assert train_suite(out, text, INTERRUPTED, progress=lambda done, total: seen.append(done)).fresh
    assert seen == list(range(15, 25))
    assert content(out) == undisturbed
    assert not (out.parent / ".s.partial").exists()


def test_a_killed_training_goes_on(tmp_path: Path, text: Text) -> None:
    undisturbed = content(train_suite(tmp_path / "a" / "s", text, INTERRUPTED).path)
    (tmp_path / "text.txt").write_text(text.content)
    script = (
        "import os, signal, sys\n"
        "from dataclasses import replace\n"
        "from pythia_dynamics.training.loop import train_suite\n"
        "from pythia_dynamics.training.plan import TrainingPlan\n"
        "from pythia_dynamics.training.text import Text\n"
        f"plan = TrainingPlan(**{ {name: getattr(INTERRUPTED, name) for name in INTERRUPTED.__slots__}!r})\n"
        "def kill(done, total):\n"
        "    if done == 13: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"text = Text({text.name!r}, open(sys.argv[1]).read())\n"
        "train_suite(sys.argv[2], text, plan, resume_seconds=0, progress=kill)\n"
    )
    out = tmp_path / "b" / "s"
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "text.txt", out], check=False)
    assert killed.returncode == -signal.SIGKILL
    state = out.parent / ".s.partial" / "trainer"
    newest = max(state.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert newest.name == "checkpoint-12"
    torn = state / "checkpoint-13"  # as a kill while it was written leaves it
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    assert train_suite(out, text, INTERRUPTED).fresh
    assert content(out) == undisturbed


FULL_DISKS: dict[str, tuple[str, Exception]] = {
    "safetensors": (
        "transformers.modeling_utils.safe_save_file",
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "tokenizers": ("shutil.copy", Exception("No space left on device (os error 28)")),
    "torch": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
    "python": ("torch.save", OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize("library", FULL_DISKS)
def test_a_full_disk_is_one_line_and_the_same_call_goes_on(
    tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch, suite: Path, library: str
) -> None:
    out, (function, error) = tmp_path / "s", FULL_DISKS[library]
    seen: list[int] = []

    def fill_disk(done: int, total: int) -> None:
        if done == 7:
            monkeypatch.setattr(function, Mock(side_effect=error))

    line = f"cannot write {out}: the disk is full; free some space, the same command goes on"
    with pytest.raises(StoreError, match=f"^{re.escape(line)}$"):
        train_suite(out, text, PLAN, resume_seconds=0, progress=fill_disk)
    assert not out.exists()
    monkeypatch.undo()
    train_suite(out, text, PLAN, progress=lambda done, total: seen.append(done))
    assert seen[0] > 5
    assert content(out) == content(suite)


def test_other_errors_of_a_training_stay(tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.copy", Mock(side_effect=RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train_suite(tmp_path / "s", text, SMALL)


def test_a_kill_between_training_and_renaming(tmp_path: Path, text: Text) -> None:
    out = train_suite(tmp_path / "s", text, SMALL).path
    whole = content(out)
    partial = tmp_path / ".s.partial"
    partial.mkdir()
    for name in ("step2", SUITE):  # the rest has been moved
        (out / name).rename(partial / name)
    assert train_suite(out, text, SMALL, progress=lambda *done: pytest.fail("trained anew")).fresh
    assert content(out) == whole


def test_a_changed_plan_does_not_go_on_with_the_old_one(tmp_path: Path, text: Text) -> None:
    out = tmp_path / "s"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_suite(out, text, replace(SMALL, seed=3), resume_seconds=0, progress=interrupt)
    train_suite(out, text, SMALL)
    assert content(out) == content(train_suite(tmp_path / "t", text, SMALL).path)


def test_one_process_trains_a_suite(tmp_path: Path, text: Text) -> None:
    def nested(done: int, total: int) -> None:
        with pytest.raises(PythiaDynError, match="another process is training"):
            train_suite(tmp_path / "s", text, SMALL)

    train_suite(tmp_path / "s", text, SMALL, progress=nested)


# -- texts and plans that cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
def test_any_text_has_something_to_hold_out(tokenizer: Any) -> None:
    verse = Text.of("verse", tuple(f"line {k} of numbers 12 34 {k}" for k in range(2000)))
    plan = TrainingPlan(d_model=8, layers=1, heads=1, context=16, vocab=270, tokenizer=tokenizer, max_steps=200)
    assert len(prepare_text(verse, plan).passages) > 20
    lines = Text("lines", verse.content.replace("\n\n", "\n"))
    assert len(prepare_text(lines, plan).passages) > 20
    one = Text("one line", " ".join(verse.passages))
    if tokenizer == "characters":
        assert prepare_text(one, plan).passages


def test_a_text_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="at least 320"):
        train_suite(tmp_path / "s", Text("short", "One passage here.\n\n" * 3), PLAN)
    with pytest.raises(CorpusError, match="is empty"):
        train_suite(tmp_path / "s", Text("none", ""), replace(PLAN, tokenizer="characters"))
    with pytest.raises(CorpusError, match="too short to hold a part"):
        prepare_text(Text("words", "ab cd " * 60), replace(PLAN, tokenizer="characters", held_out=0.01))


def test_plans_that_cannot_be() -> None:
    with pytest.raises(PythiaDynError, match="multiple of the 3 heads"):
        TrainingPlan(d_model=16, heads=3)
    with pytest.raises(PythiaDynError, match="do not fit"):
        TrainingPlan(max_steps=10, checkpoints=11)
    for name, value, said in (
        ("batch", 0, "batch must be at least 1"),
        ("context", 1, "at least 2 tokens"),
        ("dropout", 1.0, "less than 1"),
        ("held_out", 1.0, "between 0 and 1"),
        ("tokenizer", "words", "no tokenizer 'words'"),
        ("arch", "gpt2", "no arch 'gpt2'"),
    ):
        with pytest.raises(PythiaDynError, match=said):
            plan_of_size("10k", **{name: value})
    with pytest.raises(UnknownNameError, match="no size '1k'; did you mean"):
        plan_of_size("1k")
    with pytest.raises(UnknownNameError, match="demo"):
        plan_named("dem")
    with pytest.raises(UnknownNameError, match="did you mean learning_rate"):
        plan_of_size("10k", learningrate=1)
    assert plan_of_size("10K", batch=None) == plan_of_size("10k")
    assert set(SIZES) == {"10k", "0.1m", "1m", "10m"}


def test_devices_and_divergence(tmp_path: Path, text: Text) -> None:
    with pytest.raises(UnknownNameError, match="no device 'abacus'"):
        train_suite(tmp_path / "s", text, SMALL, device="abacus")
    with pytest.raises(NonFiniteError, match="diverged; lower --learning-rate"):
        train_suite(tmp_path / "s", text, replace(PLAN, learning_rate=1e38, max_grad_norm=0.0, warmup_steps=0))


def test_callbacks_of_ones_own_hear_the_training(tmp_path: Path, text: Text) -> None:
    class Listener(TrainerCallback):
        def __init__(self) -> None:
            self.logged: list[int] = []

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            if "loss" in logs:
                self.logged.append(state.global_step)

    listener = Listener()
    train_suite(tmp_path / "s", text, replace(PLAN, eval_batches=1), callbacks=[listener])
    assert listener.logged == [5, 10, 15, 20, 25, 30]


def test_texts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_reference().characters > 300_000
    (tmp_path / "a.txt").write_text(
        "first\nstill first\n\n\nsecond\n\nsecond\n" + "".join(f"\n\n{k}" for k in range(20))
    )
    assert read_text(tmp_path / "a.txt").passages[:3] == ("first still first", "second", "0")
    (tmp_path / "b.txt").write_text("one\ntwo\nthree\n")
    assert read_text(tmp_path / "b.txt").passages == ("one", "two", "three")
    assert read_text(tmp_path / "b.txt").split_content(0.5) == ("one\ntwo", "\nthree\n")
    with pytest.raises(CorpusError, match="cannot read the text"):
        read_text(tmp_path / "absent.txt")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_text(tmp_path / "c.bin")

    import datasets

    parts = {"train": {"text": ["First Citizen:\n"]}, "validation": {"text": ["Before "]}, "test": {"text": ["we"]}}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts if name == SHAKESPEARE else None)
    assert tiny_shakespeare().content == "First Citizen:\nBefore we"

    def offline(name: str) -> None:
        raise ConnectionError("no route to host\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(CorpusError, match="no route to host; give a text of your own with --corpus FILE"):
        tiny_shakespeare()
