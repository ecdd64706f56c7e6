"""Counted bytes against what autograd and optimizers really keep."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lmstack.models import Transformer
from lmstack.models.activation_checkpointing import FullCheckpointing
from lmstack.models.config import DenseConfig, NormConfig
from lmstack.models.memory import memory_bytes
from tiny_transformer import tokens, transformer


def numel(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kept_for_backward(model: Transformer, ids: Tensor, *, mixed: bool = False) -> int:
    """Bytes of every tensor that autograd keeps, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        hidden = model(ids)
    del hidden
    return sum(sizes.values())


@pytest.mark.parametrize("variant", ["plain", "not gated", "parallel", "sandwich"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_estimated_activations_are_what_autograd_keeps(variant: str, precision: Any) -> None:
    changes: dict[str, Any] = {
        "plain": {},
        "not gated": {"feed_forward": DenseConfig(256, gated=False)},
        "parallel": {"parallel_residual": True},
        "sandwich": {"norm": NormConfig(placement="sandwich")},
    }[variant]
    shape: dict[str, Any] = {
        "dim": 64,
        "feed_forward": DenseConfig(128),
        "num_layers": 4,
        "max_seq_len": 512,
        **changes,
    }
    model = transformer(**shape)
    ids = tokens(4, 512)
    estimate = memory_bytes(
        model.config,
        micro_batch_size=4,
        seq_len=512,
        precision=precision,
        optimizer="adamw",
        activation_checkpointing=None,
    )
    kept = kept_for_backward(model, ids, mixed=precision == "bf16-mixed")
    assert estimate.activations == pytest.approx(kept, rel=0.15)  # masks, tables and log-sum-exps are left out


def test_weights_gradients_and_optimizer_state_are_what_torch_allocates() -> None:
    model = transformer()
    optimizer = torch.optim.AdamW(model.parameters())
    model(tokens(1, 8)).sum().backward()
    optimizer.step()
    state = sum(t.numel() * 4 for s in optimizer.state.values() for name, t in s.items() if name != "step")
    estimate = memory_bytes(
        model.config,
        micro_batch_size=1,
        seq_len=8,
        precision="32-true",
        optimizer="adamw",
        activation_checkpointing=None,
    )
    assert estimate.parameters == estimate.gradients == 4 * numel(model)
    assert estimate.optimizer == state
    assert estimate.total == sum(
        (estimate.parameters, estimate.gradients, estimate.optimizer, estimate.activations, estimate.logits)
    )


def test_muon_keeps_half_the_state_for_matrices_and_checkpointing_most_of_the_activations() -> None:
    model = transformer(num_layers=8)
    options: dict[str, Any] = {"micro_batch_size": 2, "seq_len": 32, "precision": "bf16-true"}
    adamw = memory_bytes(model.config, **options, optimizer="adamw", activation_checkpointing=None)
    muon = memory_bytes(model.config, **options, optimizer="muon", activation_checkpointing=FullCheckpointing())
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert adamw.optimizer - muon.optimizer == 2 * matrices
    assert muon.activations < adamw.activations / 3
