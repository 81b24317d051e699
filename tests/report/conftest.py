"""A page of two made-up models, and a browser to try it out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.saved_results import save_results

from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.sections import write_report

FINDING = {"kind": "equal", "steps": [0, 1], "message": "steps 0 and 1 are <the same>", "fault": False}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    directory = tmp_path_factory.mktemp("results")
    made = [save_results(directory, "walk"), save_results(directory, "a&b", 1, only=("msd", "order"))]
    checked = {"verify": [{"subject": "embed_out.weight", "findings": [FINDING]}]}
    (made[0].path / "verify.json").write_text(json.dumps(checked))
    return made


@pytest.fixture(scope="session")
def page(models: list[Results], tmp_path_factory: pytest.TempPathFactory) -> Path:
    told: list[tuple[int, int]] = []
    path = write_report(
        models,
        tmp_path_factory.mktemp("page") / "report.html",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser that PYTHIA_DYN_BROWSER names, or one that is installed; without the variable none is needed."""
    named = os.environ.get("PYTHIA_DYN_BROWSER")
    if named is None:
        pytest.importorskip("playwright", reason="playwright is not installed: the page is not tried out")
    from playwright import sync_api

    installed = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=arguments)
        except sync_api.Error as error:
            if named:
                raise
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Tab:
    """The page in a tab, and whatever it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce", **options}
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
            assert len([url for url in self.requests if url.startswith("file:")]) == 1


@pytest.fixture
def tab(chromium: Any) -> Callable[..., Tab]:
    """Opens a page: ``with tab(path, color_scheme="dark") as page``."""
    return partial(Tab, chromium)
