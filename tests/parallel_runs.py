"""Runs of `recipes/strategy_runs.py` in processes of their own, and comparisons of what they leave."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmstack.models.checkpoint_folder import newest_valid_checkpoint

SCRIPT = Path(__file__).parent / "recipes" / "strategy_runs.py"
# DeepSpeed leaves weights below this size whole, which is all that a test has.
CUT = {"zero": {"stage3_param_persistence_threshold": 0}}
DEEPSPEED: dict[str, dict[str, Any]] = {
    "deepspeed_zero1": {"strategy": "deepspeed_zero1"},
    "deepspeed_zero2": {"strategy": "deepspeed_zero2"},
    "deepspeed_zero3": {"strategy": "deepspeed_zero3", "changes": CUT},
}


def runs(folder: Path, world_size: int, specs: dict[str, dict[str, Any]]) -> None:
    """Each run in a folder of its name; all in the same processes."""
    file = folder / f"runs-{world_size}-{'-'.join(specs)[:80]}.json"
    file.write_text(json.dumps([{"folder": str(folder / name)} | spec for name, spec in specs.items()]))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, file, str(world_size)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def result(folder: Path) -> dict[str, Any]:
    checkpoint = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    found: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return found | {"weights": load_file(checkpoint / "model.safetensors"), "optimizer": state["optimizer_states"][0]}


def assert_alike(got: dict[str, Any], wanted: dict[str, Any], *, tolerance: float, norms: bool = True) -> None:
    assert got["losses"] == pytest.approx(wanted["losses"], abs=tolerance)
    if norms:
        finite = [[norm if math.isfinite(norm) else math.inf for norm in each["norms"]] for each in (got, wanted)]
        assert finite[0] == pytest.approx(finite[1], rel=tolerance)
    assert got["val"] == pytest.approx(wanted["val"], rel=tolerance)
    assert list(got["weights"]) == list(wanted["weights"])
    for name, weight in wanted["weights"].items():
        torch.testing.assert_close(got["weights"][name], weight, rtol=0, atol=tolerance, msg=name)
    groups = [[group["params"] for group in each["optimizer"]["param_groups"]] for each in (got, wanted)]
    assert groups[0] == groups[1]
    for number, entry in wanted["optimizer"]["state"].items() if norms else ():
        for key, value in entry.items():
            torch.testing.assert_close(got["optimizer"]["state"][number][key], value, rtol=0, atol=tolerance)
