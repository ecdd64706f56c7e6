"""Group-relative policy optimisation and its relatives: no critic, responses to one prompt are compared."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from lmstack.losses.kl_estimators import KLLoss, estimate_kl
from lmstack.losses.policy_gradient import ppo_policy_loss
from lmstack.models import TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.nn.lora import LoRAConfig
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.rl.advantages import GroupBaseline, group_advantages
from lmstack.rl.kl_control import AdaptiveKL, FixedKL
from lmstack.rl.pretraining_mix import PretrainingMix
from lmstack.rl.reward_configs import Reward
from lmstack.rl.reward_shaping import RewardShaping
from lmstack.rl.rollout import Rollout, SamplingConfig
from lmstack.rl.update import UpdateConfig
from lmstack.stages.policy_optimization import PolicyOptimization
from lmstack.stages.supervised import ObjectiveSums
from lmstack.stages.warm_start import build_transformer

Aggregation = Literal["sequence_mean", "token_mean", "constant"]
"""What token losses are averaged over. `sequence_mean`: first over each response, then over responses (GRPO as
published; tokens of long responses weigh less). `token_mean`: over all tokens (DAPO, arXiv:2503.14476, section 3.3).
`constant`: their sum over responses times `max_new_tokens` (Dr. GRPO, arXiv:2503.20783, section 3.2)."""


@dataclass(frozen=True)
class RewardKL:
    """The KL divergence is taken off the reward, as the sum of log-ratios of a response.

    The gradient is that of E[reward - coef KL(policy || reference)].
    """

    kind: Literal["reward"] = "reward"


@dataclass(frozen=True)
class LossKL:
    """The KL divergence is a loss beside the policy's.

    Attributes:
        estimator: `k2` has the gradient of KL(policy || reference). `k3`, which GRPO was published with, has that of
            KL(reference || policy): the objective is then another one.
    """

    estimator: KLLoss = "k2"
    kind: Literal["loss"] = "loss"


@final
class GRPO(PolicyOptimization):
    """Policy gradient with the other responses to the same prompt as the baseline.

    GRPO is Shao et al. 2024, arXiv:2402.03300, eq. 3 (`baseline=normalized`, `aggregation=sequence_mean`,
    `kl_placement={kind: loss, estimator: k3}`); Dr. GRPO arXiv:2503.20783 (`centered`, `constant`); DAPO
    arXiv:2503.14476 (`clip_range_high`, `token_mean`); RLOO arXiv:2402.14740 (`leave_one_out`, `constant` or
    `token_mean`, KL in the reward). Dividing by a group's standard deviation changes the objective: prompts whose
    responses differ little weigh more, and the KL coefficient is in units of that deviation.

    Args:
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes from rollout to rollout.
        rewards: Reward functions by name: a reward model, an answer check, a function of yours.
        sampling: How responses are drawn.
        kl: Coefficient of the KL divergence from the reference: fixed, or following a target.
        samples_per_prompt: Responses to each prompt, at least 2.
        init_from: Weights of the policy and its reference: an lmstack run or checkpoint, or a Hugging Face folder. None
            starts from random weights.
        transformer: Shape of the policy; None takes that of `init_from`.
        baseline: What a response is compared with.
        aggregation: What token losses are averaged over.
        kl_placement: Where the KL divergence enters.
        update: How a rollout is learnt from.
        reward_shaping: What is done to scores.
        pretraining_mix: Language modelling beside the policy's objective; None for none.
        lora: Adapters, which are then all that is trained of the policy; without them it is its own reference.
        clip_range: Of the ratio of probabilities.
        clip_range_high: Its upper side where it differs (DAPO's clip-higher); None is the same.
        skip_equal_groups: Leave out groups whose responses all have one score: they teach nothing but the KL term.
        loss_chunk_size: Tokens whose logits exist at once.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    def __init__(
        self,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        rewards: dict[str, Reward],
        sampling: SamplingConfig,
        kl: FixedKL | AdaptiveKL,
        samples_per_prompt: int,
        *,
        init_from: str | None = None,
        transformer: TransformerConfig | None = None,
        baseline: GroupBaseline = "normalized",
        aggregation: Aggregation = "token_mean",
        kl_placement: RewardKL | LossKL = LossKL(),
        update: UpdateConfig = UpdateConfig(),  # noqa: B008
        reward_shaping: RewardShaping = RewardShaping(),  # noqa: B008
        pretraining_mix: PretrainingMix | None = None,
        lora: LoRAConfig | None = None,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        skip_equal_groups: bool = False,
        loss_chunk_size: int = 4096,
        activation_checkpointing: ActivationCheckpointing | None = None,
        compile_blocks: bool = False,
    ) -> None:
        if samples_per_prompt < 2:
            raise ValueError(
                f"model.samples_per_prompt={samples_per_prompt}: a response is compared with the others to its prompt. "
                "Use at least 2."
            )
        super().__init__(
            build_transformer(transformer, init_from),
            optimizer,
            schedule,
            init_from=init_from,
            rewards=rewards,
            sampling=sampling,
            samples_per_prompt=samples_per_prompt,
            update=update,
            reward_shaping=reward_shaping,
            kl=kl,
            pretraining_mix=pretraining_mix,
            lora=lora,
            loss_chunk_size=loss_chunk_size,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        self.baseline: GroupBaseline = baseline
        self.aggregation: Aggregation = aggregation
        self.kl_placement = kl_placement
        self.clip_range = clip_range
        self.clip_range_high = clip_range_high
        self.skip_equal_groups = skip_equal_groups

    def prepare(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Advantages of responses over their siblings, the same for all tokens of a response.

        Args:
            rollout: With scores and log-probabilities; responses to a prompt side by side.
        """
        mask = rollout.response_mask
        scores = rollout.scores.view(-1, self.samples_per_prompt)
        is_equal = (scores == scores[:, :1]).all(1)
        if isinstance(self.kl_placement, RewardKL):
            kl = estimate_kl(rollout.old_log_probs, rollout.ref_log_probs, "k1").sum(1)
            scores = scores - self.kl.coef * kl.view_as(scores)
        advantages = group_advantages(scores, self.baseline).flatten()
        if self.skip_equal_groups:
            rollout.row_weights = (~is_equal).repeat_interleave(self.samples_per_prompt).float()
        rollout.advantages = torch.where(mask, advantages[:, None], 0.0)
        counts = is_equal.sum(), torch.tensor(len(is_equal))
        return rollout, self.ranks.means({"rollout/equal_groups_share": counts})

    def loss_count(self, rollout: Rollout) -> Tensor:
        """Responses, tokens, or the tokens that there could be.

        Args:
            rollout: Some rows of a rollout.
        """
        if self.aggregation == "token_mean":
            return (rollout.response_mask * rollout.row_weights[:, None]).sum()
        return rollout.row_weights.sum()

    def loss_sums(self, rollout: Rollout) -> ObjectiveSums:
        """Clipped surrogate and KL loss of a micro-batch, summed.

        Args:
            rollout: Some rows of a rollout.
        """
        mask = rollout.response_mask
        log_probs, _ = self.collector.log_probs(self.transformer, rollout)
        log_ratio = torch.where(mask, log_probs - rollout.old_log_probs, 0.0)
        losses = ppo_policy_loss(
            log_ratio, rollout.advantages, clip_range=self.clip_range, clip_range_high=self.clip_range_high
        )
        policy_losses = torch.where(mask, losses, 0.0)
        token_losses = policy_losses
        if isinstance(self.kl_placement, LossKL):
            kl = estimate_kl(log_probs, rollout.ref_log_probs, self.kl_placement.estimator)
            token_losses = token_losses + self.kl.coef * torch.where(mask, kl, 0.0)
        ratio = log_ratio.exp()
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        reported = {
            "policy_loss": policy_losses.sum(),
            "clip_fraction": ((ratio < 1.0 - self.clip_range) | (ratio > 1.0 + high)).sum(),
            "kl_from_sampling": torch.where(mask, estimate_kl(rollout.old_log_probs, log_probs, "k3"), 0.0).sum(),
            "ratio_error": (ratio - 1.0).abs().max(),
        }
        return ObjectiveSums(self._aggregate(token_losses, rollout), reported)

    def _aggregate(self, token_losses: Tensor, rollout: Rollout) -> Tensor:
        weighted = token_losses * rollout.row_weights[:, None]
        if self.aggregation == "sequence_mean":
            return (weighted.sum(1) / rollout.response_mask.sum(1).clamp(min=1)).sum()
        return weighted.sum() / (self.sampling.max_new_tokens if self.aggregation == "constant" else 1)
