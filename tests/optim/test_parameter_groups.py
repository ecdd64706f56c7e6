import pytest
import torch
from tests.optim.tiny_transformer import tiny_transformer
from torch import nn

from lmstack.optim.parameter_groups import parameter_groups


def by_name(module, **options):
    return {group["name"]: group for group in parameter_groups(module, lr=1.0, weight_decay=0.1, **options)}


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group(tied):
    transformer = tiny_transformer(tied=tied)
    grouped = [id(p) for group in by_name(transformer).values() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in transformer.parameters()}


def test_each_group_holds_what_its_name_says():
    groups = by_name(tiny_transformer(tied=False))
    assert list(groups) == ["hidden", "embeddings", "head", "vectors"]
    assert groups["embeddings"]["param_names"] == ["embedding.weight", "position_embedding.weight"]
    assert groups["head"]["param_names"] == ["head.weight"]
    assert all(name.startswith("blocks.") for name in groups["hidden"]["param_names"])
    assert all(p.ndim == 2 for p in groups["hidden"]["params"])
    assert all(p.ndim < 2 for p in groups["vectors"]["params"])
    assert {"head_bias", "final_norm.weight", "blocks.0.attention_norm.weight"} <= set(groups["vectors"]["param_names"])


def test_a_tied_head_is_an_embedding_and_there_once():
    groups = by_name(tiny_transformer(tied=True))
    assert "head" not in groups
    assert groups["embeddings"]["param_names"] == ["embedding.weight", "position_embedding.weight"]


@pytest.mark.parametrize("first", ["head", "table"])
def test_a_shared_matrix_is_an_embedding_whichever_owner_comes_first(first):
    table, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = table.weight
    owners = {"table": table, "head": head}
    module = nn.ModuleDict({first: owners.pop(first), **owners})
    groups = by_name(module)
    assert list(groups) == ["embeddings"]
    assert len(groups["embeddings"]["params"]) == 1


@pytest.mark.parametrize(("decay_embeddings", "embedding_decay"), [(False, 0.0), (True, 0.1)])
def test_matrices_decay_vectors_never_and_embeddings_as_asked(decay_embeddings, embedding_decay):
    groups = by_name(tiny_transformer(tied=False), decay_embeddings=decay_embeddings)
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay == {"hidden": 0.1, "head": 0.1, "embeddings": embedding_decay, "vectors": 0.0}


def test_only_hidden_matrices_get_the_multiplier():
    groups = by_name(tiny_transformer(tied=False), hidden_lr_multiplier=0.25)
    assert {name: group["lr"] for name, group in groups.items()} == {
        "hidden": 0.25,
        "head": 1.0,
        "embeddings": 1.0,
        "vectors": 1.0,
    }


def test_frozen_parameters_are_left_out():
    transformer = tiny_transformer()
    transformer.embedding.requires_grad_(False)
    groups = by_name(transformer)
    assert groups["embeddings"]["param_names"] == ["position_embedding.weight"]


def test_compiling_blocks_changes_no_group():
    transformer = tiny_transformer()
    plain = {name: len(group["params"]) for name, group in by_name(transformer).items()}
    for index, block in enumerate(transformer.blocks):
        transformer.blocks[index] = torch.compile(block, backend="eager")
    assert {name: len(group["params"]) for name, group in by_name(transformer).items()} == plain
