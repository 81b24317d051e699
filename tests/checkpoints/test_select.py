from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_dynamics.checkpoints.formats.slices import parse_index, select
from pythia_dynamics.checkpoints.roles import Role
from pythia_dynamics.errors import CheckpointError, FormatError, UnknownNameError

NAMES = [
    "embed_out.weight",
    "gpt_neox.embed_in.weight",
    *(f"gpt_neox.layers.{i}.attention.query_key_value.{kind}" for i in range(12) for kind in ("weight", "bias")),
]


def test_exact_names_and_globs_come_in_the_order_asked():
    found = select(NAMES, ["gpt_neox.layers.1?.*.weight", "embed_out.weight"], where="m")
    assert found == [
        "gpt_neox.layers.10.attention.query_key_value.weight",
        "gpt_neox.layers.11.attention.query_key_value.weight",
        "embed_out.weight",
    ]


def test_each_tensor_is_chosen_once():
    assert select(NAMES, ["embed_out.*", "embed_out.weight", "*embed_out*"], where="m") == ["embed_out.weight"]


def test_globs_are_case_sensitive():
    with pytest.raises(UnknownNameError, match=r"did you mean embed_out\.weight"):
        select(NAMES, ["EMBED_OUT.weight"], where="m")


def test_a_name_with_brackets_is_taken_literally_first():
    assert select(["a[0]", "a0"], ["a[0]"], where="m") == ["a[0]"]
    assert select(["a0"], ["a[0]"], where="m") == ["a0"]


def test_unknown_names_say_where_and_what_is_near():
    with pytest.raises(UnknownNameError, match=r"'embed_uot.weight' in step1000; did you mean embed_out.weight"):
        select(NAMES, ["embed_uot.weight"], where="step1000")


@pytest.mark.parametrize("head", ["embed_out.weight", "lm_head.weight"])
@pytest.mark.parametrize(
    "embedding", ["gpt_neox.embed_in.weight", "model.embed_tokens.weight", "transformer.wte.weight"]
)
def test_the_unembedding_of_another_name_is_offered(head, embedding):
    with pytest.raises(CheckpointError, match=f"^m has no {head}: its unembedding is {embedding}"):
        select([embedding, "x"], [head], where="m", roles={"unembedding": embedding})


def test_roles_and_all_are_names_too():
    roles: dict[Role, str] = {"unembedding": "b", "embedding": "a"}
    assert select(["a", "b", "c"], ["unembedding", "a"], where="m", roles=roles) == ["b", "a"]
    assert select(["a", "b", "c"], ["c", "all"], where="m") == ["c", "a", "b"]
    assert select(["a", "embedding"], ["embedding"], where="m", roles=roles) == ["embedding"]
    with pytest.raises(CheckpointError, match=r"no tensor known to be its unembedding; name one, .* \(it has a, b\)"):
        select(["a", "b"], ["unembedding"], where="m")


def test_an_absent_head_of_unknown_role_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        select(["x.weight"], ["embed_out.weight"], where="m")


def test_index_maps_tensors_to_shards():
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.bin", "b": "model-2.bin"}}
    assert parse_index(json.dumps(index).encode(), file="i") == {"a": "model-1.bin", "b": "model-2.bin"}


@pytest.mark.parametrize(
    "shard",
    [
        "../x.bin",
        "a/b.bin",
        "/etc/passwd",
        "a\\b",
        "..",
        ".",
        "",
        " . ",
        "C:x",
        "a\0b",
        "a\nb",
        "x" * 256,
        "\ud800",
        3,
        None,
        ["a"],
    ],
)
def test_shards_cannot_leave_the_directory(shard):
    with pytest.raises(FormatError, match="not a file name"):
        parse_index(json.dumps({"weight_map": {"a": shard}}).encode(), file="i")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "x", "a": "y"}}',
        b'{"weight_map"',
        b'{"weight_map": {"": "x"}}',
        b"<html></html>",
        b'{"a":' * 50_000,
    ],
)
def test_what_is_no_index_is_refused(text):
    with pytest.raises(FormatError):
        parse_index(text, file="i")


@settings(deadline=None, derandomize=True, max_examples=300, database=None)
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda b: b'{"weight_map":{"a":"' + b + b'"}}')))
def test_arbitrary_indexes_raise_nothing_else_and_stay_inside(text):
    try:
        shards = parse_index(text, file="i")
    except FormatError:
        return
    assert all(name not in (".", "..") and not set(name) & set("/\\\0:") for name in shards.values())
