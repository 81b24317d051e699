"""Partial results of a pass over a history, saved by each job of an array and put together by another process.

A pass is divided as for an executor: its blocks of weights, or its steps, over the jobs. What comes back from a task of
an executor is here a file. So the result of all is that of one process, to the last bit.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pythia_dynamics import __version__
from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.files import atomic_file, store_errors
from pythia_dynamics.history.history import History
from pythia_dynamics.shard import Shard

__all__ = ["PartSavedError", "PartialSums", "described"]

_OF_ARRAYS = {
    *(("numpy", name) for name in ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")),
    ("ml_dtypes", "bfloat16"),
}
"""What pickles of arrays and numbers call, by package."""


class PartSavedError(PythiaDynError):
    """The part of a shard is saved; there is no result yet, because those of the others belong to it."""


@dataclass(frozen=True)
class PartialSums:
    """Where the parts of the passes over one history are.

    Parameters
    ----------
    folder
        The folder of the files ``<name>.<pass>.2-of-4``.
    name
        What is measured of what, as a name of a file.
    shard
        The part that is computed and saved here.
    merges
        Whether the parts of all shards are read instead.
    """

    folder: Path
    name: str
    shard: Shard
    merges: bool = False

    def is_saved(self, kind: str, about: Mapping[str, Any]) -> bool:
        """Whether this part of a pass has been saved before.

        Parameters
        ----------
        kind
            The pass.
        about
            What it is a part of; see `described`.
        """
        try:
            return bool(_read_about(self._path(kind, self.shard)) == dict(about))
        except (OSError, FormatError):
            return False

    def save(self, kind: str, about: Mapping[str, Any], part: Any) -> None:
        """Save this part of a pass.

        Parameters
        ----------
        kind, about
            As for `is_saved`.
        part
            What a task of an executor would send back.

        Raises
        ------
        StoreError
            The file cannot be written.
        PythiaDynError
            `part` cannot be pickled.
        """
        try:
            content = pickle.dumps(dict(about)) + pickle.dumps(part, protocol=5)
        except Exception as error:
            raise PythiaDynError(f"the sums of {self.name} cannot be saved: {error}") from error
        with atomic_file(self._path(kind, self.shard)) as file:
            file.write(content)

    def remove(self, kind: str) -> None:
        """Remove the parts of a pass, which are of weights that were damaged.

        Parameters
        ----------
        kind
            The pass.
        """
        for number in range(self.shard.count):
            path = self._path(kind, Shard(number + 1, self.shard.count))
            with store_errors(path):
                path.unlink(missing_ok=True)

    def saved(self) -> PartSavedError:
        """What to raise when all passes of this part are saved."""
        return PartSavedError(f"part {self.shard} of {self.name} is saved; pythia-dyn merge puts all together")

    def load(self, kind: str, about: Mapping[str, Any], sums: Collection[object]) -> list[Any]:
        """The parts of a pass, in the order of the shards.

        Parameters
        ----------
        kind, about
            As for `is_saved`.
        sums
            The accumulators or functions of the pass. What the files may have is of their modules, or of this package.

        Raises
        ------
        PythiaDynError
            A part is not there, or is of other weights or options.
        FormatError
            A file is damaged.
        """
        paths = {
            shard: self._path(kind, shard)
            for shard in (Shard(i + 1, self.shard.count) for i in range(self.shard.count))
        }
        if absent := [str(shard) for shard, path in paths.items() if not path.is_file()]:
            raise PythiaDynError(f"{self.name} lacks the part {', '.join(absent)}: run it with --shard {absent[0]}")
        modules = {module for each in sums for module, _ in _named(each)} - {"builtins"}
        parts = []
        for shard, path in paths.items():
            with path.open("rb") as file, _damage(path):
                found = _Restricted(file, ()).load()
                parts.append(_Restricted(file, modules).load() if found == dict(about) else None)
            if found != dict(about):
                differs = next(key for key in about if found.get(key) != about[key])
                raise PythiaDynError(
                    f"the part {shard} of {self.name} is of other weights or options ({differs} differs); run it again "
                    f"with --shard {shard}"
                )
        return parts

    def _path(self, kind: str, shard: Shard) -> Path:
        return self.folder / f"{self.name}.{kind}.{shard.label}"


def described(history: History, rows: int, sums: Collection[object]) -> dict[str, Any]:
    """What a pass is over, to find out whether two parts belong together.

    Parameters
    ----------
    history
        The weights.
    rows
        How many rows of each frame are used.
    sums
        The accumulators or functions of the pass.
    """
    return {
        "tensor": f"{history.tensor} {history.dtype}{list(history.frame_shape)}",
        "rows": rows,
        "steps": history.steps[history.present].tolist(),
        "commits": dict(history.provenance.get("commits", {})),
        "measures": [[f"{module}.{name}" for module, name in _named(each)] for each in sums],
        "version": __version__,
    }


def _named(value: object) -> Iterator[tuple[str, str]]:
    """The module, and the name with all settings, of a function or an object and of the functions that it holds.

    Without places in memory, which differ between processes.
    """
    name = getattr(value, "__qualname__", None)
    if name is not None:
        yield value.__module__, name
        return
    inner = getattr(value, "func", None)  # a partial of functools
    settings = [inner, *getattr(value, "args", ())] if inner is not None else []
    for key, setting in [*enumerate(settings), *sorted(getattr(value, "__dict__", {}).items())]:
        if callable(setting) or hasattr(setting, "__dict__"):
            yield from ((module, f"{key} = {text}") for module, text in _named(setting))
        else:
            yield "builtins", f"{key} = {setting!r}"
    yield type(value).__module__, type(value).__qualname__


class _Restricted(pickle.Unpickler):
    """Makes arrays, and objects of classes of this package and of given modules; it calls nothing else."""

    def __init__(self, file: IO[bytes], modules: Collection[str]) -> None:
        super().__init__(file)
        self._modules = modules

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        if module in self._modules or (package, name) in _OF_ARRAYS or module == "numpy.dtypes":
            return super().find_class(module, name)
        if package == "pythia_dynamics" and isinstance(found := super().find_class(module, name), type):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _read_about(path: Path) -> Any:
    """What a file is a part of. Raises `OSError` and `FormatError`."""
    with path.open("rb") as file, _damage(path):
        return _Restricted(file, ()).load()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Convert any error of unpickling, which can raise anything for damaged bytes, into a `FormatError`."""
    try:
        yield
    except Exception as error:
        raise FormatError(f"{path} is damaged ({error}); remove it and run its shard again") from None
