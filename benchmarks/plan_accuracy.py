"""What `lmstack plan` says of memory and compute, against what is allocated and counted.

    python benchmarks/plan_accuracy.py --out benchmarks/results/plan_accuracy.json

Trains three steps of a small transformer on a CPU, in one process and in two (gloo), and reads the peak of torch's
allocations during the last two from its profiler: every allocation, those inside kernels too. FLOPs are those of
`torch.utils.flop_counter`. A result is one process's, the first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "recipes")]

NUM_STEPS = 3
SEQUENCE_LENGTH, MICRO_BATCH_SIZE, NUM_MICRO_BATCHES = 128, 4, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "single": {},
    "single, full": {"checkpointing": {"kind": "full"}},
    "single, every other block": {"checkpointing": {"kind": "blocks", "every": 2}},
    "single, matmuls": {"checkpointing": {"kind": "matmuls"}},
    "single, bf16-mixed": {"precision": "bf16-mixed"},
    "single, bf16-true": {"precision": "bf16-true"},
    "single, bf16-true with masters": {"precision": "bf16-true", "master_weights": True},
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2, full": {"strategy": "fsdp2", "checkpointing": {"kind": "full"}},
    "fsdp2, bf16-mixed": {"strategy": "fsdp2", "precision": "bf16-mixed"},
    "tp": {"strategy": "tp"},
    "pipeline": {"strategy": "pipeline"},
    "local_sgd": {"strategy": "local_sgd", "changes": {"period": 1}},  # an exchange each step: its memory too
}


def config() -> Any:
    """The shape that is trained."""
    from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig, TransformerConfig

    return TransformerConfig(
        vocab_size=2048,
        max_seq_len=SEQUENCE_LENGTH,
        dim=256,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=768),
        initialization=DepthScaledInit(std=0.02),
    )


def workload(setting: dict[str, Any], num_processes: int) -> Any:
    """A step, as the plan takes it."""
    from lmstack.models.activation_checkpointing import read_choice
    from lmstack.planning.workload import Workload, precision_of

    data_parallel = 1 if setting.get("strategy") in ("tp", "pipeline") else num_processes
    return Workload(
        transformer=config(),
        sequence_length=SEQUENCE_LENGTH,
        micro_batch_size=MICRO_BATCH_SIZE,
        global_batch_size=MICRO_BATCH_SIZE * NUM_MICRO_BATCHES * data_parallel,
        precision=precision_of(setting.get("precision", "32-true"), setting.get("master_weights", False)),
        optimizer="adamw",
        activation_checkpointing=read_choice(setting.get("checkpointing")),
    )


def train(setting: dict[str, Any], num_processes: int, folder: Path) -> None:
    """Train, and write the peak of one process."""
    import lightning as L
    import torch
    from strategy_runs import strategy_of

    from allocations import counted_allocations
    from lmstack.optim.optimizers import AdamWConfig
    from lmstack.optim.schedules import ConstantSchedule
    from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

    torch.set_num_threads(1)
    marks: list[int] = []

    class Mark(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            marks.append(time.time_ns())

    rows = random_rows(MICRO_BATCH_SIZE, lambda _: SEQUENCE_LENGTH)
    batches = [batch_of(rows) for _ in range(NUM_MICRO_BATCHES)]
    with counted_allocations() as allocations:
        stage = tiny_stage(
            config=config(),
            optimizer=AdamWConfig(lr=1e-3, master_weights=setting.get("master_weights", False)),
            schedule=ConstantSchedule(warmup=1),
            activation_checkpointing=workload(setting, num_processes).activation_checkpointing,
        )
        trainer = tiny_trainer(
            folder,
            [Mark()],
            devices=num_processes,
            strategy=strategy_of(setting.get("strategy", "single"), setting.get("changes", {})),
            precision=setting.get("precision", "32-true"),
            max_steps=NUM_STEPS,
            gradient_clip_val=1.0,
            limit_val_batches=0,
        )
        trainer.fit(stage, StepData([batches] * NUM_STEPS))
    if trainer.is_global_zero:
        (folder / "peak.json").write_text(json.dumps(allocations.peak_after(marks[0])))


def measured(name: str, folder: Path) -> int:
    """The peak of a setting, trained in processes of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    command = [sys.executable, "-W", "ignore", __file__, "--train", name, "--out", str(folder)]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=7200, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    return int(json.loads((folder / "peak.json").read_text()))


def compared(name: str, folder: Path) -> dict[str, Any]:
    """A row: predicted, measured, and by how much the prediction is off."""
    from lmstack.parallel.layout import Layout
    from lmstack.planning.arrangement import Arrangement
    from lmstack.planning.device_memory import device_memory

    setting = SETTINGS[name]
    strategy = setting.get("strategy", "single")
    dimension = {"fsdp2": "shards", "tp": "tensor", "pipeline": "pipeline"}.get(strategy, "replicas")
    num_processes = 1 if strategy == "single" else 2
    arrangement = Arrangement(strategy, Layout(**{dimension: num_processes}))
    memory = device_memory(workload(setting, num_processes), arrangement, is_cpu=True)
    peak = measured(name, folder)
    parts = {part: round(value / 2**20, 1) for part, value in vars(memory).items()}
    row = {"setting": name, "processes": num_processes, "predicted_mib": round(memory.total / 2**20, 1)}
    return row | {
        "measured_mib": round(peak / 2**20, 1),
        "error": round(memory.total / peak - 1, 3),
        "parts_mib": parts,
    }


def counted_flops() -> dict[str, float]:
    """Of a token, by formula and by torch's counter."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from lmstack.models import Transformer
    from lmstack.models.accounting import flops_per_token

    model, ids = Transformer(config()), torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(ids)).sum().backward()
    counted = counter.get_total_flops() / ids.numel()
    predicted = flops_per_token(config(), SEQUENCE_LENGTH, "full_attention")
    return {"predicted": predicted, "counted": counted, "error": predicted / counted - 1}


def main() -> None:
    """Compare, or train one setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", choices=SETTINGS)
    parser.add_argument("--train", choices=SETTINGS)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if arguments.train:
        setting = SETTINGS[arguments.train]
        train(setting, 1 if "strategy" not in setting else 2, out)
        return
    import tempfile

    results: dict[str, Any] = {"command": "python benchmarks/plan_accuracy.py", "flops_per_token": counted_flops()}
    results["memory"] = []
    for name in arguments.only or SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            row = compared(name, Path(folder))
        results["memory"].append(row)
        print(
            f"{name:32} predicted {row['predicted_mib']:8.1f}  measured {row['measured_mib']:8.1f}  {row['error']:+.1%}"
        )
        out.write_text(json.dumps(results, indent=1) + "\n")  # after each: it takes minutes


if __name__ == "__main__":
    main()
