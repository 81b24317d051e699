"""Mutation testing: which changes of a module do its tests not notice?

    pip install -e '.[mutation]'
    python scripts/mutation.py pythia_dynamics/evaluation/scoring.py --minutes 20
    python scripts/mutation.py pythia_dynamics/measures/*.py --minutes 120

Each mutant is the module with one change: another number, operator, comparison, or branch. Its tests run until one
fails (the mutant is killed) or all pass (it survives). Survivors are written to ``scripts/mutation_survivors.json``
with a field ``why``: what kills no test is either a missing test, or a change that alters no result, and then ``why``
says so. The exit status is 1 while a survivor has no explanation.

The mutants come from Cosmic Ray. mutmut 3 changes neither module constants nor functions with a decorator, that is,
nothing that Numba compiles.

Cosmic Ray's own runner starts Python anew for each mutant, which takes 5 s for importing torch and transformers. Here
one process imports the libraries, and a fork of it runs the tests of each mutant, in a copy of the tree.

Not mutated: annotations, ``TYPE_CHECKING``, and the arguments of ``@dataclass``, which ``tests/test_architecture.py``
checks for every class.

When time is short, the mutants are taken in a random order that is always the same, so that those tested are a fair
sample. Killed mutants are remembered in ``.mutation/``; the next run goes on with the others.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).resolve().parent.parent
SURVIVORS = ROOT / "scripts" / "mutation_survivors.json"
KILLED = ROOT / ".mutation"

OPERATORS = (
    *("NumberReplacer", "AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse"),
    *("ReplaceFalseWithTrue", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert"),
    *(f"ReplaceComparisonOperator_{change}" for change in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE")),
    *(f"ReplaceComparisonOperator_{change}" for change in ("GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq")),
    *(f"ReplaceComparisonOperator_{change}" for change in ("Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{change}" for change in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{change}" for change in ("Mod_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceBinaryOperator_{change}" for change in ("LShift_RShift", "RShift_LShift")),
)
"""Operators of Cosmic Ray: of what can replace an operator, the nearest and the opposite; others die more easily."""

LIBRARIES = (
    *("torch", "numba", "scipy.signal", "scipy.stats", "xarray", "zarr", "tokenizers", "hypothesis"),
    *("transformers.models.gpt_neox.modeling_gpt_neox", "accelerate"),
)
"""Imported once, before the forks. Nothing of them is called there: their threads would not survive a fork."""

TESTS = {
    "pythia_dynamics/evaluation/scoring.py": ("evaluation/test_forward.py",),
    "pythia_dynamics/measures/analyse.py": ("measures/test_own_measure.py",),
    "pythia_dynamics/measures/catalogue.py": ("measures/test_own_measure.py",),
    "pythia_dynamics/measures/measure.py": ("measures/test_own_measure.py",),
    "pythia_dynamics/measures/stationarity.py": ("training/test_stopping.py",),
}
"""Tests to run after ``test_<module>*.py`` and `_FOR_ALL` of the room."""

_FOR_ALL = ("test_summaries.py", "test_defaults.py")
"""Tests of every module of the room."""

SLACK = 4
"""A mutant that takes this many times the time of the tests (and 20 s more) is taken for an endless loop: killed."""


@dataclass(frozen=True)
class Mutant:
    """One changed module: the source, the function it is in, the lines that differ, and which of several alike."""

    module: str
    source: str
    function: str
    before: str
    after: str
    number: int = 0

    @property
    def key(self) -> str:
        """Stays the same when other lines of the module change."""
        parts = (self.module, self.function, self.before, self.after, str(self.number))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def entry(self) -> dict[str, str]:
        return {"function": self.function, "before": self.before, "after": self.after}


class _Bare(ast.NodeTransformer):
    """Removes what makes no mutant: annotations and imports for type checkers, which never run, and ``*`` or ``/``
    between parameters."""

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [default for default in node.kw_defaults if default is not None]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test).removeprefix("not ") == "TYPE_CHECKING":
            node.test, node.body = ast.Constant(0), [ast.Pass()]
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)


def behaviour(source: str) -> str:
    """What of a source can matter when it runs."""
    return ast.dump(_Bare().visit(ast.parse(source)))


def mutants(module: str) -> list[Mutant]:
    """Every mutant of a module that differs from it and from the others in more than annotations."""
    original = (ROOT / module).read_text(encoding="utf-8")
    seen, found = {behaviour(original)}, []
    for name in OPERATORS:
        for number in itertools.count():
            source = mutate_code(original, get_operator(f"core/{name}")(), number)
            if source is None:
                break
            try:
                meaning = behaviour(source)
            except SyntaxError:
                continue
            if meaning not in seen:
                seen.add(meaning)
                mutant = _describe(module, original, source)
                if not mutant.before.startswith("@dataclass"):
                    found.append(mutant)
    seen_alike: Counter[tuple[str, ...]] = Counter()
    for index, mutant in enumerate(found):
        alike = tuple(mutant.entry.values())
        found[index] = replace(mutant, number=seen_alike[alike])
        seen_alike[alike] += 1
    return found


def _describe(module: str, original: str, source: str) -> Mutant:
    old, new = original.splitlines(), source.splitlines()
    changes = [c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"]
    before = "\n".join(line.strip() for _, i, j, _, _ in changes for line in old[i:j])
    after = "\n".join(line.strip() for _, _, _, i, j in changes for line in new[i:j])
    line = changes[0][1] + 1
    functions = (ast.FunctionDef, ast.ClassDef)
    around = [
        node.name
        for node in ast.walk(ast.parse(original))
        if isinstance(node, functions) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return Mutant(module, source, ".".join(around), before, after)


def tests_of(module: str) -> list[str]:
    """The test files to run, the nearest first."""
    room, stem = Path(module).parent.name, Path(module).stem
    folder = ROOT / "tests" / room
    nearest = [
        *sorted(folder.glob(f"test_{stem}*.py")),
        *(folder / name for name in _FOR_ALL if (folder / name).is_file()),
    ]
    others = [ROOT / "tests" / name for name in TESTS.get(module, ())]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys([*nearest, *others])]


def passes(tests: list[str], limit: float | None, output: Path = Path(os.devnull)) -> bool:
    """Run tests in a fork of this process; whether all of them passed within `limit` seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            told = os.open(output, os.O_RDWR | os.O_CREAT)
            for descriptor in (0, 1, 2):
                os.dup2(told, descriptor)
            options = ["-x", "-q", "--hypothesis-seed=0", *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov")]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # zarr and hypothesis are plugins
            code = int(pytest.main([*options, *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)  # never back into the parent's code
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if limit is not None and time.monotonic() - began > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.05)


def survivors(module: str, tree: Path, seconds: float) -> tuple[list[Mutant], list[Mutant]]:
    """The mutants of a module that its tests do not notice, and those there was no time for."""
    tests, target = tests_of(module), tree / module
    began = time.monotonic()
    output = tree / "output.txt"
    if not passes(tests, None, output):
        raise SystemExit(f"{output.read_text()}\n{module}: these tests fail without any mutation")
    baseline = time.monotonic() - began
    memory = KILLED / f"{module.replace('/', '.')}.txt"
    killed = set(memory.read_text().split()) if memory.is_file() else set()
    every = mutants(module)
    left = [mutant for mutant in every if mutant.key not in killed]
    random.Random(0).shuffle(left)
    print(f"{module}: {len(every)} mutants, {len(left)} to test; the tests take {baseline:.0f} s", flush=True)
    original, alive = target.read_text(encoding="utf-8"), []
    end = time.monotonic() + seconds
    memory.parent.mkdir(exist_ok=True)
    with memory.open("a") as log:
        while left and time.monotonic() < end:
            mutant = left.pop(0)
            target.write_text(mutant.source, encoding="utf-8")
            if passes(tests, SLACK * baseline + 20):
                alive.append(mutant)
                print(f"  survives in {mutant.function or 'the module'}: {mutant.before} → {mutant.after}", flush=True)
            else:
                log.write(f"{mutant.key}\n")
                log.flush()
    target.write_text(original, encoding="utf-8")
    print(f"  {len(every) - len(alive) - len(left)} killed, {len(alive)} survive, {len(left)} not tested", flush=True)
    return alive, left


def record(module: str, alive: list[Mutant], untested: list[Mutant]) -> int:
    """Write the survivors of a module, keep the explanations there are; the number that has none."""
    known = json.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.is_file() else {}
    old = known.get(module, [])
    why = {tuple(entry[name] for name in ("function", "before", "after")): entry["why"] for entry in old}
    entries = {tuple(mutant.entry.values()): mutant.entry for mutant in alive}
    entries |= {key: mutant.entry for mutant in untested if (key := tuple(mutant.entry.values())) in why}
    known[module] = [{**entry, "why": why.get(key, "")} for key, entry in sorted(entries.items())]
    SURVIVORS.write_text(json.dumps(known, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return sum(not entry["why"] for entry in known[module])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="+", help="pythia_dynamics/….py, relative to the repository")
    parser.add_argument("--minutes", type=float, default=20, help="time for the mutants of all modules together")
    options = parser.parse_args()
    modules = [m for m in options.modules if Path(m).name != "__init__.py"]
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("pythia_dynamics", "tests", "docs"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
        os.chdir(tree)
        sys.path[:0] = [str(tree)]
        sys.dont_write_bytecode = True  # two mutants of one second and size would share a .pyc file
        os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # small arrays
        for library in LIBRARIES:
            importlib.import_module(library)
        unexplained, end = 0, time.monotonic() + 60 * options.minutes
        for number, module in enumerate(modules):
            share = (end - time.monotonic()) / (len(modules) - number)
            alive, untested = survivors(module, tree, max(share, 0))
            unexplained += record(module, alive, untested)
        os.chdir(ROOT)
    if unexplained:
        raise SystemExit(f"{unexplained} survivors without an explanation in {SURVIVORS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
