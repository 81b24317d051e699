"""The shape of the package: data flows one way, every room keeps to its task."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pythia_dynamics

ROOT = Path(pythia_dynamics.__file__).parent

ORDER = (
    "",
    "errors",
    "progress",
    "device",
    "files",
    "suites",
    "tensorfile",
    "sources",
    "local",
    "retry",
    "hub",
    "plan",
    "reader",
    "bfloat16",
    "store",
    "history",
    "survey",
    "fetch",
    "kernels",
    "sweep",
    "gram",
    "density",
    "dip",
    "diffusion",
    "bifurcation",
    "order",
    "spectrum",
    "rank",
    "analyse",
    "verify",
    "perplexity",
    "train",
    "stationarity",
    "phases",
    "monitor",
    "callback",
    "results",
    "figures",
    "claims",
    "gallery",
    "pipeline",
    "timeline",
    "demo",
    "blog",
    "report",
    "garden",
    "cli",
    "__main__",
)
"""Each room imports only from rooms before it."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room(module: str) -> str:
    return module.partition(".")[0]


def users(library: str) -> set[str]:
    return {
        name for name, path in modules().items() if any(found.partition(".")[0] == library for found in imports(path))
    }


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_go_one_way(module: str) -> None:
    own = ORDER.index(room(module))
    for name in imports(modules()[module]):
        head, _, rest = name.partition(".")
        if head == "pythia_dynamics" and room(rest) in ORDER and room(rest) != room(module):
            assert ORDER.index(room(rest)) < own, f"{module} imports {name}"


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} == set(ORDER)


def test_each_library_has_its_room() -> None:
    assert {room(name) for name in users("matplotlib")} == {"figures"}
    assert {room(name) for name in users("jinja2")} == {"report"}
    assert users("huggingface_hub") <= {"hub", "perplexity.corpus"}
    assert users("datasets") == {"perplexity.corpus", "train.text"}
    assert {room(name) for name in users("click")} == {"cli"}
    assert {room(name) for name in users("tqdm")} == {"cli"}
    assert users("ruptures") == {"phases"}
    assert all(
        room(name) in {"demo", "device", "gram", "monitor", "perplexity", "train", "spectrum"}
        for name in users("torch")
    )


def test_only_the_command_line_prints() -> None:
    for name, path in modules().items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
        assert not printed or room(name) == "cli", name


@pytest.mark.parametrize("module", list(modules()))
def test_all_lists_what_is_public(module: str) -> None:
    loaded = importlib.import_module(f"pythia_dynamics.{module}".rstrip("."))
    assert loaded.__doc__
    exported = loaded.__all__
    assert sorted(set(exported)) == sorted(exported)
    for name in exported:
        assert hasattr(loaded, name), name
    tree = ast.parse(modules()[module].read_text())
    defined = {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    }
    assert defined <= set(exported)


def test_no_room_is_too_large() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lengths.items() if count > 500} == {}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import pythia_dynamics", ("torch", "numpy", "zarr", "numba", "matplotlib")),
        ("from pythia_dynamics.cli import main; main(['--help'], standalone_mode=False)", ("torch", "numpy", "xarray")),
        ("import pythia_dynamics as pyd; pyd.msd", ("torch", "matplotlib", "transformers", "huggingface_hub")),
    ],
)
def test_start_up_loads_nothing_heavy(code: str, absent: tuple[str, ...]) -> None:
    check = f"import sys\n{code}\nassert not [m for m in {absent!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_every_public_name_is_there() -> None:
    for name in pythia_dynamics.__all__:
        assert not isinstance(getattr(pythia_dynamics, name), ModuleType)
        assert getattr(pythia_dynamics, name) is getattr(pythia_dynamics, name)
    assert dir(pythia_dynamics) == sorted(pythia_dynamics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pythia_dynamics.nonsense
