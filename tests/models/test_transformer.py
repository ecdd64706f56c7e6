"""The transformer's promises: who influences whom, every variant, caches, recomputation, initial weights."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmstack.models import Transformer
from lmstack.models.config import (
    AlibiConfig,
    AttentionConfig,
    DenseConfig,
    DepthScaledInit,
    GaussianInit,
    LearnedConfig,
    MuPInit,
    NoPositionsConfig,
    NormConfig,
    RotaryConfig,
    TFixupInit,
    TransformerConfig,
)
from lmstack.nn.kv_cache import KVCache
from tiny_transformer import config, gradients, tokens, transformer

POSITIONS = [RotaryConfig(), LearnedConfig(), AlibiConfig(), NoPositionsConfig()]
VARIANTS: dict[str, dict[str, Any]] = {
    **{positions.kind: {"positions": positions} for positions in POSITIONS},
    "window": {"attention": AttentionConfig(window=3)},
    "window, every second layer full": {"attention": AttentionConfig(window=3, full_every=2)},
    "soft-cap": {"attention": AttentionConfig(softcap=2.0), "logit_softcap": 3.0},
    "alibi, window, soft-cap": {"positions": AlibiConfig(), "attention": AttentionConfig(window=4, softcap=2.0)},
    "query-key norm, biases": {"attention": AttentionConfig(qk_norm=True, qkv_bias=True, out_bias=True)},
    "post-norm": {"norm": NormConfig(placement="post")},
    "sandwich": {"norm": NormConfig(placement="sandwich")},
    "parallel": {"parallel_residual": True},
    "layer norm, embedding norm and scale": {
        "norm": NormConfig(kind="layer", bias=True),
        "embedding_norm": True,
        "embedding_scale": True,
    },
    "untied, head bias": {"tied_embeddings": False, "head_bias": True},
    "multi-query": {"num_kv_heads": 1},
    "muP": {"initialization": MuPInit(base_dim=16, base_head_dim=4, std=0.3)},
}
CAUSAL = pytest.mark.parametrize("variant", VARIANTS)
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 8 + [2] * 3, [4] * 9 + [7] * 6 + [-1]])


@CAUSAL
def test_a_token_is_not_influenced_by_later_ones(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    ids = tokens(2, 12)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 31
    with torch.no_grad():
        before, after = model.logits(model(ids)), model.logits(model(changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_without_causality_a_token_is_influenced_by_later_ones() -> None:
    model = transformer(causal=False)
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 31
    assert not torch.equal(model(ids)[:, 0], model(changed)[:, 0])


@CAUSAL
def test_a_document_and_its_gradients_are_not_influenced_by_another_in_its_row(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    second = DOCUMENTS.eq(torch.tensor([[1], [7]]))

    def outcome(ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the second documents, and what their loss does to the residual stream at their tokens."""
        embedded = model.embedding(ids).detach().requires_grad_()
        hook = model.embedding.register_forward_hook(lambda *_: embedded)
        logits = model.logits(model(ids, document_ids=DOCUMENTS))[second]
        hook.remove()
        logits.square().sum().backward()
        assert embedded.grad is not None
        assert not embedded.grad[~second].any()
        return logits.detach(), embedded.grad[second]

    ids = tokens(2, 16)
    changed = torch.where(second, ids, (ids + 1) % 31)
    for one, other in zip(outcome(ids), outcome(changed), strict=True):
        assert torch.equal(one, other)


@CAUSAL
def test_packed_documents_are_computed_as_they_are_alone(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    ids = tokens(2, 16)
    with torch.no_grad():
        packed = model.logits(model(ids, document_ids=DOCUMENTS))
        given = torch.tensor([[*range(5), *range(8), *range(3)], [*range(9), *range(6), 0]])
        assert torch.equal(packed, model.logits(model(ids, document_ids=DOCUMENTS, position_ids=given)))
        for row, start, end in ((0, 0, 5), (0, 5, 13), (0, 13, 16), (1, 0, 9), (1, 9, 15)):
            alone = model.logits(model(ids[row : row + 1, start:end]))
            torch.testing.assert_close(packed[row, start:end], alone[0], rtol=0, atol=1e-4)


def test_positions_that_run_on_over_documents_change_the_result() -> None:
    model = transformer(positions=LearnedConfig())
    ids, running = tokens(2, 16), torch.arange(16).expand(2, 16)
    reset = model(ids, document_ids=DOCUMENTS)
    assert not torch.allclose(reset, model(ids, document_ids=DOCUMENTS, position_ids=running), atol=1e-2)


@CAUSAL
def test_prefill_and_decoding_with_a_cache_equal_a_full_forward(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    ids = tokens(2, 12)
    with torch.no_grad():
        full = model(ids)
        cache = KVCache(model.config, 2, 20)
        parts, done = [], 0
        for length in (5, 1, 1, 3, 1, 1):
            cache.extent = done + length
            parts.append(model(ids[:, done : done + length], cache=cache))
            done += length
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-4)


@CAUSAL
def test_ragged_rows_decode_as_each_alone_and_rows_may_leave(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    lengths, steps = [3, 7, 5], 4
    rows = [tokens(1, length + steps, seed=length) for length in lengths]
    with torch.no_grad():
        alone = [model(row)[0] for row in rows]
        cache = KVCache(model.config, 3, 16)
        prompts = torch.stack(
            [nn.functional.pad(r[0, :n], (0, 7 - n), value=9) for r, n in zip(rows, lengths, strict=True)]
        )
        cache.extent = 7
        prefill = model(prompts, position_ids=torch.arange(7).expand(3, 7), cache=cache)
        for row, n in enumerate(lengths):
            torch.testing.assert_close(prefill[row, :n], alone[row][:n], rtol=0, atol=1e-4)
        live = [0, 1, 2]
        for step in range(steps):
            if step == 2:
                live = [0, 2]
                cache.select(torch.tensor(live))
            ends = [lengths[row] + step for row in live]
            cache.extent = max(ends) + 1
            inputs = torch.stack([rows[row][0, end : end + 1] for row, end in zip(live, ends, strict=True)])
            hidden = model(inputs, position_ids=torch.tensor(ends)[:, None], cache=cache)
            for place, (row, end) in enumerate(zip(live, ends, strict=True)):
                torch.testing.assert_close(hidden[place, 0], alone[row][end], rtol=0, atol=1e-4)


def test_a_layer_without_a_window_sees_further_than_one_with() -> None:
    """With window 3, two layers reach 4 tokens back; a full second layer reaches everything."""
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 31
    for attention, reach in ((AttentionConfig(window=3), 4), (AttentionConfig(window=3, full_every=2), 11)):
        model = transformer(attention=attention)
        with torch.no_grad():
            is_changed = (model(ids) != model(changed)).any(-1)[0]
        assert is_changed[: reach + 1].all()
        assert not is_changed[reach + 1 :].any()


@pytest.mark.parametrize(
    ("placement", "parallel"), [("pre", False), ("pre", True), ("post", False), ("sandwich", False), ("sandwich", True)]
)
def test_a_block_is_its_equation(placement: Any, parallel: bool) -> None:
    model = transformer(num_layers=1, norm=NormConfig(placement=placement), parallel_residual=parallel)
    ids = tokens(2, 6)
    captured: dict[str, Any] = {}
    model.blocks[0].attention.register_forward_pre_hook(lambda _m, args: captured.update(rest=args[1:]))  # type: ignore[union-attr]
    with torch.no_grad():
        actual = model(ids)
        block: Any = model.blocks[0]
        x = model.embedding(ids)

        def attention(y: Tensor) -> Tensor:
            return block.attention(y, *captured["rest"])

        n1, n2, ff = block.attention_norm, block.feed_forward_norm, block.feed_forward
        o1, o2 = block.attention_output_norm, block.feed_forward_output_norm
        if placement == "post":
            x = n1(x + attention(x))
            expected = n2(x + ff(x))
        elif parallel:
            expected = model.final_norm(x + o1(attention(n1(x))) + o2(ff(n1(x))))
        else:
            x = x + o1(attention(n1(x)))
            expected = model.final_norm(x + o2(ff(n2(x))))
    assert isinstance(o1, nn.Identity) == (placement != "sandwich")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_dropout_acts_in_training_and_keeps_the_expectation() -> None:
    model = transformer(dropout=0.5, num_layers=1)
    plain = transformer(num_layers=1)
    ids = tokens(1, 4)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), plain(ids))
        torch.manual_seed(0)
        embedded = torch.stack([model.train()._embed(ids, slice(0, 4)) for _ in range(2000)])
        # Each element is 0 or twice its value: the mean of 2,000 is within 5 standard errors.
        bound = 5 / math.sqrt(2000) * plain.embedding(ids).abs() + 1e-6
        assert ((embedded.mean(0) - plain.embedding(ids)).abs() <= bound).all()
        assert not torch.equal(model(ids), model(ids))


def test_dropout_of_zero_changes_nothing_in_training() -> None:
    model = transformer()
    ids = tokens(1, 8)
    assert torch.equal(model.train()(ids), model.eval()(ids))


CHANGES: dict[str, Callable[[Transformer], Transformer]] = {
    "as built": lambda model: model,
    "cast": lambda model: model.to(torch.bfloat16),
    "copied": copy.deepcopy,
    "loaded": lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict())), model)[1],
    "assigned": lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True), model)[1],
    "to_empty": lambda model: (model.to_empty(device="cpu"), model.reset_parameters(), model)[2],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tied_head_is_the_embedding_after_every_change(change: str) -> None:
    model = CHANGES[change](transformer())
    assert model.head_weight is model.embedding.weight
    assert model.head_weight.data_ptr() == model.state_dict()["embedding.weight"].data_ptr()
    assert "head.weight" not in model.state_dict()
    grads = gradients(model, model.logits(model(tokens(1, 8))).float().square().mean())
    assert grads["embedding.weight"].abs().sum(1).gt(0).all()  # the head reaches every row, not only those looked up


def test_an_untied_head_is_its_own_matrix() -> None:
    model = transformer(tied_embeddings=False)
    assert model.head_weight is model.head.weight
    assert model.head_weight.data_ptr() != model.embedding.weight.data_ptr()


def test_logits_are_scaled_then_biased_then_capped_in_fp32() -> None:
    model = transformer(head_bias=True, logit_softcap=2.0, initialization=MuPInit(8, 4, std=0.5)).bfloat16()
    hidden = torch.randn(2, 3, 32).bfloat16()
    products = (hidden @ model.head_weight.T).float()
    assert model.logit_scale == 0.25
    assert model.head_bias is not None
    expected = 2.0 * torch.tanh((0.25 * products + model.head_bias.float()) / 2.0)
    actual = model.logits(hidden)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_mup_divides_scores_by_the_channels_equal_to_the_root_at_the_base() -> None:
    def scale(dim: int) -> Any:
        return transformer(dim=dim, initialization=MuPInit(32, 8)).blocks[0].attention.scale  # type: ignore[union-attr]

    assert scale(32) == pytest.approx(1 / math.sqrt(8))
    assert scale(128) == pytest.approx(1 / math.sqrt(8) / 4)  # four times the channels


# --- initial weights ---------------------------------------------------------------------------------------------

WIDE = {"dim": 128, "num_heads": 4, "num_kv_heads": 4, "num_layers": 8, "vocab_size": 400, "tied_embeddings": False}
XAVIER = math.sqrt(2 / 256)
STDS: dict[str, tuple[Any, dict[str, float]]] = {
    "gaussian": (
        GaussianInit(0.03),
        {
            "embedding.weight": 0.03,
            "attention.query": 0.03,
            "attention.output": 0.03,
            "down": 0.03,
            "head.weight": 0.03,
        },
    ),
    "depth_scaled": (
        DepthScaledInit(0.02),
        {
            "embedding.weight": 0.02,
            "position_embedding.weight": 0.02,
            "attention.query": 0.02,
            "attention.key": 0.02,
            "attention.value": 0.02,
            "gate": 0.02,
            "up": 0.02,
            "attention.output": 0.02 / 4,  # sqrt(2 x 8)
            "down": 0.02 / 4,
            "head.weight": 0.02,
        },
    ),
    "tfixup": (
        TFixupInit(),
        {
            "embedding.weight": 128**-0.5 * 72**-0.25,
            "attention.query": XAVIER,
            "attention.value": XAVIER * 0.67 * 8**-0.25,
            "attention.output": XAVIER * 0.67 * 8**-0.25,
            "up": XAVIER * 0.67 * 8**-0.25,
            "down": XAVIER * 0.67 * 8**-0.25,
        },
    ),
    "mup": (
        MuPInit(base_dim=32, base_head_dim=8, std=0.02),
        {
            "embedding.weight": 0.02,
            "attention.query": 0.01,
            "attention.output": 0.01,
            "down": 0.01,
            "head.weight": 0.02,
        },
    ),
}


def on_meta(config: TransformerConfig) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.reset_parameters()
    return model


@pytest.mark.parametrize("build", [Transformer, on_meta], ids=["built", "built on meta"])
@pytest.mark.parametrize("scheme", STDS)
def test_every_matrix_starts_at_the_standard_deviation_of_its_formula(
    scheme: str, build: Callable[[TransformerConfig], Transformer]
) -> None:
    initialization, expected = STDS[scheme]
    shape = config(
        **WIDE,
        initialization=initialization,
        positions=LearnedConfig(),
        feed_forward=DenseConfig(128, bias=True),
        norm=NormConfig(kind="layer", bias=True),
        head_bias=True,
    )
    torch.manual_seed(0)
    model = build(shape)
    for wanted, std in expected.items():
        names = [
            name for name, _ in model.named_parameters() if wanted in name and "norm" not in name and "bias" not in name
        ]
        assert names
        for name in names:
            weight = model.get_parameter(name).detach()
            # Five standard errors of a standard deviation, 1 / sqrt(2 n) each.
            assert float(weight.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
            assert abs(float(weight.mean())) < 5 * std / math.sqrt(weight.numel())
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert (parameter == (1.0 if "norm.weight" in name else 0.0)).all()


def test_a_seed_gives_the_same_weights_however_the_model_is_built() -> None:
    torch.manual_seed(3)
    built = Transformer(config())
    torch.manual_seed(3)
    later = on_meta(config())
    assert all(torch.equal(later.state_dict()[name], tensor) for name, tensor in built.state_dict().items())
    assert torch.equal(later(tokens(2, 8)), built(tokens(2, 8)))


def test_no_two_matrices_start_alike() -> None:
    model = Transformer(config())
    matrices = [parameter.detach().flatten()[:64] for parameter in model.parameters() if parameter.ndim == 2]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(matrices, 2))


@pytest.mark.parametrize("scheme", [GaussianInit(), DepthScaledInit(), MuPInit(32, 8)], ids=lambda scheme: scheme.kind)
def test_the_loss_at_step_zero_is_that_of_a_uniform_guess(scheme: Any) -> None:
    torch.manual_seed(0)
    model = Transformer(config(dim=64, vocab_size=500, initialization=scheme, tied_embeddings=False))
    ids, labels = tokens(8, 32, vocab_size=500), tokens(8, 32, seed=2, vocab_size=500)
    loss = nn.functional.cross_entropy(model.logits(model(ids)).flatten(0, 1), labels.flatten())
    # Logits have a standard deviation of 0.02 sqrt(64) = 0.16, which adds half its square.
    assert float(loss.detach()) == pytest.approx(math.log(500), abs=0.05)


# --- muP ---------------------------------------------------------------------------------------------------------


def growth_over_width(*, mup: bool) -> float:
    """How much more the logits have moved at 8 times the width, after four steps of Adam."""
    sizes = []
    for dim in (64, 512):
        changes = []
        for seed in range(2):
            torch.manual_seed(seed)
            model = Transformer(
                config(
                    dim=dim,
                    num_heads=4,
                    num_kv_heads=4,
                    feed_forward=DenseConfig(2 * dim),
                    tied_embeddings=False,
                    initialization=MuPInit(64, 16, std=0.05) if mup else GaussianInit(0.05 * math.sqrt(64 / dim)),
                )
            )
            hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
            rest = [p for p in model.parameters() if all(p is not other for other in hidden)]
            lr = 0.02
            groups = [{"params": hidden, "lr": lr * 64 / dim if mup else lr}, {"params": rest}]
            optimizer = torch.optim.Adam(groups, lr=lr)
            ids, labels = tokens(4, 16), tokens(4, 16, seed=2)
            first = model.logits(model(ids)).detach()
            for _ in range(4):
                loss = nn.functional.cross_entropy(model.logits(model(ids)).flatten(0, 1), labels.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            changes.append(float((model.logits(model(ids)).detach() - first).abs().mean()))
        sizes.append(sum(changes))
    return sizes[1] / sizes[0]


def test_under_mup_updates_have_the_same_size_at_every_width() -> None:
    """The coordinate check of arXiv:2203.03466, appendix D.1: constant under muP, growing without."""
    assert growth_over_width(mup=True) == pytest.approx(1, abs=0.3)
    assert growth_over_width(mup=False) > 2.5


# --- refusals ----------------------------------------------------------------------------------------------------


def test_rows_longer_than_the_learned_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="33 positions, but the model learned max_seq_len=32"):
        transformer(positions=LearnedConfig())(tokens(1, 33))
    assert transformer()(tokens(1, 33)).shape == (1, 33, 32)


def test_a_cache_is_refused_where_it_makes_no_sense() -> None:
    model = transformer()
    cache = KVCache(model.config, 1, 8)
    cache.extent = 4
    with pytest.raises(ValueError, match="document_ids with a cache"):
        model(tokens(1, 4), document_ids=torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match=r"cache\.extent=4 must be between the forward's 5 tokens"):
        model(tokens(1, 5), cache=cache)
    cache.extent = 9
    with pytest.raises(ValueError, match="max_len=8"):
        model(tokens(1, 5), cache=cache)
    with pytest.raises(ValueError, match="causal=True"):
        transformer(causal=False)(tokens(1, 4), cache=cache)
