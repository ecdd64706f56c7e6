"""Weights folders and warm starts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmstack.models import load_transformer, load_weights_grown, save_weights
from lmstack.models.checkpoint import read_weights
from lmstack.models.config import Llama3Scaling, RotaryConfig
from tiny_transformer import config, tokens, transformer


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_comes_back_from_its_folder_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    model = transformer(tied_embeddings=tied, head_bias=True, positions=RotaryConfig(5e5, Llama3Scaling()))
    save_weights(tmp_path / "weights", model)
    again = load_transformer(tmp_path / "weights")
    assert again.config == model.config
    assert torch.equal(again.logits(again(tokens(2, 8))), model.logits(model(tokens(2, 8))))
    assert (again.head_weight is again.embedding.weight) == tied
    assert ("head.weight" in load_file(tmp_path / "weights" / "model.safetensors")) == (not tied)
    again(tokens(1, 4)).sum().backward()  # it can be trained
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_state_and_config_are_saved_as_a_transformer_is(tmp_path: Path) -> None:
    model = transformer()
    save_weights(tmp_path, (model.state_dict(), model.config))
    assert torch.equal(load_transformer(tmp_path)(tokens(1, 8)), model(tokens(1, 8)))
    assert json.loads((tmp_path / "config.json").read_text())["format"] == "lmstack"


def test_weights_are_cast_and_placed_as_asked(tmp_path: Path) -> None:
    save_weights(tmp_path, transformer())
    assert load_transformer(tmp_path, dtype=torch.bfloat16).embedding.weight.dtype == torch.bfloat16
    assert load_transformer(tmp_path).embedding.weight.dtype == torch.float32
    save_weights(tmp_path, transformer().bfloat16())
    assert load_transformer(tmp_path).embedding.weight.dtype == torch.bfloat16


def test_a_grown_vocabulary_keeps_old_rows_and_starts_new_ones_at_their_mean(tmp_path: Path) -> None:
    small = transformer(seed=1, vocab_size=20, tied_embeddings=False, head_bias=True)
    save_weights(tmp_path, small)
    for source in (tmp_path, small.state_dict()):
        big = transformer(seed=2, vocab_size=27, tied_embeddings=False, head_bias=True)
        load_weights_grown(big, source)
        ids = tokens(2, 8, vocab_size=20)
        with torch.no_grad():
            old, new = small.logits(small(ids)), big.logits(big(ids))
        torch.testing.assert_close(new[..., :20], old, rtol=0, atol=1e-6)
        torch.testing.assert_close(new[..., 20:], old.mean(-1, keepdim=True).expand(2, 8, 7), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            big.embedding.weight[20:], small.embedding.weight.mean(0).expand(7, 32), rtol=0, atol=1e-6
        )


def test_a_warm_start_of_the_same_shape_copies_everything() -> None:
    source, target = transformer(seed=1), transformer(seed=2)
    load_weights_grown(target, source.state_dict())
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert target.embedding.weight.data_ptr() != source.embedding.weight.data_ptr()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dim": 64}, r"embedding.weight: shape \(31, 64\) does not fit \(31, 32\)"),
        ({"vocab_size": 40}, "may grow, not shrink"),
        ({"num_layers": 3}, r"'blocks\.2.* has no place in the model"),
        ({"num_layers": 1}, r"'blocks\.1.* is missing"),
        ({"num_kv_heads": 4}, r"attention\.key\.weight: shape"),
        ({"head_bias": True}, "'head_bias' has no place"),
    ],
    ids=str,
)
def test_a_warm_start_refuses_any_other_difference_by_name(source: dict[str, int], message: str) -> None:
    target = transformer(seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights_grown(target, transformer(seed=1, **source).state_dict())
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_folder_without_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json and no whole checkpoint"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": "lmstack", "transformer": config().to_dict()}))
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load_transformer(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path, (transformer().state_dict(), config(num_layers=3)))
    with pytest.raises(ValueError, match="is missing"):
        load_transformer(tmp_path)


def test_config_and_state_are_read_together(tmp_path: Path) -> None:
    save_weights(tmp_path, transformer())
    state, shape = read_weights(tmp_path)
    assert shape == config()
    assert state.keys() == transformer().state_dict().keys()
