"""What is measured while a run goes on is what the analyses find in its store afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support import tiny_models
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPTNeoXForCausalLM

import pythia_dynamics as pyd
from pythia_dynamics.errors import CheckpointError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.cache import open_history
from pythia_dynamics.history.store import Store
from pythia_dynamics.measures.stationarity import motion
from pythia_dynamics.training.monitor import WeightMonitor, find_tensors

SMALL: dict[str, Any] = {"vocab_size": 40, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
STEPS = (0, 1, 2, 4, 8, 100, 200, 350, 500)


class Walk(torch.nn.Module):
    """A layer whose weights walk."""

    def __init__(self, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (90, 33)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = torch.nn.Linear(shape[1], shape[0], bias=True)
        self.other = torch.nn.Linear(3, 2)
        for parameter in self.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1 + 0.03).to(dtype)
        self.generator = generator

    def move(self, size: float = 0.02) -> None:
        for parameter in self.parameters():
            noise = torch.randn(parameter.shape, generator=self.generator) * size
            parameter.data = (parameter.data.double() + noise).to(parameter.dtype)


def recorded(path: Path, dtype: torch.dtype, spoilt: int | None = None, **options: Any) -> WeightMonitor:
    model = Walk(dtype)
    monitor = WeightMonitor(path, tensors="layer.weight", **options)
    for step in STEPS:
        whole = model.layer.weight.data.clone()
        if step == spoilt:
            model.layer.weight.data[3, 5] = float("nan")
        monitor.record(step, model)
        model.layer.weight.data = whole
        model.move()
    return monitor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spoilt", [None, 8])
def test_online_is_offline(tmp_path: Path, dtype: torch.dtype, spoilt: int | None) -> None:
    online = recorded(tmp_path / "run", dtype, spoilt).results()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = open_history(tmp_path / "run.zarr")
        msd, order, density = pyd.msd(history), pyd.order_parameter(history), pyd.density(history)
        two_time, moving = pyd.two_time(history), motion(history)
    assert history.dtype.name == str(dtype).removeprefix("torch.")
    expected = {name: msd[name] for name in ("msd", "msd_null", "displacement")}
    expected |= {name: order[name] for name in ("frobenius_norm", "order_parameter")}
    expected |= {name: density[name] for name in ("mean", "std", "skewness", "kurtosis", "bimodality", "nonfinite")}
    expected |= {"gram": two_time["gram"]} | {name: moving[name] for name in ("displacement_rate", "msd_null_sd")}
    for name, values in expected.items():
        scale = 1e-6 * float(np.nanmax(np.abs(values)))
        np.testing.assert_allclose(online[name], values, rtol=1e-6, atol=scale if name == "skewness" else 0)
    between = moving["squared_displacement"].to_numpy()
    np.testing.assert_allclose(online["squared_displacement"], between, rtol=1e-5, atol=1e-9 * np.nanmax(between))
    moved = online["moved"].to_numpy()
    assert np.nan_to_num(moved, nan=float(moving["moved"][0])).tolist() == pytest.approx(
        np.nan_to_num(moving["moved"].to_numpy(), nan=0.0).tolist(), rel=1e-6
    )
    kept = [step != spoilt for step in STEPS]
    cosine = two_time["cosine"].to_numpy()[np.ix_(kept, kept)]
    np.testing.assert_allclose(online["cosine_first"][kept][1:], cosine[1:, 0], rtol=1e-6)
    np.testing.assert_allclose(online["cosine_before"][kept][1:], np.diag(cosine, 1), rtol=1e-6)


def test_what_was_recorded_is_what_the_model_had(tmp_path: Path) -> None:
    model = Walk()
    monitor = WeightMonitor(tmp_path / "run.zarr", tensors=["*.weight"])
    seen = []
    for step in STEPS[:4]:
        latest = monitor.record(step, model)
        assert set(latest) == {"layer.weight", "other.weight"} == set(monitor.tensors)
        assert latest == monitor.latest
        seen.append(model.layer.weight.detach().clone().numpy())
        model.move()
    history = open_history(tmp_path / "run.zarr", "layer.weight")
    np.testing.assert_array_equal(history.weights[:], np.stack(seen))
    assert monitor.steps == STEPS[:4]
    assert monitor.results("other.weight").sizes["step"] == 4
    with pytest.raises(UnknownNameError, match=r"did you mean layer\.weight"):
        monitor.results("layer.wieght")
    assert monitor.seconds > 0


def test_a_monitor_goes_on_with_its_store(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "run", torch.float32, spoilt=4).results()
    again = WeightMonitor(tmp_path / "run", tensors="layer.weight")
    assert again.store.source == str((tmp_path / "run.zarr").absolute())
    assert again.steps == STEPS
    assert again.results().identical(whole)
    with pytest.raises(PythiaDynError, match="step 500 comes after step 500"):
        again.record(500, Walk())
    with pytest.raises(StoreError, match="holds the weights of"):
        _ = WeightMonitor(tmp_path / "run", source="elsewhere").store
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not a weight store"):
        _ = WeightMonitor(tmp_path / "other").store


def test_dropping_later_records(tmp_path: Path) -> None:
    model = Walk()
    states = []
    monitor = WeightMonitor(tmp_path / "run", tensors="layer.weight")
    for step in STEPS:
        monitor.record(step, model)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        model.move()
    undisturbed = monitor.results()
    monitor = WeightMonitor(tmp_path / "run", tensors="layer.weight")
    assert monitor.store
    monitor.drop_after(100)
    assert monitor.steps == STEPS[:6]
    assert open_history(tmp_path / "run.zarr").missing == dict.fromkeys(
        STEPS[6:], "dropped when training went on from step 100"
    )
    model.load_state_dict(states[5])
    assert monitor.matches(100, model)
    assert monitor.matches(77, model)
    model.move()
    assert not monitor.matches(100, model)
    for step, state in zip(STEPS[6:], states[6:], strict=True):
        model.load_state_dict(state)
        monitor.record(step, model)
    assert monitor.results().identical(undisturbed)
    assert open_history(tmp_path / "run.zarr").missing == {}


def test_without_the_gram_row_everything_else_is_the_same(tmp_path: Path) -> None:
    with_gram = recorded(tmp_path / "a", torch.float32).results()
    without = recorded(tmp_path / "b", torch.float32, with_gram=False).results()
    assert "gram" not in without
    assert "squared_displacement" not in without
    for name in without.data_vars:
        np.testing.assert_array_equal(without[name], with_gram[name])


def test_the_first_record_and_a_model_that_rests(tmp_path: Path) -> None:
    model = Walk()
    monitor = WeightMonitor(tmp_path / "run", tensors="layer.weight")
    for step in (0, 5, 9):
        monitor.record(step, model)
    result = monitor.results()
    assert np.isnan(result["displacement_rate"][0])
    assert result["displacement_rate"][1:].to_numpy().tolist() == [0, 0]
    assert result["displacement"].to_numpy().tolist() == [0, 0, 0]
    np.testing.assert_allclose(result["msd"], float(result["msd"][0]) * np.array([1, 4, 9]), rtol=1e-12)
    np.testing.assert_allclose(result["cosine_first"][1:], 1, rtol=1e-6)


def test_a_weight_of_one_dimension_and_of_one_value(tmp_path: Path) -> None:
    model = Walk(shape=(1, 7))
    model.layer.weight.data[:] = 0
    monitor = WeightMonitor(tmp_path / "run", tensors=["layer.weight", "layer.bias"])
    for step in (0, 1):
        latest = monitor.record(step, model)
    assert latest["layer.weight"]["order_parameter"] == 0
    assert np.isnan(latest["layer.weight"]["displacement_rate"])  # 0 / 0
    assert np.isnan(latest["layer.bias"]["msd"])  # one weight has no spread
    assert latest["layer.bias"]["frobenius_norm"] == pytest.approx(abs(float(model.layer.bias.detach())))


# -- which tensors --------------------------------------------------------------------------------------------


def test_the_head_is_found_under_its_name_in_files() -> None:
    neox = GPTNeoXForCausalLM(tiny_models.config())
    head = neox.get_output_embeddings().weight
    (found,) = find_tensors(neox).items()
    assert found[0] == "embed_out.weight"
    assert found[1] is head
    for name in ("embed_out.weight", "lm_head.weight", "embed_o*"):
        assert find_tensors(neox, [name])["embed_out.weight"] is head
    layers = find_tensors(neox, ["gpt_neox.layers.*.attention.dense.weight"])
    assert len(layers) == neox.config.num_hidden_layers
    with pytest.raises(UnknownNameError, match=r"no tensor 'embed_uot\.weight'"):
        find_tensors(neox, ["embed_uot.weight"])


def test_a_tied_head_is_recorded_as_the_head() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=20, n_positions=8))
    (found,) = find_tensors(model).items()
    assert found[0] == "lm_head.weight"
    assert found[1] is model.transformer.wte.weight
    assert find_tensors(model, ["transformer.wte.weight"])["transformer.wte.weight"] is found[1]


def test_the_store_knows_what_a_tensor_is_for(tmp_path: Path) -> None:
    names = ["transformer.wte.weight", "transformer.h.0.attn.c_proj.weight"]
    WeightMonitor(tmp_path / "tied.zarr", tensors=names).record(0, GPT2LMHeadModel(GPT2Config(**SMALL)))
    roles = {name: spec.roles for name, spec in Store.open(tmp_path / "tied.zarr").tensors.items()}
    assert roles == {names[0]: ("unembedding", "embedding"), names[1]: ()}
    assert open_history(tmp_path / "tied.zarr").tensor == names[0]
    untied = GPT2LMHeadModel(GPT2Config(**SMALL, tie_word_embeddings=False))
    WeightMonitor(tmp_path / "untied.zarr", tensors=[*names, "lm_head.weight"]).record(0, untied)
    assert open_history(tmp_path / "untied.zarr").tensor == "lm_head.weight"
    assert open_history(tmp_path / "untied.zarr", "embedding").tensor == names[0]
    WeightMonitor(tmp_path / "other.zarr", tensors="*.weight").record(0, Walk())
    with pytest.raises(CheckpointError, match="no tensor known to be its unembedding"):
        open_history(tmp_path / "other.zarr")


def test_wrappers_are_looked_through_and_other_models_say_what_to_do() -> None:
    neox = GPTNeoXForCausalLM(tiny_models.config())
    assert list(find_tensors(torch.nn.DataParallel(neox))) == ["embed_out.weight"]
    compiled = torch.nn.Module()  # what torch.compile makes, without its import of everything
    compiled._orig_mod = neox
    assert list(find_tensors(compiled)) == ["embed_out.weight"]
    with pytest.raises(
        CheckpointError, match=r"^Walk has no tensor known to be its unembedding; name one.*layer\.weight"
    ):
        find_tensors(Walk())


def test_roles_and_all_are_recorded_by_these_words() -> None:
    neox, tied = GPTNeoXForCausalLM(tiny_models.config()), GPT2LMHeadModel(GPT2Config(**SMALL))
    assert list(find_tensors(neox, ["embedding", "unembedding"])) == ["gpt_neox.embed_in.weight", "embed_out.weight"]
    assert list(find_tensors(tied, ["embedding"])) == ["transformer.wte.weight"]
    everything = find_tensors(neox, ["all"])
    assert {id(tensor) for tensor in everything.values()} == {id(tensor) for tensor in neox.parameters()}
    own = torch.nn.ModuleDict({"wte": torch.nn.Embedding(7, 3), "lm_head": torch.nn.Linear(3, 7)})  # as nanoGPT's
    assert list(find_tensors(own)) == ["lm_head.weight"]
    assert find_tensors(own, ["embedding"])["wte.weight"] is own["wte"].weight
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=40, **sizes))  # has input embeddings only
    assert list(find_tensors(encoder, ["embedding"])) == ["embeddings.word_embeddings.weight"]
    with pytest.raises(CheckpointError, match=r"^BertModel has no tensor known to be its unembedding"):
        find_tensors(encoder)


def test_tensors_that_cannot_be_recorded(tmp_path: Path) -> None:
    model = Walk()
    model.layer.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(StoreError, match="must be float16"):
        WeightMonitor(tmp_path / "a", tensors="layer.weight").record(0, model)
    model.layer.weight = torch.nn.Parameter(torch.zeros(0))
    with pytest.raises(PythiaDynError, match="sharded over processes"):
        WeightMonitor(tmp_path / "b", tensors="layer.weight").record(0, model)


def test_the_learning_rate_of_a_loop(tmp_path: Path) -> None:
    model = Walk()
    monitor = WeightMonitor(tmp_path / "run", tensors="layer.weight")
    monitor.record(0, model)
    assert "learning_rate" not in monitor.results().coords
    assert monitor.results().attrs["learning_rate"] == "not known"
    monitor.record(1, model, learning_rate=0.5)
    with pytest.raises(PythiaDynError, match="at step 2 is nan; it must be finite"):
        monitor.record(2, model, learning_rate=float("nan"))
    monitor.record(2, model, learning_rate=0.25)
    np.testing.assert_array_equal(monitor.results()["learning_rate"], [np.nan, 0.5, 0.25])
    np.testing.assert_array_equal(open_history(monitor.path).coordinates["learning_rate"], [np.nan, 0.5, 0.25])
