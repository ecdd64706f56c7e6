"""What a failed run leaves is enough to see its batch, and to compute the same loss again."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from lmstack.callbacks import PostMortem
from lmstack.callbacks.post_mortem import gradient_norms
from lmstack.cli.inspect_post_mortem import restored
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer


class Fail(L.Callback):
    """Fails in a hook of a step, once the loss of that step is known, or before."""

    def __init__(self, step: int, hook: str, error: BaseException) -> None:
        def fail(trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == step:
                self.weights = {name: value.clone() for name, value in module.state_dict().items()}
                raise error

        setattr(self, hook, fail)


def steps() -> list[Any]:
    rows = random_rows(20, lambda i: 3 + i % 9)
    return [[batch_of(rows[4 * i : 4 * i + 2]), batch_of(rows[4 * i + 2 : 4 * i + 4])] for i in range(5)]


def run(folder: Path, fail: Fail, post_mortem: PostMortem | None = None) -> Path:
    stage = tiny_stage(config=tiny_config(dropout=0.2))
    with pytest.raises(BaseException, match="bus"):
        tiny_trainer(folder, [post_mortem or PostMortem(), fail]).fit(stage, StepData(steps()))
    return folder / "post_mortem" / f"step-{2:08d}-rank-0"


def test_the_batch_the_seed_the_gradients_and_the_traceback_are_there(tmp_path: Path) -> None:
    fail = Fail(2, "on_before_optimizer_step", RuntimeError("fell off the bus"))
    folder = run(tmp_path, fail)
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["error"], facts["step"], facts["rank"]) == ("RuntimeError: fell off the bus", 2, 0)
    assert isinstance(facts["base_seed"], int)
    assert "in fail\n" in (folder / "traceback.txt").read_text()
    for ours, theirs in zip(restored(torch.load(folder / "batch.pt", weights_only=True)), steps()[2], strict=True):
        assert type(ours) is type(theirs)
        for name, value in vars(theirs).items():
            assert torch.equal(getattr(ours, name), value)
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == fail.weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in fail.weights.items())
    assert facts["gradient_norms"].keys() == {n for n in weights if n != "transformer.head.weight"}
    assert all(norm > 0 for norm in facts["gradient_norms"].values())


def test_gradient_norms_are_norms() -> None:
    module = torch.nn.Linear(2, 1)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norms(module) == {"weight": 5.0}


def test_leaving_is_no_failure(tmp_path: Path) -> None:
    for error in (SystemExit("bus"), KeyboardInterrupt("bus")):
        stage, fail = tiny_stage(), Fail(1, "on_train_batch_start", error)
        with pytest.raises(SystemExit):
            tiny_trainer(tmp_path, [PostMortem(), fail]).fit(stage, StepData(steps()))
    assert not (tmp_path / "post_mortem").exists()


def test_a_disk_that_takes_no_more_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmstack.callbacks.post_mortem.save_file", fail)
    folder = run(tmp_path, Fail(2, "on_train_batch_start", RuntimeError("fell off the bus")))
    assert (folder / "facts.json").exists()


def test_weights_can_be_left_out_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 3, 2):
        run(tmp_path, Fail(step, "on_train_batch_start", RuntimeError("fell off the bus")), PostMortem(False, keep=2))
    folders = sorted(path.name for path in (tmp_path / "post_mortem").iterdir())
    assert folders == [f"step-{step:08d}-rank-0" for step in (2, 3)]
    assert not list(tmp_path.rglob("weights.safetensors"))


def test_what_fails_before_training_is_no_case_for_a_post_mortem(tmp_path: Path) -> None:
    """A wrong setting is said in a line; a folder of tensors would only be in the way."""
    stage, fail = tiny_stage(), Fail(0, "on_fit_start", RuntimeError("fell off the bus"))
    with pytest.raises(RuntimeError, match="bus"):
        tiny_trainer(tmp_path, [PostMortem(), fail]).fit(stage, StepData(steps()))
    assert not (tmp_path / "post_mortem").exists()
