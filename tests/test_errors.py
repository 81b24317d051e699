"""The messages of the package's errors are one line, and errors pass between processes whole."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from pythia_dynamics.checkpoints.source import FileMissingError
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.errors import PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.remote import LostStepsError

ERRORS = [
    StoreError("no space left"),
    UnknownNameError("model", "71m", ["70m", "160m"], where="the store"),
    FileMissingError("no such file", "model.safetensors"),
    LostStepsError({3: "damaged", 4: "removed"}),
    LostStepsError({}),
    NotTestableError("too few steps", {"steps": 2}),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_whole(error: PythiaDynError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def _fail(number: int) -> None:
    raise ERRORS[number]


def test_an_error_of_a_process_leaves_its_pool_whole() -> None:
    """An exception that cannot be unpickled ends the whole pool with `BrokenProcessPool`."""
    with ProcessPoolExecutor(1) as pool:
        for number, error in enumerate(ERRORS):
            with pytest.raises(type(error), match=str(error).split()[0]):
                pool.submit(_fail, number).result()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb", r"a\nb"), ("a\r\x1b[31mb", r"a\r\x1b[31mb"), ("a\u2028b", r"a\u2028b"), ("a\udc80b", r"a\udc80b")],
)
def test_a_name_of_a_damaged_file_does_not_break_the_line(name: str, shown: str) -> None:
    assert str(StoreError(f"no tensor {name}")) == f"no tensor {shown}"
    assert shown in str(UnknownNameError("tensor", "a b", [name]))


def test_letters_of_other_alphabets_stay() -> None:
    text = "Zürich/模型 · ≥ 3 × “σ” … —"
    assert str(StoreError(text)) == text
