"""run.json at the start of every run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from lmstack.callbacks.metrics_csv import MetricsCsv
from lmstack.run_record import collect_run_record, write_run_record


class RunRecorder(L.Callback):
    """Writes `run.json`, and makes `metrics.csv` go on from the resumed step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, once the checkpoint is loaded and the stage has its seed; drop the rows of steps taken again.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if not trainer.is_global_zero:
            return
        manifest = getattr(getattr(trainer, "datamodule", None), "manifest", None)
        record = collect_run_record(
            seed=getattr(pl_module, "base_seed", None),
            resumed_from=str(trainer.ckpt_path) if trainer.ckpt_path else None,
            world_size=trainer.world_size,
            strategy=_strategy(trainer.strategy),
            precision=str(trainer.precision),
            data_fingerprint=getattr(manifest, "fingerprint", None),
            tokenizer_fingerprint=getattr(getattr(manifest, "tokenizer", None), "fingerprint", None),
        )
        write_run_record(Path(trainer.default_root_dir), record)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.resume_from(trainer.global_step)


def _strategy(strategy: Any) -> dict[str, Any]:
    """Its class, and the sizes of its mesh where it has one."""
    layout = getattr(strategy, "layout", None)
    return {"class": type(strategy).__name__} | ({} if layout is None else asdict(layout))
