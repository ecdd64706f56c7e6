"""PPO with everything that has state; it kills itself, without a chance to tidy up, at a moment that is given."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

import tiny_rl
from lmstack.callbacks import Checkpointing
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.optim.schedules import LinearSchedule
from lmstack.rl.kl_control import AdaptiveKL
from lmstack.rl.reward_shaping import RewardShaping

folder, moment = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
calls = 0


def kill_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; but the process dies as it is called for so many times."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


class InUpdate(L.Callback):
    def __init__(self) -> None:
        self.on_before_optimizer_step = kill_at(7, lambda *_: None)  # the third step of the second rollout


callbacks: list[L.Callback] = [Checkpointing(every_n_steps=4, keep_last=9)]
if moment == "rollout":
    tiny_rl.bandit_rewards = kill_at(2, tiny_rl.bandit_rewards)
elif moment == "update":
    callbacks.insert(0, InUpdate())
elif moment == "save":
    torch.save = kill_at(2, torch.save)  # the weights are written, the rest is not
else:
    assert moment == "never"

checkpoint = newest_valid_checkpoint(folder)
# Another seed for the process that resumes: what it draws must come from the checkpoint.
stage = tiny_rl.bandit_ppo(
    0,
    schedule=LinearSchedule(warmup=1),
    kl=AdaptiveKL(0.1, target=0.01, horizon=100),
    reward_shaping=RewardShaping(missing_eos_penalty=0.5, normalize=True, clip=2.0),
    update=tiny_rl.UpdateConfig(num_epochs=2, num_minibatches=2, micro_batch_size=8),
)
tiny_rl.fit(
    stage,
    folder,
    tiny_rl.bandit_prompts(7, 16),
    callbacks=callbacks,
    seed=0 if checkpoint is None else 99,
    ckpt_path=checkpoint,
)
