"""A measure that is defined outside the package, as docs/own_measure.md has it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from support.walks import walk

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.cli import main
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.gallery import tensor_figures
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.measures import COMMANDS, MEASURES, catalogue
from pythia_dynamics.measures.catalogue import BUILT_IN
from pythia_dynamics.measures.displacement import Integral
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import slabs
from pythia_dynamics.sweep.sweep import SlabSums

PAGE = Path(__file__).parents[2] / "docs" / "own_measure.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(language: str, number: int = 0) -> str:
    return [code for found, code in BLOCKS if found == language][number]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory with the measure of the page, registered as an installed package registers it."""
    (tmp_path / "sparsity.py").write_text(block("python"))
    section = block("toml").split('[project.entry-points."pythia_dynamics.measures"]\n')[1].split("\n\n")[0]
    point = re.sub(r'"', "", section)
    info = tmp_path / "sparsity-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sparsity\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[pythia_dynamics.measures]\n{point}\n")
    return tmp_path


def own() -> pyd.Measure:
    names: dict[str, object] = {}
    exec(compile(block("python"), "sparsity.py", "exec"), names)
    found = names["SPARSITY"]
    assert isinstance(found, pyd.Measure)
    return found


def test_it_is_about_thirty_lines() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 35


def test_one_reading_serves_it_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = walk(5, 600, 40, np.float16)
    ranges: dict[Any, list[tuple[int, int]]] = {Counts: [], Integral: [], SlabSums: []}
    for kind, seen in ranges.items():
        update = kind.update

        def note(self, frames, start, stop, update=update, seen=seen):
            seen.append((start, stop))
            update(self, frames, start, stop)

        monkeypatch.setattr(kind, "update", note)
    order: list[str] = []
    reading = pyd.History.segments  # how a sweep opens a frame
    monkeypatch.setattr(pyd.History, "segments", lambda self, index: (order.append("read"), reading(self, index))[1])
    found = pyd.analyse(frames, ["msd", "density", own()])
    assert list(found) == ["msd", "density", "sparsity"]
    for seen in ranges.values():
        assert sorted(seen) == slabs(24_000)  # each range once, for each of the three
    assert order == ["read"] * 5  # each frame was opened once
    small = (np.abs(frames.astype(np.float64)) < 0.01).mean(axis=(1, 2))
    np.testing.assert_allclose(found["sparsity"]["sparsity"], small)


def test_its_options_missing_steps_and_steps_that_are_not_finite() -> None:
    frames = walk(5, 60, 8, np.float32)
    frames[3, 0, 0] = np.nan
    history = pyd.History.from_array(frames, missing={1: "lost"})
    with pytest.warns(UserWarning, match="array"):
        found = own()(history, limit=0.1)
    values = found["sparsity"].to_numpy()
    assert np.isnan(values[1])
    assert values[0] == pytest.approx((np.abs(frames[0]) < 0.1).mean())
    assert found["sparsity"].attrs["long_name"] == "share of weights with |w| < 0.1"
    with pytest.raises(UnknownNameError, match="no option 'limt' in sparsity; did you mean limit"):
        own()(frames, limt=0.1)


def test_the_examples_of_the_page_run(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block("python", 1)], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Name: sparsity" in done.stdout


def test_registered_it_has_command_table_figure_and_section(place: Path) -> None:
    frames = walk(4, 60, 8, np.float16)
    store = Store.create(place / "cache" / "demo.zarr", source="by hand")
    store.ensure([TensorSpec(EMBED_OUT, "float16", (60, 8))], range(4))
    for step, frame in enumerate(frames):
        store.write(EMBED_OUT, step, frame, {"commit": None})

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "pythia_dynamics", *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for line in block("bash").splitlines():
        run(*line.partition("#")[0].split()[1:])
    folder = place / "results" / "demo" / EMBED_OUT
    rows = (folder / "sparsity.csv").read_text().splitlines()
    assert rows[0] == "step,sparsity,sparsity_gaussian"
    assert float(rows[1].split(",")[1]) == pytest.approx((np.abs(frames[0].astype(float)) < 0.1).mean())
    assert (folder / "sparsity.png").stat().st_size > 5_000
    page = (place / "results" / "report.html").read_text()
    assert page.count("Share of small weights") >= 2  # the figure and the table
    assert "--limit FLOAT" in run("sparsity", "--help")
    assert "sparsity" in run("--help")
    facts = json.loads(run("sparsity", "--json"))["sparsity"]
    assert facts[0]["tensor"] == EMBED_OUT


def test_the_list_of_names_is_that_of_the_values() -> None:
    assert list(MEASURES) == list(BUILT_IN)
    for name, one in BUILT_IN.items():
        assert one.name == name
        assert one.function is not None
        assert one.function.__name__ in pyd.__all__


def test_measures_that_cannot_be() -> None:
    with pytest.raises(PythiaDynError, match="must be a Python identifier"):
        pyd.Measure(name="my measure", title="", source="", finish=lambda history: xr.Dataset(), accumulators=(Counts,))
    with pytest.raises(PythiaDynError, match="must have accumulators or a function per step"):
        pyd.Measure(name="nothing", title="", source="", finish=lambda history: xr.Dataset())
    twice = pyd.Measure(
        name="msd", title="", source="", finish=lambda history, counts: xr.Dataset(), accumulators=(Counts,)
    )
    with pytest.raises(PythiaDynError, match="two measures have the same name"):
        pyd.analyse(walk(2, 3, 3, np.float16), ["msd", twice])


def test_what_cannot_be_drawn_is_said_and_the_table_is_written(tmp_path: Path) -> None:
    def finish(history: pyd.History, total: Any) -> xr.Dataset:
        halves = pyd.Variable(total.total, "Σw² of each half", dims=("step", "half"))
        return pyd.step_dataset(history, {"square": halves}, coords={"half": [0, 1]}, at=total.indices)

    def sums(weights: np.ndarray) -> tuple[float, float]:
        return float(weights[:2] @ weights[:2]), float(weights[2:] @ weights[2:])

    tables = {"halves": pyd.Table(("step", "half", "square"), keys=("step", "half"))}
    halves = pyd.Measure("halves", "Halves", "here", finish, (lambda: SlabSums(sums),), tables=tables)
    results = Results("walk", tmp_path)
    with pytest.warns(UserWarning, match="halves: no figure, because no column has one number per step"):
        (outcome,) = measure(as_history(walk(3, 4, 2, np.float32)), [halves], results)
    assert [path.name for path in outcome.files] == [f"{name}.csv" for name in tables]


# -- what a user's measure can do wrong: one line each ----------------------------------------------------------


def total(weights: np.ndarray) -> float:
    return float(weights.astype(np.float64).sum())


def finish_total(history: pyd.History, sums: SlabSums) -> xr.Dataset:
    return pyd.step_dataset(history, {"total": pyd.Variable(sums.total[:, 0], "Σw")}, at=sums.indices)


def other(name: str = "mine", **changed: Any) -> pyd.Measure:
    parts: dict[str, Any] = {
        "title": "My total",
        "source": "here",
        "finish": finish_total,
        "accumulators": (lambda: SlabSums(total),),
        "tables": {name: pyd.Table(("step", "total"))},
    }
    return pyd.Measure(name, **{**parts, **changed})


def fails(*arguments: Any, **options: Any) -> Any:
    raise ValueError("two\nlines")


class Point:
    """An entry point of an installed package."""

    def __init__(self, name: str, value: Any, package: str = "their-package") -> None:
        self.name, self.value, self._measure = name, "theirs:IT", value
        self.dist = type("Distribution", (), {"name": package})

    def __lt__(self, other: Point) -> bool:
        return self.name < other.name

    def load(self) -> Any:
        if isinstance(self._measure, Exception):
            raise self._measure
        return self._measure


class Points(list[Point]):
    @property
    def names(self) -> set[str]:
        return {point.name for point in self}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Registers measures, or what is none, by the names of their entry points."""
    installed = importlib.metadata.entry_points

    def registers(**points: Any) -> None:
        found = Points(Point(name, value) for name, value in points.items())

        def entry_points(**chosen: Any) -> Any:
            return found if chosen.get("group") == "pythia_dynamics.measures" else installed(**chosen)

        for module in (catalogue, importlib.metadata):
            monkeypatch.setattr(module, "entry_points", entry_points)
        catalogue._registered.cache_clear()

    yield registers
    catalogue._registered.cache_clear()


FRAMES = walk(4, 6, 4, np.float32)


def command(*words: str) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return CliRunner().invoke(main, words)


@pytest.fixture
def cache(tmp_path: Path) -> list[str]:
    """The options of a command for a store with the weights, and an empty folder of results."""
    store = Store.create(tmp_path / "cache" / "demo.zarr", source="by hand")
    store.ensure([TensorSpec(EMBED_OUT, "float32", (6, 4))], range(4))
    for step, frame in enumerate(FRAMES):
        store.write(EMBED_OUT, step, frame, {"commit": None})
    return ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results")]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {"tables": {"msd": pyd.Table(("step", "total"))}},
            "mine: the table msd is written by the measure msd",
        ),
        (
            {"tables": {"MSD": pyd.Table(("step", "total"))}},
            "mine: the table MSD is written by the measure msd",
        ),
        (
            {"tables": {"stop": pyd.Table(("step", "total"))}},
            "mine: the table stop is written by pythia-dyn",
        ),
        ({"tables": {"../a": pyd.Table(("step", "total"))}}, "must have a name that a file can have"),
        ({"name": "density", "saves_array": True}, "the name of the measure density is used by another measure"),
        ({"name": "claims"}, "the name of the measure claims is used by pythia-dyn"),
        ({"name": "judge"}, "the name of the measure judge is used by pythia_dynamics"),
    ],
)
def test_names_are_unique(names: dict[str, Any], said: str, register: Callable[..., None]) -> None:
    one = other(**{"accumulators": (fails,), **names})  # nothing is computed
    with pytest.raises(PythiaDynError, match=re.escape(said)):
        pyd.analyse(FRAMES, [one])
    register(**{one.name: one})
    with pytest.warns(UserWarning, match=re.escape(said)):
        assert list(catalogue.known_measures()) == list(BUILT_IN)


def test_names_are_unique_among_those_of_users(register: Callable[..., None]) -> None:
    twin = other("twin", tables={"mine": pyd.Table(("step", "total"))})
    with pytest.raises(PythiaDynError, match="the table mine is written by the measure"):
        pyd.analyse(FRAMES, [other(), twin])
    register(mine=other())
    with pytest.raises(PythiaDynError, match="the table mine is written by the measure"):
        pyd.analyse(FRAMES, twin)
    assert list(pyd.analyse(FRAMES, other(title="a newer version"))) == ["mine"]


def test_commands_are_those_of_the_list() -> None:
    assert set(main.commands) == COMMANDS | {name.replace("_", "-") for name in MEASURES}


def test_a_keyword_is_no_name() -> None:
    with pytest.raises(PythiaDynError, match="must not be a keyword of Python; got 'class'"):
        other("class")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"finish": fails}, "the measure mine (finish) failed: ValueError: two lines"),
        ({"accumulators": (fails,)}, "the measure mine (accumulators) failed: ValueError: two lines"),
        ({"accumulators": (lambda: SlabSums(fails),)}, "the measure mine (accumulators) failed: ValueError: two lines"),
        ({"accumulators": (), "per_step": fails}, "the measure mine (per_step) failed: ValueError: two lines"),
        ({"accumulators": (), "per_step": lambda: fails}, "the measure mine (per_step) failed: ValueError: two lines"),
        ({"finish": lambda history, sums: [1]}, "the measure mine (finish) returned a list, not a Dataset"),
        ({"finish": lambda history, sums: xr.Dataset()}, "(finish) returned a Dataset without a variable over step"),
    ],
)
def test_an_error_of_a_user_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(PythiaDynError, match=re.escape(said) + "$") as raised:
        pyd.analyse(FRAMES, ["msd", other(**changed)])
    assert isinstance(raised.value.__cause__, ValueError) or "returned" in said


def test_an_error_of_this_package_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counts, "update", fails)
    with pytest.raises(ValueError, match="two"):
        pyd.analyse(FRAMES, ["density", other()])
    with pytest.raises(UnknownNameError):
        pyd.analyse(FRAMES, [other(finish=lambda history, sums: pyd.resolve("nonsense"))])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"on_save": fails}, "the measure mine (on_save) failed: ValueError: two lines"),
        ({"summarise": fails}, "the measure mine (summarise) failed: ValueError: two lines"),
        ({"summarise": lambda dataset: "only text"}, "(summarise) did not return a sentence and a mapping of facts"),
        ({"tables": {"mine": pyd.Table(("step", "b"))}}, "the measure mine has no variable for its table mine"),
        ({"tables": {"mine": pyd.Table(("step", "total"), ("half",))}}, "no coordinate half for its table mine"),
    ],
)
def test_one_failure_loses_no_result_of_the_others(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    results = Results("walk", tmp_path)
    with pytest.raises(PythiaDynError, match=re.escape(said)):
        measure(as_history(FRAMES), [other(**changed), other("second"), "order"], results)
    folder = results.weights().path
    assert {"second.csv", "second.png", "order.csv", "order.png", "provenance.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert set(results.weights().provenance()) >= {"second", "order"}


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path: Path, register: Callable[..., None]) -> None:
    register(mine=other(draw=fails), second=other("second"))
    results = Results("walk", tmp_path)
    said = r"the measure mine \(draw\) failed: ValueError: two lines$"
    with pytest.warns(UserWarning, match=said):
        outcomes = measure(as_history(FRAMES), ["mine", "second"], results)
    assert [[path.name for path in outcome.files] for outcome in outcomes] == [
        ["mine.csv"],
        ["second.csv", "second.png", "second.svg"],
    ]
    assert outcomes[0].summary == "My total"  # without a summary
    with pytest.warns(UserWarning, match=said):
        assert [spec.key for spec in tensor_figures(results.weights())] == ["second"]


def test_without_files_it_is_for_python_only(tmp_path: Path, register: Callable[..., None], cache: list[str]) -> None:
    nothing = other(tables={})
    assert list(pyd.analyse(FRAMES, nothing)) == ["mine"]
    with pytest.raises(PythiaDynError, match=r"^the measure mine saves nothing: give it tables= or saves_array=True$"):
        measure(as_history(FRAMES), [other(tables={}, accumulators=(fails,))], Results("walk", tmp_path))
    register(mine=nothing)
    done = command("mine", *cache)
    assert (done.exit_code, done.stderr) == (
        1,
        "pythia-dyn: the measure mine saves nothing: give it tables= or saves_array=True\n",
    )


def test_a_registered_measure_is_a_name_of_the_package(register: Callable[..., None]) -> None:
    one = other()
    register(mine=one, broken=ImportError("no such thing"))
    with pytest.warns(UserWarning, match="broken"):
        assert pyd.mine is one  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no such thing"):
        _ = pyd.broken  # type: ignore[attr-defined]
    assert not hasattr(pyd, "nonsense")


@pytest.mark.parametrize("which", [[3], [None], 3, [pyd.Measure], [pyd.Table]])
def test_what_is_no_measure_is_refused(which: Any) -> None:
    with pytest.raises(PythiaDynError, match="a measure is given by its name or as a Measure; got"):
        pyd.analyse(FRAMES, which)


def test_one_measure_needs_no_list() -> None:
    assert list(pyd.analyse(FRAMES, "msd")) == ["msd"]
    assert list(pyd.analyse(FRAMES, other())) == ["mine"]


def finish_options(
    history: pyd.History,
    sums: SlabSums,
    *,
    norm: Annotated[Literal["l1", "mean"], pyd.Flag("Kind of norm.")] = "l1",
    top: Annotated[Optional[int], pyd.Flag("How many.", minimum=1)] = None,  # noqa: UP045
    levels: Annotated[tuple[float, ...], pyd.Flag("Levels.")] = (0.5,),
    halve: Annotated[bool, pyd.Flag("Whether to halve.")] = False,
    share: Annotated[float, pyd.Flag("A share.", minimum=0)] = 0.5,
) -> xr.Dataset:
    return finish_total(history, sums).assign_attrs(options=repr((norm, top, levels, halve, share)))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), "('l1', None, (0.5,), False, 0.5)"),
        (
            ("--norm", "mean", "--top", "3", "--levels", "1", "--levels", "2.5", "--halve", "--share", "0.25"),
            "('mean', 3, (1.0, 2.5), True, 0.25)",
        ),
        (("--norm", "l2"), "'l2' is not one of 'l1', 'mean'"),
        (("--top", "1.5"), "not a valid integer"),
        (("--levels", "a"), "not a valid float"),
        (("--share", "-1"), "not in the range"),
        (("--no-halve",), "('l1', None, (0.5,), False, 0.5)"),
    ],
)
def test_flags_follow_the_annotations(
    tmp_path: Path, register: Callable[..., None], cache: list[str], words: tuple[str, ...], options: str
) -> None:
    facts = lambda dataset: ("", {"options": dataset.attrs["options"]})  # noqa: E731
    register(mine=other(finish=finish_options, summarise=facts, draw=lambda ax, dataset: None))
    done = command("mine", "--json", *words, *cache)
    if options.startswith("("):
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["mine"][0]["options"] == options
    else:
        assert done.exit_code == 2
        assert options in done.stderr


def test_the_values_of_a_literal_are_checked_in_python() -> None:
    one = other(finish=finish_options)
    with pytest.raises(PythiaDynError, match="the option norm of mine must be one of 'l1', 'mean'; got 'l2'"):
        one(FRAMES, norm="l2")
    assert one(FRAMES, norm="mean", top=None).attrs["options"].startswith("('mean', None")


@pytest.mark.parametrize("name", ["steps", "model", "models", "device", "json"])
def test_an_option_of_every_measure_is_refused(register: Callable[..., None], name: str, cache: list[str]) -> None:
    code = f"def finish(history, sums, *, {name}: Annotated[int, Flag('Mine.')] = 1): ..."
    names: dict[str, Any] = {"Annotated": Annotated, "Flag": pyd.Flag, "__name__": "theirs"}
    exec(code, names)
    register(mine=other(finish=names["finish"]))
    done = command("mine", *cache)
    assert done.exit_code == 1
    assert re.fullmatch(rf"pythia-dyn: the measure mine has an option {name}, but every measure .*\n", done.stderr)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mine", ModuleNotFoundError("No module named 'theirs'"), "ModuleNotFoundError: No module named 'theirs'"),
        ("mine", 3, "it is a int, not a Measure"),
        ("yours", other(), "its measure has another name, mine; use one name for both"),
        ("msd", other("msd"), "the name of the measure msd is used by another measure"),
        ("claims", other("claims"), "the name of the measure claims is used by pythia-dyn"),
    ],
)
def test_a_broken_entry_point_disables_only_itself(
    register: Callable[..., None], cache: list[str], name: str, value: Any, said: str
) -> None:
    register(**{name: value})
    done = command("msd", "--no-two-time", *cache)
    assert done.exit_code == 0, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pythia-dyn: note: the entry point {name} (theirs:IT) of the package their-package cannot")
    assert said in line
    assert line.endswith("Fix the package or uninstall it")
    if name not in main.commands:
        done = command(name, *cache)
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert said in line
        assert "Not available: the entry point" in command("--help").stdout


def test_its_title_is_its_help_and_nothing_is_an_empty_line(register: Callable[..., None], cache: list[str]) -> None:
    register(my_total=other("my_total", draw=lambda ax, dataset: None))
    assert re.search(r"my-total +My total", command("--help").stdout)
    assert "My total" in command("my-total", "--help").stdout
    done = command("my-total", *cache)
    assert done.exit_code == 0, done.output
    assert all(line.strip() for line in done.stdout.splitlines())


def test_options_of_an_unknown_measure_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no measure 'densty'"):
        pyd.analyse(FRAMES, ["msd"], options={"densty": {"bins": 3}})
    assert list(pyd.analyse(FRAMES, ["msd"], options={"density": {"bins": 3}})) == ["msd"]
