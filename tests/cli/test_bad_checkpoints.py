"""What cannot be read: one line that says what is wrong and what to do, and the rest goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.checkpoints import checkpoint, torch_file
from support.hubrepos import File
from support.hubserver import HubServer
from support.project import Project
from support.suites import config_and_tokenizer, files, state, torch_checkpoint, write, write_each

from pythia_dynamics import figures

HEAD = "lm_head.weight"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Project(tmp_path)


def mine(project: Project, **steps: Mapping[str, bytes]) -> Path:
    """The directory ``mine`` with checkpoints in these folders."""
    return write_each(project.place / "mine", steps.items())


def head(rows: int = 8, **others: torch.Tensor) -> dict[str, bytes]:
    """A checkpoint of one tensor, and of others."""
    return checkpoint({HEAD: torch.ones(rows, 4), **others})


# -- what is not a directory of checkpoints ---------------------------------------------------------------------------


def test_a_file_where_a_directory_is_meant(project: Project) -> None:
    write(project.place, {"ckpt_10.pt": torch_file({HEAD: torch.ones(2, 2)})})
    for command in ("fetch", "plan", "portrait"):
        line = project.failure(command, "--model", "./ckpt_10.pt")
        assert "./ckpt_10.pt is a file; give the directory that holds" in line


def test_an_empty_directory(project: Project) -> None:
    (project.place / "mine").mkdir()
    line = project.failure("fetch", "--model", "mine")
    assert re.search(r"/mine is empty; it should hold step1000/, step2000/ …$", line)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "ckpt.pt"])
def test_one_checkpoint_instead_of_a_suite(weights: str, project: Project) -> None:
    write(project.place / "mine", {weights: b"", "config.json": b"{}"})
    line = project.failure("fetch", "--model", "mine")
    assert "mine is one checkpoint, not a directory of them; name its folder step<N> and give the folder above" in line


def test_names_that_no_pattern_matches(project: Project) -> None:
    mine(project, first=head(), second=head())
    for options, hint in (
        ((), "--revision-pattern reads other names"),
        (("--revision-pattern", r"^run-(\d+)$"), "the pattern matches none"),
    ):
        line = project.failure("fetch", "--model", "mine", *options)
        assert f"(there: first, second); {hint}" in line
    for pattern, reason in (("run", "has no group for the step"), ("(", "is not a regular expression")):
        assert reason in project.failure("fetch", "--model", "mine", "--revision-pattern", pattern)
    line = project.failure("fetch", "--model", "mine", "--revision-pattern", r"^(\w+)$")
    assert "finds 'first' in first, which is no number" in line


def test_a_stage_that_there_is_not(project: Project) -> None:
    mine(project, **{"stage1-step10": head(), "stage2-step10": head()})
    assert "has several stages (1, 2); choose one with --stage" in project.failure("fetch", "--model", "mine")
    assert "no stage '7' in " in project.failure("fetch", "--model", "mine", "--stage", "7")


def test_a_suite_file_with_a_bad_key(project: Project) -> None:
    mine(project, step10=head())
    for text, reason in (
        ("patern = 'x'", "no key of a suite 'patern'; did you mean pattern"),
        ("tokens_per_step = '4M'", "the suite's tokens_per_step cannot be '4M'"),
        ("references = 'brnch'", "no kind of reference 'brnch'; did you mean branch?"),
        ("pattern = ", "is not TOML"),
        ("learning_rate = 3", "the suite's learning_rate cannot be 3"),
        ("[learning_rate]\npeek = 3", "no key of a learning rate 'peek'; did you mean peak"),
        ("[learning_rate]\npeak = 3", "at least peak and total_steps"),
        ("[learning_rate]\npeak = '3'\ntotal_steps = 3", "which are at least 0"),
        ("part = 3", "the suite's part cannot be 3"),
        ("[part]\nphase = '3'", "no part of a suite 'phase'"),
    ):
        (project.place / "suite.toml").write_text(text)
        for command in ("fetch", "portrait"):
            assert reason in project.failure(command, "--model", "mine", "--suite", "suite.toml"), text
    line = project.failure("fetch", "--model", "mine", "--suite", "none.toml", code=2)
    assert "File 'none.toml' does not exist" in line


# -- checkpoints that differ from the others --------------------------------------------------------------------------


def test_a_tensor_that_some_steps_lack_is_a_gap(project: Project) -> None:
    other = checkpoint({"model.norm.weight": torch.ones(4)})
    mine(project, step10=head(), step20=other, step30=head())
    result = project.run("fetch", "--model", "mine", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["fetch"]
    assert found["fetched"] == [10, 30]
    (reason,) = found["missing"].values()
    assert "step20 has no tensor known to be its unembedding" in reason
    assert "it has model.norm.weight" in reason
    (line,) = result.stderr.splitlines()
    assert "some steps could not be fetched (see above)" in line
    (moved,) = project.facts("msd", "--model", "mine")
    assert (moved["model"], moved["tensor"]) == ("mine", HEAD)


def test_a_shape_that_changes_is_a_gap(project: Project) -> None:
    mine(project, step10=head(), step20=head(rows=9), step30=head())
    result = project.run("fetch", "--model", "mine", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["fetch"]
    assert found["fetched"] == [10, 30]
    (why,) = found["missing"].values()
    assert f"{HEAD} is float32[9, 4] at step20, and float32[8, 4] in the store, which cannot hold it" in why


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_not_read(dtype: torch.dtype, project: Project) -> None:
    name = str(dtype).removeprefix("torch.")
    for folder, content in (
        ("mine", files_of(save({HEAD: torch.ones(8, 4).to(dtype)}), "model.safetensors")),
        ("torch", files_of(torch_file({HEAD: torch.ones(8, 4).to(dtype)}), "pytorch_model.bin")),
    ):
        write(project.place / folder / "step10", content)
        line = project.failure("fetch", "--model", folder)
        assert f"'{HEAD}' of {next(iter(content))} is {name}; only float16, bfloat16, float32 can be stored" in line
    weights = {name: tensor.to(dtype) if name == HEAD else tensor for name, tensor in state("llama", 0).items()}
    write(project.place / "whole" / "step10", {**files("llama", 0), "model.safetensors": save(weights)})
    line = project.failure("perplexity", "--model", "whole", *project.perplexity_options)
    assert str(dtype) in line
    assert HEAD in line


def files_of(weights: bytes, name: str) -> dict[str, bytes]:
    return {name: weights, "config.json": b"{}"}


# -- files that are no weights ------------------------------------------------------------------------------------


def test_pointers_of_git_lfs(project: Project) -> None:
    pointer = File(b"weights", lfs=True).pointer
    for weights in ("model.safetensors", "pytorch_model.bin"):
        folder = weights.partition(".")[0]
        write(project.place / folder / "step10", {**config_and_tokenizer("llama"), weights: pointer})
        for command in (["fetch"], ["perplexity", *project.perplexity_options]):
            assert "git lfs pull" in project.failure(*command, "--model", folder)


def test_garbage_under_the_name_of_weights(project: Project) -> None:
    noise = bytes(range(7, 256)) * 40
    for weights in ("model.safetensors", "pytorch_model.bin"):
        folder = weights.partition(".")[0]
        write(project.place / folder / "step10", {**config_and_tokenizer("llama"), weights: noise})
        for command in (["fetch"], ["perplexity", *project.perplexity_options]):
            assert weights in project.failure(*command, "--model", folder)
    write(project.place / "empty" / "step10", {**config_and_tokenizer("llama"), "model.safetensors": b""})
    for command in (["fetch"], ["perplexity", *project.perplexity_options]):
        assert "model.safetensors" in project.failure(*command, "--model", "empty")


def test_the_advice_for_the_legacy_format_works(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    old = torch_file(state("llama", 0), _use_new_zipfile_serialization=False)
    directory = mine(project, step10={**config_and_tokenizer("llama"), "pytorch_model.bin": old})
    line = project.failure("fetch", "--model", "mine")
    assert "legacy format" in line
    advice = re.search(r"torch\.save\(.*\)", line)
    assert advice is not None
    path = str(directory / "step10" / "pytorch_model.bin")
    exec(advice[0], {"torch": torch, "path": path})
    assert project.fetch("mine")["fetched"] == [10]


def test_a_whole_module_that_was_pickled(project: Project) -> None:
    content = torch_file(torch.nn.Sequential(torch.nn.Linear(4, 8)))
    mine(project, step10=files_of(content, "model.pt"))
    assert "save model.state_dict() instead" in project.failure("fetch", "--model", "mine")


def test_weights_without_a_config_or_a_tokenizer(project: Project) -> None:
    bare = {name: content for name, content in files("llama", 0).items() if name == "model.safetensors"}
    config = {"config.json": config_and_tokenizer("llama")["config.json"]}
    for step in ("step10", "step20"):
        write(project.place / "bare" / step, bare)
        write(project.place / "dumb" / step, {**bare, **config})
    for command in (["perplexity", *project.perplexity_options], ["portrait"]):
        line = project.failure(*command, "--model", "bare")
        assert "step10 has no config.json" in line
        assert "--config" in line
        line = project.failure(*command, "--model", "dumb")
        assert "tokenizer.json" in line
        assert "--tokenizer" in line
        shared = write(project.place / "shared", {"readme.txt": b""})
        line = project.failure(*command, "--model", "bare", "--config", shared)
        assert "shared has no config.json; check --config" in line
        line = project.failure(*command, "--model", "dumb", "--tokenizer", shared)
        assert "shared has no tokenizer.json; check --tokenizer" in line
        line = project.failure(*command, "--model", "dumb", "--tokenizer", "no such place")
        assert "no such place is neither a directory nor a repository; check --tokenizer" in line


def test_weights_of_another_config(project: Project) -> None:
    mine(project, step10=torch_checkpoint("gpt2", state("llama", 0)))
    line = project.failure("perplexity", "--model", "mine", *project.perplexity_options)
    assert "which the model of its config.json does not have" in line


# -- the Hub ----------------------------------------------------------------------------------------------------------


def test_repositories_that_cannot_be_had(project: Project, hub: HubServer) -> None:
    hub.add("me/gated", {"step10": files("llama", 0)}, gated=True, token="secret")
    reasons = {"me/gated": "me/gated is gated", "me/none": "me/none"}
    for model, reason in reasons.items():
        for command in (["fetch"], ["perplexity", *project.perplexity_options]):
            assert reason in project.failure(*command, "--model", model)
    line = project.failure("fetch", "--model", "me/none", "--model", "me/gated")
    assert all(reason in line for reason in reasons.values())
    assert "me/none" in project.failure("verify", "--remote", "--model", "me/none")


# -- several models ---------------------------------------------------------------------------------------------------


def test_a_glob_that_matches_nothing_is_one_failure_among_models(project: Project) -> None:
    mine(project, step10=files("llama", 0), step20=files("llama", 1))
    both = ("--model", "absent*", "--model", "mine")
    for command, options in (
        ("fetch", ()),
        ("plan", ()),
        ("ls", ()),
        ("verify", ()),
        ("msd", ()),
        ("perplexity", project.perplexity_options),
        ("portrait", ()),
        ("figures", ()),
        ("claims", ()),
        ("report", ()),
    ):
        result = project.run(command, *both, *options, "--json")
        (line,) = result.stderr.splitlines()
        assert (result.exit_code, "no model 'absent*'" in line) == (1, True), (command, line)
        assert '"mine"' in result.stdout, command
        assert "no model 'absent*'" in project.failure(command, "--model", "absent*", *options)
