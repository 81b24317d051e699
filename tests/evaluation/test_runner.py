from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hubserver import HubServer
from support.tiny_models import TEXTS, encode, model, tokenizer, write_checkpoint

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.checkpoint import Checkpoint
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.evaluator import Evaluator, Prepared
from pythia_dynamics.evaluation.evaluator import encode as encode_for
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.model import build_model, round_head
from pythia_dynamics.evaluation.portrait import completions
from pythia_dynamics.evaluation.runner import evaluate, perplexity
from pythia_dynamics.evaluation.scoring import summarise
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings, ModelSettings
from pythia_dynamics.evaluation.unmasking import unmask, unmask_scores
from pythia_dynamics.evaluation.weights import load_weights, weight_files

CORPUS = Corpus("texts", TEXTS)
OPTIONS: dict[str, Any] = {"corpus": CORPUS, "device": "cpu", "max_tokens": 8}
SETTINGS = EvaluationSettings(**OPTIONS)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suites") / "tiny"
    for step in (1, 2, 10):
        write_checkpoint(root / f"step{step}", model(step))
    return root


@pytest.fixture
def suite(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "tiny"))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every (folder, mode) that is evaluated, as it happens."""
    seen: list[tuple[str, str]] = []
    load, row = Evaluator.load, Evaluator.row
    current: list[str] = []

    def note_load(self: Evaluator, checkpoint: Checkpoint, prepared: Prepared = None) -> None:
        current[:] = [checkpoint.directory.name]
        load(self, checkpoint, prepared)

    def note_row(self: Evaluator, mode: Any) -> object:
        seen.append((current[0], mode))
        return row(self, mode)

    monkeypatch.setattr(Evaluator, "load", note_load)
    monkeypatch.setattr(Evaluator, "row", note_row)
    return seen


def from_scratch(directory: Path) -> Any:
    """A checkpoint as transformers itself loads it."""
    from transformers import GPTNeoXForCausalLM

    return GPTNeoXForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_every_mode_over_all_revisions_in_one_pass(suite: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "results"
    results = evaluate(suite, MODES, SETTINGS, out=out, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(results) == list(MODES)
    sentences = [encode(text)[:8] for text in TEXTS]
    for i, step in enumerate((1, 2, 10)):
        weights = from_scratch(suite / f"step{step}")
        for mode, expected in (
            ("forward", summarise(forward_scores(weights, sentences))),
            ("unmask", summarise(unmask_scores(unmask(weights, sentences)))),
        ):
            for name, value in expected.items():
                np.testing.assert_allclose(results[mode][name][i], value, rtol=1e-6)
    forward = results["forward"]
    assert forward["step"].values.tolist() == [1, 2, 10]
    assert forward["step"].dtype == np.int64
    assert forward["ppl_mean"].attrs["units"] == "1"
    assert forward.attrs["missing"] == {}
    assert forward.attrs["truncated"] == sum(len(encode(text)) > 8 for text in TEXTS)
    columns = {"ppl", "accuracy", "sentences", "nonfinite", "overflow", "ppl_se", "accuracy_se"}
    scores = {f"sentence_{name}" for name in ("nll", "entropy", "tokens", "greedy")}
    assert set(results["last-word"].data_vars) == columns | scores
    per_token = (forward["sentence_nll"] / forward["sentence_tokens"]).mean("sentence")
    np.testing.assert_allclose(per_token, forward["nll_mean"], rtol=1e-12)
    assert results["last-word"].attrs["truncated"] == 0
    assert [results[mode].attrs["unscored"] for mode in MODES] == [0, 0, 0]
    assert results["unmask"]["prefix_entropy"].dims == ("step", "prefix")
    assert results["unmask"]["prefix"].values.tolist() == list(range(1, 8))
    files = sorted(path.name for path in out.glob("[!.]*"))
    assert files == sorted(
        [f"perplexity-{m}.{suffix}" for m in MODES for suffix in ("csv", "json", "zarr")]
        + ["perplexity-unmask-prefix.csv"]
    )
    header, *lines = (out / "perplexity-forward.csv").read_text().splitlines()
    assert header.startswith("step,ppl_mean,ppl_median,ppl_corpus,nll_mean,sentences,nonfinite")
    assert [line.split(",")[0] for line in lines] == ["1", "2", "10"]
    assert float(lines[2].split(",")[1]) == forward["ppl_mean"].values[2]
    assert len((out / "perplexity-unmask-prefix.csv").read_text().splitlines()) == 1 + 3 * 7


def test_one_mode_is_one_dataset_and_nothing_is_written_without_out(suite: Path) -> None:
    before = sorted(suite.rglob("*"))
    result = perplexity(LocalSource(suite), steps=[2], **OPTIONS)
    assert result.sizes == {"step": 1, "sentence": 6}
    assert sorted(suite.rglob("*")) == before


def test_passages_that_are_too_short_are_counted(suite: Path) -> None:
    texts = Corpus("short", ("", " ", *TEXTS[:1]))
    results = evaluate(suite, MODES, replace(SETTINGS, corpus=texts, steps=[2]))
    for mode, unscored in (("forward", 2), ("unmask", 2), ("last-word", 2)):
        assert results[mode].attrs["unscored"] == unscored, mode
        assert results[mode]["sentences"].values.tolist() == [1]


def test_a_second_run_takes_up_what_is_there(suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]]) -> None:
    out = tmp_path / "results"
    perplexity(suite, steps=[1, 10], out=out, **OPTIONS)
    assert evaluated == [("step1", "forward"), ("step10", "forward")]
    evaluated.clear()
    both = evaluate(suite, ["forward", "unmask"], SETTINGS, out=out)
    assert evaluated == [("step1", "unmask"), ("step2", "forward"), ("step2", "unmask"), ("step10", "unmask")]
    evaluated.clear()
    again = evaluate(suite, ["forward", "unmask"], SETTINGS, out=out)
    assert evaluated == []
    for mode in both:
        assert again[mode].identical(both[mode])
    fresh = evaluate(suite, ["forward", "unmask"], SETTINGS)
    for mode in both:
        assert again[mode].equals(fresh[mode])


def test_a_checkpoint_that_changed_is_evaluated_again(
    suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]]
) -> None:
    options = {**OPTIONS, "out": tmp_path / "results"}
    first = perplexity(suite, **options)
    evaluated.clear()
    shutil.rmtree(suite / "step2")
    write_checkpoint(suite / "step2", model(77))
    second = perplexity(suite, **options)
    assert evaluated == [("step2", "forward")]
    same = (first["ppl_mean"] == second["ppl_mean"]).values.tolist()
    assert same == [True, False, True]
    assert len((tmp_path / "results" / "perplexity-forward.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"head": "ternary"},
        {"limit": 2},
        {"max_tokens": 7},
        {"corpus": Corpus("texts", TEXTS[::-1])},
    ],
)
def test_rows_of_other_settings_are_replaced_on_request_only(
    suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]], change: dict[str, Any]
) -> None:
    options = {**OPTIONS, "out": tmp_path / "results"}
    perplexity(suite, **options)
    before = contents(tmp_path / "results")
    evaluated.clear()
    other = {**options, **change, "steps": [2]}
    with pytest.raises(PythiaDynError, match=r"has 3 rows of other settings \(.* → .*\); --overwrite replaces them"):
        perplexity(suite, **other)
    assert (evaluated, contents(tmp_path / "results")) == ([], before)
    with pytest.raises(UnknownNameError, match="no step 7"):  # nothing is lost by a run that fails
        perplexity(suite, overwrite=True, **{**other, "steps": [7]})
    (suite / "step1" / "config.json").rename(suite / "config.json")
    with pytest.raises(CheckpointError, match="none of 1 revisions"):
        perplexity(suite, overwrite=True, **{**other, "steps": [1]})
    assert contents(tmp_path / "results") == before
    perplexity(suite, overwrite=True, **other)
    assert evaluated == [("step2", "forward")]
    lines = (tmp_path / "results" / "perplexity-forward.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "2"]
    evaluated.clear()
    perplexity(suite, overwrite=True, **other)  # once more of the same settings
    assert evaluated == []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_versions_and_devices_are_noted_and_replace_nothing(
    suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "out": tmp_path / "results"}
    first = perplexity(suite, steps=[1, 2], **options)
    evaluated.clear()
    monkeypatch.setattr("transformers.__version__", "99.0")
    second = perplexity(suite, **options)
    assert evaluated == [("step10", "forward")]
    assert second["ppl_mean"].values[:2].tolist() == first["ppl_mean"].values.tolist()
    assert first.attrs["transformers"] != "99.0"
    assert second.attrs["transformers"] == first.attrs["transformers"]
    assert second.attrs["notes_by_step"]["10"]["transformers"] == "99.0"
    assert (second.attrs["device"], second.attrs["device_name"]) == ("cpu", first.attrs["device_name"])


@pytest.mark.parametrize("file", ["csv", "json"])
def test_files_of_somebody_else_are_not_taken_for_ours(suite: Path, tmp_path: Path, file: str) -> None:
    theirs = tmp_path / f"perplexity-forward.{file}"
    theirs.write_text("step,ppl\n1,2.0\n")
    with pytest.raises(PythiaDynError, match=r"perplexity-forward\.csv has rows that cannot be read"):
        perplexity(suite, out=tmp_path, **OPTIONS)
    assert theirs.read_text() == "step,ppl\n1,2.0\n"
    result = perplexity(suite, out=tmp_path, overwrite=True, **OPTIONS)
    assert result["sentences"].values.tolist() == [6, 6, 6]
    assert perplexity(suite, out=tmp_path, **OPTIONS).identical(result)


@pytest.mark.parametrize("part", ["sentence_nll/zarr.json", "sentence_tokens/c/1/0", "sentence_nll/c/0/0"])
def test_damaged_scores_are_not_taken_for_rows(suite: Path, tmp_path: Path, part: str) -> None:
    perplexity(suite, out=tmp_path, **OPTIONS)
    archive = tmp_path / "perplexity-forward.zarr"
    content = (archive / part).read_bytes()
    (archive / part).unlink()
    if part.startswith("sentence_nll/c"):
        (archive / part).write_bytes(content[:7])
    with pytest.raises(PythiaDynError, match=r"rows that cannot be read \(.*\); --overwrite"):
        perplexity(suite, out=tmp_path, **OPTIONS)
    (archive / part).write_bytes(content)
    assert perplexity(suite, out=tmp_path, **OPTIONS).attrs["missing"] == {}


def test_what_is_missing_or_broken_is_a_named_gap(
    suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]]
) -> None:
    (suite / "step1" / "config.json").unlink()
    content = (suite / "step10" / "model.safetensors").read_bytes()
    (suite / "step10" / "model.safetensors").write_bytes(content[: len(content) // 2])
    settings, out = replace(SETTINGS, steps=[1, 2, 3, 10]), tmp_path / "results"
    results = evaluate(suite, ["forward", "unmask"], settings, out=out)
    for result in results.values():
        assert result["step"].values.tolist() == [1, 2, 3, 10]
        assert np.isnan(result["ppl_mean"].values).tolist() == [True, False, True, True]
        missing = result.attrs["missing"]
        assert "config.json" in missing["1"]
        assert missing["3"] == "there is no such revision"
        assert "cannot read" in missing["10"]
    lines = (tmp_path / "results" / "perplexity-forward.csv").read_text().splitlines()
    assert lines[1] == "1" + "," * 12
    assert (
        json.loads((tmp_path / "results" / "perplexity-forward.json").read_text())["missing"].keys() == missing.keys()
    )
    evaluated.clear()
    (suite / "step10" / "model.safetensors").write_bytes(content)
    repaired = evaluate(suite, ["forward", "unmask"], settings, out=out)["forward"]
    assert evaluated == [("step10", "forward"), ("step10", "unmask")]
    assert repaired.attrs["missing"].keys() == {"1", "3"}
    assert not math.isnan(repaired["ppl_mean"].values[3])


def test_when_nothing_can_be_evaluated_that_is_an_error(suite: Path, tmp_path: Path) -> None:
    for folder in suite.iterdir():
        (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of 3 revisions .*tokenizer\.json"):
        perplexity(suite, **OPTIONS)
    with pytest.raises(UnknownNameError, match="no step 3 in"):
        perplexity(suite, steps=[3], **OPTIONS)
    with pytest.raises(PythiaDynError, match="no steps"):
        perplexity(suite, steps=[], **OPTIONS)


def test_unknown_names_are_found_before_any_work(suite: Path) -> None:
    with pytest.raises(UnknownNameError, match="last-word"):
        perplexity(suite, mode="last_word", **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean forward"):
        perplexity(suite, ["forward"], **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="known: forward, unmask, last-word"):
        evaluate(suite, [], SETTINGS)
    with pytest.raises(UnknownNameError, match="no setting 'limits'; did you mean limit"):
        perplexity(suite, limits=3, **OPTIONS)
    with pytest.raises(UnknownNameError, match="float16"):
        perplexity(suite, dtype="fp16", **OPTIONS)
    with pytest.raises(UnknownNameError, match="ternary"):
        perplexity(suite, head="ternery", **OPTIONS)
    with pytest.raises(UnknownNameError, match="no device 'gpu'"):
        perplexity(suite, corpus=CORPUS, device="gpu")


def test_nan_weights_are_a_row_with_a_count_not_a_gap(suite: Path, tmp_path: Path) -> None:
    file = suite / "step2" / "model.safetensors"
    state = load_file(file)
    save_file({**state, "embed_out.weight": torch.full_like(state["embed_out.weight"], torch.nan)}, file)
    results = evaluate(suite, MODES, SETTINGS, out=tmp_path / "results")
    for result in results.values():
        assert result["nonfinite"].values.tolist() == [0, 6, 0]
        assert result["sentences"].values.tolist() == [6, 0, 6]
        assert result.attrs["missing"] == {}
    assert np.isnan(results["forward"]["ppl_mean"].values[1])
    line = (tmp_path / "results" / "perplexity-forward.csv").read_text().splitlines()[2]
    assert line == "2,,,,,0,6,0,0,,,,"


def relayout(folder: Path, layout: str) -> None:
    """Write a checkpoint's weights anew, with the buffers older transformers saved beside them."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for layer in range(2):
        state[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        state[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        state[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    kind, _, sharded = layout.partition(" ")
    save = save_file if kind == "safetensors" else torch.save
    single = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    if not sharded:
        save(state, folder / single)
        return
    stem, suffix = single.rsplit(".", 1)
    names = sorted(state)
    shards = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save({name: state[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["safetensors", "torch", "safetensors shards", "torch shards"])
def test_every_layout_of_weights(suite: Path, layout: str) -> None:
    folder = suite / "step2"
    expected = from_scratch(folder).state_dict()
    relayout(folder, layout)
    built = build_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    load_weights(built, folder)
    assert built.state_dict().keys() == expected.keys()
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_building_leaves_the_random_state_alone(suite: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    build_model(suite / "step1", device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    state = {**load_file(folder / "model.safetensors"), **{k.replace("__", "."): v for k, v in changes.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_out__weight": None}, "lacks 1 weights: lm_head.weight"),
        ({"embed_out__weight": torch.zeros(300, 32)}, r"shape \(300, 32\), not \(304, 32\)"),
        ({"gpt_neox__extra__weight": torch.zeros(3)}, "holds gpt_neox.extra.weight"),
        ({"embed_out__weight": torch.zeros(304, 32, dtype=torch.int8)}, "int8"),
    ],
)
def test_names_shapes_and_dtypes_have_to_match(
    suite: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    built = build_model(suite / "step1", device=torch.device("cpu"), dtype=torch.float32)
    rewrite(suite / "step1", **changes)
    with pytest.raises(PythiaDynError, match=message):
        load_weights(built, suite / "step1")


def test_torch_files_are_not_unpickled_freely(suite: Path) -> None:
    folder = suite / "step1"
    built = build_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        weight_files(folder)
    torch.save({"embed_out.weight": Path("anything")}, folder / "pytorch_model.bin")
    with pytest.raises(PythiaDynError, match=r"not a state dict.*pathlib\."):
        load_weights(built, folder)
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(PythiaDynError, match="state dict"):
        load_weights(built, folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a zip")
    with pytest.raises(PythiaDynError, match="cannot read"):
        load_weights(built, folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError, match="shard"):
        load_weights(built, folder)


def test_a_ternary_head_has_three_values(suite: Path) -> None:
    weights = from_scratch(suite / "step1")
    exact = weights.lm_head.weight.detach().clone()
    round_head(weights)
    scale = exact.abs().mean()
    expected = torch.where(exact.abs() < scale / 2, 0.0, exact.sign()) * scale
    torch.testing.assert_close(weights.lm_head.weight.detach(), expected)
    assert len(weights.lm_head.weight.detach().unique()) == 3
    ternary = perplexity(suite, steps=[1], head="ternary", **OPTIONS)
    row = summarise(forward_scores(weights, [encode(text)[:8] for text in TEXTS]))
    assert float(ternary["ppl_mean"][0]) == pytest.approx(row["ppl_mean"], rel=1e-6)
    torch.nn.init.zeros_(weights.lm_head.weight)
    round_head(weights)
    assert not weights.lm_head.weight.any()
    with pytest.raises(CheckpointError, match="ties"):
        round_head(model(tie_word_embeddings=True))


def test_the_illustration_of_a_phrase_at_a_step(suite: Path) -> None:
    settings = ModelSettings(device="cpu")
    lines = completions(suite, "the cat sat on the mat", settings, step=2)
    assert [line.prefix for line in lines] == list(range(1, len(encode("the cat sat on the mat"))))
    assert completions(suite, "the cat sat", settings) == completions(suite, "the cat sat", settings, step=10)
    with pytest.raises(UnknownNameError, match="did you mean"):
        completions(suite, "the cat sat", settings, step=11)
    with pytest.raises(PythiaDynError, match="at least two"):
        completions(suite, "", settings, step=2)


def test_a_tokenizer_of_another_model_is_refused(suite: Path) -> None:
    small = build_model(suite / "step1", device=torch.device("cpu"), dtype=torch.float32)
    small.config.vocab_size = 256
    with pytest.raises(CheckpointError, match="the model knows 256"):
        encode_for(tokenizer(), ["the cat"], small)


def test_checkpoints_come_from_the_hub_and_go_again(suite: Path, hub: HubServer, tmp_path: Path) -> None:
    folders = {folder.name: folder for folder in suite.iterdir()}
    hub.add("somebody/tiny", {**folders, "step20": {"README.md": b"no weights here"}})
    out = tmp_path / "results"
    remote = evaluate("somebody/tiny", ["forward", "last-word"], SETTINGS, out=out)
    local = evaluate(suite, ["forward", "last-word"], SETTINGS)
    for mode in local:
        here = remote[mode].sel(step=[1, 2, 10])
        for name in here.data_vars:
            np.testing.assert_array_equal(here[name], local[mode][name])
        assert "step20" in remote[mode].attrs["missing"]["20"]
    assert list((tmp_path / "huggingface").rglob("*.safetensors")) == []
    sidecar = json.loads((tmp_path / "results" / "perplexity-forward.json").read_text())
    branches = hub.repositories["somebody/tiny"].branches
    assert sidecar["revisions"] == {str(step): branches[f"step{step}"] for step in (1, 2, 10)}
    before = hub.count("resolve")
    evaluate("somebody/tiny", ["forward", "last-word"], replace(SETTINGS, steps=[1, 2, 10]), out=out)
    assert hub.count("resolve") == before


class Committed(LocalSource):
    """A local suite with commits, as the Hub has them."""

    def __init__(self, directory: Path, commit: str) -> None:
        super().__init__(directory)
        self.commit = commit

    def revisions(self) -> dict[int, Revision]:
        return {s: replace(r, commit=f"{self.commit}-{s}") for s, r in super().revisions().items()}


def test_rows_belong_to_commits(suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]]) -> None:
    options = {**OPTIONS, "out": tmp_path / "results"}
    perplexity(Committed(suite, "a"), **options)
    evaluated.clear()
    perplexity(Committed(suite, "a"), **options)
    assert evaluated == []
    perplexity(Committed(suite, "b"), **options)
    assert len(evaluated) == 3
    sidecar = json.loads((tmp_path / "results" / "perplexity-forward.json").read_text())
    assert sidecar["revisions"] == {"1": "b-1", "2": "b-2", "10": "b-10"}


def test_an_interrupted_run_keeps_its_rows(suite: Path, tmp_path: Path, evaluated: list[tuple[str, str]]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = {**OPTIONS, "out": tmp_path / "results"}
    with pytest.raises(KeyboardInterrupt):
        perplexity(suite, progress=stop, **options)
    evaluated.clear()
    perplexity(suite, **options)
    assert evaluated == [("step10", "forward")]
