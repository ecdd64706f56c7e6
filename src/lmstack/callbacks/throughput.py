"""Tokens per second, and what share of the machine's arithmetic they use."""

import time
from typing import Any, Literal

import lightning as L
import torch

from lmstack.data.rank import Rank
from lmstack.models.accounting import flops_per_token
from lmstack.models.peak_flops import peak_flops
from lmstack.models.transformer import Transformer

CONVENTIONS: tuple[Literal["6n", "full_attention", "causal_attention"], ...] = (
    "6n",
    "full_attention",
    "causal_attention",
)


class Throughput(L.Callback):
    """Logs step time, tokens per second and model-FLOPs utilization in three conventions.

    The clock runs over training steps only, between two logging steps; validation, saving and sampling are left out.
    `mfu/6n` counts 6 FLOPs a non-embedding parameter and token (Kaplan et al. 2020, arXiv:2001.08361),
    `mfu/full_attention` every matrix product with attention over all T positions (PaLM, arXiv:2204.02311, appendix B),
    `mfu/causal_attention` the same with the half of attention that causality needs.

    Args:
        peak: FLOP/s of one device at the training precision; None takes the maker's figure for a known GPU and
            otherwise measures a large matrix product at the start.
    """

    def __init__(self, peak: float | None = None) -> None:
        self.peak = peak
        self._seconds = 0.0
        self._steps = 0
        self._tokens = 0
        self._started: float | None = None
        self._flops: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the peak.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        self.peak = self.peak or peak_flops(trainer.strategy.root_device, dtype)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            batch: Ignored.
            batch_idx: Ignored.
        """
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step, and report at logging steps.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: The micro-batches of the step; prompts, whose tokens are yet to come, are timed only.
            batch_idx: Ignored.
        """
        report = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if report and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        assert self._started is not None
        self._seconds += time.perf_counter() - self._started
        self._steps += 1
        shapes = [part.input_ids.shape for part in batch] if isinstance(batch, list) else []
        self._tokens += sum(rows * length for rows, length in shapes) * Rank.of(trainer).world_size
        if not report:
            return
        pl_module.log("time/step_seconds", self._seconds / self._steps)
        if shapes:
            self._report_tokens(trainer, pl_module, seq_len=shapes[0][1])
        if trainer.strategy.root_device.type == "cuda":
            pl_module.log("memory/peak_gib", torch.cuda.max_memory_allocated() / 2**30)
        self._seconds, self._steps, self._tokens = 0.0, 0, 0

    def _report_tokens(self, trainer: L.Trainer, pl_module: L.LightningModule, seq_len: int) -> None:
        per_second = self._tokens / self._seconds
        pl_module.log("throughput/tokens_per_second", per_second, prog_bar=True)
        transformer = pl_module.transformer
        assert isinstance(transformer, Transformer)
        for convention in CONVENTIONS:
            flops = self._flops.setdefault(convention, flops_per_token(transformer.config, seq_len, convention))
            pl_module.log(f"mfu/{convention}", flops * per_second / (self.peak or float("nan")) / trainer.world_size)
