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

GROUND = ("errors", "files", "tables", "progress", "device", "compiled", "executors", "shard", "objects", "mirror")
"""Modules of the root that every room may import."""

ROOMS = (
    *("checkpoints", "history", "sweep", "measures", "evaluation", "training"),
    *("results", "claims", "figures", "report", "studies", "cli"),
)
"""Each room imports only from the rooms before it, and from the ground."""

APART = {"evaluation": {"sweep", "measures"}}
"""Rooms that stand beside one another: the first imports none of the others."""

BY_NAME = {"import_module", "__import__", "load_module", "find_spec", "resolve_name", "exec", "EntryPoint"}
"""Calls that load a module by its name. `eval` has one use, the annotations of a measure's options."""

NETWORK = ("httpx2", "httpx", "requests", "aiohttp", "urllib3", "urllib.request", "http.client", "socket")
"""Modules that open connections."""


PRIVATE = re.compile(r"_(?!_)\w*")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyi")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[f"{name}{'.pyi' * (path.suffix == '.pyi')}"] = path
    return found


def code() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if path.suffix == ".py"}


def imports(text: str, path: Path) -> Iterator[str]:
    """Every module and name that a file imports anywhere in it: at the top, inside functions, or by its name."""
    for node in ast.walk(ast.parse(text)):
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
            and re.fullmatch(r"pythia_dynamics(\.\w+)+(:\w+)?", node.value)
        ):
            yield node.value.partition(":")[0]


def room(module: str) -> str:
    return module.partition(".")[0]


def public_names() -> dict[str, str]:
    """The room of each name of ``pythia_dynamics``."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name: room(node.module or alias.name) for node in nodes for alias in node.names}


def own_imports(text: str, path: Path) -> set[str]:
    """The rooms, and modules of the root, that a file imports from the package; "the package" for the whole of it."""
    found, public = set(), public_names()
    for name in imports(text, path):
        head, _, rest = name.partition(".")
        if head != "pythia_dynamics":
            continue
        first = room(rest)
        if first in (*GROUND, *ROOMS):
            found.add(first)
        elif first in public:
            found.add(public[first])
    plain = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    return found | ({"the package"} if "pythia_dynamics" in plain else set())


def faults(module: str, text: str, path: Path) -> list[str]:
    """What a file does that its room may not do."""
    own, tree = room(module), ast.parse(text)
    may_print = own in ("cli", "__main__")
    if module in ("", ".pyi", "__main__"):
        allowed = {*GROUND, *ROOMS}
    else:
        allowed = set(GROUND[: GROUND.index(own)] if own in GROUND else (*GROUND, *ROOMS[: ROOMS.index(own) + 1]))
        allowed -= APART.get(own, set())
    found = [f"imports {name}" for name in own_imports(text, path) - allowed]
    names = set(imports(text, path))
    connections = {name for name in names for other in NETWORK if name == other or name.startswith(f"{other}.")}
    found += [f"connects with {name}" for name in connections if own != "checkpoints"]
    by_name = re.compile(r"(importlib|pkgutil|runpy)\.(?!metadata|resources)")
    found += [f"loads with {name}" for name in names if by_name.match(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            found += [f"loads by name with {called}"] if called in BY_NAME else []
            found += ["prints"] if isinstance(node.func, ast.Name) and called == "print" and not may_print else []
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr") and not may_print:
            found.append(f"uses {ast.unparse(node)}")
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}".removeprefix("pythia_dynamics.") in modules()
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in aliases and PRIVATE.fullmatch(node.attr):
            found.append(f"uses {ast.unparse(node)}, which is private")
    for name in names:
        if name.startswith("pythia_dynamics.") and PRIVATE.fullmatch(name.rpartition(".")[2]):
            found.append(f"imports {name}, which is private")
    return found


def users(library: str) -> set[str]:
    found = {name: imports(path.read_text(), path) for name, path in code().items()}
    return {name for name, names in found.items() if any(each.partition(".")[0] == library for each in names)}


def test_every_module_has_its_place() -> None:
    alone = {"", ".pyi", "__main__"}
    assert {room(name) for name in code() if name} - alone == {*GROUND, *ROOMS}


@pytest.mark.parametrize("module", list(modules()))
def test_each_module_keeps_to_its_room(module: str) -> None:
    path = modules()[module]
    assert faults(module, path.read_text(), path) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("checkpoints.layout", "def f():\n    from pythia_dynamics.cli import app", "imports cli"),
        ("checkpoints.layout", "from pythia_dynamics import msd", "imports measures"),
        ("checkpoints.layout", "from pythia_dynamics import analyse as run", "imports measures"),
        ("checkpoints.layout", "import pythia_dynamics\npythia_dynamics.report", "imports the package"),
        ("checkpoints.layout", "from ..report import page", "imports report"),
        ("evaluation.forward", "from pythia_dynamics.measures import rank", "imports measures"),
        ("figures.pyi", "from pythia_dynamics.cli import app", "imports cli"),
        ("history.fetch", "load('pythia_dynamics.cli')", "imports cli"),
        ("history.fetch", "load('pythia_dynamics.cli:main')", "imports cli"),
        ("history.fetch", "import importlib\nimportlib.import_module(name)", "loads by name with import_module"),
        ("history.fetch", "from importlib import import_module as load", "loads with importlib.import_module"),
        ("history.fetch", "exec('from pythia_dynamics.cli import app')", "loads by name with exec"),
        ("history.fetch", "import pkgutil\npkgutil.resolve_name(name)", "loads by name with resolve_name"),
        ("history.fetch", "EntryPoint('x', name, 'g').load()", "loads by name with EntryPoint"),
        (
            "history.fetch",
            "from pythia_dynamics.history import store\nstore._reasons",
            "uses store._reasons, which is private",
        ),
        (
            "history.fetch",
            "from pythia_dynamics.history.store import _open",
            "imports pythia_dynamics.history.store._open, which is private",
        ),
        ("evaluation.forward", "import urllib.request", "connects with urllib.request"),
        ("evaluation.forward", "import requests", "connects with requests"),
        ("evaluation.forward", "from http import client", "connects with http.client"),
        ("evaluation.forward", "print(1)", "prints"),
        ("evaluation.forward", "import sys\nsys.stdout.write('1')", "uses sys.stdout"),
    ],
)
def test_what_a_room_may_not_do_is_seen(module: str, line: str, fault: str) -> None:
    path = modules()[module]
    assert fault in faults(module, f"{path.read_text()}\n{line}\n", path)


def test_no_circle_inside_a_room() -> None:
    """Modules of one room can be put in an order in which each imports only earlier ones."""
    for own in ROOMS:
        left = {
            name: {
                other.removeprefix("pythia_dynamics.")
                for other in imports(path.read_text(), path)
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
    assert users("httpx2") == {"checkpoints.http"}
    assert {room(name) for name in users("huggingface_hub")} == {"checkpoints"}
    assert users("datasets") == {"evaluation.corpus", "training.text"}
    assert {room(name) for name in users("click")} == {"cli"}
    assert {room(name) for name in users("tqdm")} == {"cli"}
    assert {room(name) for name in users("numba")} == {"compiled", "sweep", "evaluation"}
    assert {room(name) for name in users("torch")} == {"device", "sweep", "evaluation", "training"}


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


def test_values_are_frozen() -> None:
    """Only what is filled step by step may change: accumulators, the writer of a chunk, guesses at layouts."""
    changing = {
        *("ChunkWriter", "LayoutCache", "OnlineStatistics"),
        *("PerSlab", "SlabSums", "Counts", "Gram", "Integral", "RowSums"),
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
        (  # without a Gram matrix nothing looks for a GPU
            "import numpy as np, pythia_dynamics as pyd\n"
            "walk = np.random.default_rng(0).normal(size=(5, 40, 8)).astype('f4').cumsum(0)\n"
            "pyd.analyse(walk, ['density', 'msd', 'order'], compute=pyd.Compute(device='auto'))",
            ("torch", "matplotlib"),
        ),
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
