"""`pyd.tensor`: one tensor of one checkpoint, equal to what the libraries read, at the cost of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkpoints import HEAD, LAYOUTS, checkpoint, raw, state, torch_file
from support.hubserver import HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.errors import CheckpointError, FormatError, IntegrityError, PythiaDynError, UnknownNameError

REPO = "org/model"
EMBEDDING = "gpt_neox.embed_in.weight"
NORM = "gpt_neox.final_layer_norm.weight"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHIA_DYN_CACHE", raising=False)


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def one_line(call: Callable[[], object], error: type[PythiaDynError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- equal to what the libraries read -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_to_name_a_revision(hub: HubServer, layout: str) -> None:
    hub.add(REPO, {f"step{step}": checkpoint(state(step), layout) for step in (1, 2)})
    hub.tag(REPO, {"v3": checkpoint(state(3), layout)})
    commit = hub.commit(REPO, "main", checkpoint(state(4), layout))
    for revision, step in ((2, 2), ("step1", 1), ("v3", 3), (commit, 4), ("main", 4)):
        for name in (HEAD, EMBEDDING, NORM):
            found = pyd.tensor(REPO, name, revision)
            np.testing.assert_array_equal(found, state(step)[name].numpy())
            assert found.dtype == np.float16
    assert pyd.tensor(REPO).tobytes() == raw(state(4)[HEAD])  # the unembedding of the main branch
    assert pyd.tensor(REPO, "embedding", np.int64(2)).tobytes() == raw(state(2)[EMBEDDING])  # type: ignore[arg-type]
    assert pyd.tensor(REPO, "*embed_in*", "step1").tobytes() == raw(state(1)[EMBEDDING])
    assert not Path("cache").exists()


def test_as_safetensors_and_torch_read_it(tmp_path: Path) -> None:
    tensors = state(7, dtype=torch.float32)
    write(tmp_path / "m" / "step7", checkpoint(tensors))
    write(tmp_path / "m" / "step8", checkpoint(tensors, "torch"))
    by_safetensors = safetensors.torch.load_file(tmp_path / "m/step7/model.safetensors")
    by_torch = torch.load(tmp_path / "m/step8/pytorch_model.bin", weights_only=True)
    for name in (HEAD, NORM):
        np.testing.assert_array_equal(pyd.tensor(tmp_path / "m", name, 7), by_safetensors[name].numpy())
        np.testing.assert_array_equal(pyd.tensor(tmp_path / "m", name, "step8"), by_torch[name].numpy())


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5), (4,), (), (2, 3, 2), (0, 3)])
def test_every_dtype_and_shape(tmp_path: Path, layout: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    write(tmp_path / "m" / "step1", checkpoint({"w": tensor, "other": torch.ones(2)}, layout))
    found = pyd.tensor(tmp_path / "m", "w", 1)
    assert found.shape == shape
    assert found.dtype.name == str(dtype).removeprefix("torch.")
    assert found.tobytes() == raw(tensor)
    found[...] = 0  # the caller's own


def test_a_file_of_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "out", {f"ckpt_{step}.pt": torch_file({"model": state(step)}) for step in (10, 20)})
    for revision in (10, "ckpt_10.pt"):
        assert pyd.tensor(tmp_path / "out", HEAD, revision).tobytes() == raw(state(10)[HEAD])
    write(tmp_path / "out" / "more", {"best.pt": torch_file(state(5))})
    assert pyd.tensor(tmp_path / "out", HEAD, "more/best.pt").tobytes() == raw(state(5)[HEAD])
    assert pyd.tensor(str(tmp_path / "out"), revision="more").tobytes() == raw(state(5)[HEAD])


def test_sources_and_suites(hub: HubServer, tmp_path: Path) -> None:
    place = write(tmp_path / "runs" / "r-3", checkpoint(state(3))).parent
    suite = {"pattern": r"^r-(\d+)$", "embedding": HEAD}
    assert pyd.tensor(place, HEAD, 3, suite=suite).tobytes() == raw(state(3)[HEAD])
    assert pyd.tensor(place, "embedding", 3, suite=suite).tobytes() == raw(state(3)[HEAD])
    assert pyd.tensor("70m", HEAD, "r-3", source=place).tobytes() == raw(state(3)[HEAD])
    assert pyd.tensor("70m", HEAD, "r-3", source=LocalSource(place)).tobytes() == raw(state(3)[HEAD])
    hub.add("EleutherAI/pythia-70m-deduped", {"step3": checkpoint(state(3))})
    assert pyd.tensor("70m", revision=3).tobytes() == raw(state(3)[HEAD])


# -- at the cost of its bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [HEAD, EMBEDDING])
def test_nothing_else_is_read(hub: HubServer, layout: str, name: str) -> None:
    tensors = state(1, vocab=20_000, d_model=64, layers=4)
    hub.add(REPO, {"step1": checkpoint(tensors, layout)})
    found = pyd.tensor(REPO, name, "step1")
    size = len(raw(tensors[name]))
    assert found.nbytes == size
    assert size <= hub.sent <= size + 150 * 1024  # headers, index and config: the first reads are guesses
    assert hub.count("api") <= 2


def test_a_glob_is_refused_before_anything_is_read(hub: HubServer) -> None:
    tensors = state(1, vocab=40_000, d_model=64)
    hub.add(REPO, {"step1": checkpoint(tensors)})
    message = f"'gpt_neox.*' matches several tensors, {EMBEDDING} and gpt_neox.*; name one"
    one_line(lambda: pyd.tensor(REPO, "gpt_neox.*", 1), PythiaDynError, message.replace("*'", r"\*'"))
    one_line(lambda: pyd.tensor(REPO, "all", 1), PythiaDynError, "matches several tensors")
    assert hub.sent < len(raw(tensors[EMBEDDING]))


# -- errors ---------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"step10": checkpoint(state(1)), "main": {"README.md": b""}})
    place = write(tmp_path / "runs" / "step10", checkpoint(state(1))).parent
    for model in (REPO, str(place)):
        read = partial(pyd.tensor, model)
        one_line(partial(read, HEAD, 11), UnknownNameError, f"no step 11 in {model}; did you mean 10")
        one_line(partial(read, HEAD, "stp10"), UnknownNameError, "no revision 'stp10' in .* mean step10")
        one_line(partial(read, "embed_uot.weight", 10), UnknownNameError, f"did you mean {HEAD}")
    one_line(lambda: pyd.tensor(place), UnknownNameError, "no revision 'main'")
    one_line(lambda: pyd.tensor(REPO), CheckpointError, "main holds no weights")
    one_line(lambda: pyd.tensor("70n"), UnknownNameError, "did you mean 70m")
    one_line(lambda: pyd.tensor("70m", source="registry"), PythiaDynError, "the registry has no weights")
    one_line(lambda: pyd.tensor(place, HEAD, "../x"), FormatError, "not a path inside")
    one_line(lambda: pyd.tensor(place, HEAD, 10, suite={"patern": ""}), UnknownNameError, "did you mean pattern")


def test_a_tensor_that_cannot_be_stored(tmp_path: Path) -> None:
    mask = "gpt_neox.layers.0.attention.bias"
    write(tmp_path / "m" / "step1", checkpoint(state(1)))
    one_line(lambda: pyd.tensor(tmp_path / "m", mask, 1), FormatError, "is bool; only .* choose another tensor")
    write(tmp_path / "m" / "step2", checkpoint({"w": torch.ones(2, dtype=torch.float64)}))
    one_line(lambda: pyd.tensor(tmp_path / "m", "w", 2), FormatError, "is float64; only")


@pytest.mark.parametrize("where", ["hub", "directory"])
def test_a_corrupted_torch_file(hub: HubServer, tmp_path: Path, where: str) -> None:
    files = checkpoint(state(1), "torch")
    content = files["pytorch_model.bin"]
    at = content.index(raw(state(1)[HEAD])) + 100
    files["pytorch_model.bin"] = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    if where == "hub":
        hub.add(REPO, {"step1": files})
    model = REPO if where == "hub" else str(write(tmp_path / "m" / "step1", files).parent)
    one_line(
        lambda: pyd.tensor(model, HEAD, 1), IntegrityError, r"embed_out\.weight of step1 fails the checksum of pytorch"
    )
    assert pyd.tensor(model, EMBEDDING, 1).tobytes() == raw(state(1)[EMBEDDING])  # the others are whole


def test_a_tensor_that_fails_once_is_read_again(hub: HubServer) -> None:
    """The second answer counts: what arrives broken once is not an error."""
    files = checkpoint(state(1), "torch")
    hub.add(REPO, {"step1": files})
    broken = bytearray(files["pytorch_model.bin"])
    broken[files["pytorch_model.bin"].index(raw(state(1)[HEAD]))] ^= 1

    class Flaky(HubSource):
        reads = 0

        def read(self, revision, file, start=0, stop=None):
            stream = super().read(revision, file, start, stop)
            if file.endswith(".bin"):
                type(self).reads += 1
                if type(self).reads <= 4:
                    content = bytes(broken[stream.start : stream.stop])
                    stream._chunks.close()
                    stream._chunks = (part for part in [content])
            return stream

    source = Flaky(REPO, policy=RetryPolicy(first_wait=0.001))
    assert pyd.tensor(REPO, HEAD, 1, source=source).tobytes() == raw(state(1)[HEAD])
    assert Flaky.reads > 4
