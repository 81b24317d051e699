"""Suites: what each name means, in every suite of the registry; values, schedules, and the choice of a stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pythia_dynamics.checkpoints import registry
from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.checkpoints.suite import GENERIC, Part, Reference, StepName, Suite, chosen_steps, read_suite
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError

NO_STEP: Any = None
B = 10**9


def step(number: int, tokens: int | None = None, **parts: str) -> StepName:
    return StepName(number, tokens, cast("dict[Part, str]", parts))


# -- the names of the registry --------------------------------------------------------------------------------

NAMES: list[tuple[str, str, StepName | None]] = [
    ("70m", "step0", step(0)),
    ("160m-weight-seed2", "step143000", step(143000)),
    ("70m", "step10-old", None),
    ("70m", "main", None),
    ("70m", "a/step10", None),
    ("olmo-1b", "step20000-tokens84B", step(20000, 84 * B)),
    ("olmo-7b", "step0-tokens0B", step(0, 0)),
    ("olmo-7b", "step1000", None),
    ("olmo2-7b", "stage1-step928646-tokens3896B", step(928646, 3896 * B, stage="1")),
    ("olmo2-7b", "stage2-ingredient3-step11931-tokens50B", step(11931, 50 * B, stage="2-ingredient3")),
    ("olmo2-7b", "step150-tokens1B", step(150, B)),
    ("olmo2-7b", "stage1-step150", None),
    ("olmo3-7b", "stage1-step1413814", step(1413814, stage="1")),
    ("olmo3-32b", "stage2-ingredient1-step1000", step(1000, stage="2-ingredient1")),
    ("olmo3-32b", "stage2-ingredient1+2-step23842", step(23842, stage="2-ingredient1+2")),
    ("datadecide-1b", "step69369-seed-default", step(69369, seed="default")),
    ("datadecide-1b", "step17339-seed-small-aux-2", step(17339, seed="small-aux-2")),
    ("datadecide-1b", "step17339", None),
    ("smollm2-135m", "step-240000", step(240000)),
    ("smollm2-135m", "step240000", None),
    ("smollm3-3b", "stage1-step-40000", step(40000)),
    ("smollm3-3b", "stage3-step-4720000", step(4720000)),
    ("smollm3-3b", "lc-4k-to-32k-step-4000", step(4000, stage="lc-4k-to-32k")),
    ("smollm3-3b", "it-mid-training", None),
    ("fineweb-edu", "step-001000-2BT", step(1000, 2 * B)),
    ("lucie-7b", "step0005000", step(5000)),
    ("lucie-7b", "extension_step0001220", step(1220, stage="extension")),
    ("amber", "ckpt_000", step(0)),
    ("k2", "ckpt_360", step(360)),
    ("crystal", "CrystalCoder_phase1_checkpoint_055500", step(55500, stage="1")),
    ("crystal", "mdl_phase1_step_1000", None),
    ("bloom-1b1", "global_step5000", step(5000)),
    ("multiberts-seed0", "google/multiberts-seed_0-step_20k", step(20000)),
    ("multiberts-seed0", "google/multiberts-seed_0-step_0k", step(0)),
    ("multiberts-seed0", "google/multiberts-seed_0", None),
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-step-50K-105b", step(50000, 105 * B)),
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-intermediate-step-715k-1.5T", step(715000, 1500 * B)),
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-intermediate-step-1195k-token-2.5T", step(1195000, 2500 * B)),
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", None),
    ("pico-tiny", "Saving HF Model -- Step 17000", step(17000)),
    ("pico-tiny", "Saving Fabric Checkpoint -- Step 17000", None),
]


@pytest.mark.parametrize(("alias", "name", "meaning"), NAMES)
def test_names_of_the_registry(alias: str, name: str, meaning: StepName | None) -> None:
    suite = registry.resolve(alias).suite
    assert suite.step_name(name, suite.references[0]) == meaning
    assert suite.step_name("main") is None


def test_every_suite_has_names_and_pages() -> None:
    tested = {registry.resolve(alias).suite.name for alias, _, meaning in NAMES if meaning}
    assert tested == {"pythia", *(entry.suite.name for entry in registry.other_suites())}
    for entry in registry.other_suites():
        assert entry.suite.documented
        assert all(url.startswith("https://") for url in entry.suite.documented)
        assert entry.title
        assert entry.repositories


GENERIC_NAMES: list[tuple[str, StepName | None]] = [
    ("step1000", step(1000)),
    ("Step_0007", step(7)),
    ("checkpoint-500", step(500)),
    ("run1/checkpoint-500", step(500)),
    ("ckpt_10", step(10)),
    ("iter_0001000", step(1000)),
    ("steps_20k", step(20000)),
    ("global_step5000", step(5000)),
    ("epoch=1-step=100", step(100)),
    ("lightning_logs/version_0/checkpoints/epoch=12-step=100", step(100)),
    ("step-001000-2BT", step(1000, 2 * B)),
    ("step-480k-token-1007B", step(480000, 1007 * B)),
    ("step1000-tokens4.5B", step(1000, 4500 * 10**6)),
    ("stage1-step-40000", step(40000, stage="1")),
    ("stage2-ingredient1-step1000-tokens3B", step(1000, 3 * B, stage="2-ingredient1")),
    ("step69369-seed-large-aux-2", step(69369, seed="large-aux-2")),
    *((name, NO_STEP) for name in ("main", "last", "step10-old", "mystep10", "step", "1000", "step10/model", "")),
    *((name, NO_STEP) for name in ("epoch=1-step=100-v1", "epoch=3", "model-00001-of-00002", "step-5M", "backstep5")),
]


@pytest.mark.parametrize(("name", "meaning"), GENERIC_NAMES)
def test_usual_names(name: str, meaning: StepName | None) -> None:
    assert GENERIC.step_name(name) == meaning


@pytest.mark.parametrize(
    ("title", "meaning"),
    [
        ("Training in progress, step 500", step(500)),
        ("Saving HF Model -- Step 17", step(17)),
        ("step: 3", step(3)),
        ("Training in progress, step 500, checkpoint", None),
        ("Training in progress, epoch 2", None),
        ("footstep 5", None),
        ("End of training", None),
    ],
)
def test_titles_of_commits(title: str, meaning: StepName | None) -> None:
    assert GENERIC.step_name(title, "commit") == meaning


# -- patterns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("20k", 20_000),
        ("20K", 20_000),
        ("105b", 105 * B),
        ("1.5T", 1500 * B),
        ("1.001k", 1001),  # 1.001 · 1000 is not a whole number in floating point
        ("0.29M", 290_000),
        ("007", 7),
        ("000", 0),
        ("0.0k", 0),
        ("9007199254740991", 2**53 - 1),
    ],
)
def test_numbers_have_units(text: str, number: int) -> None:
    found = Suite(pattern=(r"^at-(.*)$",)).step_name(f"at-{text}")
    assert found == StepName(number)


@pytest.mark.parametrize("text", ["", "x", "1.5", "1.0005k", "-3", "1e3", "2kk", "9007199254740992", "9" * 6000, "1."])
def test_a_step_that_is_no_number_is_one_line(text: str) -> None:
    for pattern in (r"^at-(.*)$", r"^at-(?P<step>.*)$"):
        with pytest.raises(PythiaDynError, match="which is no number") as caught:
            Suite(pattern=(pattern,)).step_name(f"at-{text}")
        assert "\n" not in str(caught.value)
    with pytest.raises(PythiaDynError, match="finds 'many' in step5-many"):
        Suite(pattern=(r"step(?P<step>\d+)-(?P<tokens>\w+)",)).step_name("step5-many")


def test_a_pattern_is_searched_for_unless_it_is_anchored() -> None:
    loose, tight = Suite(pattern=(r"r(\d+)",)), Suite(pattern=(r"^r(\d+)$",))
    assert loose.step_name("my-r12-x") == StepName(12)
    assert tight.step_name("my-r12-x") is None
    assert tight.step_name("r12") == StepName(12)
    two = Suite(pattern=(r"^a(?P<step>\d+)$", r"^b(\d+)-(\d+)$", r"^(?:c|d(?P<step>\d+))$"))
    assert [two.step_name(name) for name in ("a1", "b2-9", "d3", "c", "e4")] == [
        *(StepName(1), StepName(2), StepName(3)),
        *(None, None),
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"step\d+", r"has no group for the step; write \(\?P<step>"),
        (r"(?P<stage>\d)-\d+", "has no group for the step"),
        (r"(?P<stpe>\d+)", "no named group 'stpe' in the pattern .* did you mean step"),
        (r"step(\d+", "is not a regular expression: missing"),
        (r"(?P<step>", "is not a regular expression"),
        ("", "has no group"),
    ],
)
def test_bad_patterns_are_one_line(pattern: str, message: str) -> None:
    with pytest.raises(PythiaDynError, match=message) as caught:
        Suite().changed({"pattern": pattern})
    assert "\n" not in str(caught.value)


# -- values ---------------------------------------------------------------------------------------------------


def test_values_are_changed() -> None:
    suite = GENERIC.changed(
        {
            "pattern": r"^run-(\d+)$",
            "references": ["tag", "branch"],
            "unembedding": "head.weight",
            "embedding": ("a", "b"),
            "stage": 2,
            "seed": "seed-1",
            "part": {"generation": "generation3"},
            "learning_rate": {"peak": 1e-3, "total_steps": 10},
            "tokens_per_step": 512,
        }
    )
    assert suite.pattern == (r"^run-(\d+)$",)
    assert suite.references == ("tag", "branch")
    assert suite.roles == {"unembedding": ("head.weight",), "embedding": ("a", "b")}
    assert suite.part == {"stage": "2", "seed": "1", "generation": "3"}
    assert suite.learning_rate == LearningRate(1e-3, 10)
    assert suite.tokens_at(3) == 1536
    assert Suite().tokens_at(3, 7) == 7
    assert not suite.is_generic
    assert suite.changed({"pattern": GENERIC.pattern}).is_generic
    assert suite.changed({"stage": "stage2"}) == suite
    assert suite.changed({}) == suite
    assert suite.part == {"stage": "2", "seed": "1", "generation": "3"}
    assert suite.changed({"seed": "2"}).part["seed"] == "2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patern": "x"}, "no key of a suite 'patern'; did you mean pattern"),
        ({"stages": "2"}, "did you mean stage"),
        ({"references": "brnch"}, "no kind of reference 'brnch'; did you mean branch"),
        ({"references": []}, "at least one entry in references"),
        ({"pattern": []}, "at least one entry in pattern"),
        ({"pattern": 3}, "pattern cannot be 3"),
        ({"pattern": ["(1)", 3]}, "pattern cannot be"),
        ({"unembedding": {"a": "b"}}, "unembedding cannot be"),
        ({"branch": None}, "branch cannot be None"),
        ({"config": 1}, "config cannot be 1"),
        ({"part": "2"}, "part cannot be '2'"),
        ({"part": None}, "part cannot be None"),
        ({"part": {"sed": "2"}}, "no part of a suite 'sed'; did you mean seed"),
        ({"stage": ["1", "2"]}, r"stage cannot be \['1', '2'\]"),
        ({"stage": None}, "stage cannot be None"),
        ({"seed": True}, "seed cannot be True"),
        *(({"tokens_per_step": wrong}, "tokens_per_step cannot be") for wrong in ("2M", True, 0, -5, 1.5)),
        *(({"learning_rate": wrong}, "learning_rate cannot be") for wrong in (1e-3, "cosine", [1])),
        ({"learning_rate": {"peek": 1}}, "no key of a learning rate 'peek'; did you mean peak"),
        ({"learning_rate": {"peak": 1}}, "a learning rate has at least peak and total_steps"),
    ],
)
def test_wrong_values_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PythiaDynError, match=message) as caught:
        Suite().changed(values)
    assert "\n" not in str(caught.value)


def test_a_suite_goes_through_json() -> None:
    assert Suite().as_json == {}
    for alias in registry.aliases():
        suite = registry.resolve(alias).suite
        assert GENERIC.changed(json.loads(json.dumps(suite.as_json))) == suite
    chosen = registry.resolve("olmo2-7b").changed({"stage": "2-ingredient1", "config": "x/y"}).suite
    assert GENERIC.changed(json.loads(json.dumps(chosen.as_json))) == chosen


def test_the_schedule_of_another_stage_is_not_kept() -> None:
    model = registry.resolve("olmo2-7b")
    assert model.suite.learning_rate
    assert model.suite.tokens_per_step
    other = model.changed({"stage": "2-ingredient1"}).suite
    assert other.learning_rate is None
    assert other.tokens_per_step is None
    assert other.tokens_at(1000, 5 * B) == 5 * B  # what the name says
    given = model.changed({"stage": "2-ingredient1", "tokens_per_step": 7}).suite
    assert (given.tokens_per_step, given.learning_rate) == (7, None)
    assert model.changed({"stage": "stage1"}) == model
    assert model.changed({"seed": "3"}).suite.learning_rate == model.suite.learning_rate
    mine = GENERIC.changed({"learning_rate": {"peak": 1, "total_steps": 9}}).changed({"stage": "1"})
    assert mine.learning_rate == LearningRate(1, 9)


def test_a_suite_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tok").mkdir()
    file = tmp_path / "suite.toml"
    file.write_text(
        'pattern = \'^run-(\\d+)$\'\ntokenizer = "tok"\nconfig = "org/model"\nstage = 2\n'
        "[learning_rate]\npeak = 1e-3\ntotal_steps = 10\n"
    )
    monkeypatch.chdir(tmp_path.parent)
    values = read_suite(str(file))
    assert values["tokenizer"] == str(tmp_path / "tok")
    assert values["config"] == "org/model"
    model = registry.resolve("org/own").changed(file)
    assert (model.name, model.suite.part) == ("own-stage2", {"stage": "2"})
    assert model.suite.learning_rate == LearningRate(1e-3, 10)
    with pytest.raises(PythiaDynError, match=r"cannot read the suite .*absent.toml: No such file"):
        read_suite(tmp_path / "absent.toml")
    for bad in (b"pattern = ", b"\xff\xfe", b"a = 1\na = 2", b"x = " + b"[" * 5000):
        file.write_bytes(bad)
        with pytest.raises(PythiaDynError, match="is not TOML") as caught:
            read_suite(file)
        assert "\n" not in str(caught.value)


# -- learning rates -------------------------------------------------------------------------------------------


def annealing(step: int, peak: float, warmup: int, end: int, least: float, *, version: int) -> float:
    """The cosine of GPT-NeoX: 1 is ``get_lr`` of the release 1.0, 2 that since August 2023."""
    if version == 1:
        count = min(step, end - warmup)
        if warmup > 0 and step <= warmup:
            return peak * count / warmup
        return max(peak / 2 * (math.cos(math.pi * (count - warmup) / end) + 1), least)
    if warmup > 0 and step <= warmup:
        return peak * step / warmup
    return max(least + (peak - least) / 2 * (math.cos(math.pi * (step - warmup) / (end - warmup)) + 1), least)


@pytest.mark.parametrize(("decay", "version"), [("neox", 1), ("cosine", 2)])
@pytest.mark.parametrize(
    ("peak", "warmup", "end", "final"), [(1e-3, 1430, 143000, 0.1), (2.0, 0, 7, 0.0), (1, 3, 9, 1)]
)
def test_cosines_are_those_of_gpt_neox(
    decay: Any, version: int, peak: float, warmup: int, end: int, final: float
) -> None:
    rate = LearningRate(peak, end, warmup, final=final, decay=decay)
    steps = sorted({0, 1, warmup, warmup + 1, *range(0, end + 1, max(1, end // 97)), end - warmup, end - 1, end})
    expected = [annealing(step, peak, warmup, end, final * peak, version=version) for step in steps]
    np.testing.assert_allclose(rate.at(steps), expected, rtol=1e-12, atol=1e-300)
    assert rate.at([2 * end]) == rate.at([end])
    assert rate.at([]).shape == (0,)


def test_pythia_was_trained_with_the_first() -> None:
    rate = registry.resolve("160m").suite.learning_rate
    assert rate is not None
    assert rate.decay == "neox"
    assert rate.at([0, 715, 1430, 115_139, 143_000]) == pytest.approx([0, 3e-4, 6e-4, 6e-5, 6e-5], rel=1e-9)
    assert rate.at([115_138])[0] > 6.0000001e-5


def test_linear_and_constant_decay() -> None:
    late = LearningRate(2.0, 100, 10, decay_start=60, final=0.5, decay="linear")
    assert late.at([0, 5, 10, 59, 60, 80, 100, 500]).tolist() == [0, 1, 2, 2, 2, 1.5, 1, 1]
    flat = LearningRate(3.0, 10, 2, final=0.1, decay="constant")
    assert flat.at([0, 1, 2, 10, 11]).tolist() == [0, 1.5, 3, 3, 3]
    assert LearningRate(3.0, 10).at([0]).tolist() == [3]


@pytest.mark.parametrize(
    "values",
    [
        {"peak": -1},
        {"peak": math.nan},
        {"peak": math.inf},
        {"peak": "1e-3"},
        {"peak": True},
        {"total_steps": 0},
        {"warmup_steps": 10},
        {"warmup_steps": -1},
        {"decay_start": 10},
        {"decay_start": "5"},
        {"warmup_steps": 5, "decay_start": 4},
        {"final": 1.5},
        {"decay": "cosin"},
    ],
)
def test_a_learning_rate_within_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(PythiaDynError) as caught:
        LearningRate(**{"peak": 1.0, "total_steps": 10, **values})
    assert "\n" not in str(caught.value)


# -- the choice of a stage ------------------------------------------------------------------------------------

OLMO = (
    *("step150-tokens1B", "stage1-step150-tokens1B", "stage1-step1000-tokens5B"),
    *("stage2-ingredient1-step1000-tokens5B", "stage2-ingredient2-step1000-tokens5B", "main"),
)


def chosen(suite: Suite, *names: str, kind: Reference = "branch") -> dict[int, str]:
    refs = [(name, found) for name in names if (found := suite.step_name(name, kind))]
    return {step: name for step, (name, _) in chosen_steps(suite, refs, where="org/m", kind=kind).items()}


def test_several_stages_want_a_choice() -> None:
    with pytest.raises(CheckpointError) as caught:
        chosen(GENERIC, *OLMO)
    assert str(caught.value) == (
        "org/m has several stages (1, 2-ingredient1, 2-ingredient2, none, as step150-tokens1B); choose one with --stage"
    )
    olmo = registry.resolve("olmo2-7b").suite
    assert chosen(olmo, *OLMO) == {150: "stage1-step150-tokens1B", 1000: "stage1-step1000-tokens5B"}
    assert chosen(GENERIC.changed({"stage": "none"}), *OLMO) == {150: "step150-tokens1B"}
    for word in ("2-ingredient1", "stage2-ingredient1"):
        assert chosen(GENERIC.changed({"stage": word}), *OLMO) == {1000: "stage2-ingredient1-step1000-tokens5B"}
    with pytest.raises(UnknownNameError, match=r"no stage '2' in org/m; known: 1, 2-ingredient1"):
        chosen(GENERIC.changed({"stage": "2"}), *OLMO)
    with pytest.raises(UnknownNameError, match=r"did you mean 2-ingredient1"):
        chosen(GENERIC.changed({"stage": "2-ingredent1"}), *OLMO)


def test_steps_are_in_order_and_a_part_that_nothing_has_cannot_be_chosen() -> None:
    assert list(chosen(GENERIC, "step10", "step9", "step100")) == [9, 10, 100]
    assert chosen(GENERIC.changed({"stage": "none"}), "step5") == {5: "step5"}
    with pytest.raises(UnknownNameError, match="no stage '1' in org/m"):
        chosen(GENERIC.changed({"stage": "1"}), "step5")
    assert chosen(GENERIC) == {}


def test_a_part_may_be_named_by_its_word() -> None:
    suite = Suite(pattern=(r"^(?P<stage>stage\d)-(?P<step>\d+)$",))
    for word in ("stage2", "2"):
        assert chosen(suite.changed({"stage": word}), "stage1-5", "stage2-5") == {5: "stage2-5"}
    seeds = Suite(pattern=(r"step(?P<step>\d+)-seed-(?P<seed>\w+)",))
    with pytest.raises(CheckpointError, match=r"several seeds \(a, b\); choose one with --seed"):
        chosen(seeds, "step1-seed-a", "step1-seed-b")
    assert chosen(seeds.changed({"seed": "b"}), "step1-seed-a", "step1-seed-b") == {1: "step1-seed-b"}


@pytest.mark.parametrize(
    ("kind", "plural"), [("branch", "branches"), ("repository", "repositories"), ("file", "files"), ("tag", "tags")]
)
def test_two_names_of_one_step_are_both_named(kind: Reference, plural: str) -> None:
    with pytest.raises(CheckpointError, match=rf"org/m: the {plural} step5 and step05 are both step 5; .*-pattern"):
        chosen(GENERIC, "step5", "step05", kind=kind)


# -- the registry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "suite"),
    [
        ("allenai/OLMo-2-0325-32B-other", "olmo2"),
        ("allenai/OLMo-1B", "olmo1"),
        ("allenai/DataDecide-c4-150M", "datadecide"),
        ("HuggingFaceFW/ablation-model-the-pile", "fineweb"),
        ("google/multiberts-seed_3", "multiberts"),
        ("google/multiberts-seed_7", ""),
        ("bigscience/bloom-intermediate", "bloom"),
        ("bigscience/bloom", ""),
        ("someone/OLMo-2-copy", ""),
    ],
)
def test_repositories_are_matched_by_globs(repository: str, suite: str) -> None:
    assert registry.resolve(repository).suite.name == suite


def test_a_repository_has_what_its_alias_has() -> None:
    for entry in registry.other_suites():
        for alias, (repository, _) in entry.models.items():
            model = registry.resolve(alias)
            assert model == registry.resolve(repository)
            assert model.suite.name == entry.suite.name
    assert registry.resolve("pico-tiny").suite.branch == "pico-decoder-tiny-1"


def test_a_chosen_part_is_in_the_name() -> None:
    model = registry.resolve("olmo2-7b")
    for word in ("2-ingredient1", "stage2-ingredient1"):
        assert model.changed({"stage": word}).name == "OLMo-2-1124-7B-stage2-ingredient1"
    assert model.changed({"stage": "none"}).name == "OLMo-2-1124-7B-stagenone"
    assert model.changed({"tokenizer": "x"}).name == model.name
    assert model.changed(None) is model.changed({}) is model
    both = registry.resolve("datadecide-1b").changed({"seed": "small-aux-2", "generation": 2})
    assert both.name == "DataDecide-dolma1_7-1B-generation2-seedsmall-aux-2"
