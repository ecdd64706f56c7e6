"""Blocks run through torch.compile, in a process of its own: shape checks, on in this one, cannot be compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import copy

import torch
from torch._dynamo.utils import counters

from lmstack.models.activation_checkpointing import (
    BudgetCheckpointing, FullCheckpointing, MatmulCheckpointing, compiler_backend
)
from lmstack.models.config import AttentionConfig
from tiny_transformer import gradients, tokens, transformer

torch.set_num_threads(1)
documents = torch.tensor([[0] * 6 + [1] * 10, [0] * 12 + [3] * 4])
for changes in ({}, {"attention": AttentionConfig(window=4, softcap=3.0, qk_norm=True)}):
    eager = transformer(num_layers=2, **changes)
    compiled = copy.deepcopy(eager)
    assert compiled.head_weight is compiled.embedding.weight
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for choice in (None, FullCheckpointing(), MatmulCheckpointing(), BudgetCheckpointing(0.3)):
        torch._dynamo.reset()
        for model in (eager, compiled):
            model.checkpoint_activations(choice)
        for block in compiled.blocks:
            block.compile(fullgraph=True, backend=compiler_backend(choice))
        ids = tokens(2, 16)
        outputs = [model.logits(model(ids, document_ids=documents)) for model in (eager, compiled)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)
        one, other = [gradients(m, o.square().mean()) for m, o in zip((eager, compiled), outputs)]
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-4 * float(one[name].abs().max()))
    assert not counters["graph_break"], counters["graph_break"]
    torch._dynamo.reset()
"""


@pytest.mark.slow
def test_compiled_blocks_give_the_same_logits_and_gradients_without_a_graph_break(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "tests"),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
