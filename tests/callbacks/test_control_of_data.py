"""Weights of sources changed while a run goes on are those of a phase that was planned for that very step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asking import Ask, same
from lmstack.callbacks import Checkpointing, Control, RunRecorder, control
from lmstack.callbacks.rollback import restart_loader, restore_run
from lmstack.data.mixture_plan import MixturePhase
from lmstack.data.modules import PretrainingData
from lmstack.models.checkpoint_folder import folder_name, newest_valid_checkpoint
from lmstack.run_record import read_changes
from tiny_corpus import tiny_corpus
from tiny_run import tiny_config, tiny_stage, tiny_trainer

STEPS = 9
TRAIN = {"a": ["one two three " * 6, "four five " * 9], "b": [f"document number {i}" for i in range(12)]}
CHANGE = {4: {"data.weights.a": "1", "data.weights.b": "9"}}


@pytest.fixture(autouse=True)
def _look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS_BETWEEN_LOOKS", 0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_corpus(tmp_path_factory.mktemp("corpus"), TRAIN, {"a": ["held out " * 5], "b": ["nor this"]}))


def run(folder: Path, corpus: str, ask: Ask, *, resume: Path | None = None, **data: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    shape = {"sequence_length": 8, "micro_batch_size": 2, "global_batch_size": 4, "weights": {"a": 3.0, "b": 1.0}}
    module = PretrainingData(corpus, **(shape | data))
    module.setup("fit")
    stage = tiny_stage(
        seed=0 if resume is None else 9, config=tiny_config(dropout=0.1, vocab_size=module.tokenizer.vocab_size)
    )
    callbacks = [ask, RunRecorder(), Control(), Checkpointing(every_n_steps=1, keep_last=99)]
    trainer = tiny_trainer(folder, callbacks, gradient_clip_val=1.0, limit_val_batches=0, max_steps=STEPS)
    try:
        trainer.fit(stage, module, ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert ask.die_after is not None
    return {name: value.clone() for name, value in stage.state_dict().items()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_equals_a_planned_phase_and_resumes_exactly(tmp_path: Path, corpus: str, num_workers: int) -> None:
    asked, options = Ask(CHANGE), {"num_workers": num_workers}
    changed = run(tmp_path / "asked", corpus, asked, **options)
    assert asked.answers() == ['after step 4: data.weights {"a": 3.0, "b": 1.0} -> {"a": 1.0, "b": 9.0}']
    planned = run(tmp_path / "planned", corpus, Ask({}), phases=[MixturePhase("4 steps", {"a": 1.0, "b": 9.0})])
    assert same(changed, planned)
    assert not same(changed, run(tmp_path / "plain", corpus, Ask({})))
    for died in (3, 6):  # before it, and made again; after it, and read from the checkpoint
        folder = tmp_path / f"died-{died}"
        run(folder, corpus, Ask(CHANGE, die_after=died), **options)
        left = CHANGE if died < 4 else {}
        resumed = run(folder, corpus, Ask(left), resume=newest_valid_checkpoint(folder), **options)
        assert same(resumed, changed)
        assert [change["step"] for change in read_changes(folder)] == [4]


class GoBack(Ask):
    """Puts the run back to a checkpoint from before the change, once."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 6 and self.die_after is None:
            self.die_after = 99
            pl_module.after_step = lambda: self._back(trainer)

    def _back(self, trainer: Any) -> None:
        restore_run(trainer, Path(trainer.default_root_dir) / "checkpoints" / folder_name(2))
        restart_loader(trainer)


def test_a_rollback_takes_it_back_and_makes_it_again(tmp_path: Path, corpus: str) -> None:
    changed = run(tmp_path / "asked", corpus, Ask(CHANGE))
    assert same(run(tmp_path / "back", corpus, GoBack(CHANGE)), changed)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"data.weights.a": "1"}, {}, "data.phases[0].weights names ['a'], there are ['a', 'b']"),
        ({"data.weights.a": "1", "data.weights.b": "-1"}, {}, "must not be negative"),
        ({"data.weights.a": "1", "data.weights.b": "x"}, {}, "data.weights.b=x: expected a number"),
        (CHANGE[4], {"weights": None}, "data.weights is null"),
        (CHANGE[4], {"max_epochs": 99.0, "max_tokens": 9 * 32}, "data.max_epochs is set"),
        (CHANGE[4] | {"model.optimizer.lr": "-1"}, {}, "model.optimizer.lr=-1"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, corpus: str, changes: dict[str, str], options: dict[str, Any], said: str
) -> None:
    ask = Ask({4: changes})
    ends = run(tmp_path / "asked", corpus, ask, **options), run(tmp_path / "plain", corpus, Ask({}), **options)
    assert same(*ends)
    (answer,) = ask.answers()
    assert answer is not None
    assert answer.startswith("refused: ")
    assert said in answer
