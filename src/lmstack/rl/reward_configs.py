"""The reward functions that a config can name, and how they are made."""

from collections.abc import Mapping

import torch

from lmstack.rl.reward_model import RewardModelReward
from lmstack.rl.rewards import RewardFunction, WeightedRewards
from lmstack.rl.verifiable import ExactAnswer, FunctionReward, LengthReward, NumericAnswer, RegexReward
from lmstack.tokenization.tokenizer import Tokenizer

Reward = RewardModelReward | FunctionReward | ExactAnswer | NumericAnswer | RegexReward | LengthReward


def load_rewards(configs: Mapping[str, Reward], tokenizer: Tokenizer | None, device: torch.device) -> WeightedRewards:
    """Read reward models, import functions, and put all of them together.

    Args:
        configs: By name.
        tokenizer: The policy's.
        device: Where reward models go.

    Raises:
        ValueError: A model or function is not there, or a model has another tokenizer.
    """
    functions: dict[str, RewardFunction] = {}
    for name, config in configs.items():
        if isinstance(config, RewardModelReward):
            functions[name] = config.load(tokenizer, device)
        else:
            functions[name] = config.load() if isinstance(config, FunctionReward) else config
    return WeightedRewards(functions, {name: config.weight for name, config in configs.items()})
