"""One process of `rlhf_vs_trl.py`: builds one implementation of one algorithm, then makes updates when told to.

    python benchmarks/rlhf_vs_trl_worker.py '{"implementation": "trl", "algorithm": "ppo", "size": "tiny", ...}'

Runs in the environment of what it measures: nothing of TRL is imported in lmstack's, nor the other way round. A line on
standard input is a number of updates to make, each answer a line of JSON; an empty line, or the end of the input, is
the end. An update is an optimizer step of SFT, DPO and the reward model, and a rollout with all its epochs and
minibatches of PPO and GRPO.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from pretrain_throughput_worker import Turns  # first: it sends what libraries print to standard error
from rlhf_vs_trl_lmstack import LMSTACK
from rlhf_vs_trl_peer import TRL
from rlhf_vs_trl_tasks import SHAPES

Measure = Callable[[], dict[str, float]]


class Updates(Turns):
    """Turns of updates, with what a policy is worth after each turn.

    Args:
        packages: Whose versions to tell.
    """

    def __init__(self, *packages: str) -> None:
        super().__init__(*packages)
        self.measure: Measure = dict
        self.collecting_seconds = 0.0

    def watch_collector(self) -> None:
        """Time explicit calls of `gc.collect` apart; they count in the turn's seconds too."""
        collect = gc.collect

        def timed(*arguments: Any) -> int:
            start = time.process_time()
            try:
                return collect(*arguments)
            finally:
                self.collecting_seconds += time.process_time() - start

        gc.collect = timed

    def _wait(self, answer: dict[str, Any]) -> bool:
        collecting, self.collecting_seconds = self.collecting_seconds, 0.0
        return super()._wait(answer | {"gc_cpu_seconds": collecting, "measured": self.measure()})


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    runner = {"trl": TRL, "lmstack": LMSTACK}[job["implementation"]][job["algorithm"]]
    runner(Updates, SHAPES[job["size"]], job["seed"])
