"""The order-parameter blog done again, on suites small enough for a test, and its claims on its own numbers."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pythia_dynamics.claims import scorecard as claims
from pythia_dynamics.claims.blog import CLAIMS
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_blog import published_blog
from pythia_dynamics.studies import order_parameter as blog
from pythia_dynamics.studies.order_parameter import expected_b
from pythia_dynamics.training.plan import SIZES, plan_of_size
from pythia_dynamics.training.text import Text

WORDS = ["the", "of", "and", "in", "that", "is", "was", "with", "as", "his", "be", "they"]
TINY: dict[str, Any] = {
    "context": 16,
    "batch": 4,
    "max_steps": 24,
    "every": 3,
    "eval_batches": 2,
    "learning_rate": 3e-3,
    "device": "cpu",
}


def play() -> Text:
    rng = np.random.default_rng(0)
    speeches = [f"WHO:\n{' '.join(rng.choice(WORDS, size=rng.integers(12, 30)))}.\n\n" for _ in range(120)]
    return Text("play", "".join(speeches))


@contextmanager
def stage(label: str, unit: str) -> Iterator[Progress]:
    yield silent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[blog.Reproduction, Path]:
    directory = tmp_path_factory.mktemp("blog")
    places: dict[str, Any] = {"cache": directory / "cache", "results": directory / "results"}
    return blog.reproduce(play(), stage=stage, quick=True, **places, **TINY), directory


# -- what was published ---------------------------------------------------------------------------------------


def test_the_published_numbers() -> None:
    for size in SIZES:
        table = published_blog(size)
        assert table["step"].to_numpy().tolist() == list(range(0, 20_000, 1000))
        assert np.isfinite(table.drop_vars("dloss_db_backward").to_dataarray()).all()
        assert np.isnan(table["dloss_db_backward"].to_numpy()).tolist() == [True, *[False] * 19]
    first = {size: round(float(published_blog(size)["order_parameter"][0]), 4) for size in SIZES}
    assert first == {"10k": 0.1457, "0.1m": 0.0718, "1m": 0.0362, "10m": 0.0121}
    assert float(published_blog("10m")["validation_loss"][-1]) == pytest.approx(2.6901, abs=1e-4)
    with pytest.raises(UnknownNameError, match="no published size '1k'"):
        published_blog("1k")


def test_the_published_slopes_are_backward_differences() -> None:
    """Against some of the blog's ``all_models_loss_derivative.csv``, which has no central differences."""
    published = {
        ("10k", 2000): -3.4886,
        ("10k", 13_000): -6.7433,
        ("0.1m", 5000): -14.8326,
        ("1m", 6000): -11.0843,
        ("10m", 4000): -51.0565,
    }
    for (size, step), slope in published.items():
        table = published_blog(size).sel(step=step)
        assert float(table["dloss_db_backward"]) == pytest.approx(slope, abs=1e-4)
        assert abs(float(table["dloss_db"]) - slope) > 0.05


def test_the_published_numbers_are_those_of_the_source() -> None:
    if "PYTHIA_DYN_SHARED" not in os.environ:
        pytest.skip("PYTHIA_DYN_SHARED names no directory of shared data")
    shared = Path(os.environ["PYTHIA_DYN_SHARED"])
    with (shared / "blog_train_loss_vs_order_parameter.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            table = published_blog(row["model"].lower()).sel(step=int(row["step"]))
            assert float(table["order_parameter"]) == float(row["order_param_b"])
            assert float(table["train_loss"]) == float(row["train_loss"])


@pytest.mark.parametrize("size", list(SIZES))
def test_b_of_an_untrained_head(size: str) -> None:
    d = SIZES[size]["d_model"]
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, list[float]] = {"pytorch": [], "neox": []}
    for _ in range(200):
        uniform = (torch.rand(65, d, generator=generator, dtype=torch.float64) * 2 - 1) / d**0.5
        drawn["pytorch"].append(float(uniform.norm()) / d)
        drawn["neox"].append(float((torch.randn(65, d, generator=generator, dtype=torch.float64) * 0.02).norm()) / d)
    for kind, values in drawn.items():
        b, spread = expected_b(kind, 65, d)
        assert np.mean(values) == pytest.approx(b, abs=4 * spread / 200**0.5)
        assert np.std(values) == pytest.approx(spread, rel=0.15)
    assert expected_b("pytorch", 65, 32)[0] == pytest.approx(0.1455, abs=1e-4)
    assert expected_b("neox", 65, 32)[0] == pytest.approx(0.0285, abs=1e-4)
    with pytest.raises(UnknownNameError):
        expected_b("keras", 65, 32)


def test_every_published_step_is_a_step_of_the_plan() -> None:
    for size in SIZES:
        plan = plan_of_size(size, arch="nanogpt")
        assert set(published_blog(size)["step"].to_numpy().tolist()) < set(plan.saved_steps)


# -- the whole of it ------------------------------------------------------------------------------------------


def test_every_file_is_there(made: tuple[blog.Reproduction, Path]) -> None:
    report, directory = made
    out = directory / "results" / "order-parameter-quick"
    assert report.name == out.name
    names = {
        "runs.csv",
        "comparison.csv",
        "initial_b.csv",
        "summary.csv",
        "summary.md",
        "claims.json",
        "provenance.json",
    }
    names |= {f"sample-{size}.txt" for size in blog.QUICK_SIZES}
    names |= {
        f"{figure}.{kind}"
        for figure in ("loss", "loss_against_order", "slope_against_order")
        for kind in ("png", "svg")
    }
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == names
    assert all(path.is_file() for path in report.files)
    for size in blog.QUICK_SIZES:
        assert (directory / "cache" / f"order-quick-{size}" / "step24").is_dir()
        assert (directory / "results" / f"order-quick-{size}" / "lm_head.weight" / "order.csv").is_file()
        assert len((out / f"sample-{size}.txt").read_text()) > 8 * 14
    recorded = json.loads((out / "provenance.json").read_text())["order-parameter"]
    assert recorded["options"]["learning_rate"] == 3e-3
    assert (recorded["options"]["arch"], recorded["options"]["initialisation"]) == ("nanogpt", "pytorch")
    config = json.loads((directory / "cache" / "order-quick-10k" / "step24" / "config.json").read_text())
    assert config["model_type"] == "nanogpt"


def test_the_tables_hang_together(made: tuple[blog.Reproduction, Path]) -> None:
    report, directory = made
    out = directory / "results" / "order-parameter-quick"
    with (out / "runs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "0.1m"]
    assert [int(row["step"]) for row in rows] == list(range(0, 25, 3))
    own = Results("order-quick-0.1m", directory / "results").weights().read_table("order")
    with (directory / "cache" / "order-quick-0.1m" / "losses.csv").open(newline="") as file:
        losses = list(csv.DictReader(file))
    for row, b, loss in zip(rows, own["order_parameter"].to_numpy(), losses, strict=True):
        assert float(row["order_parameter"]) == pytest.approx(b, rel=1e-9)
        assert float(row["train_loss"]) == pytest.approx(float(loss["train_loss"]), rel=1e-8)
        assert float(row["validation_loss"]) == pytest.approx(float(loss["validation_loss"]), rel=1e-8)
    with (out / "comparison.csv").open(newline="") as file:
        both = list(csv.DictReader(file))
    assert [(row["model"], row["step"]) for row in both] == [("10k", "0"), ("0.1m", "0")]
    assert float(both[0]["order_parameter_published"]) == pytest.approx(0.14574, abs=1e-5)
    assert both[0]["dloss_db_backward"] == both[0]["dloss_db_backward_published"] == ""
    own_b = np.array([float(row["order_parameter"]) for row in rows])
    own_loss = np.array([float(row["train_loss"]) for row in rows])
    backward = [float(row["dloss_db_backward"] or "nan") for row in rows]
    np.testing.assert_allclose(backward, [np.nan, *np.diff(own_loss) / np.diff(own_b)], rtol=1e-3)
    assert report.facts["0.1m"]["b"][1] == pytest.approx(float(rows[-1]["order_parameter"]), rel=1e-9)


def test_both_conventions_of_the_untrained_head(made: tuple[blog.Reproduction, Path]) -> None:
    report, directory = made
    with (directory / "results" / "order-parameter-quick" / "initial_b.csv").open(newline="") as file:
        rows = {(row["model"], row["initialisation"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(size, kind) for size in blog.QUICK_SIZES for kind in ("pytorch", "neox")}
    for row in rows.values():
        off = abs(float(row["measured"]) - float(row["expected"])) / float(row["standard_deviation"])
        assert off < 4
    vocab = len(set(play().content))
    assert float(rows["10k", "pytorch"]["expected"]) == pytest.approx((vocab / 3) ** 0.5 / 32)
    assert rows["10k", "neox"]["published"] == ""
    begun = float(report.runs["10k"][0]["order_parameter"][0])
    assert begun == pytest.approx(float(rows["10k", "pytorch"]["measured"]), rel=1e-6)


def test_the_verdicts_are_saved_as_claims_are(made: tuple[blog.Reproduction, Path]) -> None:
    report, directory = made
    saved = claims.read(Results("order-parameter-quick", directory / "results"))
    assert saved is not None
    for verdicts in (saved, report.verdicts):
        assert [verdict.claim for verdict in verdicts] == [claim.id for claim in CLAIMS]
    assert json.loads(json.dumps(report.facts))["10k"]["steps"] == 24
    by_claim = {verdict.claim: verdict.verdict for verdict in saved}
    assert by_claim["slope-changes"] == by_claim["published-curves"] == "not testable here"


def test_a_second_run_uses_what_is_there_and_seeds_have_suites_of_their_own(
    made: tuple[blog.Reproduction, Path], tmp_path: Path
) -> None:
    report, directory = made
    places: dict[str, Any] = {"cache": directory / "cache", "results": directory / "results"}
    before = (directory / "cache" / "order-quick-10k" / "step24" / "model.safetensors").stat().st_mtime_ns
    again = blog.reproduce(play(), stage=stage, quick=True, **places, **TINY)
    assert (directory / "cache" / "order-quick-10k" / "step24" / "model.safetensors").stat().st_mtime_ns == before
    assert again.facts == report.facts
    places = {"out": tmp_path / "suites", "cache": tmp_path, "results": tmp_path}
    short = {**TINY, "max_steps": 6}
    two = blog.reproduce(play(), stage=stage, sizes=["10K"], seeds=(0, 1), **places, **short)
    assert sorted(path.name for path in (tmp_path / "suites").glob("[!.]*")) == ["order-10k-seed0", "order-10k-seed1"]
    assert two.name == "order-parameter"
    first, second = two.runs["10k"]
    neox = blog.reproduce(play(), stage=stage, sizes=["10K"], arch="gpt-neox", **places, **short)
    assert neox.name == "order-parameter-gpt-neox"
    config = json.loads((tmp_path / "suites" / "order-gpt-neox-10k" / "step6" / "config.json").read_text())
    assert config["model_type"] == "gpt_neox"
    assert float(first["order_parameter"][-1]) != float(second["order_parameter"][-1])
    with (tmp_path / two.name / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["seeds"], row["step"]) == ("10k", "2", "6")
    ends = [float(run["order_parameter"][-1]) for run in (first, second)]
    assert float(row["order_parameter_mean"]) == pytest.approx(np.mean(ends), rel=1e-9)
    assert float(row["order_parameter_standard_error"]) == pytest.approx(abs(ends[0] - ends[1]) / 2, rel=1e-9)
    assert row["order_parameter_published"] == ""
    assert (tmp_path / two.name / "summary.md").read_text().count("\n") == 3
    with pytest.raises(UnknownNameError, match="no size '1k'"):
        blog.reproduce(play(), stage=stage, sizes=["1k"])
    with pytest.raises(PythiaDynError, match="at least one seed"):
        blog.reproduce(play(), stage=stage, seeds=())
