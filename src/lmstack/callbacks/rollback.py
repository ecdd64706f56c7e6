"""Put a run that is under way back to one of its checkpoints."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop

from lmstack.models.checkpoint_folder import DamagedCheckpointError, checkpoints_in, read_manifest, step_of


def restore_run(trainer: L.Trainer, checkpoint: Path) -> None:
    """Make the trainer go on as a run that is resumed from the checkpoint would.

    Call it when everything that belongs to the present step is done (`SupervisedModule.after_step`), and
    `restart_loader` after it. Lightning reads a checkpoint only before its loops start; what it then does to them is
    done here by hand.

    Args:
        trainer: In the middle of `fit`.
        checkpoint: A whole checkpoint of this run, of an earlier step.
    """
    connector, fit_loop = trainer._checkpoint_connector, trainer.fit_loop
    resumed_from = connector._ckpt_path
    connector.resume_start(checkpoint)
    connector.restore_model()
    connector.restore_datamodule()
    connector.restore_callbacks()
    connector.restore_training_state()
    connector.resume_end()
    connector._ckpt_path = resumed_from
    _settle(fit_loop)
    assert fit_loop._combined_loader is not None
    assert fit_loop._data_fetcher is not None
    fit_loop._combined_loader._load_state_dicts(fit_loop._combined_loader_states_to_load)
    fit_loop._combined_loader_states_to_load = []
    trainer.should_stop = False
    fit_loop.epoch_loop._results.clear()  # what was logged by the step that is undone
    for logger in trainer.loggers:
        if hasattr(logger, "resume_from"):
            logger.resume_from(trainer.global_step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "on_rollback"):
            callback.on_rollback(trainer, trainer.lightning_module)


def restart_loader(trainer: L.Trainer) -> None:
    """Take the next step from where the train loader stands now.

    Args:
        trainer: In the middle of `fit`.
    """
    fetcher: Any = trainer.fit_loop._data_fetcher
    iter(fetcher)
    fetcher.fetched += trainer.fit_loop.epoch_loop.batch_progress.current.ready


def checkpoint_before(run_folder: Path, wanted: int, latest: int) -> Path | None:
    """The newest whole checkpoint up to a step; where there is none, the oldest one up to a later step.

    Args:
        run_folder: The run's folder, which holds `checkpoints/`.
        wanted: Optimizer steps taken, at most.
        latest: Optimizer steps taken that may not be passed.
    """
    folders = [folder for folder in checkpoints_in(run_folder) if step_of(folder) <= latest]
    early = [folder for folder in reversed(folders) if step_of(folder) <= wanted]
    late = [folder for folder in folders if step_of(folder) > wanted]
    return next((folder for folder in [*early, *late] if _is_whole(folder)), None)


def scale_learning_rate(trainer: L.Trainer, factor: float) -> None:
    """Multiply the learning rate, for the rest of the run; the schedule's checkpoints carry it on.

    Args:
        trainer: With schedules that multiply base rates.
        factor: By what.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        for group in scheduler.optimizer.param_groups:
            group["lr"] *= factor


def _settle(fit_loop: Any) -> None:
    """The loops are neither resuming nor restarting: they are at the end of the step that the checkpoint was taken."""
    epoch_loop = fit_loop.epoch_loop
    _Loop.restarting.fset(fit_loop, False)  # type: ignore[attr-defined]
    for loop in (fit_loop, epoch_loop, epoch_loop.val_loop, epoch_loop.automatic_optimization):
        loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    progress = epoch_loop.batch_progress
    if progress.total.completed == progress.total.processed:  # saved after the validation that followed the step
        progress.total.completed -= 1
        progress.current.completed -= 1
        epoch_loop._skip_next_val = True


def _is_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except DamagedCheckpointError:
        return False
    return True
