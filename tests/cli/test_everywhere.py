"""The same commands, and the same lines of Python, in one process, an array and a cluster: the same results."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from shlex import split
from typing import Any

import pytest
import xarray as xr
from click.testing import CliRunner
from support.daskcluster import DaskProcesses
from support.objectstore import S3, s3_server
from support.tiny_models import TEXTS, write_suite

import pythia_dynamics as pyd
from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.executors import connect

COMMANDS = """
fetch --model suite
msd --model suite
rank --model suite
density --model suite
perplexity --model suite --corpus texts.txt --device cpu
"""

pytestmark = pytest.mark.usefixtures("one_thread")
JOBS = 4
STEPS = tuple(range(0, 60, 10))


def script(cache: str, executor: Any = None) -> list[xr.Dataset]:
    history = pyd.fetch("suite", cache=cache, executor=executor)
    compute = pyd.Compute(executor=executor)
    measured = [measure(history, compute=compute) for measure in (pyd.msd, pyd.spectrum, pyd.density)]
    return [*measured, pyd.perplexity("suite", corpus="texts.txt", device="cpu", executor=executor)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="module")
def dask(server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """Its workers have the credentials of the server."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        server.use(monkeypatch)
        with DaskProcesses(tmp_path_factory.mktemp("dask")) as cluster:
            yield cluster


@pytest.fixture(autouse=True)
def here(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of a user, with the checkpoints."""
    server.use(monkeypatch)
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "PYTHIA_DYN_DASK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(figures, "save", lambda figure, path: [])
    write_suite(Path("suite"), STEPS)
    Path("texts.txt").write_text("\n".join(TEXTS))


def cache_of(server: S3, kind: str, name: str) -> str:
    """The name of a cache of its own."""
    return f"s3://{server.make(name)}/cache" if kind == "S3" else f"cache-{name}"


def run(line: str, cache: str, results: str, **environment: str) -> None:
    places = {"PYTHIA_DYN_CACHE": cache, "PYTHIA_DYN_RESULTS": results}
    result = CliRunner().invoke(main, split(line), env={**places, **environment})
    assert result.exit_code == 0, (line, environment, result.stderr, result.exception)


def tables(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.csv"))}


def arrays(folder: str) -> dict[str, xr.Dataset]:
    """By path; the rows of an evaluation are in the order in which they were written."""
    paths = sorted(Path(folder).rglob("*.zarr"))
    found = {str(path.relative_to(folder)): xr.open_zarr(path, consolidated=False).load() for path in paths}
    return {name: data.sortby("step") if "step" in data else data for name, data in found.items()}


@pytest.mark.parametrize("kind", ["directory", "S3"])
def test_the_same_commands(kind: str, server: S3, dask: DaskProcesses) -> None:
    one, array, several = (cache_of(server, kind, f"{name}-commands") for name in ("one", "array", "dask"))
    for line in COMMANDS.strip().splitlines():
        run(line, one, "one")
        for number in range(1, JOBS + 1):
            job = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(JOBS)}
            run(line, array, "array", SLURM_ARRAY_TASK_MIN="1", **job)
        run(line, several, "dask", PYTHIA_DYN_DASK=dask.address)
    run("merge", array, "array")
    expected = tables("one")
    assert {Path(name).stem for name in expected} >= {"msd", "rank", "moments", "perplexity-forward"}
    assert tables("array") == expected
    assert tables("dask") == expected
    assert {Path(name).stem for name in arrays("one")} >= {"two_time", "density", "perplexity-forward"}
    for name, data in arrays("one").items():
        xr.testing.assert_equal(data, arrays("array")[name])
        xr.testing.assert_equal(data, arrays("dask")[name])


def test_the_same_lines_of_python(server: S3, dask: DaskProcesses) -> None:
    expected = script("cache-one")
    for kind in ("directory", "S3"):
        with connect(dask.address) as client, ProcessPoolExecutor(2, get_context("spawn")) as processes:
            for name, executor in {"alone": None, "dask": client, "processes": processes}.items():
                found = script(cache_of(server, kind, f"{name}-python"), executor)
                for one, other in zip(expected, found, strict=True):
                    xr.testing.assert_equal(one, other)
