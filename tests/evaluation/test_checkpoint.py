"""Checkpoints whose config or tokenizer is another than that of the checkpoints before."""

from __future__ import annotations

import json
import re
import shutil
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from support.hubserver import HubServer
from support.tiny_models import TEXTS, model, write_checkpoint, write_suite
from tokenizers import Tokenizer
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.errors import CheckpointError, PythiaDynError
from pythia_dynamics.evaluation import evaluator
from pythia_dynamics.evaluation.checkpoint import describe_differences
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.evaluator import LoadedModel
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.model import build_model
from pythia_dynamics.evaluation.portrait import completions, portrait
from pythia_dynamics.evaluation.runner import evaluate, perplexity
from pythia_dynamics.evaluation.scoring import summarise
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings, Mode, ModelSettings

STEPS = (1, 2, 3, 10)
OPTIONS: dict[str, Any] = {"corpus": Corpus("texts", TEXTS[:3]), "device": "cpu", "max_tokens": 8}
PHRASE = "the cat sat on the mat"
OWN = "; each was evaluated with its own"

Change = Callable[[Path], None]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suites") / "tiny", STEPS)


@pytest.fixture
def suite(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "tiny"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder of every model that is built, as it happens."""
    seen: list[str] = []

    def note(directory: Path, **options: Any) -> Any:
        seen.append(directory.name)
        return build_model(directory, **options)

    monkeypatch.setattr(evaluator, "build_model", note)
    return seen


# -- changes of a checkpoint ----------------------------------------------------------------------------------


def swap(folder: Path) -> None:
    """Exchange the numbers of two tokens that are in every text."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    file.write_text(json.dumps(content))


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def flip(folder: Path) -> None:
    configure(folder, use_parallel_residual=False)


def both(folder: Path) -> None:
    swap(folder)
    flip(folder)


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def enlarge_vocabulary(folder: Path) -> None:
    """A tokenizer that gives tokens the model does not have."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["o"] = 5000
    file.write_text(json.dumps(content))


def change(suite: Path, changes: Mapping[int, Change]) -> None:
    for step, edit in changes.items():
        edit(suite / f"step{step}")


# -- runs -----------------------------------------------------------------------------------------------------


def run(suite: Path, expected: str = "", **options: Any) -> dict[Mode, xr.Dataset]:
    """Every mode over the steps. `expected` is the end of the one warning there is; "" where there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = options.pop("out", None)
        result = evaluate(suite, MODES, EvaluationSettings(**{**OPTIONS, **options}), out=out)
    told = [str(item.message) for item in caught]
    assert told == ([f"tiny: {expected}"] if expected else [])
    return result


@pytest.fixture(scope="session")
def unchanged(template: Path) -> dict[Mode, xr.Dataset]:
    """The results of the suite in which every step has the same files."""
    return run(template)


def assert_same_rows(one: xr.Dataset, other: xr.Dataset) -> None:
    """The steps of `other` are the same in `one`, to the bit."""
    here = one.sel(step=other["step"])
    for name, variable in other.data_vars.items():
        values = here[name].values[..., : other.sizes.get("prefix", 0)] if "prefix" in variable.dims else here[name]
        np.testing.assert_array_equal(values, variable)


def assert_each_is_as_alone(suite: Path, results: Mapping[Mode, xr.Dataset], steps: tuple[int, ...] = STEPS) -> None:
    for step in steps:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "tiny: .* has no tokenizer and was")
            alone = evaluate(suite, MODES, EvaluationSettings(**{**OPTIONS, "steps": [step]}))
        for mode, result in results.items():
            assert_same_rows(result, alone[mode])
            shown = result.attrs.get("notes_by_step", {}).get(str(step), result.attrs)
            for name in ("unscored", "truncated", "context", "config_sha256", "tokenizer_sha256"):
                assert shown[name] == alone[mode].attrs[name]


def changed_steps(one: xr.Dataset, other: xr.Dataset) -> list[int]:
    name = "ppl" if "ppl" in one else "ppl_corpus"
    return [int(step) for step in one["step"] if float(one[name].sel(step=step)) != float(other[name].sel(step=step))]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({3: swap, 10: swap}, f"steps 3, 10 have another tokenizer than step 1{OWN}"),
        ({2: flip}, f"step 2 has another config than step 1{OWN}"),
        ({10: both}, f"step 10 has another config than step 1 and step 10 has another tokenizer than step 1{OWN}"),
        (
            {2: swap, 3: flip},
            f"step 3 has another config than step 1 and step 2 has another tokenizer than step 1{OWN}",
        ),
    ],
)
def test_each_step_is_run_with_its_own_files(
    unchanged: dict[Mode, xr.Dataset], suite: Path, changes: dict[int, Change], told: str
) -> None:
    change(suite, changes)
    results = run(suite, told)
    assert_each_is_as_alone(suite, results)
    for mode, result in results.items():
        assert changed_steps(result, unchanged[mode]) == sorted(changes)
        assert result.attrs["missing"] == {}
        assert set(result.attrs["notes_by_step"]) == {str(step) for step in changes}
    for step in STEPS:  # as transformers itself loads and runs each
        folder = suite / f"step{step}"
        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        weights = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = summarise(forward_scores(weights, [own.encode(text).ids[:8] for text in TEXTS[:3]]))
        row = results["forward"].sel(step=step)
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-6)


def test_files_that_come_and_go(suite: Path, builds: list[str]) -> None:
    change(suite, {2: both, 10: both})
    two = "steps 2, 10 have another"
    results = run(suite, f"{two} config than step 1 and {two} tokenizer than step 1{OWN}")
    assert builds == ["step1", "step2", "step3", "step10"]
    assert_each_is_as_alone(suite, results)


def test_equal_files_build_one_model(unchanged: dict[Mode, xr.Dataset], suite: Path, builds: list[str]) -> None:
    configure(suite / "step2", transformers_version="4.24.0", torch_dtype="float16", dtype="bfloat16", use_cache=False)
    file = suite / "step3" / "config.json"
    reordered = dict(reversed(json.loads(file.read_text()).items()))
    file.write_text(json.dumps({**reordered, "_name_or_path": "/home/somebody"}))
    results = run(suite)
    assert builds == ["step1"]
    for mode, result in unchanged.items():
        assert results[mode].equals(result)
        assert "notes_by_step" not in results[mode].attrs


def test_what_depends_on_config_and_tokenizer_is_made_anew(suite: Path) -> None:
    configure(suite / "step2", max_position_embeddings=4)
    results = run(suite, f"step 2 has another config than step 1{OWN}", max_tokens=None)
    notes = results["forward"].attrs["notes_by_step"]["2"]
    assert (notes["context"], notes["truncated"]) == (4, 3)
    assert (results["forward"].attrs["context"], results["forward"].attrs["truncated"]) == (48, 0)
    alone = run(suite, max_tokens=None, steps=[2])
    for mode, result in results.items():
        assert_same_rows(result, alone[mode])


def test_a_model_of_another_size(suite: Path) -> None:
    shutil.rmtree(suite / "step3")
    write_checkpoint(suite / "step3", model(5, num_hidden_layers=1, hidden_size=16))
    results = run(suite, f"step 3 has another config than step 1{OWN}")
    assert_each_is_as_alone(suite, results, (3, 10))


def test_the_last_model_is_let_go_before_the_next_is_built(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[weakref.ref[Any]] = []

    def check(directory: Path, **options: Any) -> Any:
        assert all(reference() is None for reference in before)
        built = build_model(directory, **options)
        before.append(weakref.ref(built))
        return built

    monkeypatch.setattr(evaluator, "build_model", check)
    change(suite, {2: flip})
    run(suite, f"step 2 has another config than step 1{OWN}")
    assert len(before) == 3


# -- what cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": '), r"cannot read .*step3/config\.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: configure(folder, model_type="none"), "cannot build a model from .*step3"),
        (lambda folder: configure(folder, hidden_size=64), "as its config.json says"),
        (lambda folder: configure(folder, num_hidden_layers=3), "lacks 12 weights"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"cannot read .*step3/tokenizer\.json"),
        (enlarge_vocabulary, "the tokenizer gives token 5000, but the model knows 304"),
        (lambda folder: configure(folder, vocab_size=128), "(the model knows 128|as its config.json says)"),
    ],
)
def test_a_step_that_cannot_be_run_is_a_gap_and_the_others_go_on(
    unchanged: dict[Mode, xr.Dataset], suite: Path, edit: Change, reason: str
) -> None:
    edit(suite / "step3")
    results = run(suite)
    for mode, result in unchanged.items():
        (step, told), *others = results[mode].attrs["missing"].items()
        assert (step, others) == ("3", [])
        assert re.search(reason, told)
        assert "\n" not in told
        assert_same_rows(results[mode], result.sel(step=[1, 2, 10]))


def test_a_step_without_a_tokenizer_has_that_of_the_nearest_earlier_step(suite: Path, tmp_path: Path) -> None:
    change(suite, {2: swap, 3: drop_tokenizer, 10: drop_tokenizer})
    another = f"step 2 has another tokenizer than step 1{OWN}"
    borrowed = "steps 3, 10 have no tokenizer and were evaluated with that of step 2"
    results = run(suite, f"{another}; {borrowed}")
    assert_each_is_as_alone(suite, results)
    assert results["forward"].attrs["notes_by_step"]["10"]["tokenizer_step"] == 2
    copied = Path(shutil.copytree(suite, tmp_path / "copied" / "tiny"))
    for step in (3, 10):
        shutil.copy(suite / "step2" / "tokenizer.json", copied / f"step{step}" / "tokenizer.json")
    for mode, result in run(copied, f"steps 2, 3, 10 have another tokenizer than step 1{OWN}").items():
        assert result.equals(results[mode])
    # The step that lends need not be asked for, and a gap can lend.
    alone = run(suite, "step 3 has no tokenizer and was evaluated with that of step 2", steps=[3])
    (suite / "step2" / "config.json").write_text("{")
    again = run(suite, "steps 3, 10 have no tokenizer and were evaluated with that of step 2")
    for mode in MODES:
        assert_same_rows(again[mode], alone[mode])
        assert again[mode].attrs["missing"].keys() == {"2"}


def test_no_step_has_the_tokenizer_of_a_later_one(suite: Path) -> None:
    change(suite, {1: drop_tokenizer, 2: drop_tokenizer})
    for result in run(suite).values():
        assert result.attrs["missing"].keys() == {"1", "2"}
        assert "no tokenizer.json in" in result.attrs["missing"]["1"]


def test_a_tokenizer_that_a_step_of_the_hub_lacks(suite: Path, hub: HubServer) -> None:
    change(suite, {2: swap, 3: drop_tokenizer, 10: drop_tokenizer})
    hub.add("somebody/tiny", {folder.name: folder for folder in suite.iterdir()})
    with pytest.warns(UserWarning, match="step 10 has no tokenizer and was evaluated with that of step 2"):
        remote = perplexity("somebody/tiny", steps=[10], **OPTIONS)
    read = [request for request in hub.log if request.kind == "resolve"]
    branches = hub.repositories["somebody/tiny"].branches
    (lent,) = [request.path for request in read if request.revision == branches["step2"]]
    assert lent.endswith("/tokenizer.json")  # no weights of a step that only lends
    assert not [request for request in read if request.revision == branches["step1"]]
    with pytest.warns(UserWarning, match="no tokenizer"):
        local = perplexity(suite, steps=[10], **OPTIONS)
    assert remote.equals(local)


# -- resuming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [([1],), ([10], [2]), ([3, 10], [1]), ([2], [1, 10], [3])])
def test_resuming_changes_neither_rows_nor_notes(
    suite: Path, tmp_path: Path, builds: list[str], runs: tuple[list[int], ...]
) -> None:
    change(suite, {2: both, 3: drop_tokenizer, 10: flip})
    config, tokenizer = "steps 2, 10 have another config than step 1", "step 2 has another tokenizer than step 1"
    told = f"{config} and {tokenizer}{OWN}; step 3 has no tokenizer and was evaluated with that of step 2"
    fresh = run(suite, told, out=tmp_path / "fresh")
    for steps in runs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluate(suite, MODES, EvaluationSettings(**OPTIONS, steps=steps), out=tmp_path / "resumed")
    resumed = run(suite, told, out=tmp_path / "resumed")
    builds.clear()
    again = run(suite, told, out=tmp_path / "resumed")
    assert builds == []
    for mode in MODES:
        assert resumed[mode].identical(fresh[mode])
        assert again[mode].identical(fresh[mode])
    for file in (tmp_path / "fresh").glob("*.csv"):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()
    for mode in MODES:
        one, other = (
            json.loads((tmp_path / name / f"perplexity-{mode}.json").read_text()) for name in ("fresh", "resumed")
        )
        assert one | {"indices": other["indices"]} == other  # rows are in the archive in the order of arrival


def test_an_interrupted_run_goes_on(suite: Path, tmp_path: Path, builds: list[str]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    change(suite, {3: swap, 10: swap})
    told = f"steps 3, 10 have another tokenizer than step 1{OWN}"
    settings = EvaluationSettings(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        evaluate(suite, MODES, settings, out=tmp_path / "results", progress=stop)
    builds.clear()
    resumed = run(suite, told, out=tmp_path / "results")
    assert builds == ["step10"]
    for mode, result in run(suite, told).items():
        assert resumed[mode].identical(result)


@pytest.mark.parametrize("edit", [swap, flip])
def test_rows_of_a_folder_are_those_of_its_config_and_tokenizer(
    suite: Path, tmp_path: Path, builds: list[str], edit: Change
) -> None:
    before = run(suite, out=tmp_path / "results")
    builds.clear()
    run(suite, out=tmp_path / "results")
    assert builds == []
    edit(suite / "step3")  # the weights stay
    name = "tokenizer" if edit is swap else "config"
    after = run(suite, f"step 3 has another {name} than step 1{OWN}", out=tmp_path / "results")
    assert builds == ["step3"]
    for mode, result in after.items():
        assert changed_steps(result, before[mode]) == [3]
    (suite / "step3" / "config.json").write_text("{")
    for result in run(suite, out=tmp_path / "results").values():
        assert result.attrs["missing"].keys() == {"3"}


# -- the line that tells it -----------------------------------------------------------------------------------


def test_the_line_says_which_steps_differ() -> None:
    plain = {"config_sha256": "a", "tokenizer_sha256": "b"}
    other = {**plain, "tokenizer_sha256": "c"}
    assert describe_differences({}) == ""
    assert describe_differences({1: plain, 2: plain}) == ""
    assert describe_differences({1: plain, 2: plain, 3: {**other, "tokenizer_step": 0}}) == (
        "step 3 has no tokenizer and was evaluated with that of step 0"
    )
    many = {1000: plain} | dict.fromkeys(range(2000, 144000, 1000), other)
    assert describe_differences(many) == (
        f"142 steps (2000, 3000, 4000, 5000 … 143000) have another tokenizer than step 1000{OWN}"
    )


# -- portraits ------------------------------------------------------------------------------------------------


def test_a_portrait_has_each_step_as_it_is(suite: Path) -> None:
    text = TEXTS[2]
    change(suite, {10: both})
    with pytest.warns(UserWarning, match="step 10 has another config than step 1 and step 10 has another tokenizer"):
        taken = portrait(suite, phrase=PHRASE, text=text, device="cpu")
    for step in (1, 10):
        folder = suite / f"step{step}"
        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        whole = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.inference_mode():
            attentions = whole(torch.tensor([own.encode(PHRASE).ids]), output_attentions=True).attentions
            logits = whole(torch.tensor([own.encode(text).ids])).logits[0].mean(dim=0)
        np.testing.assert_allclose(taken["attention"].sel(step=step), attentions[0][0], atol=1e-5)
        np.testing.assert_allclose(taken["logits"].sel(step=step), logits, atol=1e-4)
    assert "".join(taken.attrs["words"]) == PHRASE
    alone = completions(suite, PHRASE, ModelSettings(device="cpu"), step=10)
    assert [line["perplexity"] for line in taken.attrs["completions"]] == [line.perplexity for line in alone]
    assert all(PHRASE.startswith(line.given) for line in alone)


def test_completions_of_a_step_without_a_tokenizer(suite: Path) -> None:
    settings = ModelSettings(device="cpu")
    expected = completions(suite, PHRASE, settings)
    drop_tokenizer(suite / "step10")
    with pytest.warns(UserWarning, match="step 10 has no tokenizer and was evaluated with that of step 3"):
        assert completions(suite, PHRASE, settings) == expected


def test_steps_that_cannot_stand_side_by_side(suite: Path) -> None:
    file = suite / "step10" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    file.write_text(json.dumps(content))
    with pytest.raises(PythiaDynError, match="cut the phrase into other tokens") as caught:
        portrait(suite, phrase=PHRASE, text=TEXTS[0], device="cpu")
    assert "\n" not in str(caught.value)
    shutil.rmtree(suite / "step10")
    write_checkpoint(suite / "step10", model(5, hidden_size=16))
    with pytest.raises(PythiaDynError, match="models have other sizes"):
        portrait(suite, phrase=PHRASE, text=TEXTS[0], device="cpu")


def test_a_loaded_model_recovers_from_a_checkpoint_that_fails(suite: Path) -> None:
    state = load_file(suite / "step2" / "model.safetensors")
    state.pop("embed_out.weight")
    save_file(state, suite / "step2" / "model.safetensors")
    with pytest.raises(AssertionError, match="no checkpoint"):
        _ = LoadedModel(ModelSettings(device="cpu")).model
    flip(suite / "step2")
    results = run(suite)
    assert results["forward"].attrs["missing"].keys() == {"2"}
    assert_each_is_as_alone(suite, results, (1, 3, 10))
    with pytest.raises(CheckpointError, match="none of 1"):
        run(suite, steps=[2])
