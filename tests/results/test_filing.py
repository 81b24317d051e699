"""The report for the publisher: what it says, that it can be checked as it says, and what it never overwrites."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.checkpoints import checkpoint, state
from support.hubserver import HubServer
from support.runs import SAFETENSORS, TORCH, run, weights

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.continuity import check_continuity, read_samples
from pythia_dynamics.checkpoints.defects import verify_repositories
from pythia_dynamics.checkpoints.findings import Finding, Verification
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.listings import Listing, list_repository
from pythia_dynamics.checkpoints.suite import Reference, Suite
from pythia_dynamics.errors import StoreError, listed
from pythia_dynamics.results.filing import FILING, filing_text, reported, save_filing

A, B = "org/a", "org/b"


def listings(*locations: str) -> dict[str, Listing]:
    return {location: list_repository(HubSource(location)) for location in locations}


def texts(known: Mapping[str, Listing]) -> dict[str, str]:
    """The report on each repository that has something to report."""
    found = verify_repositories(list(known.values()))
    return {each.location: filing_text(each, known) for each in found if reported(each)}


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def output_of(*command: str) -> str:
    """What a command prints; it is a process of its own, since huggingface_hub reads HF_ENDPOINT when imported."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def planted(hub: HubServer) -> dict[str, Listing]:
    """Two repositories with a defect of every kind that files show."""
    one, other = run(range(14), SAFETENSORS, TORCH, seed="a"), run(range(14), SAFETENSORS, TORCH, seed="b")
    one["step3"] = one["step2"]
    one["step5"][TORCH] = one["step4"][TORCH]
    one["step6"] = other["step7"]
    one["step8"] = {"config.json": b"{}"}
    one["step9"][SAFETENSORS] = one["step9"][SAFETENSORS][:100]
    one["step1"] = other["step0"]
    del one["step10"]
    shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for step in (11, 12):
        one[f"step{step}"] = {shards[0]: weights(step, 128), shards[1]: weights("of both", 128)}
    hub.add(A, one)
    hub.add(B, other)
    return listings(A, B)


def test_the_report_names_every_branch_commit_and_checksum(planted: dict[str, Listing]) -> None:
    own = planted[A]
    (found, _) = verify_repositories(list(planted.values()))
    text = filing_text(found, planted)
    assert {finding.kind for finding in reported(found)} >= {
        *("equal", "equal-elsewhere", "discontinuous", "disagree", "mixed", "size", "missing"),
    }
    title = text.splitlines()[0]
    assert title.startswith(f"# {A}: different steps have the same weights (")
    assert "steps are missing or have no weights (2 steps)" in title
    assert f"https://huggingface.co/{A}" in text
    assert f"{own.listed:%Y-%m-%d %H:%M} UTC; 13 steps there, each a branch; 14 checked" in text
    assert f"pythia-dynamics {__version__}" in text
    assert f"Compared with: {B}" in text
    assert text.count("Expected: ") == 7
    for step in (2, 3):
        size, sha256 = own.files[step][SAFETENSORS]
        row = f"| `step{step}` | `{own.revisions[step].commit}` | `{SAFETENSORS}` | {size} | `{sha256}` |"
        assert row in text
    assert f"| `{B} step7` | `{planted[B].revisions[7].commit}` | `{SAFETENSORS}` |" in text
    assert f"| `step8` | `{own.revisions[8].commit}` | no weight files |  |  |" in text
    assert "has no branch for step 10" in text
    assert all(
        len({row.count("|") for row in table.splitlines()}) == 1
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    )


def test_the_checks_of_the_report_show_what_it_says(planted: dict[str, Listing], hub: HubServer) -> None:
    own, text = planted[A], texts(planted)[A]
    by_checksum, branches = code(text, "python")
    printed = output_of(sys.executable, "-c", by_checksum)
    lines = {tuple(line.split()) for line in printed.splitlines()}
    for step in (2, 3):
        size, sha256 = own.files[step][SAFETENSORS]
        assert (A, own.revisions[step].commit, SAFETENSORS, str(size), sha256) in lines
    names = output_of(sys.executable, "-c", branches)
    assert "'step11'" in names
    assert "'step10'" not in names
    if shutil.which("curl"):
        for line in code(text, "bash")[0].splitlines():
            entries = json.loads(output_of("bash", "-c", line))
            assert {entry["type"] for entry in entries} == {"file"}


KINDS: dict[Reference, str] = {
    "branch": r"^step(\d+)$",
    "tag": r"^step(\d+)$",
    "folder": r"^runs/step(\d+)$",
    "file": r"^ckpt_(\d+)$",
    "commit": r"^Step (\d+)$",
    "repository": r"-step_(\d+)$",
}


def publish(hub: HubServer, kind: Reference, steps: Mapping[int, bytes]) -> None:
    """A repository whose steps are of this kind, on a branch ``dev`` where they are on one."""
    if kind == "repository":
        for step, content in steps.items():
            hub.add(f"{A}-step_{step}", {"main": {SAFETENSORS: content}})
        return
    hub.add(A, {f"step{step}": {SAFETENSORS: content} for step, content in steps.items()} if kind == "branch" else {})
    if kind == "tag":
        hub.tag(A, {f"step{step}": {SAFETENSORS: content} for step, content in steps.items()})
    if kind == "folder":
        hub.commit(A, "dev", {f"runs/step{step}/{SAFETENSORS}": content for step, content in steps.items()})
    if kind == "file":
        hub.commit(A, "dev", {f"ckpt_{step}.pt": content for step, content in steps.items()})
    if kind == "commit":
        for step, content in steps.items():
            hub.commit(A, "dev", {SAFETENSORS: content}, title=f"Step {step}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_hold_for_every_kind_of_checkpoint(kind: Reference, hub: HubServer) -> None:
    steps = {step: weights(("a", step)) for step in range(100, 1300, 100) if step != 600}
    steps[400] = steps[300]
    publish(hub, kind, steps)
    suite = Suite(references=(kind,), pattern=(KINDS[kind],), branch="dev")
    known = {A: list_repository(HubSource(A, suite=suite))}
    (found,) = verify_repositories(list(known.values()))
    assert [(finding.kind, finding.steps) for finding in found.findings] == [("missing", (600,)), ("equal", (300, 400))]
    assert found.findings[0].message == f"{A} has no {kind} for step 600"
    text = filing_text(found, known)
    own = known[A]
    assert f"11 steps there, each a {kind}; 12 checked" in text
    rows = {row for row in text.splitlines() if row.startswith("| `")}
    name, digest = ("ckpt_{}.pt" if kind == "file" else SAFETENSORS), hashlib.sha256(steps[300]).hexdigest()
    folder = "runs/step{}/" if kind == "folder" else ""
    for step in (300, 400):
        revision, file = own.revisions[step], (folder + name).format(step)
        assert f"| `{revision.ref}` | `{revision.commit}` | `{file}` | 256 | `{digest}` |" in rows
    assert len(rows) == 2
    checksums, there = (
        output_of(sys.executable, "-c", f"import warnings; warnings.simplefilter('ignore')\n{each}")
        for each in code(text, "python")
    )
    printed = [line.split() for line in checksums.splitlines()]
    assert len([line for line in printed if line[-1] == digest]) == 2
    assert f"without {listed([600])}:" in text
    assert "1200" in there
    assert "600" not in there
    if shutil.which("curl"):
        for line in code(text, "bash")[0].splitlines():
            assert digest in output_of("bash", "-c", line)


def test_what_is_harmless_or_unreadable_is_not_for_the_publisher(hub: HubServer) -> None:
    hub.add(A, run(range(8), seed="a"))
    hub.add(B, {**run(range(8), seed="b"), "step0": run([0], seed="a")["step0"]})
    assert texts(listings(A, B)) == {}
    found = Verification("a", A, "files on the Hub", (1,), (Finding("unreadable", (1,), "the Hub answered 500"),))
    assert (found.faults, reported(found)) != ((), ())
    assert reported(found) == ()


def test_a_break_that_weights_show_comes_with_a_check_of_weights(hub: HubServer) -> None:
    hub.add(A, {f"step{step}": checkpoint(state(min(step, 1))) for step in (0, 1, 2)})
    known = listings(A)
    (found,) = verify_repositories(list(known.values()), check_continuity([read_samples(HubSource(A))]))
    text = filing_text(found, known)
    assert "step 1 does not continue step 0" in text
    (_, check) = code(text, "python")
    compile(check, "check", "exec")
    for step in (0, 1):
        assert f"('org/a', '{known[A].revisions[step].commit}', '')" in check


# -- the file -------------------------------------------------------------------------------------------------


def test_only_its_own_output_is_replaced_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "a" / FILING
    assert save_filing(path.parent, A, None) is None
    assert not path.parent.exists()
    assert save_filing(path.parent, A, "one\n") == path
    assert save_filing(path.parent, A, "two\n") == path
    assert path.read_text().endswith("-->\ntwo\n")
    with pytest.raises(StoreError, match=f"not of {B}, and is kept"):  # another repository of the same name
        save_filing(path.parent, B, "three\n")
    assert save_filing(path.parent, B, None) is None
    assert path.read_text().endswith("-->\ntwo\n")
    assert save_filing(path.parent, A, None) is None
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"my notes", b"", b"\xff\xfe"])
def test_what_somebody_has_written_is_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILING
    path.write_bytes(content)
    save_filing(tmp_path, A, None)
    with pytest.raises(StoreError, match="is kept; move it away"):
        save_filing(tmp_path, A, "text")
    assert path.read_bytes() == content


def test_what_somebody_has_changed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / FILING
    save_filing(tmp_path, A, "text\n")
    changed = path.read_text() + "Sent on Monday.\n"
    path.write_text(changed)
    save_filing(tmp_path, A, None)
    with pytest.raises(StoreError, match="was changed"):
        save_filing(tmp_path, A, "text\n")
    assert path.read_text() == changed
