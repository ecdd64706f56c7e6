"""PPO or GRPO on `world` gloo processes; the first writes the weights and what was logged to a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

from lmstack.rl.kl_control import AdaptiveKL
from lmstack.rl.pretraining_mix import PretrainingMix
from lmstack.rl.reward_shaping import RewardShaping
from lmstack.stages.grpo import RewardKL
from lmstack.stages.ppo import SharedCritic
from ragged_rl import config, grpo, ppo, prompts, train, update

world, kind, corpus, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
torch.set_num_threads(1)
# 7 prompts: the ranks' shares are unequal, and so are their parts of the three minibatches. The last rollout has one
# prompt: a rank has none, and PPO has fewer responses than minibatches.
rollouts = [*prompts(2, 7), *prompts(1, 1)]
options = {
    "transformer": config(vocab_size=260, tied_embeddings=False),
    "kl": AdaptiveKL(0.1, target=0.01, horizon=100),
    "reward_shaping": RewardShaping(missing_eos_penalty=0.5, normalize=True),
    "update": update(num_epochs=2, num_minibatches=3, micro_batch_size=2, max_grad_norm=0.5),
}
if kind == "mix":
    options["pretraining_mix"] = PretrainingMix(corpus, 12, rows_per_step=8, micro_batch_size=2)
if kind == "shared":
    options |= {"critic": SharedCritic(), "entropy_coef": 0.01}
if kind == "grpo":
    stage = grpo(samples_per_prompt=3, kl_placement=RewardKL(), skip_equal_groups=True, **options)
else:
    stage = ppo(**options)
recorder, trainer = train(
    stage, out.parent, rollouts=rollouts, devices=world, strategy="ddp" if world > 1 else "auto", precision="64-true"
)
if trainer.is_global_zero:
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in recorder.rollouts]
    torch.save({"weights": stage.state_dict(), "metrics": metrics, "kl": stage.kl.coef}, out)
