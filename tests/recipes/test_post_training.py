"""Every post-training stage: interrupted = uninterrupted, bit for bit, and two processes = one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Checkpointing, MetricsCsv, WeightAverage
from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.cli.generation_inputs import average_weights
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.nn.lora import LoRAConfig
from lmstack.stages.sft import SFT
from tiny_post_training import STAGES, build, data
from tiny_preferences import stage_arguments
from tiny_run import assert_equal, tiny_config, tiny_trainer

STEPS = 5


class StopAfter(L.Callback):
    """Dies like a killed process: nothing is saved beyond what was."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def run(folder: Path, name: str, *, stop: int | None = None, resume: bool = False) -> dict[str, Any]:
    callbacks: list[L.Callback] = [Checkpointing(every_n_steps=1, keep_last=99)]
    if stop is not None:
        callbacks.append(StopAfter(stop))
    # Another seed for the process that resumes: what it starts from must come from the checkpoint.
    stage = build(name, seed=123 if resume else 0)
    trainer = tiny_trainer(folder, callbacks, logger=MetricsCsv(str(folder)), val_check_interval=2)
    try:
        trainer.fit(stage, data(name, STEPS), ckpt_path=newest_valid_checkpoint(folder) if resume else None)
    except (KeyboardInterrupt, SystemExit):
        assert stop is not None
    return {
        "weights": stage.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "metrics": read_metrics(folder / "metrics.csv"),
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", name)
    run(tmp_path / "parts", name, stop=2)
    resumed = run(tmp_path / "parts", name, resume=True)
    assert_equal(resumed, whole)


def test_resuming_with_other_adapters_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "sft_lora", stop=2)
    arguments = stage_arguments(transformer=tiny_config(dropout=0.2))
    for lora in (None, LoRAConfig(rank=2, alpha=8.0, dropout=0.2)):
        with pytest.raises(ValueError, match=r"model\.lora=.*trained with \{'rank': 2, 'alpha': 4\.0"):
            tiny_trainer(tmp_path).fit(
                SFT(**arguments, lora=lora), data("sft", STEPS), ckpt_path=newest_valid_checkpoint(tmp_path)
            )


def test_averaged_adapters_are_merged_where_text_is_generated(tmp_path: Path) -> None:
    average, stage = WeightAverage(decay=0.5), build("sft_lora")
    tiny_trainer(tmp_path, [average, Checkpointing()]).fit(stage, data("sft", STEPS))
    plain = build("sft").transformer
    plain.load_state_dict(average_weights(newest_valid_checkpoint(tmp_path)))
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            parameter.copy_(average.average[name])
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(plain.eval()(ids), stage.transformer.eval()(ids), rtol=0, atol=1e-5)


@pytest.mark.slow  # a process start each: 20 s on two busy cores
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    names = list(STAGES)
    script = Path(__file__).parent / "gradients_of_post_training.py"
    for world_size in (1, 2):
        command = [sys.executable, script, str(world_size), tmp_path / f"{world_size}.pt", ",".join(names)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = (torch.load(tmp_path / f"{world_size}.pt") for world_size in (1, 2))
    for name in names:
        assert two[name]["metrics"] == pytest.approx(one[name]["metrics"], abs=1e-6)
        assert one[name]["gradients"].keys() == two[name]["gradients"].keys()
        for parameter, gradient in one[name]["gradients"].items():
            torch.testing.assert_close(
                two[name]["gradients"][parameter], gradient, rtol=0, atol=1e-8, msg=f"{name} {parameter}"
            )
