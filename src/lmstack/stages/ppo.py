"""Proximal policy optimisation from human feedback, with pretraining mix."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from lmstack.losses.kl_estimators import estimate_kl
from lmstack.losses.policy_gradient import clipped_value_loss, ppo_policy_loss
from lmstack.models import Transformer, TransformerConfig
from lmstack.models.activation_checkpointing import ActivationCheckpointing, BudgetCheckpointing
from lmstack.models.checkpoint import load_weights_grown
from lmstack.models.heads import ScoreHead, ScoringTransformer, load_scorer
from lmstack.nn.lora import LoRAConfig, is_adapter
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import Schedule
from lmstack.rl.advantages import generalized_advantages, whiten
from lmstack.rl.kl_control import AdaptiveKL, FixedKL
from lmstack.rl.pretraining_mix import PretrainingMix
from lmstack.rl.reward_configs import Reward
from lmstack.rl.reward_shaping import RewardShaping
from lmstack.rl.rollout import Rollout, SamplingConfig, state_values, token_rewards
from lmstack.rl.update import UpdateConfig
from lmstack.stages.policy_optimization import PolicyOptimization
from lmstack.stages.supervised import ObjectiveSums
from lmstack.stages.warm_start import build_transformer, freeze_head, without_dropout


@dataclass(frozen=True)
class SeparateCritic:
    """A critic with its own trunk.

    Attributes:
        init_from: Run of stage `reward_model` that it starts from (arXiv:2203.02155, section 3.5); None starts from the
            policy's weights and a new head.
        transformer: Shape of its trunk; None takes that of `init_from`, or the policy's.
    """

    init_from: str | None = None
    transformer: TransformerConfig | None = None
    kind: Literal["separate"] = "separate"


@dataclass(frozen=True)
class SharedCritic:
    """A value head on the policy's own trunk: half the memory and time; both losses then pull at one trunk."""

    kind: Literal["shared"] = "shared"


@final
class PPO(PolicyOptimization):
    """Maximise E[reward - kl_coef KL(policy || reference)] by clipped policy-gradient steps with a learnt baseline.

    Schulman et al. 2017, arXiv:1707.06347; for language models Ziegler et al. 2019, arXiv:1909.08593, and with
    pretraining mix Ouyang et al. 2022, arXiv:2203.02155. The penalty enters the reward of each token as the log-ratio
    (k1), whose score-function gradient is that of the KL divergence.

    Args:
        optimizer: Which optimizer, with its settings; one for policy and critic.
        schedule: How the learning rate changes from rollout to rollout.
        rewards: Reward functions by name: a reward model, an answer check, a function of yours.
        sampling: How responses are drawn.
        kl: Coefficient of the KL divergence from the reference: fixed, or following a target.
        critic: Where values come from.
        init_from: Weights of the policy and its reference: an lmstack run or checkpoint, or a Hugging Face folder. None
            starts from random weights.
        transformer: Shape of the policy; None takes that of `init_from`.
        update: How a rollout is learnt from.
        reward_shaping: What is done to scores.
        pretraining_mix: Language modelling beside the policy's objective (PPO-ptx); None for none.
        lora: Adapters, which are then all that is trained of the policy; without them it is its own reference.
        samples_per_prompt: Responses to each prompt.
        gamma: Discount.
        gae_lambda: Of generalised advantage estimation.
        clip_range: Of the ratio of probabilities.
        value_clip_range: Farthest that a value may move in an update; None for no limit.
        value_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus.
        critic_warmup_rollouts: Rollouts at the start from which only the critic learns.
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
        critic: SeparateCritic | SharedCritic,
        *,
        init_from: str | None = None,
        transformer: TransformerConfig | None = None,
        update: UpdateConfig = UpdateConfig(),  # noqa: B008
        reward_shaping: RewardShaping = RewardShaping(),  # noqa: B008
        pretraining_mix: PretrainingMix | None = None,
        lora: LoRAConfig | None = None,
        samples_per_prompt: int = 1,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        value_clip_range: float | None = 0.2,
        value_coef: float = 0.1,
        entropy_coef: float = 0.0,
        critic_warmup_rollouts: int = 0,
        loss_chunk_size: int = 4096,
        activation_checkpointing: ActivationCheckpointing | None = None,
        compile_blocks: bool = False,
    ) -> None:
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
        self.critic_config = critic
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_range = clip_range
        self.value_clip_range = value_clip_range
        self.value_coef = value_coef
        self.entropy_coef = entropy_coef
        self.critic_warmup_rollouts = critic_warmup_rollouts
        if isinstance(critic, SharedCritic):
            self.critic: ScoringTransformer | None = None
            self.value_head = ScoreHead(self.transformer.config.dim)
            self.value_head.weight.data.zero_()
        else:
            if isinstance(activation_checkpointing, BudgetCheckpointing):
                raise ValueError(
                    "model.activation_checkpointing.kind=budget: a critic of its own is not compiled. Use kind=full, "
                    "blocks or matmuls."
                )
            self.critic = ScoringTransformer(self._critic_trunk(critic))
            self.critic.transformer.checkpoint_activations(activation_checkpointing)
            freeze_head(self.critic.transformer)
            without_dropout(self.critic.transformer)

    def prepare(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Values, per-token rewards, advantages and returns.

        Args:
            rollout: With scores and log-probabilities.
        """
        mask = rollout.response_mask
        with torch.no_grad():
            rollout.values = self.collector.in_chunks(rollout, self._values)
        kl = estimate_kl(rollout.old_log_probs, rollout.ref_log_probs, "k1")
        rewards = token_rewards(rollout.scores, kl, rollout.last_slot, mask, kl_coef=self.kl.coef)
        advantages, rollout.returns = generalized_advantages(
            rewards, rollout.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        rollout.advantages = whiten(advantages, mask, self._sum_over_ranks)
        return rollout, self._value_metrics(rollout)

    def loss_count(self, rollout: Rollout) -> Tensor:
        """Tokens of the responses.

        Args:
            rollout: Some rows of a rollout.
        """
        return rollout.response_mask.sum()

    def loss_sums(self, rollout: Rollout) -> ObjectiveSums:
        """Clipped surrogate, value loss and entropy bonus of a micro-batch, summed over its tokens.

        Args:
            rollout: Some rows of a rollout.
        """
        mask = rollout.response_mask
        log_probs, hidden = self.collector.log_probs(self.transformer, rollout)
        values = self._values(rollout) if self.critic is not None else self._head_values(hidden, rollout)
        log_ratio = torch.where(mask, log_probs - rollout.old_log_probs, 0.0)
        policy_losses = ppo_policy_loss(log_ratio, rollout.advantages, clip_range=self.clip_range)
        value_losses = clipped_value_loss(values, rollout.values, rollout.returns, clip_range=self.value_clip_range)
        policy_loss = torch.where(mask, policy_losses, 0.0).sum()
        value_loss = torch.where(mask, value_losses, 0.0).sum()
        objective = policy_loss + self.value_coef * value_loss
        reported = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": ((log_ratio.exp() - 1.0).abs() > self.clip_range).sum(),
            "kl_from_sampling": torch.where(mask, estimate_kl(rollout.old_log_probs, log_probs, "k3"), 0.0).sum(),
            "ratio_error": (log_ratio.exp() - 1.0).abs().max(),
        }
        if self.entropy_coef:
            entropy = self._entropy(hidden[mask]).sum()
            objective = objective - self.entropy_coef * entropy
            reported["entropy"] = entropy
        return ObjectiveSums(objective, reported)

    def before_optimizer_step(self) -> None:
        """While the critic warms up, leave the policy alone."""
        if self.num_rollouts < self.critic_warmup_rollouts:
            for parameter in self.transformer.parameters():
                parameter.grad = None

    def setup(self, stage: str) -> None:
        """Load what training starts from; the critic too.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if self._collector is not None:
            return
        super().setup(stage)
        if self.critic is None:
            return
        assert isinstance(self.critic_config, SeparateCritic)
        if self.critic_config.init_from is not None:
            scorer = load_scorer(self.critic_config.init_from)
            load_weights_grown(self.critic.transformer, scorer.transformer.state_dict())
            self.critic.score_head.load_state_dict(scorer.score_head.state_dict())
        else:
            without_adapters = {k: v for k, v in self.transformer.state_dict().items() if not is_adapter(k)}
            load_weights_grown(self.critic.transformer, self.init_from or without_adapters)
            self.critic.score_head.weight.data.zero_()  # values start at 0, not at noise

    def _critic_trunk(self, critic: SeparateCritic) -> Transformer:
        if critic.transformer is None and critic.init_from is None:
            return Transformer(self.transformer.config)
        return build_transformer(critic.transformer, critic.init_from)

    def _values(self, rollout: Rollout) -> Float[Tensor, "B T"]:
        if self.critic is not None:
            return state_values(self.critic, rollout.input_ids, rollout.labels)
        return self._head_values(self.transformer(rollout.input_ids), rollout)

    def _head_values(self, hidden: Tensor, rollout: Rollout) -> Float[Tensor, "B T"]:
        return torch.where(rollout.response_mask, self.value_head(hidden), 0.0)

    def _entropy(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        parts: list[Tensor] = []
        for part in torch.split(hidden, self.loss_chunk_size):
            parts.append(torch.utils.checkpoint.checkpoint(self._entropy_of, part, use_reentrant=False))
        return torch.cat(parts)

    def _entropy_of(self, hidden: Tensor) -> Tensor:
        logits = self.transformer.logits(hidden[None])[0].float() / self.sampling.temperature
        log_probs = logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def _value_metrics(self, rollout: Rollout) -> dict[str, float]:
        """How well the critic foresaw the returns, over all ranks."""
        mask = rollout.response_mask
        count = mask.sum().double()
        returns, errors = rollout.returns[mask].double(), (rollout.returns - rollout.values)[mask].double()
        sums = [rollout.values[mask].double().sum(), returns.sum(), returns.square().sum()]
        sums += [errors.sum(), errors.square().sum()]
        means = self.ranks.means({str(i): (total, count) for i, total in enumerate(sums)})
        value, mean, square, error, squared_error = means.values()
        unexplained, variance = squared_error - error**2, square - mean**2
        explained = 1.0 - unexplained / variance if variance > 1e-12 else 0.0
        return {"value/mean": value, "value/returns": mean, "value/explained_variance": explained}
