"""Reward modelling: a number for each answer, from which of two answers was preferred."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lmstack.data.batch import PreferenceBatch
from lmstack.evaluation.calibration import PreferenceTally, annotator_agreement
from lmstack.losses.preference import bradley_terry_loss, centering_penalty, tie_loss
from lmstack.models import TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.checkpoint import weights_folder
from lmstack.models.heads import SCORE_HEAD, ScoreHead, ScoringTransformer, load_score_head, score_head_state
from lmstack.nn.lora import LoRAConfig
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.stages.supervised import ObjectiveSums, SupervisedModule
from lmstack.stages.warm_start import build_transformer, freeze_head, warm_start

REPORT = "reward_validation.json"


@final
class RewardModel(SupervisedModule):
    """Minimise, on average over prompts, the mean over the pairs of its answers of -log σ(r_better - r_worse - margin).

    Ouyang et al. 2022, arXiv:2203.02155, eq. 1: a ranking of K answers is C(K, 2) pairs, and each answer is forwarded
    once. At the end of training the head's bias is moved so that reference demonstrations, where the data has some,
    score 0 on average (Stiennon et al. 2020, arXiv:2009.01325, appendix B).

    Args:
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        init_from: Weights to start from: a base model's, a fine-tuned one's or a reward model's run, or a Hugging Face
            folder. A reward model's head is taken over, any other's is new. None starts from random weights.
        transformer: Shape of the model; None takes that of `init_from`, with rows added for the tokens that the data's
            tokenizer has more.
        margin_coef: Factor on the margins in the data; 0 leaves them out.
        tie_threshold: For data with ties (`data.keep_ties`): half of the width of a score difference that passes for a
            tie (Rao & Kupper 1967); None where ties are left out.
        centering_coef: Weight of (r_better + r_worse)² (arXiv:2312.09244), which keeps scores near 0; 0 is none.
        lora: Adapters, which with the score head are then all that is trained; None trains the weights.
        freeze: Regular expressions; parameters whose name one of them finds something in are not trained.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    def __init__(
        self,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        init_from: str | None = None,
        transformer: TransformerConfig | None = None,
        margin_coef: float = 1.0,
        tie_threshold: float | None = None,
        centering_coef: float = 0.0,
        lora: LoRAConfig | None = None,
        freeze: list[str] | None = None,
        activation_checkpointing: ActivationCheckpointing | None = None,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__(
            build_transformer(transformer, init_from),
            optimizer,
            schedule,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        self.score_head = ScoreHead(self.transformer.config.dim)
        # Differences do not depend on the bias: its gradient is rounding noise, of which Adam would make full steps.
        self.score_head.bias.requires_grad_(centering_coef != 0.0)
        self.init_from = init_from
        self.may_grow = transformer is None
        if tie_threshold is not None and not tie_threshold > 0.0:
            raise ValueError(f"model.tie_threshold={tie_threshold}: must be above 0, or null where ties are left out.")
        self.margin_coef = margin_coef
        self.tie_threshold = tie_threshold
        self.centering_coef = centering_coef
        self.lora = lora
        self.frozen = freeze or []
        self._is_set_up = False
        self._tally = PreferenceTally()
        self._validation_sums: Tensor | None = None

    @property
    def scorer(self) -> ScoringTransformer:
        """The model and its head."""
        return ScoringTransformer(self.transformer, self.score_head)

    def loss_sums(self, batch: PreferenceBatch) -> ObjectiveSums:
        """Losses of a micro-batch, summed over its prompts.

        Args:
            batch: One micro-batch of this rank.
        """
        return self._sums(batch, self.scorer.scores(batch.input_ids, batch.lengths))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step; after the last one, and so before anything is validated or saved, centre the scores.

        Args:
            epoch: Lightning's.
            batch_idx: Lightning's.
            optimizer: Lightning's.
            optimizer_closure: Lightning's.
        """
        is_last = self.trainer.global_step + 1 >= self.trainer.estimated_stepping_batches
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if is_last:
            self._centre()

    def setup(self, stage: str) -> None:
        """Load the weights to start from, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        self._check_ties()
        warm_start(self, self.init_from, may_grow=self.may_grow, lora=self.lora, frozen=self.frozen)
        freeze_head(self.transformer)
        if self.init_from is not None and self.trainer.ckpt_path is None:
            folder = weights_folder(self.init_from)
            if (folder / SCORE_HEAD).is_file():
                load_score_head(self.score_head, folder)

    def extra_weights(self) -> dict[str, dict[str, Tensor]]:
        """The score head, in a file that `load_scorer` finds."""
        return {SCORE_HEAD: score_head_state(self.score_head)}

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._tally = PreferenceTally()
        self._validation_sums = torch.zeros(2, dtype=torch.float64, device=self._sums_device())

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Add a batch to the sums.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        assert self._validation_sums is not None
        scores = self.scorer.scores(batch.input_ids, batch.lengths)
        loss = self._sums(batch, scores).reported["loss"]
        self._validation_sums += torch.stack([loss, batch.num_supervised.to(loss)]).to(self._validation_sums)
        lengths = batch.response_lengths
        better, worse = batch.better[~batch.is_tie], batch.worse[~batch.is_tie]
        self._tally.add_pairs(
            (scores[better] - scores[worse]).cpu().numpy(), (lengths[better] - lengths[worse]).cpu().numpy()
        )
        self._tally.add_scores(scores[batch.lengths > 0].cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Report sums over sums of all ranks, and write `reward_validation.json`."""
        assert self._validation_sums is not None
        loss_sum, num_prompts = self._sum_over_ranks(self._validation_sums).tolist()
        vector = torch.from_numpy(self._tally.to_vector()).to(self._sums_device())
        tally = PreferenceTally.from_vector(self._sum_over_ranks(vector).cpu().numpy())
        values = {
            "val/loss": loss_sum / num_prompts if num_prompts else float("nan"),
            "val/accuracy": tally.accuracy,
            "val/longer_wins_accuracy": tally.longer_wins_accuracy,
            "val/accuracy_longer_chosen": tally.accuracy_where(longer=True),
            "val/accuracy_shorter_chosen": tally.accuracy_where(longer=False),
            "val/ece": tally.calibration_error,
            "val/score_mean": tally.score_mean,
            "val/score_std": tally.score_std,
        }
        step = self.trainer.global_step
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        self.log_dict(known | ({"step": float(step)} if self.trainer.state.fn == "fit" else {}))
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            path = Path(self.trainer.default_root_dir) / REPORT
            path.parent.mkdir(parents=True, exist_ok=True)
            report = {"step": step, "loss": values["val/loss"], **self._agreement(), **tally.report()}
            path.write_text(json.dumps(report, indent=1) + "\n")

    # ---- private ------------------------------------------------------------------------------------------------

    def _agreement(self) -> dict[str, float]:
        """How often annotators of the validation pairs agree with each other, where the data knows their votes."""
        votes = getattr(getattr(self.trainer, "datamodule", None), "annotator_votes", None)
        agreement = math.nan if votes is None else annotator_agreement(votes())
        return {} if math.isnan(agreement) else {"annotator_agreement": agreement}

    def _sums(self, batch: PreferenceBatch, scores: Tensor) -> ObjectiveSums:
        better, worse = scores[batch.better], scores[batch.worse]
        margin = self.margin_coef * batch.margin.to(scores) + (self.tie_threshold or 0.0)
        losses = bradley_terry_loss(better, worse, margin)
        is_right = (better > worse).to(scores)
        if self.tie_threshold is not None:
            losses = torch.where(batch.is_tie, tie_loss(better, worse, threshold=self.tie_threshold), losses)
            is_right = torch.where(batch.is_tie, ((better - worse).abs() < self.tie_threshold).to(scores), is_right)
        weight = batch.pair_weight.to(scores)
        reported = {
            "loss": (weight * losses).sum(),
            "accuracy": (weight * is_right).sum(),
            "score_difference": (weight * (better - worse)).sum(),
        }
        objective = reported["loss"]
        if self.centering_coef:
            penalty = (weight * centering_penalty(better, worse)).sum()
            reported["centering_penalty"] = penalty
            objective = objective + self.centering_coef * penalty
        return ObjectiveSums(objective, reported)

    def _check_ties(self) -> None:
        """Ties are modelled where the data keeps them, and nowhere else."""
        config = getattr(getattr(self.trainer, "datamodule", None), "pair_config", None)
        if config is not None and config.keep_ties != (self.tie_threshold is not None):
            raise ValueError(
                f"data.keep_ties={str(config.keep_ties).lower()} with model.tie_threshold={self.tie_threshold}: set "
                "both, to learn from ties, or neither, to leave them out."
            )

    @torch.no_grad()
    def _centre(self) -> None:
        """Move the bias so that the demonstrations of all ranks score 0 on average."""
        batches = getattr(getattr(self.trainer, "datamodule", None), "demonstration_batches", None)
        if batches is None:
            return
        sums = torch.zeros(2, dtype=torch.float64, device=self._sums_device())
        self.eval()
        for batch in batches():
            on_device = batch.to(self.device)
            with self.trainer.precision_plugin.forward_context():
                scores = self.scorer.scores(on_device.input_ids, on_device.lengths)
            chosen = scores[on_device.demonstration & (on_device.lengths > 0)]
            sums += torch.stack([chosen.sum(), chosen.new_tensor(len(chosen))]).to(sums)
        self.train()
        total, count = self._sum_over_ranks(sums).tolist()
        if count:
            self.score_head.bias -= total / count
