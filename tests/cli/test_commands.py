"""The command line as a person meets it: exit status, one line on stderr, nothing half-written."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from support.checkpoints import HEAD, checkpoint, state
from support.hubserver import HubServer

from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.cli.group import NEXT, SECTIONS
from pythia_dynamics.history.request import WORKERS
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import json_text

STEPS = (1000, 2000, 3000, 4000)
Run = Callable[..., Result]


def write(directory: Path, step: int, *, nan: bool = False, head: bool = True) -> None:
    tensors = state(step, vocab=64, d_model=16)
    if nan:
        tensors[HEAD][3, 5] = float("nan")
    if not head:
        del tensors[HEAD]
    folder = directory / f"step{step}"
    folder.mkdir(parents=True)
    for name, content in checkpoint(tensors).items():
        (folder / name).write_bytes(content)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for step in STEPS:
        write(tmp_path / "walk", step)
    return tmp_path / "walk"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}

    def invoke(*arguments: object) -> Result:
        return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])

    return invoke


def succeeds(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def fails(result: Result) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("pythia-dyn: ")
    return line


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


# -- the way it should go -------------------------------------------------------------------------------------


def test_fetch_then_every_analysis(run: Run, suite: Path, tmp_path: Path) -> None:
    assert "4 steps fetched" in succeeds(run("fetch", "--model", suite))
    assert "0 steps fetched, 4 already in the cache" in succeeds(run("fetch", "--model", suite))
    assert "walk  embed_out.weight float16[64, 16]  4 steps" in succeeds(run("ls"))
    assert "4 steps checked, nothing found" in succeeds(run("verify"))
    out = tmp_path / "results" / "walk" / HEAD
    for kind, table in (("density", "moments"), ("msd", "msd"), ("order", "order"), ("rank", "rank")):
        assert str(out / f"{table}.csv") in succeeds(run(kind, "--model", "walk"))
        assert (out / f"{kind}.png").stat().st_size > 5000
        assert (out / f"{kind}.svg").read_text().lstrip().startswith("<?xml")
    succeeds(run("spectrum"))
    assert (out / "msd.csv").read_text().splitlines()[0] == ("step,msd,msd_null,msd_time,msd_time_null,displacement")
    assert [line.split(",")[0] for line in (out / "order.csv").read_text().splitlines()[1:]] == list(map(str, STEPS))
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["msd"]["source"] == "../../../walk"  # relative to the file: it holds in a copy of the project


def test_msd_compares_every_two_steps(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    out = tmp_path / "results" / "walk" / HEAD
    assert "two_time" not in succeeds(run("msd", "--no-two-time"))
    assert not (out / "two_time.zarr").exists()
    assert str(out / "two_time.zarr") in succeeds(run("msd", "--device", "cpu"))
    (fact,) = json.loads(succeeds(run("msd", "--json")))["msd"]
    pairs = xr.open_zarr(out / "two_time.zarr", consolidated=False)
    weights = np.stack([state(step, vocab=64, d_model=16)[HEAD].numpy().astype(np.float64) for step in STEPS])
    flat = weights.reshape(4, -1)
    np.testing.assert_allclose(pairs["gram"], flat @ flat.T, rtol=1e-5, atol=1e-3)
    cosine = flat[0] @ flat[3] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[3])
    assert fact["two_time"]["cosine_of_ends"] == pytest.approx(cosine, abs=1e-5)
    assert (out / "two_time.png").stat().st_size > 5000


def test_a_device_that_is_not_there(run: Run, suite: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    for command in ("msd", "rank", "spectrum"):
        assert "no device 'gpu'" in fails(run(command, "--device", "gpu"))
        assert "no device cuda:99 on this machine" in fails(run(command, "--device", "cuda:99"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing takes time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


@pytest.mark.usefixtures("undrawn")
def test_every_analysis_names_gaps_and_goes_on(run: Run, tmp_path: Path) -> None:
    """A store made by hand: uneven steps, one missing, one not finite, rows that are padding."""
    steps = [0, 1, 2, 4, 8, 1000, 2000, 3000, 4000, 5000, 6000]
    store = Store.create(tmp_path / "cache" / "hand.zarr", source="by hand")
    store.ensure([TensorSpec(HEAD, "float16", (40, 8))], steps)
    weights = np.random.default_rng(0).standard_normal((40, 8))
    for step in steps:
        frame = (weights * (1 + step / 1e5)).astype(np.float16)
        frame[30:] = 99  # padding
        if step == 4:
            continue
        if step == 3000:
            frame[2, 3] = np.nan
        store.write(HEAD, step, frame, {"step": step})
    tables = {
        **{"density": ("moments", "std"), "msd": ("msd", "displacement"), "order": ("order", "rms")},
        **{"rank": ("rank", "rank"), "spectrum": ("spectrum", "entropy")},
    }
    for command, (table, column) in tables.items():
        result = run(command, "--model", "hand", "--drop-padding", 30)
        assert "hand has weights that are not finite at step 3000" in fails(result)
        assert "note: hand lacks step 4: NaN there" in result.stdout
        assert "11 steps, 30 of 40 rows" in result.stdout
        saved = Results("hand", tmp_path / "results").weights().read_table(table)
        assert saved["step"].values.tolist() == steps
        known = np.isfinite(saved[column].values.reshape(len(steps), -1)).all(axis=1)
        assert known.tolist() == [step not in (4, 3000) for step in steps]
        clean = run(command, "--model", "hand", "--drop-padding", 30, "--steps", "0,1,2,8,1000,6000", "--json")
        (fact,) = json.loads(succeeds(clean))[command]
        assert fact["missing"] == {}
        assert "tokenizer of hand is not known" in fails(run(command, "--model", "hand", "--drop-padding"))
        assert "from 1 to 40, the rows of a frame" in fails(run(command, "--model", "hand", "--drop-padding", 41))
        assert run(command, "--model", "hand", "--drop-padding", 0).exit_code == 2
        assert run(command, "--model", "hand", "--drop-padding", "many").exit_code == 2
        assert "no step of hand has weights" in fails(run(command, "--model", "hand", "--steps", "4"))
    kept = weights[:30].astype(np.float16).astype(np.float64)
    order = Results("hand", tmp_path / "results").weights().read_table("order")
    assert float(order["order_parameter"][0]) == pytest.approx(np.linalg.norm(kept) / 8, rel=1e-9)


@pytest.mark.usefixtures("undrawn")
def test_a_store_without_weights_does_not_keep_the_others_waiting(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    Store.create(tmp_path / "cache" / "a-empty.zarr", source="by hand")
    result = run("order")
    assert "a-empty.zarr holds no weights yet" in fails(result)
    assert "walk" in result.stdout
    assert (tmp_path / "results" / "walk" / HEAD / "order.csv").is_file()
    (fact,) = json.loads(run("order", "--json").stdout)["order"]
    assert fact["model"] == "walk"
    assert run("order", "--model", "a-empty", "--json").stdout == ""


@pytest.mark.usefixtures("undrawn")
def test_padding_is_what_the_tokenizer_does_not_have(run: Run, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "cache" / "pythia-70m-deduped.zarr", source="EleutherAI/pythia-70m-deduped")
    store.ensure([TensorSpec(HEAD, "float16", (50_304, 2))], [1000])
    frame = np.ones((50_304, 2), np.float16)
    frame[50_277:] = 9
    store.write(HEAD, 1000, frame, {"step": 1000})
    for arguments in (["--drop-padding"], ["--drop-padding", "--json"], ["--drop-padding", 50_277]):
        out = succeeds(run("order", "--model", "70m", *arguments))
        assert "--json" in arguments or "50277 of 50304 rows" in out
        rows = (tmp_path / "results" / "pythia-70m-deduped" / HEAD / "order.csv").read_text().splitlines()
        assert rows[1].split(",")[-1] == "1.0"


def test_facts_as_json(run: Run, suite: Path) -> None:
    fetched = json.loads(succeeds(run("fetch", "--model", suite, "--json")))["fetch"][0]
    assert fetched["fetched"] == list(STEPS)
    (fact,) = json.loads(succeeds(run("order", "--model", "walk", "--json")))["order"]
    weights = np.stack([state(step, vocab=64, d_model=16)[HEAD].numpy().astype(np.float64) for step in STEPS])
    assert fact["first"] == pytest.approx(np.linalg.norm(weights[0]) / 16, rel=1e-6)
    assert fact["last"] == pytest.approx(np.linalg.norm(weights[-1]) / 16, rel=1e-6)
    (stored,) = json.loads(succeeds(run("ls", "--json")))["stores"]
    assert stored["steps"] == list(STEPS)


def test_order_takes_a_loss(run: Run, suite: Path, tmp_path: Path) -> None:
    run("fetch", "--model", suite)
    (tmp_path / "loss.csv").write_text("step,loss\n1000,3.0\n2000,2.5\n4000,2.0\n")
    succeeds(run("order", "--model", "walk", "--loss", tmp_path / "loss.csv"))
    rows = (tmp_path / "results" / "walk" / HEAD / "order.csv").read_text().splitlines()
    header = rows[0].split(",")
    assert [row.split(",")[header.index("loss")] for row in rows[1:]] == ["3.0", "2.5", "", "2.0"]


@pytest.mark.usefixtures("undrawn")
def test_order_takes_the_loss_of_the_suite(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    assert "loss" not in succeeds(run("order")).splitlines()[1]
    (suite / "losses.csv").write_text("step,train_loss,validation_loss\n1000,3,3.5\n2000,2,2.5\n4000,1,1.5\n")
    assert "loss 3.5 → 1.5 (loss from" in succeeds(run("order"))
    log = [{"step": step, "loss": 1.0} for step in STEPS]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert "loss 1 → 1" in succeeds(run("order", "--loss", tmp_path / "trainer_state.json"))
    (tmp_path / "bad.csv").write_text("step,weather\n1,2\n")
    assert "must have the columns step and loss" in fails(run("order", "--loss", tmp_path / "bad.csv"))
    assert run("order", "--loss", tmp_path / "absent.csv").exit_code == 2


def test_steps_may_be_chosen(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite, "--steps", "1000,3000"))
    assert "2 steps" in succeeds(run("ls"))
    succeeds(run("msd", "--steps", "1000"))
    assert len((tmp_path / "results" / "walk" / HEAD / "msd.csv").read_text().splitlines()) == 2


def test_fetch_from_a_hub(run: Run, hub: HubServer) -> None:
    hub.add("org/tiny", {f"step{step}": checkpoint(state(step)) for step in STEPS})
    assert "4 steps fetched" in succeeds(run("fetch", "--model", "org/tiny", "--workers", "2"))
    assert "from org/tiny" in succeeds(run("ls", "--model", "tiny"))


def test_the_default_number_of_workers_is_that_of_the_library() -> None:
    for command in (main.commands["fetch"], main.commands["plan"]):
        (workers,) = (option for option in command.params if option.name == "workers")
        assert workers.default == WORKERS


def test_models_are_the_registry(run: Run) -> None:
    text = succeeds(run("models"))
    assert "14m         6     128     4      1,189,888 Pile               50304" in text
    assert "70m         6     512     8     18,915,328 deduplicated Pile  50304" in text
    assert "12b        36    5120    40 11,327,027,200 deduplicated Pile  50688" in text
    facts = json.loads(succeeds(run("models", "--json")))
    assert (len(facts["models"]), len(facts["steps"])) == (10, 154)
    by_name = {fact["model"]: fact for fact in facts["models"]}
    assert {name: fact["non_embedding_parameters"] for name, fact in by_name.items()} == {  # as EleutherAI states them
        "14m": 1_189_888,
        "31m": 4_739_072,
        "70m": 18_915_328,
        "160m": 85_056_000,
        "410m": 302_311_424,
        "1b": 805_736_448,
        "1.4b": 1_208_602_624,
        "2.8b": 2_517_652_480,
        "6.9b": 6_444_163_072,
        "12b": 11_327_027_200,
    }
    assert {name for name, fact in by_name.items() if fact["dataset"] == "Pile"} == {"14m", "31m"}
    assert by_name["70m"]["aliases"]["70m"] == "EleutherAI/pythia-70m-deduped"
    assert by_name["70m"]["aliases"]["70m-standard"] == "EleutherAI/pythia-70m"
    assert by_name["410m"]["aliases"]["410m-seed9"] == "EleutherAI/pythia-410m-seed9"
    assert {name for name, fact in by_name.items() if fact["v0_tokens_per_step"] > 2**21} == {"160m", "410m", "1.4b"}


def test_plans_come_from_the_registry_without_a_network(run: Run) -> None:
    text = succeeds(run("plan", "--source", "registry", "--bandwidth", "100"))
    assert "pythia-70m-deduped             143      144    7.4 GB   16.4 GB" in text
    plans = json.loads(succeeds(run("plan", "--source", "registry", "--json")))["plan"]
    assert [plan["model"] for plan in plans][0::9] == ["pythia-14m", "pythia-12b-deduped"]
    for plan, full in zip((plans[2], plans[5]), (23.7e9, 299e9), strict=True):
        assert plan["full_bytes"] == pytest.approx(full, rel=0.005)
    line = fails(run("plan", "--source", "registry", "--model", "org/other"))
    assert "the registry knows embed_out.weight of Pythia models only" in line
    result = run("plan", "--source", "registry", "--model", "nosuch")
    assert "no model 'nosuch'" in fails(result)
    assert result.stdout == ""


def test_plans_come_from_headers_where_the_hub_is(run: Run, hub: HubServer) -> None:
    hub.add("org/tiny", {f"step{step}": checkpoint(state(step)) for step in STEPS})
    (plan,) = json.loads(succeeds(run("plan", "--model", "org/tiny", "--json")))["plan"]
    assert (plan["revisions"], plan["tensor_bytes"], plan["note"]) == (4, 4 * 96 * 16 * 2, "")
    succeeds(run("fetch", "--model", "org/tiny", "--steps", "1000,2000"))
    assert "2 of 5 steps are in the cache already" in (
        text := succeeds(run("plan", "--model", "org/tiny", "--steps", "1000:5000:1000"))
    )
    assert "1 of 5 steps are not published" in text


def test_plans_say_what_each_deployment_takes(run: Run) -> None:
    command = ("plan", "--source", "registry", "--model", "70m", "--bandwidth", "100", "--workers", "8")
    text = succeeds(run(*command, "--shards", "3", "--addresses", "3"))
    for words in ("one machine, 8 workers", "an array of 3 jobs, 24 workers", "a cluster, 8 workers, 8 cores"):
        assert words in text
    assert "143 file requests, 3 to the API (9,000 and 1,500 allowed in 5.0 min); disk 7.4 GB" in text
    assert "worth having for the fetch on one machine: 2 workers" in text
    facts = json.loads(succeeds(run(*command, "--shards", "3", "--addresses", "3", "--json")))
    (plan,) = facts["plan"]
    assert facts["deployments"] == plan["deployments"]
    machine, array, cluster = (facts["deployments"][name] for name in ("machine", "array", "cluster"))
    assert machine["fetch_seconds"] == pytest.approx(plan["seconds"])
    assert array["fetch_seconds"] < 0.4 * machine["fetch_seconds"]  # three lines
    assert cluster["fetch_seconds"] < 0.4 * machine["fetch_seconds"]
    assert [each["limited_by"] for each in (machine, array, cluster)] == ["bytes"] * 3
    assert (machine["requests"], machine["requests_allowed"], array["api_requests"]) == (143, 3000, 3)
    assert machine["disk_bytes"] == plan["disk_bytes"]
    assert sum(machine["shares"].values()) == pytest.approx(1)
    assert facts["deployments"]["workers_worth_having"]["efficient"] == 2
    everything = json.loads(succeeds(run("plan", "--source", "registry", "--json")))
    assert everything["deployments"]["machine"]["requests"] == sum(plan["requests"] for plan in everything["plan"])
    assert "shards" in everything


def test_a_plan_of_nothing_says_nothing_of_deployments(run: Run, hub: HubServer) -> None:
    hub.add("org/tiny", {f"step{step}": checkpoint(state(step)) for step in STEPS})
    succeeds(run("fetch", "--model", "org/tiny"))
    assert "one machine" not in succeeds(run("plan", "--model", "org/tiny"))
    found = json.loads(succeeds(run("plan", "--model", "org/tiny", "--json")))
    assert found["deployments"]["machine"]["seconds"] == 0
    assert found["deployments"]["machine"]["limited_by"] is None


def test_json_has_null_for_nan() -> None:
    text = json_text({"nan": float("nan"), "numbers": np.array([1.5, np.inf]), "path": Path("a"), "step": np.int64(3)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "numbers": [1.5, None],
        "path": "a",
        "step": 3,
    }


def test_help_names_every_command(run: Run) -> None:
    text = succeeds(run("--help"))
    for name in (
        "models",
        "plan",
        "fetch",
        "ls",
        "verify",
        "density",
        "msd",
        "order",
        "rank",
        "spectrum",
        "perplexity",
        "representation",
        "demo",
    ):
        assert f"  {name} " in text
        assert "--json" in succeeds(run(name, "--help"))
    assert succeeds(run("--version")).startswith("pythia-dyn, version ")


# -- bad input ------------------------------------------------------------------------------------------------


def test_unknown_names_list_the_nearest(run: Run, suite: Path, tmp_path: Path) -> None:
    assert "no model '70n'; did you mean 70m" in fails(run("fetch", "--model", "70n"))
    assert "no model '70n'; did you mean 70m" in fails(run("msd", "--model", "70n"))
    for command in ("fetch", "msd", "ls"):
        assert fails(run(command, "--model", "demo")).endswith("cache/: `pythia-dyn demo` makes it")
    line = fails(run("fetch", "--model", suite, "--tensor", "embed_uot.weight"))
    assert "no tensor 'embed_uot.weight'" in line
    assert "did you mean embed_out.weight" in line
    assert not list((tmp_path / "cache").glob("*")) or "walk.zarr" not in {
        p.name for p in (tmp_path / "cache").iterdir()
    }
    succeeds(run("fetch", "--model", suite))
    assert "did you mean embed_out.weight" in fails(run("msd", "--tensor", "embed_out"))
    assert run("fetch").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_an_empty_cache_says_what_to_do(run: Run) -> None:
    for command in ("msd", "ls", "verify", "perplexity"):
        assert "run pythia-dyn fetch" in fails(run(command))
    assert "run pythia-dyn fetch --model 70m" in fails(run("msd", "--model", "70m"))


def test_directories_without_checkpoints(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty; it should hold step1000/" in fails(run("fetch", "--model", tmp_path / "empty"))
    assert "no directory" in fails(run("fetch", "--model", tmp_path / "absent"))
    assert not list((tmp_path / "cache").glob("*.zarr"))


def test_steps_that_are_not_there(run: Run, suite: Path, tmp_path: Path) -> None:
    line = fails(run("fetch", "--model", suite, "--steps", "1500"))
    assert "no step 1500" in line.replace("'", "")
    assert "did you mean 1000 or 2000" in line
    assert not list((tmp_path / "cache").glob("*.zarr"))
    result = run("fetch", "--model", suite, "--steps", "1000,1500")
    assert "some steps could not be fetched" in fails(result)
    assert "missing 1500" in result.stdout
    assert "no step 2000 in walk" in fails(run("msd", "--steps", "2000")).replace("'", "")


def test_a_checkpoint_without_the_tensor_is_a_gap(run: Run, suite: Path, tmp_path: Path) -> None:
    write(suite, 5000, head=False)
    result = run("fetch", "--model", suite)
    assert "some steps could not be fetched" in fails(result)
    assert "4 steps fetched" in result.stdout
    assert "missing 5000" in result.stdout
    result = run("msd")
    assert result.exit_code == 0
    last = (tmp_path / "results" / "walk" / HEAD / "msd.csv").read_text().splitlines()[-1]
    assert last == "5000,,,,,"


def test_foreign_and_damaged_stores(run: Run, suite: Path, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "cache" / "walk.zarr")
    before = files(tmp_path / "cache" / "walk.zarr")
    for command in ("fetch", "msd"):
        assert "not a weight store of pythia-dyn" in fails(run(command, "--model", suite))
    assert files(tmp_path / "cache" / "walk.zarr") == before


def test_a_damaged_chunk_is_named_and_fetched_again(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    store = tmp_path / "cache" / "walk.zarr"
    whole = files(store)
    chunk = store / HEAD / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert "step 2000" in fails(run("msd"))
    assert not (tmp_path / "results" / "walk" / HEAD / "msd.csv").exists()
    assert "1 fault found" in fails(run("verify"))
    assert "1 steps fetched" in succeeds(run("fetch", "--model", suite))
    assert files(store)[str(chunk)] == whole[str(chunk)]
    flipped = bytearray(chunk.read_bytes())
    flipped[7] ^= 1
    chunk.write_bytes(flipped)
    result = run("verify")
    assert "1 fault found" in fails(result)
    assert "step 2000" in result.stdout
    assert "1 steps fetched" in succeeds(run("fetch", "--model", suite))
    assert files(store)[str(chunk)] == whole[str(chunk)]
    assert "4 steps checked, nothing found" in succeeds(run("verify"))


def test_weights_that_are_not_finite_are_named_and_lose_nothing_else(run: Run, suite: Path, tmp_path: Path) -> None:
    write(suite, 2500, nan=True)
    succeeds(run("fetch", "--model", suite))
    for kind, table in (("density", "moments"), ("msd", "msd"), ("order", "order")):
        line = fails(run(kind))
        assert "not finite" in line
        assert "2500" in line
        rows = (tmp_path / "results" / "walk" / HEAD / f"{table}.csv").read_text().splitlines()
        assert len(rows) == 6
        bad, good = rows[3].split(","), rows[4].split(",")
        assert (bad[0], bad[1]) == ("2500", "")
        assert good[0] == "3000"
        assert np.isfinite(float(good[1]))


def test_results_that_cannot_be_written(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    (tmp_path / "file").write_text("not a directory")
    line = fails(run("msd", "--results", tmp_path / "file" / "results"))
    assert str(tmp_path / "file") in line
    assert line.endswith("Not a directory; name another directory")


FAILED_WRITES = {
    errno.ENOSPC: "the disk is full; free some space or name another directory",
    errno.EROFS: "Read-only file system; name another directory",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("number", FAILED_WRITES)
def test_a_failed_write_names_the_file_and_what_to_do(
    run: Run, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    succeeds(run("fetch", "--model", suite))

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    file = tmp_path / "results" / "walk" / HEAD / "order.csv"
    assert fails(run("order")) == f"pythia-dyn: cannot write {file}: {FAILED_WRITES[number]}"
    assert not files(tmp_path / "results")


def test_the_commands_of_stores_go_on_past_a_model_that_fails(run: Run, suite: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    result = run("fetch", "--model", absent, "--model", suite)
    assert f"no directory {absent}" in fails(result)
    assert "4 steps fetched" in result.stdout
    for command, expected in (
        ("ls", "4 steps"),
        ("verify", "4 steps checked"),
        ("plan", "4 of 4 steps are in"),
    ):
        result = run(command, "--model", absent, "--model", suite)
        assert f"no directory {absent}" in fails(result)
        assert expected in result.stdout
        assert run(command, "--model", absent, "--json").stdout == ""


def test_the_help_has_every_command_once_with_a_summary_that_fits_and_examples_that_hold() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    listed = [name for _, summaries in SECTIONS.values() for name in summaries]
    assert sorted(listed) == sorted(main.commands)
    assert "…" not in shown
    assert "..." not in shown.split("Options:")[1]
    for example, summaries in SECTIONS.values():
        program, name, *words = example.split()
        assert (program, name in summaries) == ("pythia-dyn", True)
        options = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
        assert f"$ {example}" in shown


def test_a_shell_completes_options_models_and_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_DYN_CACHE", str(tmp_path))
    for name, tensors in (("mine", ["embed_out.weight", "norm.weight"]), ("other", ["head"])):
        Store.create(tmp_path / f"{name}.zarr", source="org/x").ensure(
            [TensorSpec(tensor, "float16", (4, 2)) for tensor in tensors], [1]
        )

    def completed(*words: str) -> list[str]:
        found = ShellComplete(main, {}, "pythia-dyn", "_PYTHIA_DYN_COMPLETE").get_completions([*words[:-1]], words[-1])
        return [item.value for item in found]

    assert completed("per") == ["perplexity"]
    assert completed("msd", "--drop") == ["--drop-padding"]
    assert completed("msd", "--model", "mi") == ["mine"]
    assert completed("fetch", "--model", "160m-s")[:2] == ["160m-standard", "160m-seed1"]
    assert completed("msd", "--model", "mine", "--tensor", "") == [
        "unembedding",
        "embedding",
        "all",
        "embed_out.weight",
        "norm.weight",
    ]
    assert completed("msd", "--tensor", "h") == ["head"]
    assert completed("msd", "--model", "none", "--tensor", "n") == []


def test_quiet_and_verbose(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/tiny", {f"step{step}": checkpoint(state(step)) for step in (1, 2)})
    words = ["fetch", "--model", "org/tiny", "--cache", str(tmp_path)]
    said = CliRunner().invoke(main, ["--verbose", *words])
    assert re.search(r"\d\d:\d\d:\d\d step 1: fetched, 4.0 kB", said.stderr)
    assert "/resolve/" not in said.stderr
    quiet = CliRunner().invoke(main, ["--quiet", *words])
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert json.loads(CliRunner().invoke(main, ["-q", *words, "--json"]).stdout)["fetch"][0]["present"] == [1, 2]
    wrong = CliRunner().invoke(main, ["-q", "fetch", "--model", "org/none", "--cache", str(tmp_path)])
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "org/none" in wrong.stderr
    every = CliRunner().invoke(main, ["-vv", "fetch", "--model", "org/tiny", "--cache", str(tmp_path / "new")])
    assert re.search(r"302 127.0.0.1:\d+/org/tiny/resolve/\w{40}/model.safetensors bytes=0-", every.stderr)
    assert "Signature" not in every.stderr
    assert "?" not in every.stderr


def test_a_command_ends_with_what_is_done_next(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/tiny", {f"step{step}": checkpoint(state(step)) for step in (1, 2)})
    words = ["fetch", "--model", "org/tiny", "--cache", str(tmp_path)]
    assert CliRunner().invoke(main, words).stdout.splitlines()[-1] == "next: pythia-dyn msd --model org/tiny"
    assert "next:" not in CliRunner().invoke(main, [*words, "--json"]).stdout
    assert "next:" not in CliRunner().invoke(main, ["fetch", "--model", "org/none", "--cache", str(tmp_path)]).output
    for name, following in NEXT.items():
        program, command, *_ = following.format(models="", required="").split()
        assert {name, command} <= set(main.commands)
        assert program == "pythia-dyn"
