"""The shape of the package: rooms in order, imports in one direction, each library in its room."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pythia_dynamics

ROOT = Path(pythia_dynamics.__file__).parent

GROUND = ("errors", "files", "tables", "progress", "device")
"""Modules of the root that every room may import."""

ROOMS = (
    *("checkpoints", "history", "sweep", "measures", "evaluation", "training"),
    *("results", "claims", "figures", "report", "studies", "cli"),
)
"""Each room imports only from the rooms before it, and from the ground."""

APART = {"evaluation": {"sweep", "measures"}}
"""Rooms that stand beside one another: the first imports none of the others."""

BY_NAME = {"import_module", "__import__", "load_module", "find_spec"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyi")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[f"{name}{'.pyi' * (path.suffix == '.pyi')}"] = path
    return found


def code() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if path.suffix == ".py"}


def imports(path: Path) -> Iterator[str]:
    """Every module and name that a file imports anywhere in it: at the top, inside functions, or by its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT.parent).parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            # A module that is loaded by name has its dotted name in a string of the code.
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"pythia_dynamics(\.\w+)+", node.value)
        ):
            yield node.value


def room(module: str) -> str:
    return module.partition(".")[0]


def own_imports(module: str, path: Path) -> set[str]:
    """The rooms, and modules of the root, that a module imports from the package."""
    found = set()
    for name in imports(path):
        head, _, rest = name.partition(".")
        if head == "pythia_dynamics" and (ROOT / room(rest)).is_dir() | (ROOT / f"{room(rest)}.py").is_file():
            found.add(room(rest))
    return found - {"", room(module)}


def users(library: str) -> set[str]:
    return {name for name, path in code().items() if any(found.partition(".")[0] == library for found in imports(path))}


def test_every_module_has_its_place() -> None:
    alone = {"", ".pyi", "__main__"}
    assert {room(name) for name in code() if name} - alone == {*GROUND, *ROOMS}


@pytest.mark.parametrize("module", [name for name in code() if name and name != "__main__"])
def test_imports_go_one_way(module: str) -> None:
    own, path = room(module), code()[module]
    before = GROUND[: GROUND.index(own)] if own in GROUND else (*GROUND, *ROOMS[: ROOMS.index(own)])
    allowed = set(before) - APART.get(own, set())
    assert own_imports(module, path) <= allowed, f"{module} imports {own_imports(module, path) - allowed}"


def test_no_module_is_imported_by_a_name_that_is_put_together() -> None:
    for name, path in code().items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
        assert not called & BY_NAME, name


def test_no_circle_inside_a_room() -> None:
    """Modules of one room can be put in an order in which each imports only earlier ones."""
    for own in ROOMS:
        left = {
            name: {
                other.removeprefix("pythia_dynamics.")
                for other in imports(path)
                if other.startswith(f"pythia_dynamics.{own}.")
            }
            & set(code()) - {name}
            for name, path in code().items()
            if room(name) == own
        }
        while left:
            free = {name for name, needs in left.items() if not needs & set(left)}
            assert free, f"{own}: a circle among {sorted(left)}"
            left = {name: needs for name, needs in left.items() if name not in free}


def test_each_library_has_its_room() -> None:
    assert {room(name) for name in users("matplotlib")} == {"figures"}
    assert {room(name) for name in users("jinja2")} == {"report"}
    assert {room(name) for name in users("httpx2")} == {"checkpoints"}
    assert {room(name) for name in users("huggingface_hub")} <= {"checkpoints", "evaluation"}
    assert users("datasets") == {"evaluation.corpus", "training.text"}
    assert {room(name) for name in users("click")} == {"cli"}
    assert {room(name) for name in users("tqdm")} == {"cli"}
    assert users("ruptures") == {"measures.phases"}
    assert {room(name) for name in users("numba")} == {"sweep", "measures", "training"}
    assert {room(name) for name in users("torch")} == {"device", "sweep", "evaluation", "training"}


def test_only_the_command_line_prints() -> None:
    for name, path in code().items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
        assert not printed or room(name) == "cli", name


@pytest.mark.parametrize("module", list(code()))
def test_all_lists_what_is_public(module: str) -> None:
    loaded = importlib.import_module(f"pythia_dynamics.{module}".rstrip("."))
    assert loaded.__doc__
    exported = loaded.__all__
    assert sorted(set(exported)) == sorted(exported)
    for name in exported:
        assert hasattr(loaded, name), name
    tree = ast.parse(code()[module].read_text())
    defined = {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    }
    assert defined <= set(exported)


def test_nothing_private_is_imported_elsewhere() -> None:
    for name, path in code().items():
        for found in imports(path):
            last = found.rpartition(".")[2]
            private = found.startswith("pythia_dynamics.") and last.startswith("_") and not last.startswith("__")
            assert not private, f"{name} imports {found}"


def test_values_are_frozen() -> None:
    """Only what is filled step by step may change: accumulators, the writer of a chunk, guesses at layouts."""
    changing = {
        *("ChunkWriter", "LayoutCache", "OnlineStatistics"),
        *("PerSlab", "SlabSums", "Counts", "Gram", "Integral"),
    }
    found = set()
    for path in code().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                found |= {
                    node.name for text in decorators if text.startswith("dataclass") and "frozen=True" not in text
                }
    assert found == changing


def test_no_module_is_too_large() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in code().items()}
    assert {name: count for name, count in lengths.items() if count > 500} == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pythia_dynamics", ("torch", "numpy", "zarr", "numba", "matplotlib")),
        ("from pythia_dynamics.cli import main; main(['--help'], standalone_mode=False)", ("torch", "numpy", "xarray")),
        ("import pythia_dynamics as pyd; pyd.msd", ("torch", "matplotlib", "transformers", "huggingface_hub")),
    ],
)
def test_start_up_loads_nothing_heavy(statement: str, absent: tuple[str, ...]) -> None:
    check = f"import sys\n{statement}\nassert not [m for m in {absent!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_every_public_name_is_there() -> None:
    for name in pythia_dynamics.__all__:
        assert not isinstance(getattr(pythia_dynamics, name), ModuleType)
        assert getattr(pythia_dynamics, name) is getattr(pythia_dynamics, name)
    assert set(pythia_dynamics.__all__) <= set(dir(pythia_dynamics))
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = pythia_dynamics.nonsense  # type: ignore[attr-defined]


def test_no_public_name_is_a_module_of_the_root() -> None:
    assert not {room(name) for name in code()} & set(pythia_dynamics.__all__)
    script = "import pythia_dynamics.measures.density as module, pythia_dynamics as pyd; print(pyd.density, module)"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert re.match(r"<function density.*<module 'pythia_dynamics.measures.density'", said)
