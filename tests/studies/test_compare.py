"""Comparisons of stored runs: the notation, the steps, the floor of seeds, and a planted effect against it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import pythia_dynamics as pyd
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.measures.comparison import BETWEEN, WITHIN
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.compare import compare
from pythia_dynamics.studies.comparison_files import write_comparison
from pythia_dynamics.studies.comparison_table import comparison_lines, comparison_rows, summarise_comparison
from pythia_dynamics.studies.saved_comparisons import comparisons_of, read_comparison, read_line
from pythia_dynamics.studies.subjects import Subject, floor_names, open_side, parse_subject
from pythia_dynamics.sweep.frames import NonFiniteWarning

STEPS = (10, 20, 30)
SHAPE = (120, 16)

Weights = Callable[[str, int], NDArray[np.float32]]


def seeded(name: str, step: int) -> NDArray[np.float32]:
    """A walk from a start of its own."""
    rng = np.random.default_rng([*name.encode()])
    return (rng.normal(0, 0.1, SHAPE) + rng.normal(0, 0.01, SHAPE) * step / 10).astype(np.float32)


def write_run(
    cache: Path,
    name: str,
    weights: Weights = seeded,
    *,
    steps: tuple[int, ...] = STEPS,
    missing: Mapping[int, str] | None = None,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """A store of a run."""
    made = Store.create(cache / f"{name}.zarr", source=f"org/{name}")
    shapes = tensors or {"embed_out.weight": SHAPE}
    made.ensure([TensorSpec(tensor, "float32", shape) for tensor, shape in shapes.items()], list(steps))
    for tensor, shape in shapes.items():
        for step in steps:
            if step not in (missing or {}):
                frame = np.resize(weights(name, step), shape).astype(np.float32)
                made.write(tensor, step, frame, {"commit": f"c{step}"})
        made.record_missing(tensor, missing or {})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seeds of one suite, and one run that is no seed."""
    directory = tmp_path_factory.mktemp("stores") / "cache"
    for seed in range(6):
        write_run(directory, f"toy-seed{seed}")
    write_run(directory, "other")
    return directory


@pytest.fixture
def cache(stored: Path, tmp_path: Path) -> Path:
    """A copy of these stores, for more of them."""
    return Path(shutil.copytree(stored, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70m", Subject("70m")),
        ("70m@1000", Subject("70m", 1000)),
        ("70m@last:embedding", Subject("70m", "last", "embedding")),
        ("70m:embed_out.weight", Subject("70m", None, "embed_out.weight")),
        ("EleutherAI/pythia-70m@first", Subject("EleutherAI/pythia-70m", "first")),
        ("./runs/mine@20:head.weight", Subject("./runs/mine", 20, "head.weight")),
        (r"C:\runs\mine", Subject(r"C:\runs\mine")),
        ("C:/runs/mine", Subject("C:/runs/mine")),
        (r"C:\runs\mine@20:head.weight", Subject(r"C:\runs\mine", 20, "head.weight")),
        ("me@home/mine", Subject("me@home/mine")),
        ("/data/me@1/mine@5", Subject("/data/me@1/mine", 5)),
        ("org/model@main", Subject("org/model@main")),  # a revision is no step
        ("stored@7", Subject("stored@7")),
        ("stored@7@9", Subject("stored@7", 9)),
        ("stored:x:head", Subject("stored:x", None, "head")),
    ],
)
def test_the_notation(text: str, expected: Subject) -> None:
    assert parse_subject(text, ["stored@7", "stored:x"]) == expected


def test_a_directory_of_that_name_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_subject("run@5") == Subject("run", 5)
    (tmp_path / "run@5").mkdir()
    assert parse_subject("run@5") == Subject("run@5")
    assert parse_subject("run@5:head") == Subject("run@5", None, "head")


@pytest.mark.parametrize("text", ["@10", ":head", "", " ", "@1:x"])
def test_a_notation_without_a_model(text: str) -> None:
    with pytest.raises(PythiaDynError, match=r"give MODEL\[@STEP\]\[:TENSOR\]"):
        parse_subject(text)


def test_floor_names_are_the_other_seeds() -> None:
    known = ["a", "a-seed0", "a-seed1", "a-seed2", "a-data-seed1", "a-data-seed2", "b-seed1", "pythia-14m-seed3"]
    assert [name for name, _ in floor_names("a-seed0", "a-seed1", known)] == ["a-seed2"]
    assert [name for name, _ in floor_names("a", "a", known)] == ["a-seed0", "a-seed1", "a-seed2"]
    assert [name for name, _ in floor_names("a-data-seed1", "a", known)] == [
        *("a-seed0", "a-seed1", "a-seed2"),
        "a-data-seed2",
    ]
    assert floor_names("c", "d", known) == ()
    assert [name for name, _ in floor_names("c", "d", known, ["14m-seed*"])] == ["pythia-14m-seed3"]
    assert floor_names("a", "b", known, ["none"]) == ()
    with pytest.raises(UnknownNameError, match="no run in the cache 'z\\*'"):
        floor_names("a", "b", known, ["z*"])


def test_two_runs_at_every_common_step(cache: Path) -> None:
    write_run(cache, "short", steps=(20, 30, 40), missing={30: "no such branch"})
    done: list[tuple[int, int]] = []
    found = compare("toy-seed0", "short", cache=cache, progress=lambda one, all_: done.append((one, all_)))
    assert found["step"].to_numpy().tolist() == [20, 30]
    assert done == [(0, 2), (1, 2), (2, 2)]
    u, v = (seeded(name, 20).astype(float) for name in ("toy-seed0", "short"))
    angle = np.degrees(np.arccos((u * v).sum() / np.linalg.norm(u) / np.linalg.norm(v)))
    assert found["angle"].to_numpy()[0] == pytest.approx(angle)
    assert np.isnan(found["angle"].to_numpy()[1])
    assert found["norm"].to_numpy()[1].tolist() == pytest.approx(
        [np.linalg.norm(seeded("toy-seed0", 30)), np.nan], nan_ok=True
    )
    assert found.attrs["missing_b"] == {"30": "no such branch"}
    assert found.attrs["profile_step"] == 20
    assert found["angle_floor"].shape == (10, 2)  # of the five other seeds
    assert np.isfinite(found["angle_floor"].to_numpy()).all()
    assert any("missing short step 30: no such branch" in line for line in comparison_lines(found))
    assert found["density"].sum("weight").to_numpy() * np.diff(found["weight"])[0] == pytest.approx([1, 1], abs=2e-3)


def test_checkpoints_of_one_run_beside_two_kinds_of_pairs(cache: Path) -> None:
    found = compare("toy-seed0@first", "toy-seed0@last", cache=cache)
    assert (found["step"].item(), found["step_b"].item()) == (10, 30)
    kinds = found["kind"].to_numpy().tolist()
    assert (kinds.count(BETWEEN), kinds.count(WITHIN)) == (20, 5)  # 5 other seeds, in both orders
    angles = found["angle_floor"].to_numpy()[:, 0]
    between, within = (angles[found["kind"].to_numpy() == kind] for kind in (BETWEEN, WITHIN))
    assert within.max() < 30 < 80 < between.min()
    row = comparison_rows(found)[0]
    assert [floor.kind for floor in row.floors] == [BETWEEN, WITHIN]
    assert row.floors[0].verdict == "below"
    assert row.floors[0].ratio == pytest.approx(row.value / np.median(between))
    assert found.attrs["commits_a"] == {"10": "c10"}


def test_equal_sides_are_equal(cache: Path) -> None:
    found = compare("other@20", "other@20", cache=cache)
    assert (found["angle"].item(), found["displacement"].item(), found["wasserstein"].item()) == (0, 0, 0)
    assert found.attrs["floor"] == "no seeds in the cache: no floor"
    assert "pair" not in found.coords
    assert "no seeds in the cache" in summarise_comparison(found)


def test_an_effect_that_was_planted_is_above_the_floor_and_none_is_within(cache: Path) -> None:
    def wide(name: str, step: int) -> NDArray[np.float32]:
        tails = np.random.default_rng(99).standard_t(3, SHAPE)
        return (tails / tails.std() * seeded(name, step).std()).astype(np.float32)

    def turned(name: str, step: int) -> NDArray[np.float32]:
        return seeded("toy-seed0", step) + seeded(name, step)

    write_run(cache, "toy-seed7", wide)
    write_run(cache, "toy-seed8", turned)
    write_run(cache, "toy-seed9")
    floor = "toy-seed[1-5]"

    def verdicts(second: str) -> dict[str, str]:
        rows = comparison_rows(compare("toy-seed0@20", f"{second}@20", floor=floor, cache=cache))
        return {row.name: row.floors[0].verdict for row in rows}

    heavy, near, same = verdicts("toy-seed7"), verdicts("toy-seed8"), verdicts("toy-seed9")
    assert (heavy["ks"], heavy["wasserstein"]) == ("above", "above")  # another density of the same variance
    assert (near["angle"], near["relative_displacement"], near["overlap"]) == ("below", "below", "above")
    assert list(same.values()).count("within") >= 7  # of 9, with 10 pairs: 2 / 11 are outside by chance


def test_a_floor_of_few_pairs_has_no_verdict(cache: Path) -> None:
    rows = comparison_rows(compare("toy-seed0@20", "toy-seed1@20", floor="toy-seed[23]", cache=cache))
    assert {(floor.pairs, floor.verdict) for row in rows for floor in row.floors} == {(1, "too few pairs")}
    alone = compare("toy-seed0@20", "toy-seed1@20", floor="toy-seed2", cache=cache)
    assert alone.attrs["floor"] == "only toy-seed2 beside the compared runs: no floor"
    write_run(cache, "toy-seed-9", tensors={"embed_out.weight": (10, 4)})
    shapes = compare("toy-seed0@20", "toy-seed1@20", cache=cache)
    assert "left out: toy-seed-9 (embed_out.weight has shape (10, 4), not (120, 16))" in shapes.attrs["floor"]
    assert shapes.sizes["pair"] == 6


def test_weights_that_are_not_finite_are_named_and_nan(cache: Path) -> None:
    def broken(name: str, step: int) -> NDArray[np.float32]:
        weights = seeded(name, step)
        weights[0, 0] = np.nan if step == 20 else weights[0, 0]
        return weights

    write_run(cache, "toy-seed3", broken)
    with pytest.warns(NonFiniteWarning, match="toy-seed3 has weights that are not finite at step 20") as caught:
        found = compare("toy-seed0", "toy-seed1", cache=cache)
    assert len(caught) == 1  # not once for each pair
    known = np.isfinite(found["angle_floor"].to_numpy())
    assert known.sum(axis=0).tolist() == [6, 3, 6]
    with pytest.warns(NonFiniteWarning):
        found = compare("toy-seed3@20", "toy-seed1@20", cache=cache)
    assert np.isnan(found["angle"].item())
    assert "nothing to compare" in summarise_comparison(found)
    assert "profile_step" not in found.attrs


def test_two_tensors_of_other_shapes(tmp_path: Path) -> None:
    write_run(tmp_path, "toy", tensors={"embed_out.weight": SHAPE, "mlp.weight": (16, 40)})
    found = compare("toy@10", "toy@10:mlp.weight", cache=tmp_path)
    assert np.isfinite(found["ks"].item())
    assert np.isnan([found["angle"].item(), found["overlap"].item()]).all()
    assert found.attrs["not_compared"] == (
        "shapes (120, 16) and (16, 40): no angles, displacement or distance of singular values, and no overlap of "
        "directions of different lengths"
    )
    assert "row_angle_count" not in found
    lines = list(comparison_lines(found))
    assert not any(line.strip().startswith("angle") for line in lines)
    assert any("not compared: shapes" in line for line in lines)


def test_arrays_and_histories_are_compared() -> None:
    array = np.random.default_rng(0).normal(size=(3, 20, 6))
    found = pyd.compare(array, -array, floor="none")
    assert found["angle"].to_numpy().tolist() == [180, 180, 180]
    assert found.attrs["floor"] == "no floor asked for"
    history = pyd.History.from_array(array)
    assert pyd.compare(history[:1], history[2:], floor="none").sizes["step"] == 1


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ("toy-seed0@10", "toy-seed1", {}, r"toy-seed0@10 is a checkpoint and toy-seed1 a run: give toy-seed1 a step"),
        ("toy-seed0@15", "toy-seed1@10", {}, "no step 15 in toy-seed0"),
        ("toy-seed0@10:head", "toy-seed1@10", {}, "no tensor 'head'"),
        ("nope", "toy-seed1", {}, "no model 'nope'"),
        ("toy-seed0", "far", {}, "toy-seed0 and far have no common step"),
        ("toy-seed0", "toy-seed1", {"steps": "10,15"}, "no step 15"),
        ("toy-seed0@10", "toy-seed1@10", {"steps": "10"}, "steps are of two runs"),
        ("toy-seed0", "toy-seed1", {"leading": 0}, "leading must be at least 1"),
    ],
)
def test_what_cannot_be_compared(cache: Path, a: str, b: str, options: dict[str, object], message: str) -> None:
    write_run(cache, "far", steps=(1, 2))
    with pytest.raises(PythiaDynError, match=message):
        compare(a, b, cache=cache, **options)  # type: ignore[arg-type]


def test_the_files_of_a_comparison(cache: Path, tmp_path: Path) -> None:
    result = compare("toy-seed0", "toy-seed1", cache=cache)
    outcome = write_comparison(result, tmp_path / "results")
    folder = tmp_path / "results" / "compare" / "toy-seed0" / "toy-seed1"
    names = ["compare.csv", "floor.csv", "density.csv", "spectrum.csv", "rows.csv", "compare.png", "compare.svg"]
    assert [path.relative_to(folder).as_posix() for path in outcome.files] == names
    table, floor = (pd.read_csv(folder / name).set_index("step") for name in names[:2])
    for name in ("angle", "ks", "overlap"):
        assert table[name].tolist() == result[name].to_numpy().tolist()
        pairs = result[f"{name}_floor"].to_numpy()
        assert table[f"{name}_floor_median"].tolist() == pytest.approx(np.median(pairs, axis=0).tolist())
        assert table[f"{name}_floor_high"].tolist() == pairs.max(axis=0).tolist()
        assert floor[name].to_numpy().reshape(3, 6).T.tolist() == pairs.tolist()
    assert table["angle_sd_independent"].tolist() == pytest.approx([np.degrees(1 / np.sqrt(120 * 16))] * 3)
    assert len(pd.read_csv(folder / "spectrum.csv")) == 16
    assert pd.read_csv(folder / "rows.csv")["rows"].sum() == 120
    made = json.loads((folder / "provenance.json").read_text())["compare"]
    assert made["a"] == "toy-seed0"
    assert made["commits_a"] == {"10": "c10", "20": "c20", "30": "c30"}
    assert made["facts"]["statistics"]["angle"]["floors"][0]["pairs"] == 6
    assert json.loads(json.dumps(outcome.facts)) == outcome.facts


def test_sides_have_their_labels(cache: Path) -> None:
    write_run(cache, "two", tensors={"embed_out.weight": SHAPE, "embed_in.weight": SHAPE})
    for text, label in (("two@10:unembedding", "two@10"), ("two:embedding", "two:embed_in.weight"), ("two", "two")):
        assert open_side(text, cache).label == label


@pytest.mark.parametrize(
    ("a", "b"), [("toy-seed0", "toy-seed1"), ("toy-seed0@10", "toy-seed0@20"), ("other@20", "other@20")]
)
def test_a_saved_comparison_is_read_back(cache: Path, tmp_path: Path, a: str, b: str) -> None:
    result = compare(a, b, cache=cache)
    write_comparison(result, tmp_path / "results")
    (path,) = (tmp_path / "results").glob("compare/*/*/provenance.json")
    folder = Results(path.parent.relative_to(tmp_path / "results").as_posix(), tmp_path / "results")
    found = read_comparison(folder)
    assert read_line(folder) is None
    assert set(result.data_vars) - set(found.data_vars) <= {name for name in result.data_vars if "_sd" in str(name)}
    for name in found.data_vars:
        wanted = result[name].transpose(*found[name].dims).to_numpy()
        np.testing.assert_allclose(found[name].to_numpy(), wanted, rtol=1e-6, atol=1e-12, err_msg=str(name))
    assert summarise_comparison(found) == summarise_comparison(result)


def test_comparisons_are_on_the_page_of_their_models(cache: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert comparisons_of(["toy-seed0"], results) == []
    for a, b in (("toy-seed0", "toy-seed1"), ("other@10", "toy-seed2@20")):
        write_comparison(compare(a, b, cache=cache), results)
    assert [(one.a, one.b) for one in comparisons_of(["toy-seed1"], results)] == [("toy-seed0", "toy-seed1")]
    assert [(one.a, one.b) for one in comparisons_of(["toy-seed2"], results)] == [("other@10", "toy-seed2@20")]
    assert comparisons_of(["toy-seed"], results) == []  # a beginning of a name is another model
    (one,) = comparisons_of(["toy-seed0", "toy-seed1"], results)
    angle = next(row for row in one.table.rows if row[0] == "angle")
    value = float(compare("toy-seed0", "toy-seed1", cache=cache)["angle"][-1])
    assert float(angle[1].split()[0].rstrip("°")) == pytest.approx(value, rel=0.01)
    assert one.command == "pythia-dyn compare toy-seed0 toy-seed1"
    damaged = next((results / "compare" / "toy-seed0").rglob("compare.csv"))
    damaged.write_text("step,angle\n0,1\n")
    with pytest.raises(FormatError, match=r"compare\.csv"):
        comparisons_of(["toy-seed0"], results)
