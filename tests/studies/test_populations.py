"""What a population says where there is little to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.populations import STEPS, save_order

import pythia_dynamics as pyd
from pythia_dynamics.studies.populations import population_lines, study_population, write_population


def test_runs_without_a_value_and_without_a_common_step(tmp_path: Path) -> None:
    nothing = np.full(40, np.nan)
    for seed in (1, 2):
        save_order(tmp_path, f"empty-seed{seed}", nothing)
        save_order(tmp_path, f"apart-seed{seed}", np.arange(20.0) + 1, STEPS[(seed - 1) * 20 : seed * 20])
    dataset = pyd.gather("*-seed*", measure="order", results=tmp_path)
    found = study_population(dataset)
    assert population_lines(found) == [
        "apart: 2 runs, 40 steps (1000 … 40000), 40 gaps",
        "  at the end: 20 (1 run)",
        "  between and within runs: undecided (no two runs have a step in common)",
        "  leaving runs: undecided (2 runs; 5 are needed)",
        "empty: 2 runs, no values",
        "  between and within runs: undecided (0 of 2 runs have 7 records or more; two are needed)",
        "  leaving runs: undecided (0 runs; 5 are needed)",
    ]
    outcome = write_population(dataset, found, ["*-seed*"], tmp_path)
    assert [path.name for path in outcome.files] == [
        f"order_parameter{end}" for end in (".csv", "-band.csv", ".png", ".svg")
    ]
    assert outcome.facts["groups"][1]["end"] is None
    band = (outcome.files[1]).read_text().splitlines()
    assert band[1] == "apart,1000,1,1.0,1.0,1.0"
    assert band[-1] == "empty,40000,0,,,"


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    for seed in range(1, 7):
        save_order(tmp_path, f"same-seed{seed}", np.sqrt(STEPS))
    lines = population_lines(study_population(pyd.gather("same-*", measure="order", results=tmp_path)))
    assert lines[1:] == [
        "  at the end: median 200, central 80 % 200 to 200 (6 runs)",
        "  between and within runs: undecided (the runs are equal)",
        "  no run leaves the others (6 compared)",
    ]


def test_a_long_name_and_strange_characters_make_a_folder_of_their_own(tmp_path: Path) -> None:
    save_order(tmp_path, "a b:c", np.sqrt(STEPS))
    save_order(tmp_path, "a b;c", np.sqrt(STEPS))
    for name in ("a b:c", "a b;c"):
        dataset = pyd.gather(name, measure="order", results=tmp_path)
        write_population(dataset, study_population(dataset), [name], tmp_path)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2  # not one for both
    assert all(folder.startswith("a_b_c-") for folder in folders)
