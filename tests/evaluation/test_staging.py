"""Weights that are staged on a device, which stand-ins on the host represent, against a plain copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import suites
from support.checkpoints import torch_file
from support.queues import DeferredQueues, Fault, ImmediateQueues, Policy
from support.tiny_models import model as tiny
from support.tiny_models import write_checkpoint
from transformers import PreTrainedModel

from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError
from pythia_dynamics.evaluation import staging, weights
from pythia_dynamics.evaluation.model import build_model
from pythia_dynamics.evaluation.staging import CudaQueues, Queues, StagedWeights, WeightLoader, device_queues
from pythia_dynamics.evaluation.weights import Weights, load_weights

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
STEPS = (1, 2, 3, 4)
DIRECT = "direct"

State = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of which a tensor needs several, and that end inside of tensors."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4096)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suites")
    for step in STEPS:
        write_checkpoint(root / f"step{step}", tiny(step))
    return root


@pytest.fixture
def suite(checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "tiny"))


def built(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return build_model(directory, device=CPU, dtype=dtype)


def state_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: State, other: State) -> bool:
    views = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].view(views[one[name].itemsize]), other[name].view(views[one[name].itemsize]))
        for name in one
    )


def converted(state: State, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What `copy_` makes of a state."""
    return {name: torch.empty(tensor.shape, dtype=dtype).copy_(tensor) for name, tensor in state.items()}


def queues_for(way: str) -> Queues | None:
    if way == DIRECT:
        return None
    return ImmediateQueues() if way == "at once" else DeferredQueues("late")


def load(model: PreTrainedModel, directory: Path, way: str) -> None:
    """Load in one of the ways, of which the plain one is an oracle for the others."""
    queues = queues_for(way)
    if queues is None:
        load_weights(model, directory)
        return
    loader = WeightLoader(model, queues)
    before = state_of(model)
    prepared = loader.prepare(directory)
    assert isinstance(prepared, StagedWeights)
    assert same_bits(state_of(model), before)  # the model may be in use
    shutil.rmtree(directory)  # staged weights need no files
    loader.install(prepared)
    if isinstance(queues, DeferredQueues):
        queues.drain()


ways = pytest.mark.parametrize("way", [DIRECT, "at once", "deferred"])


# -- what is loaded -------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("in_model", DTYPES)
@pytest.mark.parametrize("in_file", [*DTYPES, torch.float64])
def test_every_dtype_is_converted_as_a_copy_converts(
    suite: Path, in_file: torch.dtype, in_model: torch.dtype, way: str
) -> None:
    directory = suite / "step1"
    exact = {name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()}
    # Numbers that are rounded, too small, too large and not finite in the narrower dtypes.
    special = torch.tensor([1 / 3, -1e-7, 6e-8, 1e-40, 70000.0, -1e38, torch.inf, torch.nan, -0.0, 2049.0, 4097.0])
    exact["embed_out.weight"][:11, 0] = special
    state = {name: tensor.to(in_file) for name, tensor in exact.items()}
    save_file(state, directory / "model.safetensors")
    model = built(directory, in_model)
    load(model, directory, way)
    expected = {"lm_head.weight" if name == "embed_out.weight" else name: tensor for name, tensor in state.items()}
    assert same_bits(state_of(model), converted(expected, in_model))


def shards(kind: suites.Kind, suffix: str) -> dict[str, bytes]:
    files = suites.files(kind, 1, shards=True)
    if suffix == "safetensors":
        return files
    made = {name: content for name, content in files.items() if "safetensors" not in name}
    parts = {name: content for name, content in files.items() if name.endswith(".safetensors")}
    for name, content in parts.items():
        stem = name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        made[stem] = torch_file(suites.state_of({name: content}))
    index = files["model.safetensors.index.json"].replace(b"model-", b"pytorch_model-")
    made["pytorch_model.bin.index.json"] = index.replace(b".safetensors", b".bin")
    return made


LAYOUTS: dict[str, tuple[suites.Kind, Callable[[], Mapping[str, bytes]]]] = {
    "safetensors": ("llama", lambda: suites.files("llama", 1)),
    "shards of safetensors": ("olmo2", lambda: shards("olmo2", "safetensors")),
    "torch": ("gpt-neox", lambda: suites.torch_checkpoint("gpt-neox", suites.state("gpt-neox", 1))),
    "shards of torch": ("gpt2", lambda: shards("gpt2", "bin")),
    "tied": ("llama-tied", lambda: suites.files("llama-tied", 1)),
    "wrapped": (
        "llama",
        lambda: suites.torch_checkpoint("llama", suites.prefixed(suites.state("llama", 1), "module.")),
    ),
    "pickle with objects": (
        "llama",
        lambda: suites.torch_checkpoint("llama", suites.lightning(suites.state("llama", 1), 1)),
    ),
    "nanoGPT": ("gpt2", lambda: suites.torch_checkpoint("gpt2", suites.nanogpt(1, 1))),
    "nanoGPT without biases": ("gpt2", lambda: suites.torch_checkpoint("gpt2", suites.nanogpt(1, 1, biases=False))),
    "views, and parameters that require gradients": (
        "gpt-neox",
        lambda: suites.torch_checkpoint(
            "gpt-neox",
            {
                name: torch.nn.Parameter(tensor.T.contiguous().T if tensor.dim() == 2 else tensor)
                for name, tensor in suites.state("gpt-neox", 1).items()
            },
        ),
    ),
}


@ways
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_file(tmp_path: Path, layout: str, way: str) -> None:
    kind, files = LAYOUTS[layout]
    directory = suites.write(tmp_path / "step1", files())
    model = built(directory)
    state = suites.state(kind, 1)
    if layout == "nanoGPT without biases":
        state = {name: torch.zeros_like(t) if name.endswith(".bias") else t for name, t in state.items()}
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load(model, directory, way)
    assert same_bits(state_of(model), converted(state, torch.float32))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == addresses


@ways
def test_of_two_tensors_for_one_parameter_the_later_counts(tmp_path: Path, way: str) -> None:
    directory = suites.write(tmp_path / "step1", suites.files("llama-tied", 1))
    state = load_file(directory / "model.safetensors")
    head = torch.full_like(state["model.embed_tokens.weight"], 2.0)
    (directory / "model.safetensors").unlink()
    torch.save({**state, "lm_head.weight": head}, directory / "pytorch_model.bin")
    model = built(directory)
    load(model, directory, way)
    assert bool((model.get_input_embeddings().weight == 2).all())


# -- what cannot be loaded ------------------------------------------------------------------------------------


def damage(directory: Path, **changes: torch.Tensor | None) -> None:
    state = {**load_file(directory / "model.safetensors"), **{k.replace("__", "."): v for k, v in changes.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, directory / "model.safetensors")


@pytest.mark.parametrize("way", [DIRECT, "at once"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpt_neox__final_layer_norm__bias": None}, "lacks 1 weights: gpt_neox.final_layer_norm.bias"),
        ({"gpt_neox__final_layer_norm__bias": torch.zeros(3)}, r"shape \(3,\), not \(32,\) as its config.json says"),
        ({"gpt_neox__final_layer_norm__bias": torch.zeros(32, dtype=torch.int8)}, "is torch.int8; only floats"),
        ({"gpt_neox__zzz": torch.zeros(3)}, "holds gpt_neox.zzz, which the model"),
    ],
)
def test_a_checkpoint_that_does_not_fit_leaves_the_model_as_it_is(
    suite: Path, changes: Mapping[str, torch.Tensor | None], message: str, way: str
) -> None:
    model = built(suite / "step1")
    load_weights(model, suite / "step1")
    before = state_of(model)
    damage(suite / "step2", **changes)
    with pytest.raises(PythiaDynError, match=message):
        load(model, suite / "step2", way)
    assert same_bits(state_of(model), before)


@pytest.mark.parametrize("way", [DIRECT, "at once"])
def test_an_error_in_the_last_shard_or_while_reading_leaves_the_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    directory = suites.write(tmp_path / "step1", shards("llama", "safetensors"))
    model = built(directory)
    before = state_of(model)
    last = max(directory.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-7])
    with pytest.raises(FormatError, match=f"cannot read .*{last.name}"):
        load(model, directory, way)
    assert same_bits(state_of(model), before)

    _, files = LAYOUTS["pickle with objects"]
    directory = suites.write(tmp_path / "step2", files())
    read, calls = weights._read, 0

    def fail(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise FormatError("damaged")
        return read(*arguments)

    monkeypatch.setattr(weights, "_read", fail)
    with pytest.raises(FormatError, match="damaged"):
        load(model, directory, way)
    assert same_bits(state_of(model), before)


# -- queues ---------------------------------------------------------------------------------------------------

PREPARE_EARLY = (True, False)
"""Whether the next checkpoint is staged before the evaluation of the current one is submitted, or after."""


def wrong_steps(suite: Path, queues: DeferredQueues, *, early: bool) -> list[int]:
    """The steps that would be evaluated with other weights than theirs."""
    model = built(suite / "step1")
    loader = WeightLoader(model, queues)
    seen: list[dict[str, torch.Tensor]] = []
    prepared: Weights | StagedWeights = loader.prepare(suite / "step1")
    for step in STEPS:
        loader.install(prepared)
        following = suite / f"step{step + 1}"
        if early and step < STEPS[-1]:
            prepared = loader.prepare(following)
        for _ in range(2):  # the modes
            queues.submit("compute", lambda: seen.append(state_of(model)))
        if not early and step < STEPS[-1]:
            prepared = loader.prepare(following)
    queues.drain()
    expected = [state for step in STEPS for state in [plain_state(suite / f"step{step}")] * 2]
    return [i // 2 + 1 for i, (got, right) in enumerate(zip(seen, expected, strict=True)) if not same_bits(got, right)]


def plain_state(directory: Path) -> dict[str, torch.Tensor]:
    state = converted(load_file(directory / "model.safetensors"), torch.float32)
    return {"lm_head.weight" if name == "embed_out.weight" else name: tensor for name, tensor in state.items()}


POLICIES: list[tuple[Policy, int]] = [
    *[(policy, 0) for policy in get_args(Policy) if policy != "random"],
    *[("random", seed) for seed in range(8)],
]


@pytest.mark.parametrize("early", PREPARE_EARLY)
def test_every_order_that_the_events_allow_evaluates_the_right_weights(checkpoints: Path, early: bool) -> None:
    for policy, seed in POLICIES:
        queues = DeferredQueues(policy, seed)
        assert wrong_steps(checkpoints, queues, early=early) == [], (policy, seed)
        assert len(queues.allocated) == 1  # the staging memory serves every checkpoint


@pytest.mark.parametrize("fault", get_args(Fault))
def test_without_one_of_the_waits_some_order_evaluates_wrong_weights(checkpoints: Path, fault: Fault) -> None:
    assert any(
        wrong_steps(checkpoints, DeferredQueues(policy, seed, fault), early=early)
        for policy, seed in POLICIES
        for early in PREPARE_EARLY
    )


def test_weights_that_are_not_installed_and_readings_that_are_stopped_do_no_harm(suite: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after(count: int) -> Callable[[], None]:
        left = iter(range(count))

        def check() -> None:
            if next(left, None) is None:
                raise Stop

        return check

    for policy, seed in POLICIES:
        queues = DeferredQueues(policy, seed)
        model = built(suite / "step1")
        loader = WeightLoader(model, queues)
        first = loader.prepare(suite / "step1")
        loader.install(first)
        loader.prepare(suite / "step2")
        with pytest.raises(Stop):
            loader.prepare(suite / "step3", stop_after(5))
        with pytest.raises(AssertionError, match="another checkpoint"):
            loader.install(first)
        loader.install(loader.prepare(suite / "step4"))
        loader.close()
        assert same_bits(state_of(model), plain_state(suite / "step4")), (policy, seed)


def test_a_larger_checkpoint_has_larger_staging_memory(suite: Path) -> None:
    damage(suite / "step2", **{n: t.float() for n, t in load_file(suite / "step2" / "model.safetensors").items()})
    queues = DeferredQueues("late")
    model = built(suite / "step1")
    loader = WeightLoader(model, queues)
    for step in (1, 2, 3):
        loader.install(loader.prepare(suite / f"step{step}"))
    queues.drain()
    small, large = queues.allocated
    assert large > 1.9 * small
    assert same_bits(state_of(model), plain_state(suite / "step3"))


class LittleMemory(ImmediateQueues):
    """A device that runs out of memory while weights are staged."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0

    def device_buffer(self, size: int) -> torch.Tensor:
        self.asked += 1
        raise self.error


def test_without_memory_for_staging_weights_are_loaded_directly(suite: Path) -> None:
    model = built(suite / "step1")
    queues = LittleMemory(torch.OutOfMemoryError("CUDA out of memory"))
    loader = WeightLoader(model, queues)
    for step in STEPS:
        prepared = loader.prepare(suite / f"step{step}")
        assert isinstance(prepared, Weights)
        loader.install(prepared)
        assert same_bits(state_of(model), plain_state(suite / f"step{step}"))
    assert queues.asked == 1
    with pytest.raises(RuntimeError, match="illegal"):
        WeightLoader(model, LittleMemory(RuntimeError("illegal access"))).prepare(suite / "step1")


def test_the_model_and_the_staging_memory_leave_half_of_the_device(suite: Path) -> None:
    model = built(suite / "step1")
    held = sum(parameter.nbytes for parameter in model.parameters())
    with pytest.raises(CheckpointError):  # it is checked in any case
        WeightLoader(model, DeferredQueues(capacity=0)).prepare(suite)
    assert isinstance(WeightLoader(model, DeferredQueues(capacity=3 * held - 2)).prepare(suite / "step1"), Weights)
    staged = WeightLoader(model, DeferredQueues(capacity=4 * held)).prepare(suite / "step1")
    assert isinstance(staged, StagedWeights)


# -- CUDA -----------------------------------------------------------------------------------------------------


def test_what_the_queues_of_cuda_ask_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[Any, ...]] = []

    class Stream:
        def __init__(self, device: torch.device | str) -> None:
            self.device = device

        def wait_event(self, event: object) -> None:
            log.append(("wait", self.device, event))

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self, stream: Stream) -> None:
            log.append(("record", stream.device, self))

        def synchronize(self) -> None:
            log.append(("synchronize", self))

    class Context:
        def __init__(self, what: Any) -> None:
            self.what = what

        def __enter__(self) -> None:
            log.append(("enter", getattr(self.what, "device", self.what)))

        def __exit__(self, *error: object) -> None:
            log.append(("exit",))

    def empty(size: int, **options: Any) -> None:
        log.append(("empty", size, options))

    device, own = torch.device("cuda", 1), Stream("own")
    assert device_queues(CPU) is device_queues(torch.device("mps")) is None
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", Context)
    monkeypatch.setattr(torch.cuda, "device", Context)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: own if where == device else None)
    monkeypatch.setattr(torch, "empty", empty)
    queues = device_queues(device)
    assert isinstance(queues, CudaQueues)
    queues.host_buffer(8)
    queues.device_buffer(9)
    queues.submit("upload", lambda: log.append(("work",)))
    event = queues.record("upload")
    queues.wait("compute", event)
    queues.submit("compute", lambda: log.append(("work",)))
    done = queues.record("compute")
    queues.synchronize(done)
    uint8 = torch.uint8
    assert log == [
        *(("enter", device), ("empty", 8, {"dtype": uint8, "pin_memory": True}), ("exit",)),
        *(("enter", device), ("empty", 9, {"dtype": uint8, "device": device}), ("exit",)),
        *(("enter", device), ("work",), ("exit",), ("record", device, event)),
        *(("wait", "own", event), ("enter", "own"), ("work",), ("exit",), ("record", "own", done)),
        ("synchronize", done),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_staged_weights_on_a_cuda_device(suite: Path) -> None:
    device = torch.device("cuda", 0)
    model = build_model(suite / "step1", device=device, dtype=torch.float32)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    loader = WeightLoader(model, device_queues(device))
    for step in STEPS * 5:
        prepared = loader.prepare(suite / f"step{step}")
        assert isinstance(prepared, StagedWeights)
        loader.install(prepared)
        assert same_bits({n: t.cpu() for n, t in model.state_dict().items()}, plain_state(suite / f"step{step}"))
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
