"""Surveys read headers only; previews say what a fetch will cost, and are right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import HEAD, LAYOUTS, suite
from support.hubserver import HubServer

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.registry import PAPER_STEPS
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import CheckpointError, UnknownNameError
from pythia_dynamics.history.estimate import preview
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.request import FetchRequest
from pythia_dynamics.history.survey import Survey, most_common
from pythia_dynamics.history.survey import survey as read_headers

REPO = "org/tiny"
KIB = 1024
WIDE: dict[str, Any] = {"vocab": 1024, "d_model": 48, "layers": 3}


def survey(source: Source, revisions: Iterable[Revision], patterns: list[str]) -> Survey:
    return read_headers(source, revisions, patterns, cache=LayoutCache())


def test_survey_reads_headers_only(hub: HubServer) -> None:
    hub.add(REPO, suite([1, 2], "torch", **WIDE))
    source = HubSource(REPO)
    found = survey(source, source.revisions().values(), ["embed_*.weight", HEAD])
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.specs] == [(HEAD, "float16", (1024, 48))]
    assert found.revision.step == 1
    assert hub.sent < 64 * KIB


def test_survey_goes_on_to_the_first_readable_revision(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {"config.json": b"{}"}, "step2": {"model.safetensors": b"nonsense"}} | suite([3]))
    source = HubSource(REPO)
    assert survey(source, source.revisions().values(), [HEAD]).revision.step == 3
    with pytest.raises(CheckpointError, match=r"no revision of org/tiny can be read: .*; 1 other step fails too"):
        survey(source, list(source.revisions().values())[:2], [HEAD])
    with pytest.raises(CheckpointError, match="there is none"):
        survey(source, [], [HEAD])
    with pytest.raises(UnknownNameError, match="did you mean"):
        survey(source, [source.revisions()[3]], ["embed_out"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_preview_comes_true(hub: HubServer, tmp_path: Path, layout: str) -> None:
    steps = range(1000, 9000, 1000)
    branches = suite(steps, layout, **WIDE)
    hub.add(REPO, branches)
    plan = preview(REPO, steps="1000:9000:1000", cache=tmp_path)
    assert hub.sent < 80 * KIB
    assert not (tmp_path / "tiny.zarr").exists()
    assert (plan.steps, plan.present, plan.missing, plan.revisions, plan.note) == (9, 0, 1, 8, "")
    assert plan.tensor_bytes == plan.disk_bytes == 8 * 1024 * 48 * 2
    assert plan.full_bytes == sum(len(content) for files in branches.values() for content in files.values())
    assert plan.saved_bytes == max(0, plan.full_bytes - plan.bytes)
    hub.reset()
    report = download(REPO, steps="1000:9000:1000", cache=tmp_path)
    assert plan.requests <= report.requests <= plan.requests + 3
    assert plan.tensor_bytes < report.bytes <= plan.bytes + 64 * KIB
    later = preview(REPO, steps="1000:9000:1000", cache=tmp_path)
    assert (later.present, later.revisions, later.bytes, later.seconds(1e6)) == (8, 0, 0, 0)


def test_the_time_is_that_of_bytes_or_of_requests(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2, 3], **WIDE))
    plan = preview(REPO, cache=tmp_path)
    begin = 0.1 + 3 * 0.2  # the list of branches, then the headers of three revisions
    assert plan.seconds(1e5) == pytest.approx(begin + 0.2 + plan.bytes / 1e5, rel=0.001)
    assert plan.seconds(1e12, latency=0.1, workers=1) == pytest.approx(begin + 3 * 0.2, rel=0.02)


def test_without_a_network_the_registry_answers(tmp_path: Path) -> None:
    code = (
        "from pythia_dynamics.history.estimate import preview; p = preview('1b', cache='.');"
        "print(p.revisions, p.tensor_bytes, p.full_bytes, 'HF_HUB_OFFLINE' in p.note)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    revisions, tensor_bytes, full_bytes, noted = run.stdout.split()
    assert (revisions, noted) == ("143", "True")
    assert int(tensor_bytes) == 143 * 50304 * 2048 * 2
    assert 280e9 < int(full_bytes) < 300e9


def test_an_unknown_repository_has_no_preview(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="no repository org/none"):
        preview("org/none", cache=tmp_path)


def test_steps_default_to_the_papers_for_pythia_only() -> None:
    def wanted(model: str, steps: str | list[int] | None = None) -> tuple[tuple[int, ...] | None, bool]:
        request = FetchRequest(model, steps=steps)
        return request.wanted, request.names_each_step

    assert wanted("70m") == (PAPER_STEPS, False)
    assert wanted(REPO) == (None, False)
    assert wanted("70m", "all") == (None, False)
    assert wanted("70m", "5,7") == ((5, 7), True)
    assert wanted("70m", "5:9") == ((5, 6, 7, 8, 9), False)
    assert wanted("70m", [7, 5, 7]) == ((5, 7), True)


def test_reasons_are_counted() -> None:
    assert most_common(["a", "b", "a"]) == "a; 1 other step fails too"
    assert most_common(["a"]) == "a"
