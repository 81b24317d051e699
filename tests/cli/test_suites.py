"""Every suite of the registry, and suites of a user on the Hub: plain commands find steps, tensor, tokens and weights.

Each suite is served by a loopback Hub with the layout of its publisher, beside revisions that are no steps of it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.hubserver import HubServer
from support.project import Project
from support.suites import Kind, files, state_of

from pythia_dynamics import figures
from pythia_dynamics.checkpoints import registry
from pythia_dynamics.checkpoints.registry import aliases, resolve
from pythia_dynamics.checkpoints.suite import Reference


@dataclass(frozen=True)
class Published:
    """A suite as its publisher has it on the Hub.

    `named` has the names of its steps, and None for what is no step of the run that the registry takes; the weights of
    the n-th name are drawn with seed n. `tokens` has the tokens of a step, or the number by step; empty where they are
    not known.
    """

    suite: str
    alias: str
    store: str
    kind: Kind
    tensor: str
    named: Mapping[str, int | None]
    tokens: int | Mapping[int, float] = field(default_factory=dict)
    reference: Reference = "branch"
    branch: str = "main"
    shards: bool = False
    fetch_options: tuple[str, ...] = ()

    @property
    def steps(self) -> list[int]:
        return sorted(step for step in self.named.values() if step is not None)

    def tokens_at(self, step: int) -> float:
        return float(step * self.tokens if isinstance(self.tokens, int) else self.tokens.get(step, math.nan))

    def checkpoint(self, name: str) -> Mapping[str, bytes]:
        return files(self.kind, list(self.named).index(name), shards=self.shards)

    def publish(self, hub: HubServer) -> None:
        location = resolve(self.alias).location
        revisions = {name: self.checkpoint(name) for name in self.named}
        if self.reference == "repository":
            for name, content in revisions.items():
                hub.add(name, {"main": content})
            return
        hub.add(location, revisions if self.reference == "branch" else {})
        if self.reference == "tag":
            hub.tag(location, revisions)
        if self.reference == "commit":
            for name, content in revisions.items():
                hub.commit(location, self.branch, content, title=name)

    def weights(self) -> dict[int, np.ndarray]:
        named = {step: name for name, step in self.named.items() if step is not None}
        tensors = {step: state_of(self.checkpoint(name))[self.tensor] for step, name in named.items()}
        return {step: tensor.float().numpy() for step, tensor in sorted(tensors.items())}


HEAD, TIED = "lm_head.weight", "model.embed_tokens.weight"

PUBLISHED = (
    Published(
        "pythia",
        "160m-data-seed1",
        "pythia-160m-data-seed1",
        "gpt-neox",
        "embed_out.weight",
        {"step0": 0, "step1": 1, "step1000": 1000, "step2000": 2000, "main": None},
        tokens=2_097_152,
        fetch_options=("--steps", "all"),  # the default is the 143 steps of the papers
    ),
    Published(
        "olmo1",
        "olmo-1b",
        "OLMo-1B-hf",
        "llama-tied",
        TIED,
        {"step10000-tokens41B": 10000, "step2000-tokens8B": 2000, "step738020-tokens3095B": 738020},
        tokens=4_194_304,
    ),
    Published(
        "olmo2",
        "olmo2-7b",
        "OLMo-2-1124-7B",
        "olmo2",
        HEAD,
        {
            "stage1-step150-tokens1B": 150,
            "stage1-step1000-tokens5B": 1000,
            "stage2-ingredient1-step1000-tokens5B": None,
            "stage2-ingredient2-step1000-tokens5B": None,
            "step600-tokens3B": None,
        },
        tokens=4_194_304,
    ),
    Published(
        "olmo3",
        "olmo3-7b",
        "Olmo-3-1025-7B",
        "olmo2",
        HEAD,
        {
            "stage1-step0": 0,
            "stage1-step1000": 1000,
            "stage2-ingredient1+2-step1000": None,
            "stage3-step1000": None,
        },
        tokens=4_194_304,
    ),
    Published(
        "datadecide",
        "datadecide-1b",
        "DataDecide-dolma1_7-1B",
        "llama",
        HEAD,
        {"step0-seed-default": 0, "step2500-seed-default": 2500, "step2500-seed-small-aux-2": None},
        tokens=1_441_792,
    ),
    Published(
        "smollm2",
        "smollm2-135m",
        "SmolLM2-135M-intermediate-checkpoints",
        "llama-tied",
        TIED,
        {"step-240000": 240000, "step-2000000": 2000000},
        tokens=1_048_576,
    ),
    Published(
        "smollm3",
        "smollm3-3b",
        "SmolLM3-3B-checkpoints",
        "llama-tied",
        TIED,
        {
            "stage1-step-40000": 40000,
            "stage2-step-3480000": 3480000,
            "lc-4k-to-32k-step-4000": None,
            "it-SFT": None,
        },
        tokens=2_359_296,
    ),
    Published(
        "fineweb",
        "fineweb-edu",
        "ablation-model-fineweb-edu",
        "llama-tied",
        TIED,
        {"step-001000-2BT": 1000, "step-167000-350BT": 167000},
        tokens={1000: 2e9, 167000: 350e9},
    ),
    Published(
        "lucie",
        "lucie-7b",
        "Lucie-7B",
        "llama",
        HEAD,
        {"step0005000": 5000, "step0010000": 10000, "extension_step0005000": None},
        shards=True,
    ),
    Published("amber", "amber", "Amber", "llama", HEAD, {"ckpt_000": 0, "ckpt_001": 1, "ckpt_358": 358}),
    Published(
        "crystal",
        "crystal",
        "CrystalCoder",
        "llama",
        HEAD,
        {
            "CrystalCoder_phase1_checkpoint_055500": 55500,
            "CrystalCoder_phase1_checkpoint_065500": 65500,
            "CrystalCoder_phase2_checkpoint_055500": None,
        },
    ),
    Published(
        "bloom",
        "bloom-560m",
        "bloom-560m-intermediate",
        "bloom",
        "transformer.word_embeddings.weight",
        {"global_step1000": 1000, "global_step10000": 10000},
        reference="tag",
    ),
    Published(
        "multiberts",
        "multiberts-seed0",
        "multiberts-seed_0",
        "bert",
        "bert.embeddings.word_embeddings.weight",
        {
            "google/multiberts-seed_0-step_0k": 0,
            "google/multiberts-seed_0-step_20k": 20000,
            "google/multiberts-seed_0": None,
            "google/multiberts-seed_1-step_20k": None,
        },
        tokens=131_072,
        reference="repository",
    ),
    Published(
        "tinyllama",
        "tinyllama",
        "TinyLlama-1.1B",
        "llama",
        HEAD,
        {
            "TinyLlama/TinyLlama-1.1B-step-50K-105b": 50000,
            "TinyLlama/TinyLlama-1.1B-intermediate-step-240k-503b": 240000,
            "TinyLlama/TinyLlama-1.1B-intermediate-step-955k-token-2T": 955000,
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0": None,
        },
        tokens=2_097_152,
        reference="repository",
    ),
    Published(
        "pico",
        "pico-tiny",
        "pico-decoder-tiny",
        "llama",
        HEAD,
        {
            "Saving HF Model -- Step 0": 0,
            "Saving Fabric Checkpoint -- Step 1000": None,
            "Saving HF Model -- Step 1000": 1000,
            "Saving Evaluation Results -- Step 1000": None,
        },
        tokens=2_097_152,
        reference="commit",
        branch="pico-decoder-tiny-1",
    ),
)

BY_SUITE = {one.suite: one for one in PUBLISHED}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Project(tmp_path)


def same_weights(project: Project, store: str, wanted: Mapping[int, np.ndarray]) -> None:
    _, found = project.weights(store)
    assert list(found) == list(wanted)
    for step, weights in wanted.items():
        np.testing.assert_array_equal(found[step], weights)


def test_every_suite_of_the_registry_is_tested() -> None:
    content = tomllib.loads(Path(registry.__file__).with_name("registry.toml").read_text())
    assert list(BY_SUITE) == list(content["suites"]), "a new suite needs an entry of PUBLISHED"


def test_an_alias_and_its_repository_are_one_model() -> None:
    for alias in aliases():
        model = resolve(alias)
        assert resolve(model.location) == model, alias


@pytest.mark.parametrize("published", PUBLISHED, ids=[one.suite for one in PUBLISHED])
def test_plain_commands_read_a_suite_of_the_registry(published: Published, hub: HubServer, project: Project) -> None:
    published.publish(hub)
    alias, store, steps = published.alias, published.store, published.steps

    (plan,) = project.facts("plan", "--model", alias, *published.fetch_options)
    assert (plan["model"], plan["revisions"]) == (store, len(steps))
    hub.reset()
    fetched = project.fetch(alias, *published.fetch_options)
    assert fetched["fetched"] == steps
    assert fetched["tensors"] == [published.tensor]
    assert Path(fetched["store"]).name == f"{store}.zarr"
    requests = hub.count("api") + hub.count("resolve")
    assert fetched["requests"] + fetched["api_requests"] == requests
    assert requests <= 2 * len(steps) + 4
    same_weights(project, store, published.weights())
    history, _ = project.weights(store)
    tokens = history.coordinates.get("tokens", np.full(len(steps), math.nan))
    np.testing.assert_array_equal(tokens, [published.tokens_at(step) for step in steps])

    (listed,) = project.facts("ls", "--model", store)
    assert (listed["tensor"], listed["steps"]) == (published.tensor, steps)
    if published.suite == "pythia":  # of which all 154 steps are expected
        checked = project.run("verify", "--remote", "--model", store)
        assert f"{resolve(alias).location}: 4 revisions, " in checked.stdout
        assert checked.stderr.splitlines() == ["pythia-dyn: 150 faults found in 1 repository"]
    else:
        (checked,) = project.facts("verify", "--remote", "--model", store)
        assert (checked["checked"], checked["findings"]) == (steps, [])
    (moved,) = project.facts("msd", "--model", alias)  # the name of the store and that of the model mean the same
    assert (moved["model"], moved["tensor"]) == (store, published.tensor)
    if published.kind == "bert":
        for command in (["perplexity", *project.perplexity_options], ["portrait"]):
            line = project.failure(*command, "--model", store)
            assert "bert models are not evaluated: their logits are not a product with W_U" in line
    else:
        assert len(project.perplexities(store, name=store)) == len(steps)
        assert project.portrait(store) == [steps[0], steps[-1]]
    again = project.fetch(store, *published.fetch_options)
    assert (again["present"], again["bytes"]) == (steps, 0)


@pytest.mark.parametrize("stage", ["2-ingredient1", "stage2-ingredient1"])
def test_another_stage_has_a_store_of_its_own(stage: str, hub: HubServer, project: Project) -> None:
    published = BY_SUITE["olmo2"]
    published.publish(hub)
    other = "OLMo-2-1124-7B-stage2-ingredient1"
    branch = "stage2-ingredient1-step1000-tokens5B"
    wanted = {1000: state_of(published.checkpoint(branch))[HEAD].float().numpy()}
    project.fetch("olmo2-7b")
    fetched = project.fetch("olmo2-7b", "--stage", stage)
    assert (Path(fetched["store"]).stem, fetched["fetched"]) == (other, [1000])
    same_weights(project, other, wanted)
    same_weights(project, published.store, published.weights())
    for again in (project.fetch(other), project.fetch(other, "--stage", stage)):
        assert (again["model"], again["present"]) == (other, [1000])
    (checked,) = project.facts("verify", "--remote", "--model", other)
    assert (checked["model"], checked["checked"]) == (other, [1000])
    of_stage_2 = project.perplexities(other, name=other)
    assert of_stage_2 != project.perplexities("olmo2-7b", "--steps", 1000, name=published.store)
    assert of_stage_2 == project.perplexities("olmo2-7b", "--stage", stage, name=other)


def test_the_stage_of_the_registry_may_be_named(hub: HubServer, project: Project) -> None:
    BY_SUITE["olmo2"].publish(hub)
    for stage in ("1", "stage1"):
        assert project.fetch("olmo2-7b", "--stage", stage)["model"] == BY_SUITE["olmo2"].store
    line = project.failure("fetch", "--model", "olmo2-7b", "--stage", "2-ingredient7")
    assert "no stage '2-ingredient7' in allenai/OLMo-2-1124-7B; did you mean 2-ingredient" in line
    assert project.fetch("olmo2-7b", "--stage", "none")["fetched"] == [600]


def test_a_seed_is_chosen(hub: HubServer, project: Project) -> None:
    published = BY_SUITE["datadecide"]
    published.publish(hub)
    fetched = project.fetch("datadecide-1b", "--seed", "small-aux-2")
    store = "DataDecide-dolma1_7-1B-seedsmall-aux-2"
    assert (fetched["model"], fetched["fetched"]) == (store, [2500])
    weights = state_of(published.checkpoint("step2500-seed-small-aux-2"))[HEAD]
    same_weights(project, store, {2500: weights.float().numpy()})
    assert "no seed 'small'" in project.failure("fetch", "--model", "datadecide-1b", "--seed", "small")


def test_stages_of_an_unknown_repository_are_named_and_never_chosen(hub: HubServer, project: Project) -> None:
    branches = {name: files("llama", seed) for seed, name in enumerate(("stage1-step100", "stage2-step100"))}
    hub.add("me/staged", branches)
    for command in ("plan", "fetch", "portrait"):
        line = project.failure(command, "--model", "me/staged")
        assert "me/staged has several stages (1, 2); choose one with --stage" in line
    fetched = project.fetch("me/staged", "--stage", "2")
    assert fetched["model"] == "staged-stage2"
    same_weights(project, "staged-stage2", {100: state_of(branches["stage2-step100"])[HEAD].float().numpy()})
    assert len(project.perplexities("staged-stage2", name="staged-stage2")) == 1
    pattern = r"^(?P<stage>stage\d)-step(?P<step>\d+)$"
    named = project.fetch("me/staged", "--revision-pattern", pattern, "--stage", "stage1")
    same_weights(project, named["model"], {100: state_of(branches["stage1-step100"])[HEAD].float().numpy()})


SUITE = r"""
pattern = '^run-of-(?P<tokens>\d+M)-at-(?P<step>\d+)$'
unembedding = "model.embed_tokens.weight"
config = "shared"
tokenizer = "shared"

[learning_rate]
peak = 1e-3
warmup_steps = 10
total_steps = 100
"""


def test_a_suite_in_a_file_is_given_once(hub: HubServer, project: Project) -> None:
    beside = files("llama-tied", 0)
    shared = project.place / "shared"
    shared.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (shared / name).write_bytes(beside[name])
    (project.place / "mine.toml").write_text(SUITE)
    named = {f"run-of-{2 * step}M-at-{step}": files("llama-tied", step) for step in (10, 55)}
    weights_only = {
        name: {file: content for file, content in checkpoint.items() if file == "model.safetensors"}
        for name, checkpoint in named.items()
    }
    hub.add("me/odd", {**weights_only, "unrelated": {"README.md": b"#"}})
    assert "me/odd has no branch, tag, folder, file or commit" in project.failure("fetch", "--model", "me/odd")
    fetched = project.fetch("me/odd", "--suite", project.place / "mine.toml")
    assert (fetched["fetched"], fetched["tensors"]) == ([10, 55], [TIED])
    history, _ = project.weights("odd")
    np.testing.assert_array_equal(history.coordinates["tokens"], [20e6, 110e6])
    np.testing.assert_allclose(history.coordinates["learning_rate"], [1e-3, 0.5e-3])
    assert project.portrait("odd") == [10, 55]
    (checked,) = project.facts("verify", "--remote", "--model", "odd")
    assert checked["checked"] == [10, 55]
    (moved,) = project.facts("msd", "--model", "odd")
    assert moved["tensor"] == TIED
    found = project.perplexities("odd", name="odd")
    hub.add("me/usual", {f"step{step}": files("llama-tied", step) for step in (10, 55)})
    assert found == project.perplexities("me/usual", name="usual")
