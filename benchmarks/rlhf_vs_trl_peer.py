"""TRL's side of `rlhf_vs_trl.py`: its own trainers on a Llama of transformers, with the weights and data of the tasks.

Imported in TRL's environment only to run; the imports of what lives there are inside the functions.
"""

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from rlhf_vs_trl_tasks import (
    ADAM_EPS,
    BETAS,
    CLIP_RANGE,
    DPO_BETA,
    GAE_LAMBDA,
    GAMMA,
    KL_COEF,
    NUM_ACTIONS,
    NUM_EPOCHS,
    NUM_MINIBATCHES,
    SHAPES,
    VALUE_CLIP,
    VALUE_COEF,
    Examples,
    Shape,
    bandit_objective,
    bandit_rewards,
    examples,
    head_bias,
    initial_weights,
    llama_values,
    lr_of,
    prompts_of,
    reward_of,
    score_weight,
)
from torch import Tensor, nn

PACKAGES = ("trl", "transformers", "accelerate")
MAX_UPDATES = 1_000_000  # never reached: the parent ends the run
END, PADDING = "<end>", "<padding>"


class Finished(Exception):  # noqa: N818 - not an error: TRL's PPO loop has no other way out
    """The parent wants no more updates."""


def tokenizer_of(shape: Shape) -> Any:
    """A tokenizer whose words are the tokens' numbers: `t0 t5 t9`.

    Args:
        shape: The size.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*(f"t{token}" for token in range(shape.end)), END, PADDING]
    words_alone = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="t0"))
    words_alone.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_alone, unk_token="t0", eos_token=END, pad_token=PADDING, padding_side="left"
    )


def text(tokens: list[int]) -> str:
    """Tokens as the tokenizer reads them, with a blank before each.

    Args:
        tokens: Of a prompt or an answer.
    """
    return "".join(f" t{token}" for token in tokens)


def policy(shape: Shape, seed: int, *, can_end: bool) -> Any:
    """A Llama with the first weights of the task.

    Args:
        shape: The size.
        seed: Of the draw.
        can_end: Whether the end may be predicted; a policy that generates has a frozen bias against it instead.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(config(shape, LlamaConfig))
    if not can_end:
        model.lm_head = nn.Linear(shape.dim, shape.vocab_size)
        model.lm_head.bias = nn.Parameter(head_bias(shape), requires_grad=False)
    incompatible = model.load_state_dict(initial_weights(shape, seed), strict=False)
    assert not incompatible.unexpected_keys
    assert set(incompatible.missing_keys) <= {"lm_head.bias"}
    model.generation_config.pad_token_id = shape.padding
    return model


def scorer(shape: Shape, seed: int) -> Any:
    """A Llama with one score a position: a reward model or critic.

    Args:
        shape: The size.
        seed: Of the draw.
    """
    from transformers import LlamaConfig, LlamaForSequenceClassification

    model = LlamaForSequenceClassification(config(shape, LlamaConfig, num_labels=1))
    state = {name: tensor for name, tensor in initial_weights(shape, seed).items() if name != "lm_head.weight"}
    incompatible = model.load_state_dict(state, strict=False)
    assert incompatible.missing_keys == ["score.weight"]
    model.score.weight.data.copy_(score_weight(shape, seed))
    return model


def config(shape: Shape, config_class: Any, **changes: Any) -> Any:
    """The shape as transformers writes it.

    Args:
        shape: The size.
        config_class: `LlamaConfig`.
        **changes: Further values.
    """
    values = {name: value for name, value in llama_values(shape).items() if name != "model_type"}
    tokens = {"pad_token_id": shape.padding, "eos_token_id": shape.end, "bos_token_id": None}
    return config_class(**values, **tokens, attn_implementation="sdpa", **changes)


def arguments(shape: Shape, seed: int, folder: str, **changes: Any) -> dict[str, Any]:
    """What every trainer is told.

    Args:
        shape: The size.
        seed: Of the run.
        folder: For what it writes.
        **changes: Further values.
    """
    return {
        "output_dir": folder,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": lr_of(shape),
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": ADAM_EPS,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def gate(updates: Any, *, steps_per_update: int = 1, must_raise: bool = False) -> Any:
    """A callback that waits for its turn.

    Args:
        updates: When to go on.
        steps_per_update: Optimizer steps of the trainer that make one update.
        must_raise: Whether the trainer only stops for an exception.
    """
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        def __init__(self) -> None:
            self.values: dict[str, float] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            count = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)
            self._go_on(updates.start(count), control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step % steps_per_update == 0:
                self._go_on(updates.step_done(), control)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            self.values = logged(logs) or self.values

        def last_values(self) -> dict[str, float]:
            return self.values

        def _go_on(self, going: bool, control: Any) -> None:
            if not going and must_raise:
                raise Finished
            control.should_training_stop = control.should_training_stop or not going

    return Gate()


def logged(logs: dict[str, float]) -> dict[str, float]:
    """The mean reward or loss in what a trainer logs; nothing where there is neither.

    Args:
        logs: By the trainer's names.
    """
    names = {"objective/scores": "reward", "reward": "reward", "loss": "loss"}  # of PPO, of GRPO, of the others
    found = [{ours: float(logs[theirs])} for theirs, ours in names.items() if theirs in logs]
    return found[0] if found else {}


def action_log_probs(model: Any) -> Tensor:
    """Of the bandit's actions under each of its prompts.

    Args:
        model: The policy.
    """
    shape = SHAPES["tiny"]
    with torch.no_grad():
        logits = model(input_ids=prompts_of(shape, 0)).logits[:, -1].float()
    return logits.log_softmax(-1)[:, :NUM_ACTIONS]


def objective_of(model: Any, shape: Shape) -> Callable[[], dict[str, float]]:
    """The exact value of the policy as it learns; nothing where it cannot be enumerated.

    Args:
        model: The policy, before the first update: then it is the reference.
        shape: The size.
    """
    if not shape.is_bandit:
        return dict
    reference = action_log_probs(model)
    return lambda: bandit_objective(action_log_probs(model), reference)


class RuleAsModel(nn.Module):
    """The bandit's rule in the shape of a reward model: a backbone whose hidden states are scores already."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Identity()

    def backbone(self, input_ids: Tensor, **_: Any) -> Any:
        """The reward at the response's position, 0 at the prompt's.

        Args:
            input_ids: A prompt and a response of one token each.
            **_: Ignored.
        """
        rewards = bandit_rewards()[input_ids[:, 0] - NUM_ACTIONS, input_ids[:, 1]]
        return SimpleNamespace(hidden_states=(torch.stack((torch.zeros_like(rewards), rewards), 1)[..., None],))


def run_ppo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`trl.experimental.ppo`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    updates = make_updates(*PACKAGES)
    updates.watch_collector()
    callback = gate(updates, must_raise=True)
    rows = prompts_of(shape, seed).repeat(shape.episodes, 1).tolist()
    model, reference = policy(shape, seed, can_end=False), policy(shape, seed, can_end=False)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(
            shape,
            seed,
            folder,
            per_device_train_batch_size=shape.episodes,  # of which each minibatch is its share, in one step
            gradient_accumulation_steps=1,
            num_mini_batches=NUM_MINIBATCHES,
            num_ppo_epochs=NUM_EPOCHS,
            total_episodes=MAX_UPDATES * shape.episodes,
            local_rollout_forward_batch_size=shape.episodes,
            response_length=shape.response_length,
            num_sample_generations=0,
            temperature=1.0,
            kl_coef=KL_COEF,
            cliprange=CLIP_RANGE,
            cliprange_value=VALUE_CLIP,
            vf_coef=VALUE_COEF,
            gamma=GAMMA,
            lam=GAE_LAMBDA,
        )
        trainer = PPOTrainer(
            args=PPOConfig(**settings),
            processing_class=tokenizer_of(shape),
            model=model,
            ref_model=reference,
            reward_model=RuleAsModel() if shape.is_bandit else scorer(shape, seed + 1),
            value_model=scorer(shape, seed + 1),
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
            callbacks=[callback],
        )
        updates.measure = objective_of(model, shape) if shape.is_bandit else callback.last_values
        try:
            trainer.train()
        except Finished:
            return


def run_grpo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`trl.GRPOTrainer`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def rule(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        asked = [[int(word[1:]) for word in prompt.split()] for prompt in prompts]
        return [reward_of(shape, prompt, list(ids)) for prompt, ids in zip(asked, completion_ids, strict=True)]

    updates = make_updates(*PACKAGES)
    callback = gate(updates, steps_per_update=NUM_EPOCHS * NUM_MINIBATCHES)
    model = policy(shape, seed, can_end=False)
    rows = [{"prompt": text(prompt).strip()} for prompt in prompts_of(shape, seed).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/start")
        model.config._name_or_path = f"{folder}/start"  # from where the trainer reads its reference
        settings = arguments(
            shape,
            seed,
            folder,
            per_device_train_batch_size=shape.episodes // NUM_MINIBATCHES,
            gradient_accumulation_steps=1,
            steps_per_generation=NUM_MINIBATCHES,
            num_iterations=NUM_EPOCHS,
            num_generations=shape.group_size,
            max_completion_length=shape.response_length,
            max_steps=MAX_UPDATES,
            temperature=1.0,
            beta=KL_COEF,
            epsilon=CLIP_RANGE,
            loss_type="grpo",
            scale_rewards="group",
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rule,
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(shape),
            callbacks=[callback],
        )
        # Which has lost the bias of the head: a Llama has none.
        trainer.ref_model = policy(shape, seed, can_end=False).eval().requires_grad_(False)
        updates.measure = objective_of(model, shape) if shape.is_bandit else callback.last_values
        trainer.train()


def pairs(rows: Examples) -> list[dict[str, str]]:
    """Preference data as TRL takes it.

    Args:
        rows: The data.
    """
    columns = zip(rows.prompts, rows.better, rows.worse, strict=True)
    return [
        {"prompt": text(prompt).strip(), "chosen": text(better), "rejected": text(worse)}
        for prompt, better, worse in columns
    ]


def run_supervised(
    make_updates: Any,
    shape: Shape,
    seed: int,
    *,
    trainer_class: str,
    config_class: str,
    models: dict[str, Any],
    **changes: Any,
) -> None:
    """A trainer whose update is an optimizer step.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
        trainer_class: Its name in `trl`.
        config_class: The name of its config.
        models: What it trains, and its reference where it has one.
        **changes: Further values of its config.
    """
    import trl
    from datasets import Dataset

    updates = make_updates(*PACKAGES)
    callback = gate(updates)
    updates.measure = callback.last_values
    rows = pairs(examples(shape, seed))
    if trainer_class == "SFTTrainer":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if trainer_class == "RewardTrainer":  # here a prompt is part of both texts
        rows = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        common = {"per_device_train_batch_size": shape.rows, "gradient_accumulation_steps": 1, "max_steps": MAX_UPDATES}
        settings = arguments(shape, seed, folder, **common, max_length=None, **changes)
        getattr(trl, trainer_class)(
            **models,
            args=getattr(trl, config_class)(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(shape),
            callbacks=[callback],
        ).train()


def run_sft(make_updates: Any, shape: Shape, seed: int) -> None:
    """`trl.SFTTrainer`, trained on the answers alone.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    names = {"trainer_class": "SFTTrainer", "config_class": "SFTConfig"}
    run_supervised(make_updates, shape, seed, **names, models={"model": policy(shape, seed, can_end=True)})


def run_reward_model(make_updates: Any, shape: Shape, seed: int) -> None:
    """`trl.RewardTrainer`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    names = {"trainer_class": "RewardTrainer", "config_class": "RewardConfig"}
    run_supervised(make_updates, shape, seed, **names, models={"model": scorer(shape, seed)})


def run_dpo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`trl.DPOTrainer`, with a frozen copy as reference.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    names = {"trainer_class": "DPOTrainer", "config_class": "DPOConfig"}
    models = {name: policy(shape, seed, can_end=True) for name in ("model", "ref_model")}
    run_supervised(make_updates, shape, seed, **names, models=models, beta=DPO_BETA)


TRL = {
    "sft": run_sft,
    "reward_model": run_reward_model,
    "dpo": run_dpo,
    "ppo": run_ppo,
    "grpo": run_grpo,
}
