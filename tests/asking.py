"""A callback that asks a run for changes, as `lmstack control` would."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.control_requests import await_answer, send_request


class Ask(L.Callback):
    """Asks for changes as the steps go by, and dies after one of them."""

    def __init__(self, changes: dict[int, dict[str, str]], die_after: int | None = None) -> None:
        self.changes, self.die_after = changes, die_after
        self.requests: list[Path] = []
        self.rates: dict[int, list[float]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.die_after:
            raise KeyboardInterrupt
        self.rates[trainer.global_step] = [group["lr"] for group in trainer.optimizers[0].param_groups]
        if changes := self.changes.get(trainer.global_step + 1):
            self.requests.append(send_request(Path(trainer.default_root_dir), {"command": "set", "changes": changes}))

    def answers(self) -> list[str | None]:
        return [await_answer(request, 0.0) for request in self.requests]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
