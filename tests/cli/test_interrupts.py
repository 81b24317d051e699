"""Ctrl-C: exit status 130, and one line that says what is kept. Most tests interrupt a process of their own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner
from support.checkpoints import checkpoint, state, suite
from support.hubserver import Fault, HubServer
from support.tiny_models import TEXTS, model, write_checkpoint

import pythia_dynamics.history.fetch as fetching
from pythia_dynamics.checkpoints.gate import RequestGate
from pythia_dynamics.cli.app import main

STEPS = (1000, 2000, 3000, 4000)
NOTHING = "pythia-dyn: interrupted; nothing written\n"
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from pythia_dynamics.__main__ import main
main()
"""
LOSSES = {"log_history": [{"step": step, "loss": 4 - step / 4000} for step in STEPS]}

INTERRUPTED_IMPORT = f"""
import os, signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "pythia_dynamics.cli.timeline":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
{COMMAND}
"""


@pytest.fixture
def suites(tmp_path: Path) -> list[Path]:
    for name in ("first", "second"):
        for step in STEPS:
            folder = tmp_path / name / f"step{step}"
            folder.mkdir(parents=True)
            for file, content in checkpoint(state(step, vocab=64, d_model=16)).items():
                (folder / file).write_bytes(content)
    return [tmp_path / "first", tmp_path / "second"]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe, as a file that a command reads: it opens when the command does, and then holds the command up."""
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path / "pipe.json"


def start(tmp_path: Path, *arguments: object, code: str = COMMAND, new_session: bool = False) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHIA_DYN_CACHE": str(tmp_path / "cache"),
        "PYTHIA_DYN_RESULTS": str(tmp_path / "results"),
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=new_session, **pipes)


def opened(pipe: Path, process: subprocess.Popen[str]) -> IO[str]:
    """The pipe, open for writing, as soon as the process reads it. Close it after the signal: then no read goes on."""
    while process.poll() is None:
        with suppress(OSError):
            return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def invoke(tmp_path: Path, *arguments: object, answers: io.BytesIO | None = None) -> Any:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments], input=answers)


def test_an_interrupt_of_the_imports_is_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "models", code=INTERRUPTED_IMPORT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", NOTHING)


def test_nothing_written_is_said_where_it_is_true(tmp_path: Path, pipe: Path) -> None:
    process = start(tmp_path, "train", "--size", "10k", "--out", tmp_path / "out" / "suite", "--corpus", pipe)
    with opened(pipe, process):
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, NOTHING)
    assert not (tmp_path / "out").exists()


def test_finished_files_are_kept_and_the_message_says_so(tmp_path: Path, pipe: Path, suites: list[Path]) -> None:
    fetched = invoke(tmp_path, "fetch", *(word for suite in suites for word in ("--model", suite)))
    assert fetched.exit_code == 0, fetched.stderr
    process = start(tmp_path, "stop", "--model", "first", "--model", "second", "--loss", pipe)
    with opened(pipe, process) as file:
        json.dump(LOSSES, file)
    while not (written := list((tmp_path / "results" / "first").rglob("stop.csv"))) and process.poll() is None:
        time.sleep(0.02)
    with opened(pipe, process):  # the command reads it for the second model
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "pythia-dyn: interrupted; finished files are kept\n")
    assert str(written[0]) in out
    assert not (tmp_path / "results" / "second").exists()


def test_a_command_that_can_go_on_says_so(tmp_path: Path, suites: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    download = fetching.download

    def interrupted(*arguments: Any, **options: Any) -> None:
        download(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "download", interrupted)
        result = invoke(tmp_path, "fetch", "--model", suites[0])
    line = "pythia-dyn: interrupted; finished files are kept, run the same command again to go on\n"
    assert (result.exit_code, result.stderr) == (130, line)
    assert "0 steps fetched, 4 already" in invoke(tmp_path, "fetch", "--model", suites[0]).stdout


def test_an_interrupt_of_transfers_that_stall_does_not_wait_for_them(tmp_path: Path, hub: HubServer) -> None:
    hub.add("org/tiny", suite(range(1, 41)))
    hub.faults.append(lambda request: Fault("stall", after=10) if request.nth > 5 and request.kind == "cdn" else None)
    process = start(tmp_path, "fetch", "--model", "org/tiny")
    while hub.count("cdn") < 6 + 16 and process.poll() is None:
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 5  # most of it to end the interpreter
    line = "pythia-dyn: interrupted; finished files are kept, run the same command again to go on\n"
    assert (process.returncode, err[-len(line) :]) == (130, line)


@pytest.mark.filterwarnings("default::UserWarning")
def test_an_outage_is_told_while_it_is_waited_for_and_ends_in_one_line(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", suite(range(1, 41)))
    hub.faults.append(lambda request: Fault("status", 503) if request.kind == "cdn" else None)
    seconds = [0.0]
    clock = {"now": lambda: seconds[0], "sleep": lambda pause: seconds.append(seconds.pop() + pause)}
    monkeypatch.setattr(RequestGate.__init__, "__kwdefaults__", clock)
    result = invoke(tmp_path, "fetch", "--model", "org/tiny")
    notes = [line for line in result.stderr.splitlines() if line.startswith("pythia-dyn: note: ")]
    assert 3 <= len(notes) <= 6
    why = "org/tiny step1/model.safetensors: the storage behind the Hub answered 503"
    assert re.fullmatch(rf"pythia-dyn: note: {why}, \d+ times; waiting \d s", notes[0])
    assert re.fullmatch(
        "pythia-dyn: org/tiny step3/model.safetensors: the storage behind the Hub answered 503, 2 times in . s, as the "
        "2 steps before it; try again later",
        result.stderr.splitlines()[-1],
    )
    assert (result.exit_code, hub.count("cdn")) == (1, 14 + 2 + 2)
    assert seconds[0] < 80


class InterruptedInput(io.BytesIO):
    def read1(self, size: int | None = -1) -> bytes:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("answers", "status"), [(InterruptedInput(), 130), (io.BytesIO(), 1), (io.BytesIO(b"n\n"), 1)])
def test_a_question_can_be_interrupted(tmp_path: Path, suites: list[Path], answers: io.BytesIO, status: int) -> None:
    arguments = ("reproduce", "garden", "--skip-perplexity", "--model", suites[0])
    result = invoke(tmp_path, *arguments, answers=answers)
    assert result.exit_code == status
    assert "Begin?" in result.stderr
    assert result.stderr.endswith(NOTHING) == (status == 130)


def has_processes(group: int) -> bool:
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def test_an_interrupt_of_several_processes_is_one_line_and_keeps_their_rows(tmp_path: Path) -> None:
    """The terminal sends it to all processes of the command."""
    write_checkpoint(tmp_path / "one", model())
    for step in range(1, 1001):
        (tmp_path / "many" / f"step{step}").parent.mkdir(exist_ok=True)
        (tmp_path / "many" / f"step{step}").symlink_to(tmp_path / "one")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    options = ["--model", tmp_path / "many", "--corpus", tmp_path / "texts.txt", "--device", "cpu,cpu"]
    process = start(tmp_path, "perplexity", *options, new_session=True)
    table = tmp_path / "results" / "many" / "perplexity-forward.csv"
    while not table.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    line = "pythia-dyn: interrupted; finished files are kept, run the same command again to go on\n"
    assert (process.returncode, err) == (130, line)
    assert time.monotonic() - began < 15
    said = [line for line in out.splitlines() if not line.startswith("this processor multiplies")]
    assert len(said) == 1  # where the model is; some processors have a hint at bfloat16 besides
    assert 2 <= len(table.read_text().splitlines()) < 1001
    while has_processes(process.pid):  # until the system has noticed that the last one has ended
        assert time.monotonic() - began < 15
        time.sleep(0.02)
    assert list(table.parent.glob(".*running")) == []
