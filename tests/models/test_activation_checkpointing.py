"""What is computed again has the same bits, and what is not kept takes no memory."""

from typing import Any

import pytest
import torch

from allocations import counted_allocations
from lmstack.models.activation_checkpointing import (
    ActivationCheckpointing,
    BlockCheckpointing,
    BudgetCheckpointing,
    FullCheckpointing,
    MatmulCheckpointing,
)
from lmstack.models.config import AttentionConfig, DenseConfig
from lmstack.models.memory import memory_bytes
from tiny_transformer import config, gradients, tokens, transformer

DOCUMENTS = torch.tensor([[0] * 6 + [1] * 10, [0] * 12 + [3] * 4])
CHOICES = [FullCheckpointing(), BlockCheckpointing(every=2), MatmulCheckpointing()]
SHAPES: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2},
    "soft-capped scores": {"dropout": 0.2, "attention": AttentionConfig(window=4, softcap=3.0, qk_norm=True)},
}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.kind)
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_same_bit_for_bit_also_with_dropout(
    shape: str, precision: torch.dtype, packed: bool, choice: ActivationCheckpointing
) -> None:
    model = transformer(num_layers=3, **SHAPES[shape]).train()
    ids, documents = tokens(2, 16), DOCUMENTS if packed else None
    results = []
    for each in (None, choice):
        model.checkpoint_activations(each)
        torch.manual_seed(5)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = model.logits(model(ids, document_ids=documents)).square().mean()
        results.append((gradients(model, loss), torch.rand(1)))
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert torch.equal(results[0][1], results[1][1]), "later draws must not depend on it"


WIDER: dict[str, Any] = {"num_layers": 8, "dim": 64, "feed_forward": DenseConfig(192), "max_seq_len": 256}


def kept(choice: ActivationCheckpointing | None) -> int:
    """Bytes alive between forward and backward."""
    model = transformer(**WIDER)
    model.checkpoint_activations(choice)
    ids = tokens(4, 256)
    model(ids)  # tables of angles are made once
    with counted_allocations() as allocations:
        hidden = model(ids)
    del hidden
    return allocations.at_end


def test_less_is_kept_in_the_order_of_what_is_computed_again() -> None:
    everything, every_second, matmuls, full = (
        kept(c) for c in (None, BlockCheckpointing(every=2), MatmulCheckpointing(), FullCheckpointing())
    )
    assert full < 0.15 * everything
    assert full < every_second < 0.6 * everything
    assert full < matmuls < 0.65 * everything


@pytest.mark.parametrize("choice", [None, *CHOICES], ids=lambda choice: "none" if choice is None else choice.kind)
def test_the_estimate_is_what_is_kept(choice: ActivationCheckpointing | None) -> None:
    options: dict[str, Any] = {"micro_batch_size": 4, "seq_len": 256, "precision": "32-true", "optimizer": "adamw"}
    whole, some = (
        memory_bytes(config(**WIDER), **options, activation_checkpointing=each).activations for each in (None, choice)
    )
    one_block = 0 if choice is None else whole / WIDER["num_layers"]  # at most: computed again in the backward pass
    assert -0.04 * whole < some - kept(choice) < one_block + 0.04 * whole


def test_nothing_is_checkpointed_where_nothing_is_trained() -> None:
    model = transformer(num_layers=2)
    ids = tokens(1, 4)
    with torch.no_grad():
        before = model(ids)
        model.checkpoint_activations(FullCheckpointing())
        assert torch.equal(model(ids), before)


@pytest.mark.parametrize("every", [0, 1])
def test_a_choice_of_all_blocks_is_called_full(every: int) -> None:
    with pytest.raises(ValueError, match="must be 2 or more"):
        BlockCheckpointing(every=every)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_budget_is_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be between 0"):
        BudgetCheckpointing(fraction=fraction)
