"""State dicts as training programs save them: inside other things, with prefixes, as subclasses, in plain shards."""

from __future__ import annotations

import argparse
import contextlib
import pickle
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.checkpoints import HEAD, raw, state, torch_file

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.formats.pickles import Opaque, read_pickle, type_name
from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.checkpoints.formats.statedict import parse_state_dict, state_dict_key
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.roles import prefixes_removed
from pythia_dynamics.errors import CheckpointError, FormatError, UnknownNameError

STATE = state(3)
WTE = "transformer.wte.weight"


class Marked(torch.Tensor):
    """A subclass of a tensor."""


class MarkedParameter(torch.nn.Parameter):
    """A subclass of a parameter."""


class Settings:
    """An object of a program's own class, which writes a file when it is made from a pickle."""

    marker = Path("executed")

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.marker.write_text("executed")

    class Inner:
        """A class inside another, which older pickles get by ``getattr``."""

        size = 3


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("executed"), "executed"))


def pickled(content: object) -> bytes:
    """The ``data.pkl`` of what ``torch.save`` writes."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(torch_file(content))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(name)


def names(content: object) -> list[str]:
    return list(parse_state_dict(pickled(content), file="f.ckpt"))


def read(folder: Path, content: object, name: str = HEAD, file: str = "ckpt_10.pt") -> bytes:
    """One tensor of a file of ``torch.save``, by its own name."""
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(torch_file(content))
    return pyd.tensor(folder, name, 10).tobytes()


def lightning(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    callback = "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 2}"
    return {
        "epoch": 0,
        "global_step": 10,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state_dict,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {
            Settings: {"wait_count": 0},
            None: 1,
            0.5: 2,
            callback: {"best_model_score": torch.tensor(0.5), "kth_value": torch.tensor(float("inf"))},
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [{"base_lrs": [0.1], "lr_lambdas": [None], "_is_initial": False}],
        "MixedPrecision": {"scale": torch.tensor(2.0)},
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "conf": argparse.Namespace(lr=1e-3, path=Path("/data"), layers=(1, 2)),
            "path": Path("/data"),
            "own": Settings(3),
            "counts": Counter("aab"),
            "by": defaultdict(list, {"a": [1]}),
            "call": partial(int, base=2),
            "kind": Settings,
            "inner": Settings.Inner(),
            "tags": {"a", "b"},
            "raw": b"\x00" * 300,
            "dtype": torch.float16,
            "size": torch.Size([1, 2]),
            "device": torch.device("cpu"),
            "big": 2**62,
            "number": 1j,
        },
    }


# -- where the state dict is ----------------------------------------------------------------------------------


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = {f"model._orig_mod.{name}": tensor for name, tensor in STATE.items()}
    assert names(lightning(inner)) == list(inner)
    file = "epoch=0-step=10.ckpt"
    assert read(tmp_path / "run", lightning(inner), file=file) == raw(STATE[HEAD])
    for name in (HEAD, f"_orig_mod.{HEAD}", f"model._orig_mod.{HEAD}", "unembedding"):
        assert pyd.tensor(tmp_path / "run", name, file).tobytes() == raw(STATE[HEAD])
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Settings(3)))
    assert (tmp_path / "executed").exists()  # what the reader has not done


def test_nanogpt(tmp_path: Path) -> None:
    weight = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    inner = {f"_orig_mod.{name}": weight for name in (WTE, "lm_head.weight")}  # tied: one storage
    content = {
        "model": inner,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "model_args": {"n_layer": 2, "bias": False},
        "iter_num": 10,
        "best_val_loss": torch.tensor(3.5),
        "config": {"learning_rate": 6e-4, "compile": True},
    }
    assert names(content) == list(inner)
    assert read(tmp_path / "out", content, "lm_head.weight") == raw(weight)
    assert read(tmp_path / "out", content, "embedding") == raw(weight)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "model_state", "params"])
def test_usual_keys_are_found_beside_others(key: str) -> None:
    assert names({"ema": {"a": torch.ones(1)}, key: {"b": torch.ones(1)}, "loss": torch.tensor(1.0)}) == ["b"]


def test_the_only_part_with_tensors_is_meant() -> None:
    assert names({"step": 3, "weights": {"b": torch.ones(1)}, "args": Settings()}) == ["b"]
    assert names({"a": torch.ones(1), "b": torch.ones(2), "extra": {"n": 1}}) == ["a", "b"]
    assert state_dict_key(["x"], at_top=True) is None
    assert state_dict_key([], at_top=False) is None
    assert state_dict_key(["params", "model"], at_top=True) == "model"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, "lie under 'critic', 'generator'"),
        ({"loss": torch.tensor(1.0), "net": {"a": torch.ones(1)}}, "its tensors lie under 'net'"),
        ({"net": {"deeper": {"a": torch.ones(1)}}}, "no tensor lies at its top level .found 'net': dict"),
        ({}, "no tensor lies at its top level .found nothing"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (Settings(), "holds a .*Settings, not a state dict"),
        (torch.ones(2), "holds a tensor, not a state dict"),
    ],
)
def test_what_is_not_clear_is_refused(content: object, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        names(content)
    assert "\n" not in str(caught.value)


# -- what is not a tensor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [Settings(2), Path("/x"), Counter("a"), torch.device("cpu"), Trap()])
@pytest.mark.parametrize("wrap", [True, False])
def test_an_object_inside_a_state_dict_is_refused_by_its_name(
    thing: object, wrap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = {"a.weight": torch.ones(2), "a.extra": thing}
    with pytest.raises(FormatError, match=r"f\.ckpt: 'a\.extra' is a '[\w.]+', which no state dict needs") as caught:
        names({"state_dict": inner, "epoch": 1} if wrap else inner)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_stands_beside_it_is_only_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_pickle(pickled({"trap": Trap(), "own": Settings(), "list": [Trap()]}), file="f")
    assert isinstance(found, dict)
    assert isinstance(found["trap"], Opaque)
    assert type_name(found["own"]).endswith("Settings")
    assert isinstance(found["list"][0], Opaque)
    assert names({"state_dict": {"a": torch.ones(1)}, "trap": Trap()}) == ["a"]
    assert not list(tmp_path.iterdir())


# -- kinds of tensors -----------------------------------------------------------------------------------------


def test_subclasses_are_tensors(tmp_path: Path) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    tagged = weight.clone()
    tagged.note = "an attribute"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(weight.clone())
    noted = torch.nn.Parameter(weight.clone())
    noted.note = Settings()  # type: ignore[attr-defined]
    content = {
        "marked": weight.clone().as_subclass(Marked),
        "tagged": tagged,
        "parameter": parameter,
        "noted": noted,
        "own": MarkedParameter(weight.clone()),
        "buffer": torch.nn.Buffer(weight.clone()),
    }
    assert b"_rebuild_from_type_v2" in pickled(content)
    assert names(content) == list(content)
    for name in content:
        assert read(tmp_path / "run", content, name) == raw(weight)


def test_tensors_that_are_not_plain_are_named() -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(FormatError, match=r"'s' is a 'torch\._utils\._rebuild_sparse_tensor'"):
        names({"a": torch.ones(1), "s": sparse})


# -- prefixes -------------------------------------------------------------------------------------------------


def test_prefixes_are_left_out_of_a_name() -> None:
    known = ["module._orig_mod.lm_head.weight", "module._orig_mod.h.0.w", "head"]
    for pattern in ("lm_head.weight", "_orig_mod.lm_head.weight", "module._orig_mod.lm_head.weight", "*lm_head.weight"):
        assert select(known, [pattern], where="m") == [known[0]]
    with pytest.raises(UnknownNameError):
        select(known, ["mod.lm_head.weight"], where="m")
    assert list(prefixes_removed("a.b")) == []
    assert list(prefixes_removed("model.module.a")) == ["module.a", "a"]
    assert [*prefixes_removed("state_dict.model.a")][-1] == "a"
    assert [*prefixes_removed("model.model.embed.weight")][-1] == "embed.weight"


def test_the_name_itself_comes_first() -> None:
    known = ["model.a", "a", "module.a"]
    assert select(known, ["a"], where="m") == ["a"]
    assert select(["model.a", "module.a"], ["a"], where="m") == ["model.a", "module.a"]  # both, as a glob


# -- shards without an index ----------------------------------------------------------------------------------


def shards(folder: Path, **parts: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts.items():
        (folder / f"{name}.safetensors").write_bytes(safetensors.torch.save(tensors))
    return folder.parent


def test_plain_shards(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.arange(8.0).reshape(2, 4)
    place = shards(tmp_path / "m" / "step1", one={"a": a}, two={"b": b, "lm_head.weight": b + 1})
    assert pyd.tensor(place, "b", 1).tobytes() == raw(b)
    assert pyd.tensor(place, "unembedding", 1).tobytes() == raw(b + 1)
    with pytest.raises(UnknownNameError, match="no tensor 'c'"):
        pyd.tensor(place, "c", 1)
    torch.save({"a": a}, tmp_path / "m" / "step1" / "optimizer.pt")
    assert pyd.tensor(place, "a", 1).tobytes() == raw(a)


def test_plain_shards_of_torch(tmp_path: Path) -> None:
    a = torch.arange(6.0).reshape(2, 3)
    folder = tmp_path / "m" / "step1"
    folder.mkdir(parents=True)
    for number, name in enumerate("xy"):
        (folder / f"consolidated.0{number}.pth").write_bytes(torch_file({name: a + number}))
    assert pyd.tensor(tmp_path / "m", "y", 1).tobytes() == raw(a + 1)


def test_a_tensor_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    a = torch.ones(2, 2)
    place = shards(tmp_path / "m" / "step1", one={"a": a}, two={"a": a, "b": a + 1})
    with pytest.raises(CheckpointError, match=r"one\.safetensors and two\.safetensors both hold a; leave only"):
        pyd.tensor(place, "b", 1)


def test_a_later_step_may_have_more_shards(tmp_path: Path) -> None:
    """The shards of one step say nothing of the next: a glob must not miss the tensors of a new one."""
    a = torch.ones(2, 2)
    shards(tmp_path / "m" / "step1", one={"w.a": a}, two={"w.b": a})
    place = shards(tmp_path / "m" / "step2", one={"w.a": a}, two={"w.b": a}, zoo={"w.c": a})
    source, cache = LocalSource(place), LayoutCache()

    def found(step: int) -> list[str]:
        reader = RevisionReader(source, source.revisions()[step])
        with contextlib.closing(reader):
            return [request.tensor.name for request in reader.find(("w.*",), cache)]

    assert found(1) == ["w.a", "w.b"]
    assert found(2) == ["w.a", "w.b", "w.c"]
    assert found(1) == ["w.a", "w.b"]
    cache.tickets = iter(())
    assert found(1) == ["w.a", "w.b"]  # like the one before, where no list may be had
