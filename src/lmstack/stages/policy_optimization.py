"""What policy-gradient stages share: roll out, score, then several passes of minibatches over the rollout."""

import copy
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lmstack.data.batch import PromptBatch
from lmstack.generation.engine import GenerationEngine
from lmstack.models import Transformer
from lmstack.models.activation_checkpointing import ActivationCheckpointing
from lmstack.models.checkpoint import load_weights_grown
from lmstack.models.likelihood import cross_entropy_sum
from lmstack.nn.lora import LoRAConfig, add_lora
from lmstack.optim.durations import to_steps
from lmstack.optim.gradient_clipping import clip_grad_norm
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.schedules import Schedule, lr_multiplier
from lmstack.rl.across_ranks import AcrossRanks
from lmstack.rl.collector import Collector
from lmstack.rl.kl_control import AdaptiveKL, FixedKL, KLController
from lmstack.rl.pretraining_mix import PretrainingMix, PretrainingStream
from lmstack.rl.reward_configs import Reward, load_rewards
from lmstack.rl.reward_shaping import RewardShaper, RewardShaping
from lmstack.rl.rollout import Rollout, SamplingConfig, sample_seed
from lmstack.rl.update import UpdateConfig, minibatch_rows
from lmstack.stages.base import LanguageModule
from lmstack.stages.supervised import ObjectiveSums
from lmstack.stages.warm_start import without_dropout


class PolicyOptimization(LanguageModule, ABC):
    """Learning from rewards of one's own responses.

    One item of the train loader is one rollout: prompts are answered, scored and learnt from before the next item, so a
    checkpoint never falls inside of one, and a killed run repeats its rollout exactly. `global_step` counts optimizer
    steps. Dropout is off: a ratio of probabilities needs the same function twice.

    Args:
        transformer: The policy.
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes from rollout to rollout.
        init_from: Weights of the policy and its reference: an lmstack run or checkpoint, or a Hugging Face folder. None
            starts from random weights.
        rewards: Reward functions by name.
        sampling: How responses are drawn.
        samples_per_prompt: Responses to each prompt.
        update: How a rollout is learnt from.
        reward_shaping: What is done to scores.
        kl: Coefficient of the KL divergence from the reference.
        pretraining_mix: Language modelling beside the policy's objective; None for none.
        lora: Adapters, which are then all that is trained of the policy; without them it is its own reference.
        loss_chunk_size: Tokens whose logits exist at once.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.
    """

    uses_dropout = False

    def __init__(
        self,
        transformer: Transformer,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        init_from: str | None,
        rewards: dict[str, Reward],
        sampling: SamplingConfig,
        samples_per_prompt: int,
        update: UpdateConfig,
        reward_shaping: RewardShaping,
        kl: FixedKL | AdaptiveKL,
        pretraining_mix: PretrainingMix | None,
        lora: LoRAConfig | None,
        loss_chunk_size: int,
        activation_checkpointing: ActivationCheckpointing | None,
        compile_blocks: bool,
    ) -> None:
        super().__init__(
            transformer,
            optimizer,
            schedule,
            activation_checkpointing=activation_checkpointing,
            compile_blocks=compile_blocks,
        )
        self.automatic_optimization = False
        self.init_from = init_from
        self.reward_configs = rewards
        self.sampling = sampling
        self.samples_per_prompt = samples_per_prompt
        self.update = update
        self.pretraining_mix = pretraining_mix
        self.lora = lora
        without_dropout(self.transformer)
        self.loss_chunk_size = loss_chunk_size
        self.kl = KLController(kl)
        self.shaper = RewardShaper(reward_shaping, lambda sums: self.ranks.sum(sums))
        self.num_rollouts = 0
        self.last_samples: list[dict[str, Any]] = []
        self.validation_samples: list[dict[str, Any]] = []
        self._validation_sums: dict[str, float] = {}
        self._collector: Collector | None = None
        self._stream: PretrainingStream | None = None
        self._reference_digest = ""

    # ---- what differs ---------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
        """Fill in values, advantages and returns.

        Args:
            rollout: With scores and log-probabilities.

        Returns:
            The rollout, and what to log of it, over all ranks.
        """

    @abstractmethod
    def loss_count(self, rollout: Rollout) -> Tensor:
        """What the sums of `loss_sums` are divided by, after adding up all micro-batches and ranks.

        Args:
            rollout: Some rows of a rollout.
        """

    @abstractmethod
    def loss_sums(self, rollout: Rollout) -> ObjectiveSums:
        """Loss of a micro-batch, as a sum; `reported` holds sums over its tokens.

        Args:
            rollout: Some rows of a rollout.
        """

    # ---- one rollout ----------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer prompts, score the answers, learn from them.

        Args:
            batch: This rank's prompts.
            batch_idx: Ignored.
        """
        self._seed_step(self.num_rollouts)
        started = time.perf_counter()
        seed = partial(sample_seed, self.base_seed or 0)
        found = self.collector.collect(batch, seed, repeats=self.samples_per_prompt)
        self.last_samples = found.table
        collected = time.perf_counter()
        rollout, prepared = self.prepare(found.rollout)
        metrics = found.metrics | {"kl/coef": self.kl.coef} | prepared | self._learn(rollout)
        optimizer: Any = self.optimizers()
        metrics |= {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
        self.kl.update(metrics["kl/reference"], int(metrics["rollout/responses"]))
        self.num_rollouts += 1
        schedulers = self.lr_schedulers()
        schedulers.step()  # type: ignore[union-attr]
        metrics |= {
            "rollout/number": float(self.num_rollouts),
            "time/rollout_seconds": collected - started,
            "time/update_seconds": time.perf_counter() - collected,
        }
        self._publish(metrics)
        if self._is_out_of_steps() or self.num_rollouts >= self.trainer.estimated_stepping_batches:
            self.trainer.should_stop = True  # so that the last rollout is followed by a validation

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        """Epochs of minibatches; what was logged, averaged over minibatches."""
        history: list[dict[str, float]] = []
        for number, rows in enumerate(self._minibatches(len(rollout))):
            if self._is_out_of_steps():
                break
            metrics, is_too_far = self._step(rollout.select(rows.to(self.device)), is_first=number == 0)
            history.append(metrics)
            if is_too_far:
                break
        names = list(dict.fromkeys(name for metrics in history for name in metrics))
        means = {name: float(np.mean([m[name] for m in history if name in m])) for name in names}
        return means | {"update/minibatches": float(len(history))}

    def _step(self, minibatch: Rollout, *, is_first: bool) -> tuple[dict[str, float], bool]:
        """One optimizer step, unless the policy is too far from the one that sampled; and whether it is."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        metrics = {} if self._stream is None else self._add_pretraining_gradients(self._stream, is_first)
        count = self._sum_over_ranks(self.loss_count(minibatch)).clamp(min=1)
        num_tokens = self._sum_over_ranks(minibatch.response_mask.sum()).clamp(min=1)
        reported: list[dict[str, Tensor]] = []
        num_parts = -(-len(minibatch) // self.update.micro_batch_size)
        for position, (_, part) in enumerate(minibatch.split(self.update.micro_batch_size)):
            sums = self.loss_sums(part)
            reported.append({name: value.detach() for name, value in sums.reported.items()})
            with self._backward_context(is_last=position == num_parts - 1):
                self.manual_backward(sums.objective * self.data_rank.world_size / count.to(sums.objective.dtype))
        error = max(float(sums.pop("ratio_error")) for sums in reported)
        totals = torch.stack([torch.stack([sums[name].double() for name in reported[0]]) for sums in reported]).sum(0)
        means = self._sum_over_ranks(totals) / num_tokens
        metrics |= {f"update/{name}": float(value) for name, value in zip(reported[0], means, strict=True)}
        if is_first:
            metrics["update/first_ratio_error"] = self.ranks.max(error)
        limit = self.update.target_kl
        if limit is not None and metrics["update/kl_from_sampling"] > limit:
            return metrics, True
        self.before_optimizer_step()
        with torch.autocast(self.device.type, enabled=False):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            metrics["update/grad_norm"] = float(clip_grad_norm(parameters, self.update.max_grad_norm))
            optimizer.step()
        return metrics, False

    def before_optimizer_step(self) -> None:
        """Called between the backward passes of a minibatch and its step; does nothing here."""

    def _add_pretraining_gradients(self, stream: PretrainingStream, is_first: bool) -> dict[str, float]:
        """Gradients of gamma times the mean loss of a step's pretraining text; they add to what is there."""
        batches = [batch.to(self.device) for batch in stream.micro_batches(self.trainer.global_step)]
        count = self._sum_over_ranks(torch.stack([batch.num_supervised for batch in batches]).sum()).clamp(min=1)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            hidden = self.transformer(batch.input_ids, position_ids=batch.position_ids, document_ids=batch.document_ids)
            loss = cross_entropy_sum(
                self.transformer, hidden, batch.labels, chunk_size=self.loss_chunk_size
            ).cross_entropy
            total += loss.detach()
            with self._backward_context(is_last=False):
                self.manual_backward(stream.config.coef * loss * self.data_rank.world_size / count)
        metrics = {"ptx/loss": float(self._sum_over_ranks(total) / count)}
        if is_first:
            metrics["ptx/grad_norm"] = self._global_gradient_norm()
        return metrics

    # ---- validation -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._validation_sums, self.validation_samples = {}, []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer held-out prompts, always with the same random numbers.

        Args:
            batch: This rank's prompts.
            batch_idx: Ignored.
        """
        found = self.collector.collect(batch, lambda number, _: number, learns=False)
        self.validation_samples.extend(found.table)
        metrics, sums = found.metrics, self._validation_sums
        weight = metrics["rollout/responses"]
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value * weight
        sums["weight"] = sums.get("weight", 0.0) + weight

    def on_validation_epoch_end(self) -> None:
        """Report means over responses."""
        sums = dict(self._validation_sums)
        weight = sums.pop("weight")
        names = [n for n in sums if n.startswith("reward/") or n in ("kl/reference", "rollout/length")]
        names = [*names, "rollout/finished_share"]
        values = {f"val/{name.replace('/total', '')}": sums[name] / weight for name in names if name != "reward/shaped"}
        if self.trainer.state.fn == "fit":
            values["step"] = float(self.trainer.global_step)
        self.log_dict(values)

    # ---- set-up and resume ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load the policy, copy it as the reference, and load the reward models.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if self._collector is not None:
            return
        if self.init_from is not None:  # on resume too: the reference is made of these weights
            load_weights_grown(self.transformer, self.init_from)
        self._reference_digest = _digest(self.transformer)
        reference = None if self.lora else copy.deepcopy(self.transformer).requires_grad_(False)
        if reference is not None and stage == "fit":
            self.compile_blocks_of(reference)
        if self.lora is not None:
            add_lora(self.transformer, self.lora)
            without_dropout(self.transformer)
        data: Any = getattr(self.trainer, "datamodule", None)
        tokenizer = getattr(data, "tokenizer", None)
        self._collector = Collector(
            engine=GenerationEngine(self.transformer, tokenizer),
            reference=None if reference is None else self._placed(reference),
            rewards=load_rewards(self.reward_configs, tokenizer, self.trainer.strategy.root_device),
            shaper=self.shaper,
            sampling=self.sampling,
            stop_ids=tuple(getattr(data, "stop_ids", ())),
            micro_batch_size=self.update.micro_batch_size,
            loss_chunk_size=self.loss_chunk_size,
            ranks=replace(self.ranks, device=self.trainer.strategy.root_device),
        )
        if stage == "fit" and self.pretraining_mix is not None:
            self._stream = self._pretraining_stream(self.pretraining_mix, tokenizer)

    @property
    def collector(self) -> Collector:
        """Makes rollouts; there after `setup`."""
        assert self._collector is not None
        return self._collector

    @property
    def ranks(self) -> AcrossRanks:
        """For numbers over all ranks."""
        return AcrossRanks(self._sum_over_ranks, self.data_rank.index, self.data_rank.world_size, self.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a schedule that is a pure function of the number of rollouts."""
        if self.trainer.gradient_clip_val is not None:
            raise ValueError("trainer.gradient_clip_val has no effect here. Set model.update.max_grad_norm.")
        optimizer = build_optimizer(self.optimizer_config, self.transformer, module=self)
        planned = self._planned_rollouts()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: self._multiplier(n, planned))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters and controllers.

        Args:
            checkpoint: Lightning's dictionary, added to in place.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["policy_optimization"] = {
            "num_rollouts": self.num_rollouts,
            "kl": self.kl.state_dict(),
            "shaper": self.shaper.state_dict(),
            "reference_digest": self._reference_digest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back, and refuse another reference than the run began with.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            ValueError: The weights at `init_from` are not those that the run started from.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["policy_optimization"]
        if state["reference_digest"] != self._reference_digest:
            raise ValueError(
                f"model.init_from={self.init_from!r}: these are not the weights that this run started from, so the "
                "KL divergence would be from another reference. Put them back, or start a new run."
            )
        self.num_rollouts = state["num_rollouts"]
        self.kl.load_state_dict(state["kl"])
        self.shaper.load_state_dict(state["shaper"])

    # ---- private ----------------------------------------------------------------------------------------------------

    def _placed(self, reference: Transformer) -> Transformer:
        """On the device and in the precision that the policy will have: Lightning moves it after `setup`."""
        strategy = self.trainer.strategy
        return strategy.precision_plugin.convert_module(reference).to(strategy.root_device)  # type: ignore[return-value]

    def _minibatches(self, num_own: int) -> Iterator[Int[Tensor, " N"]]:
        counts = [int(count) for count in self.ranks.all(float(num_own))]
        if self.num_rollouts == 0 and sum(counts) < self.update.num_minibatches:  # the last may be short
            raise ValueError(
                f"update.num_minibatches={self.update.num_minibatches} is more than the {sum(counts)} responses of a "
                "rollout. Lower it, or raise data.prompts_per_step."
            )
        return minibatch_rows(self.update, counts, self.data_rank.index, (self.base_seed or 0, self.num_rollouts))

    def _backward_context(self, *, is_last: bool) -> AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if is_last or block is None or self.trainer.world_size == 1 else block()

    def _publish(self, metrics: dict[str, float]) -> None:
        """Hand metrics to loggers and callbacks; Lightning's `log` took a seventh of a small update for the same."""
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)
        self.log("step", float(self.trainer.global_step))  # what callbacks log of this rollout goes into the same row

    def _is_out_of_steps(self) -> bool:
        limit = self.trainer.max_steps
        return 0 <= limit <= self.trainer.global_step

    def _planned_rollouts(self) -> int:
        length = self.trainer.estimated_stepping_batches
        steps_per_rollout = self.update.num_epochs * self.update.num_minibatches
        if self.trainer.max_steps >= 0:
            length = min(length, -(-self.trainer.max_steps // steps_per_rollout))
        return int(length)

    def _multiplier(self, rollouts: int, planned: int) -> float:
        return lr_multiplier(self.schedule, rollouts, planned, lambda d: to_steps(d, planned, self._steps_for_tokens))

    def _pretraining_stream(self, mix: PretrainingMix, tokenizer: Any) -> PretrainingStream:
        stream = PretrainingStream(mix, self.data_rank)
        if tokenizer is not None and not tokenizer.extends(stream.corpus.tokenizer):
            raise ValueError(
                f"pretraining_mix.path={mix.path!r} was built with another tokenizer than the policy's. Build the "
                "corpus with the policy's tokenizer."
            )
        return stream

    def _global_gradient_norm(self) -> float:
        squares = torch.zeros((), device=self.device)
        for parameter in self.transformer.parameters():
            if parameter.grad is not None:
                # Averaged over ranks later, together with the policy's; here each rank holds its own share.
                squares += (self._sum_over_ranks(parameter.grad) / self.data_rank.world_size).square().sum()
        return float(squares.sqrt())


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
