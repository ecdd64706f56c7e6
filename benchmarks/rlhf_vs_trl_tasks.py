"""What both sides of `rlhf_vs_trl.py` share: shapes, first weights, data, and the exact value of the enumerable task.

Plain torch: this file is read in the environment of lmstack and in that of TRL. Tokens are numbers; the last two of a
vocabulary are the end of a response and padding, and policies that generate cannot choose them.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORM_EPS, INIT_STD, ROPE_THETA = 1e-5, 0.02, 10_000.0
FORBIDDEN = -1e4  # a frozen bias of the head: no softmax in float32 gives such a token any probability


@dataclass(frozen=True)
class Shape:
    """A Llama with its own head, and the sizes of what it is trained on.

    Attributes:
        vocab_size: Of which the last two tokens are the end and padding.
        dim: Width of the residual stream.
        num_layers: Blocks.
        num_heads: Query and key-value heads.
        hidden_dim: Width of the gated feed-forward.
        prompt_length: Tokens of every prompt.
        response_length: Tokens of every response; in SFT, DPO and the reward model, the end comes in addition.
        rows: Examples of a step of SFT, pairs of a step of DPO and of the reward model.
        episodes: Responses of an update of PPO and GRPO.
        num_prompts: Different prompts.
        group_size: Responses to a prompt in GRPO.
    """

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    prompt_length: int
    response_length: int
    rows: int
    episodes: int
    num_prompts: int
    group_size: int = 8

    @property
    def end(self) -> int:
        """The token that ends a response."""
        return self.vocab_size - 2

    @property
    def padding(self) -> int:
        """The token of no meaning."""
        return self.vocab_size - 1

    @property
    def is_bandit(self) -> bool:
        """Whether every policy can be enumerated."""
        return self.response_length == 1


SHAPES = {
    "tiny": Shape(32, 64, 2, 4, 256, 1, 1, rows=32, episodes=64, num_prompts=8),
    "5m": Shape(8192, 256, 4, 4, 640, 64, 64, rows=8, episodes=32, num_prompts=64),
    "20m": Shape(16384, 384, 8, 6, 1024, 64, 64, rows=8, episodes=32, num_prompts=64),
}
NUM_ACTIONS = 16  # of the bandit: tokens 0 to 15; its prompts are the tokens 16 to 23
KL_COEF, LR, BETAS, ADAM_EPS = 0.1, 1e-3, (0.9, 0.999), 1e-8
SPEED_LR = 1e-5  # beyond the tiny size nothing is learned but time
NUM_EPOCHS, NUM_MINIBATCHES = 4, 4
GAMMA, GAE_LAMBDA, CLIP_RANGE, VALUE_CLIP, VALUE_COEF, DPO_BETA = 1.0, 0.95, 0.2, 0.2, 0.1, 0.1


def lr_of(shape: Shape) -> float:
    """The learning rate of every algorithm at a size.

    Args:
        shape: The size.
    """
    return LR if shape.is_bandit else SPEED_LR


def allowed_tokens(shape: Shape) -> Tensor:
    """Which tokens a policy may generate.

    Args:
        shape: The size.
    """
    allowed = torch.ones(shape.vocab_size, dtype=torch.bool)
    allowed[NUM_ACTIONS if shape.is_bandit else shape.end :] = False
    return allowed


def head_bias(shape: Shape) -> Tensor:
    """The frozen bias of a policy's head.

    Args:
        shape: The size.
    """
    return torch.where(allowed_tokens(shape), 0.0, FORBIDDEN)


def initial_weights(shape: Shape, seed: int) -> dict[str, Tensor]:
    """First weights of a model in the names of transformers' Llama, the same in every environment.

    Args:
        shape: The size.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.empty(size).normal_(0.0, INIT_STD, generator=generator)

    dim, hidden = shape.dim, shape.hidden_dim
    state = {"model.embed_tokens.weight": normal(shape.vocab_size, dim), "model.norm.weight": torch.ones(dim)}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            state[f"{prefix}self_attn.{name}.weight"] = normal(dim, dim)
        for name in ("gate_proj", "up_proj"):
            state[f"{prefix}mlp.{name}.weight"] = normal(hidden, dim)
        state[f"{prefix}mlp.down_proj.weight"] = normal(dim, hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = torch.ones(dim)
    state["lm_head.weight"] = normal(shape.vocab_size, dim)
    return state


def score_weight(shape: Shape, seed: int) -> Tensor:
    """First weight of the head of a reward model or critic, standard deviation 1 / sqrt(D + 1).

    Args:
        shape: The size.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, shape.dim).normal_(0.0, 1 / math.sqrt(shape.dim + 1), generator=generator)


def llama_values(shape: Shape) -> dict[str, object]:
    """`config.json` of the policy, as transformers' Llama has it.

    Args:
        shape: The size.
    """
    return {
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "max_position_embeddings": shape.prompt_length + shape.response_length + 2,
        "rms_norm_eps": NORM_EPS,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }


# ---- data ------------------------------------------------------------------------------------------------------------


def bandit_rewards() -> Tensor:
    """Reward of every action under every prompt of the bandit: ((7c + 3a) mod 16) / 15."""
    prompts, actions = torch.arange(SHAPES["tiny"].num_prompts)[:, None], torch.arange(NUM_ACTIONS)[None]
    return ((7 * prompts + 3 * actions) % 16) / 15


def prompts_of(shape: Shape, seed: int) -> Tensor:
    """The prompts, one a row.

    Args:
        shape: The size.
        seed: Of the draw; the bandit has always the same.
    """
    if shape.is_bandit:
        return torch.arange(NUM_ACTIONS, NUM_ACTIONS + shape.num_prompts)[:, None]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.end, (shape.num_prompts, shape.prompt_length), generator=generator)


def reward_of(shape: Shape, prompt: list[int], response: list[int]) -> float:
    """A reward that is a rule: the bandit's, or elsewhere the share of tokens in the lower half of the vocabulary.

    Args:
        shape: The size.
        prompt: Its tokens.
        response: Its tokens, without the end.
    """
    if shape.is_bandit:
        return float(bandit_rewards()[prompt[-1] - NUM_ACTIONS, response[0]])
    return sum(token < shape.vocab_size // 2 for token in response) / len(response)


@dataclass(frozen=True)
class Examples:
    """Supervised data, a prompt and its answers in each row; answers without their end.

    Attributes:
        prompts: Of each row.
        better: Demonstration of SFT, preferred answer of a pair.
        worse: The other answer of a pair.
    """

    prompts: list[list[int]]
    better: list[list[int]]
    worse: list[list[int]]


def examples(shape: Shape, seed: int, count: int = 512) -> Examples:
    """Rows of random prompts with two answers, labelled by Bradley-Terry with ten times the rule's reward as score.

    Args:
        shape: The size.
        seed: Of the draw.
        count: Rows; training goes round.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    prompts = prompts_of(shape, seed)
    chosen = prompts[torch.randint(len(prompts), (count,), generator=generator)].tolist()
    top = NUM_ACTIONS if shape.is_bandit else shape.end
    answers = torch.randint(top, (2, count, shape.response_length), generator=generator).tolist()
    coins = torch.rand(count, generator=generator).tolist()
    rows = Examples(chosen, [], [])
    for prompt, one, other, coin in zip(chosen, *answers, coins, strict=True):
        margin = 10 * (reward_of(shape, prompt, one) - reward_of(shape, prompt, other))
        is_better = coin < 1 / (1 + math.exp(-margin))
        rows.better.append(one if is_better else other)
        rows.worse.append(other if is_better else one)
    return rows


# ---- the exact value of a policy -------------------------------------------------------------------------------------


def bandit_objective(log_probs: Tensor, ref_log_probs: Tensor) -> dict[str, float]:
    """J = E[r] - KL_COEF * KL(policy || reference) by enumeration, and the greatest J that any policy has.

    Args:
        log_probs: Of the actions (columns) under every prompt (rows), in nats.
        ref_log_probs: The same under the reference.
    """
    log_probs, ref_log_probs, rewards = log_probs.double(), ref_log_probs.double(), bandit_rewards().double()
    kl = (log_probs.exp() * (log_probs - ref_log_probs)).sum(1)
    reward = (log_probs.exp() * rewards).sum(1)
    optimum = KL_COEF * torch.logsumexp(ref_log_probs + rewards / KL_COEF, dim=1)
    return {
        "objective": float((reward - KL_COEF * kl).mean()),
        "reward": float(reward.mean()),
        "kl": float(kl.mean()),
        "optimum": float(optimum.mean()),
    }


def facts(shape: Shape) -> dict[str, int]:
    """A shape for the record.

    Args:
        shape: The size.
    """
    return dataclasses.asdict(shape)
