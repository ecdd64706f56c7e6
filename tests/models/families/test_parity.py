"""Random transformers models and ours compute the same logits and gradients; mistakes make the comparison fail."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from lmstack.models import Transformer, load_transformer, save_hugging_face  # noqa: E402
from lmstack.models.families import from_hugging_face, to_hugging_face  # noqa: E402
from lmstack.nn import attention, positions  # noqa: E402

TOLERANCE = 1e-5
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # 16 channels a head
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "attn_implementation": "eager",
}
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 16,
    },
}


def llama(rope: str = "plain", **options: Any) -> Any:
    rope_parameters = {"rope_theta": 10000.0, **ROPES[rope]}
    config = transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **options}, rope_parameters=rope_parameters)
    return randomized(transformers.LlamaForCausalLM(config))


def gpt2(**options: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=64, n_embd=64, n_layer=2, n_head=4, initializer_range=0.15, **options
    )
    config._attn_implementation = "eager"
    return randomized(transformers.GPT2LMHeadModel(config))


def randomized(model: Any) -> Any:
    """Weights scaled up, gains and biases away from one and zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        std = 0.15 if parameter.ndim > 1 else 0.3
        parameter.data.normal_(1.0 if is_gain else 0.0, std, generator=generator)
    return model.eval()


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": llama,
    "llama, multi-head": lambda: llama(num_key_value_heads=4),
    "llama, multi-query": lambda: llama(num_key_value_heads=1),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, wide heads": lambda: llama(head_dim=32),
    "llama, linear": lambda: llama("linear"),
    "llama, llama3": lambda: llama("llama3"),
    "llama, yarn": lambda: llama("yarn"),
}


def ours_of(theirs: Any) -> Transformer:
    config, state = from_hugging_face(theirs.config.to_dict(), theirs.state_dict())
    model = Transformer(config)
    model.load_state_dict(state)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far our model is from theirs, at the same weights.

    Attributes:
        logits: Largest absolute difference.
        gradients: Largest absolute difference over every parameter that has a gradient in ours.
        relative: The same in units of the largest gradient.
    """

    logits: float
    gradients: float
    relative: float


def difference(theirs: Any, ours: Transformer) -> Difference:
    """Both models on the same tokens, with the gradients of the mean cross-entropy of random labels."""
    generator = torch.Generator().manual_seed(1)
    input_ids, labels = torch.randint(61, (2, 2, 48), generator=generator)
    logits = theirs(input_ids=input_ids).logits
    theirs.zero_grad()
    cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    own_logits = ours.logits(ours(input_ids))
    ours.zero_grad()
    cross_entropy(own_logits.flatten(0, 1), labels.flatten()).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    if theirs.config.tie_word_embeddings:
        expected["lm_head.weight"] = theirs.get_input_embeddings().weight.grad
    _, expected = from_hugging_face(theirs.config.to_dict(), expected)
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert own.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    # A part that a mutation left out has no gradient at all: the others must tell.
    errors = [float((own[name] - expected[name]).abs().max()) for name in own if own[name] is not None]
    return Difference(float((logits - own_logits).detach().abs().max()), max(errors), max(errors) / scale)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_equal_those_of_transformers(name: str) -> None:
    theirs = MODELS[name]()
    ours = ours_of(theirs)
    found = difference(theirs, ours)
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert found.logits <= TOLERANCE
    assert found.gradients <= TOLERANCE
    assert found.relative <= TOLERANCE


def no_rotation(monkeypatch: pytest.MonkeyPatch, ours: Transformer) -> None:
    monkeypatch.setattr(attention, "rotate", lambda x, _rotation: x)


def interleaved_pairing(monkeypatch: pytest.MonkeyPatch, ours: Transformer) -> None:
    def rotate(x: Tensor, rotation: positions.Rotation) -> Tensor:
        cos, sin = (table[..., : x.shape[-1] // 2].repeat_interleave(2, -1) for table in rotation)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    monkeypatch.setattr(attention, "rotate", rotate)


def swapped_query_and_key(monkeypatch: pytest.MonkeyPatch, ours: Transformer) -> None:
    for block in ours.blocks:
        part = block.attention
        part.query, part.key = part.key, part.query  # type: ignore[union-attr]


def dropped(*path: str) -> Callable[[pytest.MonkeyPatch, Transformer], None]:
    def mutate(monkeypatch: pytest.MonkeyPatch, ours: Transformer) -> None:
        owner = ours if len(path) == 1 else ours.blocks[1]
        monkeypatch.setattr(getattr(owner, path[-1]), "forward", lambda x: x)

    return mutate


MUTATIONS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch, Transformer], None]]] = {
    "rotation removed": ("llama, multi-head", no_rotation),
    "interleaved pairing": ("llama, multi-head", interleaved_pairing),
    "llama: query and key swapped": ("llama, multi-head", swapped_query_and_key),
    "gpt2: query and key swapped": ("gpt2", swapped_query_and_key),
    **{
        f"{family}: {path[-1]} dropped": (family, dropped(*path))
        for family in ("gpt2", "llama, multi-head")
        for path in (("blocks", "attention_norm"), ("blocks", "feed_forward_norm"), ("final_norm",))
    },
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_in_the_model_breaks_parity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mutate = MUTATIONS[name]
    theirs = MODELS[model]()
    ours = ours_of(theirs)
    mutate(monkeypatch, ours)
    found = difference(theirs, ours)
    assert found.logits > 1000 * TOLERANCE
    assert found.gradients > 100 * TOLERANCE
    assert found.relative > 1000 * TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_to_hugging_face_and_back_unchanged(name: str) -> None:
    ours = ours_of(MODELS[name]())
    config, state = from_hugging_face(*to_hugging_face(ours.config, ours.state_dict()))
    assert config == ours.config
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_we_write_and_we_load_what_it_writes(name: str, tmp_path: Any) -> None:
    theirs = MODELS[name]()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_transformer(tmp_path / "theirs").eval()
    save_hugging_face(tmp_path / "ours", ours)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    input_ids = torch.arange(24)[None] % 61
    with torch.no_grad():
        expected = theirs(input_ids=input_ids).logits
        torch.testing.assert_close(again.eval()(input_ids=input_ids).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.logits(ours(input_ids)), expected, rtol=0, atol=TOLERANCE)


def test_sharded_hugging_face_weights_are_read(tmp_path: Any) -> None:
    theirs = llama()
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load_transformer(tmp_path)
    assert torch.equal(ours.embedding.weight, theirs.model.embed_tokens.weight)


def test_what_hugging_face_cannot_say_is_refused_by_name() -> None:
    ours = ours_of(llama())
    config = dataclasses.replace(ours.config, parallel_residual=True)
    with pytest.raises(ValueError, match="llama needs no parallel_residual"):
        to_hugging_face(config, {})


def test_an_unknown_family_or_option_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="model_type='bert': must be one of gpt2, llama"):
        from_hugging_face({"model_type": "bert"}, {})
    values = llama().config.to_dict()
    values["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 1e4}
    with pytest.raises(ValueError, match="rope_type='longrope'"):
        from_hugging_face(values, {})
