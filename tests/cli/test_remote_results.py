"""Results in an object store: what they are in a directory, from several processes too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.objectstore import S3, s3_server
from support.tiny_models import TEXTS, write_suite

import pythia_dynamics as pyd
from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.mirror import locked, mirrored
from pythia_dynamics.objects import ObjectPath, as_place
from pythia_dynamics.results.folder import Results

STEPS = tuple(range(0, 60, 10))
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(server: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    server.use(monkeypatch)
    return server.make(f"results-{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(figures, "save", lambda figure, path: [])
    write_suite(Path("suite"), STEPS)
    Path("texts.txt").write_text("\n".join(TEXTS))

    def invoke(line: str, **environment: str) -> Result:
        result = CliRunner().invoke(main, line.split(), env=environment)
        assert not list((tmp_path / "scratch").glob("pythia-dyn-*/*")) or result.exit_code
        return result

    return invoke


def files(folder: Path) -> dict[str, bytes]:
    """All but the provenance, which has times, and what begins with a point."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.endswith(("provenance.json", ".lock"))}


def sent(place: ObjectPath, folder: Path) -> dict[str, bytes]:
    """The same of a place, copied to a folder."""
    for name in place.sizes():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(place.joinpath(*name.split("/")).read_bytes())
    return files(folder)


def well(result: Result) -> Result:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def test_results_are_those_of_a_directory(run: Run, bucket: str, tmp_path: Path) -> None:
    there = f"s3://{bucket}/some/results"
    well(run("fetch --model suite"))
    for line in (
        "msd --model suite",
        "density --model suite",
        "perplexity --model suite --corpus texts.txt --device cpu",
        "phases --model suite",
    ):
        well(run(f"{line} --results here"))
        said = well(run(line, PYTHIA_DYN_RESULTS=there))
        assert "scratch" not in said.stdout
        assert f"{there}/suite/" in said.stdout
    here, found = files(Path("here")), sent(as_place(there), tmp_path / "copy")  # type: ignore[arg-type]
    assert found.keys() == here.keys()
    for name, content in found.items():  # JSON names the place of the suite, which is near the one, not the other
        assert content == here[name] or name.endswith(".json"), name
    recorded = json.loads((tmp_path / "copy/suite/embed_out.weight/provenance.json").read_text())
    assert set(recorded) == set(json.loads(Path("here/suite/embed_out.weight/provenance.json").read_text()))
    assert recorded["msd"]["command"] == f"pythia-dyn msd --model suite --results {there}"


def test_an_array_whose_jobs_have_no_directory_together(run: Run, bucket: str, tmp_path: Path) -> None:
    there = f"s3://{bucket}/results"
    well(run("fetch --model suite"))
    for line in ("msd --model suite", "perplexity --model suite --corpus texts.txt --device cpu"):
        well(run(f"{line} --results here"))
        for number in (1, 2, 3):
            well(run(f"{line} --results {there} --shard {number}/3"))
    well(run(f"merge --results {there}"))
    found = sent(as_place(there), tmp_path / "copy")  # type: ignore[arg-type]
    assert {name: content for name, content in found.items() if name.endswith(".csv")} == {
        name: content for name, content in files(Path("here")).items() if name.endswith(".csv")
    }
    assert not [name for name in found if name.startswith(".parts")]  # removed there too


def test_processes_that_write_one_table_at_once(run: Run, bucket: str, server: S3, tmp_path: Path) -> None:
    """Each in a folder of its own, as on machines of their own."""
    there = f"s3://{bucket}/results"
    line = "perplexity --model suite --corpus texts.txt --device cpu"
    environment = {**os.environ, **server.environment(), "PYTHIA_DYN_RESULTS": there}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "pythia_dynamics", *line.split(), "--shard", f"{number}/2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2, 2)  # two of the same number
    ]
    for job in jobs:
        _, stderr = job.communicate(timeout=180)
        assert job.returncode == 0, stderr
    well(run(f"{line} --results here"))
    found = sent(as_place(there), tmp_path / "copy")  # type: ignore[arg-type]
    assert found["suite/perplexity-forward.csv"] == files(Path("here"))["suite/perplexity-forward.csv"]


def test_rows_of_a_process_that_is_killed(run: Run, bucket: str, server: S3, tmp_path: Path) -> None:
    there = f"s3://{bucket}/results"
    line = "perplexity --model suite --corpus texts.txt --device cpu --results " + there
    script = (
        "import pythia_dynamics.mirror as mirror, pythia_dynamics.objects as objects\n"
        "import pythia_dynamics.evaluation.records as records, time, sys\n"
        "records._FLUSH_SECONDS = 0.0; add = records.Records.add\n"
        "def slow(self, *given, **more):\n"
        "    add(self, *given, **more); self.flush(force=True); print('row', flush=True); time.sleep(0.3)\n"
        "records.Records.add = slow\n"
        "from pythia_dynamics.cli.app import main\n"
        f"main({line.split()!r})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, **server.environment()}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        rows = 0
        while rows < 3:
            rows += process.stdout.readline().startswith("row")
        process.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    place = as_place(there)
    assert isinstance(place, ObjectPath)
    before = json.loads((place / "suite" / "perplexity-forward.json").read_bytes())
    assert 2 <= len(before["indices"]) < len(STEPS)
    well(run(line))
    after = json.loads((place / "suite" / "perplexity-forward.json").read_bytes())
    assert after["indices"].items() > before["indices"].items()  # none was computed again
    well(run("perplexity --model suite --corpus texts.txt --device cpu --results here"))
    found = sent(as_place(there), tmp_path / "copy")  # type: ignore[arg-type]
    assert found["suite/perplexity-forward.csv"] == files(Path("here"))["suite/perplexity-forward.csv"]


def failure(result: Result) -> str:
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def test_places_that_cannot_be_used(run: Run, bucket: str, server: S3, tmp_path: Path, monkeypatch: Any) -> None:
    well(run("fetch --model suite"))
    assert failure(run("msd --model suite --results s3://no-such-bucket/x")) == (
        "pythia-dyn: s3://no-such-bucket: there is no such bucket"
    )
    assert "is a web server, which can only be read" in failure(run("msd --model suite --results https://host/x"))
    assert "a place is a directory, or begins with" in failure(run("msd --model suite --results ftp://host/x"))
    line = failure(run(f"figures --results s3://{bucket}/results"))
    assert line.startswith(f"pythia-dyn: no results in s3://{bucket}/results; ")
    put = ObjectPath.put

    def vanishing(path: ObjectPath, *given: Any, **more: Any) -> Any:
        if path.name == "msd.csv":
            server.remove(bucket)
        return put(path, *given, **more)

    monkeypatch.setattr(ObjectPath, "put", vanishing)
    line = failure(run(f"msd --model suite --results s3://{bucket}/results"))
    assert f"s3://{bucket}: there is no such bucket; what could not be sent is in {tmp_path}" in line
    kept = Path(line.rpartition(" is in ")[2])
    assert (kept / "results/suite/embed_out.weight/msd.csv").is_file()


def test_processes_of_this_machine_share_the_folder(run: Run, bucket: str, tmp_path: Path) -> None:
    """The workers write rows into the folder of the command."""
    there = f"s3://{bucket}/results"
    line = "perplexity --model suite --corpus texts.txt --device cpu"
    well(run(f"{line} --results {there} --dask local"))
    well(run(f"{line} --results here"))
    found = sent(as_place(there), tmp_path / "copy")  # type: ignore[arg-type]
    assert found["suite/perplexity-forward.csv"] == files(Path("here"))["suite/perplexity-forward.csv"]


def test_in_python(run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = f"s3://{bucket}/results"
    with pyd.mirrored(there) as folder:
        scores = pyd.perplexity("suite", corpus="texts.txt", device="cpu", out=folder / "suite")
    with pyd.mirrored(there) as folder:
        again = Results("suite", folder).read_table("perplexity-forward")
    np.testing.assert_array_equal(again["ppl_mean"], scores["ppl_mean"].to_numpy())
    for use in (
        lambda: Results("suite", there),
        lambda: pyd.perplexity("suite", corpus="texts.txt", device="cpu", out=there),
    ):
        with pytest.raises(PythiaDynError, match=r"is in an object store; use what `with mirrored\('s3://"):
            use()
    with pytest.raises(PythiaDynError, match="is a directory, which is used as it is"), pyd.mirrored("here"):
        pass


def test_what_others_have_changed_arrives_under_the_lock(bucket: str, tmp_path: Path) -> None:
    place = ObjectPath(f"s3://{bucket}", "results")
    with mirrored(place) as one, mirrored(place) as other:
        for folder in (one, other):
            (folder / "m").mkdir()
        with locked(one / "m", "table"):
            (one / "m" / "table.csv").write_text("1")
            (one / "m" / "table.zarr").mkdir()
            (one / "m" / "table.zarr" / "c").write_text("x")
            (one / "m" / "other.csv").write_text("own")
        with locked(other / "m", "table"):
            assert (other / "m" / "table.csv").read_text() == "1"
            assert (other / "m" / "table.zarr" / "c").read_text() == "x"
            assert not (other / "m" / "other.csv").exists()
            (other / "m" / "table.csv").write_text("2")
            (other / "m" / "table.zarr" / "c").unlink()
        with locked(one / "m", "table"):
            assert (one / "m" / "table.csv").read_text() == "2"
            assert not (one / "m" / "table.zarr" / "c").exists()
        (other / "m" / "late.csv").write_text("late")
    names = {name for name in place.sizes() if not name.endswith(".lock")}
    assert names == {"m/table.csv", "m/other.csv", "m/late.csv"}
    assert (place / "m" / "table.csv").read_bytes() == b"2"
