"""How far every strategy is from one process: losses, gradient norms and weights of the same 20 steps, on CPUs.

    python benchmarks/strategy_parity.py [--folder DIR] [--only 2 4 matrix matrix_sgd]

trains a tiny transformer (`tests/recipes/strategy_runs.py`) on one process and then with each strategy of
`conf/strategy` on 2 and on 4 gloo processes, writes `benchmarks/results/strategy_parity.json`, and puts the table into
`docs/explanation/strategies.md`. `matrix` saves with each strategy after 2 steps, goes on with each other for 2 more,
and compares with 4 steps of one process; `matrix_sgd` does so with plain SGD, under which local SGD that averages every
step is the same algorithm as the others. An hour on two busy cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lmstack.models.checkpoint_folder import newest_valid_checkpoint

ROOT = Path(__file__).parents[1]
RUNNER = ROOT / "tests" / "recipes" / "strategy_runs.py"
PAGE = ROOT / "docs" / "explanation" / "strategies.md"
RESULTS = ROOT / "benchmarks" / "results" / "strategy_parity.json"
START, END = "<!-- parity: written by `make parity` -->", "<!-- end of parity -->"
STEPS = 20
AVERAGING = {"period": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
INTERLEAVED = {"schedule": "interleaved_1f1b", "stages_per_process": 2}
SGD = {"optimizer": "sgd", "clip": None}
BF16 = {"precision": "bf16-mixed"}
# DeepSpeed leaves weights below this size whole, which is all that there are here.
CUT = {"changes": {"zero": {"stage3_param_persistence_threshold": 0}}}

# label -> preset of conf/strategy, and what differs from it
Runs = dict[str, dict[str, Any]]
ALONE: Runs = {
    "single": {"strategy": "single"},
    "single, SGD": {"strategy": "single"} | SGD,
    "single, bf16-mixed": {"strategy": "single"} | BF16,
}
TWO: Runs = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "tp": {"strategy": "tp"},
    "tp, sequence_parallel=true": {"strategy": "tp", "changes": {"sequence_parallel": True}},
    "pipeline, schedule=gpipe": {"strategy": "pipeline", "changes": {"schedule": "gpipe"}},
    "pipeline, schedule=1f1b": {"strategy": "pipeline"},
    "pipeline, schedule=interleaved_1f1b": {"strategy": "pipeline", "changes": INTERLEAVED},
    "deepspeed_zero1": {"strategy": "deepspeed_zero1"},
    "deepspeed_zero2": {"strategy": "deepspeed_zero2"},
    "deepspeed_zero3": {"strategy": "deepspeed_zero3"} | CUT,
    "deepspeed_zero2, offload_optimizer=true": {"strategy": "deepspeed_zero2", "changes": {"offload_optimizer": True}},
    "local_sgd, period=1, outer_lr=1": {"strategy": "local_sgd", "changes": AVERAGING} | SGD,
    "ddp, bf16-mixed": {"strategy": "ddp"} | BF16,
    "fsdp2, bf16-mixed": {"strategy": "fsdp2"} | BF16,
    "tp, bf16-mixed": {"strategy": "tp"} | BF16,
    "pipeline, bf16-mixed": {"strategy": "pipeline"} | BF16,
    "deepspeed_zero1, bf16-mixed": {"strategy": "deepspeed_zero1"} | BF16,
    "deepspeed_zero2, bf16-mixed": {"strategy": "deepspeed_zero2"} | BF16,
    "deepspeed_zero3, bf16-mixed": {"strategy": "deepspeed_zero3"} | CUT | BF16,
}
FOUR: Runs = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2, replicas=2": {"strategy": "fsdp2", "changes": {"replicas": 2}},
    "tp": {"strategy": "tp"},
    "tp_fsdp2 (2 x 2)": {"strategy": "tp_fsdp2"},
    "tp_fsdp2, sequence_parallel=true": {"strategy": "tp_fsdp2", "changes": {"sequence_parallel": True}},
    "pipeline, schedule=1f1b": {"strategy": "pipeline"},
    "pipeline=2, shards=2": {"strategy": "pipeline", "changes": {"pipeline": 2, "shards": 2}},
    "ptdp (2 x 2 x 1)": {"strategy": "ptdp"},
    "deepspeed_zero1": {"strategy": "deepspeed_zero1"},
    "deepspeed_zero2": {"strategy": "deepspeed_zero2"},
    "deepspeed_zero3": {"strategy": "deepspeed_zero3"} | CUT,
    "local_sgd, period=1, outer_lr=1": {"strategy": "local_sgd", "changes": AVERAGING} | SGD,
    "deepspeed_zero1, bf16-mixed": {"strategy": "deepspeed_zero1"} | BF16,
    "deepspeed_zero2, bf16-mixed": {"strategy": "deepspeed_zero2"} | BF16,
    "deepspeed_zero3, bf16-mixed": {"strategy": "deepspeed_zero3"} | CUT | BF16,
}
# label -> processes, and the run
Placed = dict[str, tuple[int, dict[str, Any]]]
MATRIX: Placed = {
    "single": (1, {"strategy": "single"}),
    "ddp": (2, {"strategy": "ddp"}),
    "fsdp2": (2, {"strategy": "fsdp2"}),
    "tp": (2, {"strategy": "tp"}),
    "pipeline": (2, {"strategy": "pipeline"}),
    "deepspeed_zero1": (2, {"strategy": "deepspeed_zero1"}),
    "deepspeed_zero2": (2, {"strategy": "deepspeed_zero2"}),
    "deepspeed_zero3": (2, {"strategy": "deepspeed_zero3"} | CUT),
    "tp_fsdp2": (4, {"strategy": "tp_fsdp2"}),
    "ptdp": (4, {"strategy": "ptdp"}),
}
MATRIX_SGD: Placed = {
    "single": (1, {"strategy": "single"} | SGD),
    "ddp": (2, {"strategy": "ddp"} | SGD),
    "fsdp2": (2, {"strategy": "fsdp2"} | SGD),
    "local_sgd": (2, {"strategy": "local_sgd", "changes": AVERAGING} | SGD),
    "tp_fsdp2": (4, {"strategy": "tp_fsdp2"} | SGD),
}
MATRICES = {"matrix": MATRIX, "matrix_sgd": MATRIX_SGD}
TITLES = {
    "matrix": "Two steps with one (rows), the next two with another (columns): max abs Δ weight from one process.",
    "matrix_sgd": "The same with plain SGD, for local SGD with `period=1` and `outer_lr=1`.",
}


def start(folder: Path, world_size: int, runs: Runs) -> None:
    """Run all of them in the same processes."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = [{"folder": str(folder / label), "steps": STEPS, "clip": 0.5} | spec for label, spec in runs.items()]
    file = folder / "runs.json"
    file.write_text(json.dumps(specs))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(RUNNER), str(file), str(world_size)]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a run wrote, and its last weights."""
    checkpoint = newest_valid_checkpoint(folder)
    assert checkpoint is not None, folder
    return torch.load(folder / "result.pt", weights_only=True), load_file(checkpoint / "model.safetensors")


def distance(folder: Path, reference: Path) -> dict[str, float | None]:
    """Largest differences; the norm's is relative. A process's own gradients have another norm under local SGD."""
    (got, weights), (wanted, wanted_weights) = outcome(folder), outcome(reference)
    count = len(got["losses"])
    losses = [abs(a - b) for a, b in zip(got["losses"], wanted["losses"][-count:], strict=True)]
    norms = [abs(a - b) / b for a, b in zip(got["norms"], wanted["norms"][-count:], strict=True)]
    assert weights.keys() == wanted_weights.keys()
    difference = max(float((weights[n].float() - wanted_weights[n].float()).abs().max()) for n in weights)
    is_local = folder.name.startswith("local_sgd")
    return {"loss": max(losses), "grad_norm": None if is_local else max(norms), "weights": difference}


def reference_of(label: str) -> str:
    """The run of one process that a run is compared with."""
    kind = next((kind for kind in ("bf16-mixed",) if kind in label), "SGD" if label.startswith("local_sgd") else "")
    return f"single, {kind}" if kind else "single"


def compare(folder: Path, world_size: int, runs: Runs) -> dict[str, Any]:
    """Run them, and tell how far each is from one process."""
    start(folder / str(world_size), world_size, runs)
    alone = folder / "1"
    found = {label: distance(folder / str(world_size) / label, alone / reference_of(label)) for label in runs}
    for label, values in found.items():
        print(world_size, label, values, flush=True)
    return found


def matrix(folder: Path, cases: Placed) -> dict[str, dict[str, float]]:
    """Largest difference of weights after 2 steps with one strategy and 2 with another."""
    common = {"planned_steps": 4, "steps": 2}
    start(folder / "whole", 1, {"single": cases["single"][1] | common | {"steps": 4}})
    saved = {}
    for world_size in (1, 2, 4):
        runs = {name: spec | common for name, (size, spec) in cases.items() if size == world_size}
        start(folder / f"first{world_size}", world_size, runs)
        saved |= {name: str(newest_valid_checkpoint(folder / f"first{world_size}" / name)) for name in runs}
    for world_size in (1, 2, 4):
        resumed = {
            f"{origin} to {name}": spec | common | {"steps": 4, "resume": saved[origin], "seed": 77}
            for name, (size, spec) in cases.items()
            for origin in saved
            if size == world_size
        }
        start(folder / "second", world_size, resumed)
    whole, found = folder / "whole" / "single", {}
    for origin in saved:
        each = {name: distance(folder / "second" / f"{origin} to {name}", whole)["weights"] for name in saved}
        found[origin] = {name: float(value or 0.0) for name, value in each.items()}
    return found


def cell(value: float | None) -> str:
    """A number with one digit: its size is what counts."""
    return "-" if value is None else f"{value:.0e}".replace("e-0", "e-").replace("0e+00", "0")


def page(results: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = ["| strategy | processes | max abs Δ loss | max rel Δ gradient norm | max abs Δ weight |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for world_size in ("2", "4"):
        for label, values in results.get(world_size, {}).items():
            numbers = " | ".join(cell(values[key]) for key in ("loss", "grad_norm", "weights"))
            lines.append(f"| {label} | {world_size} | {numbers} |")
    for part, title in TITLES.items():
        if found := results.get(part):
            lines += ["", title, "", "| saved by | " + " | ".join(found) + " |", "| --- " * (len(found) + 1) + "|"]
            lines += [
                f"| {origin} | " + " | ".join(cell(each[name]) for name in found) + " |"
                for origin, each in found.items()
            ]
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for, and write after each part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", default=["2", "4", *MATRICES])
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="parity-"))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if {"2", "4"} & set(arguments.only):
        start(folder / "1", 1, ALONE)
    for part in arguments.only:
        if part in MATRICES:
            results[part] = matrix(folder / part, MATRICES[part])
        else:
            results[part] = compare(folder, int(part), TWO if part == "2" else FOUR)
        results["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(f"{before}{START}\n\n{page(results)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
