"""Preference optimisation without a reward model: DPO and its relatives."""

import copy
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from lmstack.data.batch import IGNORE_INDEX, PreferenceBatch
from lmstack.losses.preference import cdpo_loss, dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from lmstack.losses.preference_kinds import (
    CDPOLoss,
    DPOLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PairLoss,
    PreferenceLoss,
    SimPOLoss,
    needs_reference,
)
from lmstack.models import Transformer, TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.likelihood import response_log_probs
from lmstack.nn.lora import LoRAConfig, lora_disabled
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.stages.supervised import ObjectiveSums, SupervisedModule
from lmstack.stages.warm_start import build_transformer, warm_start, without_dropout


class AnswerLogProbs(NamedTuple):
    """What the models say of each answer of a batch, in nats.

    Attributes:
        policy: Log-probability of the answer, summed over its tokens.
        reference: The same under the reference; zeros where the loss has none.
        lengths: Tokens of the answer, at least 1.
    """

    policy: Float[Tensor, " N"]
    reference: Float[Tensor, " N"]
    lengths: Float[Tensor, " N"]


@final
class DPO(SupervisedModule):
    """Minimise, on average over prompts, the mean over the pairs of its answers of a preference loss.

    With KTO: the sum over a prompt's good and bad answers; or, for data without pairs, the mean over answers. Dropout
    is off: model and reference are the same function before the first step, and the first DPO loss is ln 2.

    Args:
        loss: Which loss, with its numbers.
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        init_from: Weights to start from, which are the reference too: a fine-tuned run, or a Hugging Face folder. None
            starts from random weights.
        transformer: Shape of the model; None takes that of `init_from`, with rows added for the tokens that the data's
            tokenizer has more.
        lora: Adapters, which are then all that is trained; the reference is the model without them, and costs no
            memory. None trains the weights.
        freeze: Regular expressions; parameters whose name one of them finds something in are not trained.
        loss_chunk_size: Tokens whose logits exist at once.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    uses_dropout = False

    def __init__(
        self,
        loss: PreferenceLoss,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        init_from: str | None = None,
        transformer: TransformerConfig | None = None,
        lora: LoRAConfig | None = None,
        freeze: list[str] | None = None,
        loss_chunk_size: int = 4096,
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
        self.loss = loss
        self.init_from = init_from
        self.may_grow = transformer is None
        self.lora = lora
        self.frozen = freeze or []
        self.loss_chunk_size = loss_chunk_size
        self.reference: Transformer | None = None
        self._reference_point = torch.zeros(())
        self._is_set_up = False
        self._validation_sums: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Load the weights to start from, once, and keep a copy of them as the reference.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        config = getattr(getattr(self.trainer, "datamodule", None), "pair_config", None)
        for name in ("keep_ties", "margins_from_scores"):
            if getattr(config, name, False):
                raise ValueError(f"data.{name}=true: these losses know neither ties nor margins. Set it to false.")
        warm_start(self, self.init_from, may_grow=self.may_grow, lora=self.lora, frozen=self.frozen)
        without_dropout(self.transformer)
        if needs_reference(self.loss) and self.lora is None:
            # A resumed run's is in its checkpoint.
            self.reference = copy.deepcopy(self.transformer).requires_grad_(False)
            if stage == "fit":
                self.compile_blocks_of(self.reference)

    def prepare_step(self, micro_batches: Sequence[PreferenceBatch]) -> None:
        """KTO's reference point, from the whole step.

        Args:
            micro_batches: This rank's share of the step.
        """
        if isinstance(self.loss, KTOLoss):
            self._reference_point = self._mismatched_log_ratio(micro_batches)

    def loss_sums(self, batch: PreferenceBatch) -> ObjectiveSums:
        """Losses of a micro-batch, summed over its prompts.

        Args:
            batch: One micro-batch of this rank.
        """
        answers = self._answers(batch)
        if isinstance(self.loss, KTOLoss):
            objective = self._kto(self.loss, answers, batch)
        else:
            losses = pair_losses(self.loss, answers, batch)
            objective = (batch.pair_weight.to(losses) * losses).sum()
        rewards = implicit_rewards(self.loss, answers).detach()
        better, worse, weight = rewards[batch.better], rewards[batch.worse], batch.pair_weight.to(rewards)
        reported = {
            "loss": objective,
            "accuracy": (weight * (better > worse)).sum(),
            "reward_margin": (weight * (better - worse)).sum(),
            "chosen_reward": (weight * better).sum(),
            "rejected_reward": (weight * worse).sum(),
        }
        return ObjectiveSums(objective, reported)

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._validation_sums = {}

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Add a batch to the sums.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        training_point = self._reference_point
        self.prepare_step([batch])
        sums = {**self.loss_sums(batch).reported, "count": batch.num_supervised}
        self._reference_point = training_point
        for name, value in sums.items():
            so_far = self._validation_sums.get(name, 0.0)
            self._validation_sums[name] = so_far + value.to(self._sums_device()).double()

    def on_validation_epoch_end(self) -> None:
        """Report sums over sums of all ranks."""
        sums = {name: self._sum_over_ranks(value) for name, value in self._validation_sums.items()}
        count = sums.pop("count")
        values = {f"val/{name}": (value / count.clamp(min=1)).float() for name, value in sums.items()}
        if self.trainer.state.fn == "fit":
            values["step"] = torch.tensor(float(self.trainer.global_step))
        self.log_dict(values)

    # ---- private ------------------------------------------------------------------------------------------------

    def _answers(self, batch: PreferenceBatch) -> AnswerLogProbs:
        policy = self._summed(self.transformer, batch.input_ids, batch.labels)
        reference = torch.zeros_like(policy)
        if needs_reference(self.loss):
            reference = self._reference_log_probs(batch.input_ids, batch.labels)
        return AnswerLogProbs(policy, reference, batch.response_lengths.clamp(min=1).to(policy))

    @torch.no_grad()
    def _reference_log_probs(self, input_ids: Tensor, labels: Tensor) -> Float[Tensor, " N"]:
        if self.reference is not None:
            return self._summed(self.reference, input_ids, labels)
        with lora_disabled(self.transformer):
            return self._summed(self.transformer, input_ids, labels)

    def _summed(self, transformer: Transformer, input_ids: Tensor, labels: Tensor) -> Float[Tensor, " N"]:
        log_probs, _ = response_log_probs(
            transformer, input_ids, labels, temperature=1.0, chunk_size=self.loss_chunk_size
        )
        return log_probs.sum(1)

    def _kto(self, loss: KTOLoss, answers: AnswerLogProbs, batch: PreferenceBatch) -> Float[Tensor, ""]:
        losses = kto_loss(
            answers.policy - answers.reference,
            batch.desirability > 0,
            reference_point=self._reference_point.to(answers.policy),
            beta=loss.beta,
            desirable_coef=loss.desirable_coef,
            undesirable_coef=loss.undesirable_coef,
        )
        return (losses * (batch.desirability != 0)).sum()

    @torch.no_grad()
    def _mismatched_log_ratio(self, micro_batches: Sequence[PreferenceBatch]) -> Float[Tensor, ""]:
        """An estimate of the KL divergence: the mean of log π - log π_ref over answers put after another row's prompt.

        0 at least, and 0 where no micro-batch has two prompts (arXiv:2402.01306, section 4.1).
        """
        ratios = [torch.zeros(0, device=self.device)]
        for batch in micro_batches:
            mismatched = mismatch(batch, self.transformer.config.max_seq_len)
            if mismatched is not None:
                policy = self._summed(self.transformer, *mismatched)
                ratios.append(policy - self._reference_log_probs(*mismatched))
        pooled = torch.cat(ratios).to(self._sums_device()).double()
        total, count = self._sum_over_ranks(torch.stack([pooled.sum(), pooled.new_tensor(len(pooled))]))
        mean: Tensor = total / count.clamp(min=1)
        return mean.clamp(min=0)


def pair_losses(loss: PairLoss, answers: AnswerLogProbs, batch: PreferenceBatch) -> Float[Tensor, " M"]:
    """The loss of each pair of a batch.

    Args:
        loss: Which.
        answers: Of the batch.
        batch: Says which answer is better than which.
    """
    better, worse = batch.better, batch.worse
    policy_margin = answers.policy[better] - answers.policy[worse]
    reference_margin = answers.reference[better] - answers.reference[worse]
    mean = answers.policy / answers.lengths
    match loss:
        case DPOLoss():
            return dpo_loss(policy_margin, reference_margin, beta=loss.beta)
        case CDPOLoss():
            return cdpo_loss(policy_margin, reference_margin, beta=loss.beta, label_smoothing=loss.label_smoothing)
        case IPOLoss():
            return ipo_loss(policy_margin, reference_margin, beta=loss.beta)
        case SimPOLoss():
            return simpo_loss(mean[better] - mean[worse], beta=loss.beta, gamma=loss.gamma)
        case ORPOLoss():
            return orpo_loss(mean[better], mean[worse], odds_coef=loss.odds_coef)


def implicit_rewards(loss: PreferenceLoss, answers: AnswerLogProbs) -> Float[Tensor, " N"]:
    """What a loss takes as the reward of each answer: β log(π / π_ref); without a reference, of the mean a token.

    Args:
        loss: Which.
        answers: Of a batch.
    """
    match loss:
        case SimPOLoss():
            return loss.beta * answers.policy / answers.lengths
        case ORPOLoss():
            return answers.policy / answers.lengths
        case _:
            return loss.beta * (answers.policy - answers.reference)


def mismatch(batch: PreferenceBatch, max_seq_len: int) -> tuple[Tensor, Tensor] | None:
    """Each prompt with the answer of a row to another prompt, padded on the right.

    Args:
        batch: Whose rows; those neither wanted nor unwanted are left out.
        max_seq_len: Longer rows are cut.

    Returns:
        `input_ids` and `labels`; None when the batch has one prompt only.
    """
    rows = [row for row in range(len(batch.lengths)) if batch.desirability[row] != 0 and batch.lengths[row] > 0]
    groups = batch.group.tolist()
    made: list[tuple[Tensor, Tensor]] = []
    for place, row in enumerate(rows):
        others = rows[place + 1 :] + rows[:place]
        other = next((candidate for candidate in others if groups[candidate] != groups[row]), None)
        if other is not None:
            made.append(_prompt_with_answer(batch, row, other))
    if not made:
        return None
    input_ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in made], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence([row for _, row in made], batch_first=True, padding_value=IGNORE_INDEX)
    return input_ids[:, :max_seq_len], labels[:, :max_seq_len]


def _prompt_with_answer(batch: PreferenceBatch, row: int, other: int) -> tuple[Tensor, Tensor]:
    starts = (batch.labels != IGNORE_INDEX).int().argmax(1) + 1  # the first token of each answer
    prompt = batch.input_ids[row, : starts[row]]
    answer = batch.input_ids[other, starts[other] : batch.lengths[other]]
    labels = torch.cat([prompt.new_full((len(prompt) - 1,), IGNORE_INDEX), batch.labels[other, starts[other] - 1 :]])
    input_ids = torch.cat([prompt, answer])
    return input_ids, labels[: len(input_ids)]
