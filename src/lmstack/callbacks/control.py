"""Changes of a run that goes on: `lmstack control`."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.callbacks.checkpointing import Checkpointing, Leave
from lmstack.callbacks.optimizer_swap import config_of, rewrite_fields, swap_optimizer
from lmstack.callbacks.preemption import EX_INTERRUPTED
from lmstack.callbacks.settings import OPTIMIZER, WEIGHTS, Setting, settings_of
from lmstack.control_requests import answer, take_request
from lmstack.models.checkpoint_folder import DamagedCheckpointError, folder_name, read_manifest, set_aside_after
from lmstack.run_record import add_change, read_changes

EX_START_AGAIN = 76
"""Exit status of a run that was put back to an earlier checkpoint and wants to be started from there."""

SECONDS_BETWEEN_LOOKS = 1.0

log = logging.getLogger(__name__)


class Control(L.Callback):
    """Does what `lmstack control <run>` asks for, at the end of a step, on every rank.

    Requests are files in `control/`, of the user who runs the training and writable by nobody else; others are refused.
    Every change of a setting is in `run.json`, with its step. A run that goes on from an earlier checkpoint makes it
    again at the same step. A value that is typed anew when the run is resumed goes before it.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._configured: dict[str, Any] = {}
        self._settings: dict[str, Setting] = {}
        self._restored: dict[str, Any] | None = None
        self._to_come: list[dict[str, Any]] = []
        self._last_look = 0.0
        self._group: torch.distributed.ProcessGroup | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note what the config says, before a checkpoint changes it.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: Ignored.
        """
        self._configured = {key: setting.value for key, setting in settings_of(trainer, pl_module).items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the optimizer that the checkpoint has the state of.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            checkpoint: Lightning's dictionary.
        """
        saved = checkpoint["callbacks"].get(self.state_key, {"values": {}})["values"].get(OPTIMIZER)
        stage: Any = pl_module
        if saved is None or saved["kind"] == stage.optimizer_config.kind:
            return
        if trainer.optimizers:  # a rollback, in the middle of training
            swap_optimizer(trainer, stage, saved)
        else:
            stage.optimizer_config = config_of(saved)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what was changed, and look up what is to be changed again.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._settings = settings_of(trainer, pl_module)
        self.values = {key: setting.value for key, setting in self._settings.items()}
        before = {} if self._restored is None else self._restored["configured"]
        self._put_back()
        for key, value in self._configured.items():
            if key in before and before[key] != value and key in self._settings:
                if key == OPTIMIZER and before[key]["kind"] == value["kind"]:
                    rewrite_fields(trainer, before[key], value)
                else:
                    self._set(trainer, key, value, {"typed": True})
        self._look_up_changes(trainer)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            while (request := take_request(folder)) is not None:
                answer(request, "refused: the run has only just started. Ask again.")
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the changes that were made at this step before, and do what is asked for.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        while self._to_come and self._to_come[0]["step"] <= trainer.global_step:
            change = self._to_come.pop(0)
            if change["key"] in self._settings:
                self._set(trainer, change["key"], change["to"], None)
                log.info("step %d: %s is %s again", trainer.global_step, change["key"], change["to"])
        request = self._agreed_request(trainer)
        if request is not None:
            self._do(trainer, request)

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew from where the run was put back to.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._settings = settings_of(trainer, pl_module)
        self._put_back()
        self._look_up_changes(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the config said, and what holds."""
        return {"configured": dict(self._configured), "values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Args:
            state_dict: What `state_dict` gave.
        """
        self._restored = state_dict

    def _agreed_request(self, trainer: L.Trainer) -> dict[str, Any] | None:
        request = None
        if trainer.is_global_zero and time.monotonic() - self._last_look >= SECONDS_BETWEEN_LOOKS:
            self._last_look = time.monotonic()
            request = take_request(Path(trainer.default_root_dir))
        if self._group is None:
            return request
        flag = torch.tensor(request is not None, dtype=torch.uint8)
        torch.distributed.broadcast(flag, src=0, group=self._group)
        if not flag:
            return None
        agreed: dict[str, Any] | None = trainer.strategy.broadcast(request)
        return agreed

    def _do(self, trainer: L.Trainer, request: dict[str, Any]) -> None:
        """Carry out a request that every rank has; what cannot be is answered, and nothing of it is done."""
        try:
            said = self._carry_out(trainer, request)
        except ValueError as error:
            said = f"refused: {error}"
        self._say(trainer, request, said)
        if request["command"] == "rollback" and not said.startswith("refused"):
            raise SystemExit(EX_START_AGAIN)

    def _carry_out(self, trainer: L.Trainer, request: dict[str, Any]) -> str:
        match request:
            case {"command": "set", "changes": dict() as changes} if all(isinstance(v, str) for v in changes.values()):
                return self._change(trainer, changes)
            case {"command": ("save" | "stop") as command}:
                checkpointing = _checkpointing(trainer)
                checkpointing.request(None if command == "save" else Leave("lmstack control stop", EX_INTERRUPTED))
                return f"saving step {trainer.global_step}" + (", and then the run ends" if command == "stop" else "")
            case {"command": "rollback", "step": int(step)}:
                return self._roll_back(trainer, step)
            case _:
                raise ValueError(f"unknown command {request['command']!r}, or not all that belongs to it.")

    def _change(self, trainer: L.Trainer, texts: dict[str, str]) -> str:
        texts = _joined(texts)
        for key in texts:
            if key not in self._settings:
                shown = {OPTIMIZER: f"{OPTIMIZER}.kind", WEIGHTS: f"{WEIGHTS}.<source>"}
                names = ", ".join(shown.get(name, name) for name in self._settings)
                raise ValueError(
                    f"{key} cannot be changed while the run goes on. These can: {names}. For "
                    "anything else, stop the run and start it again with the new value and ckpt_path=last."
                )
        keys = sorted(texts, key=lambda key: key != WEIGHTS)  # first what may be refused when it is carried out
        wanted = {key: self._settings[key].parse(key, texts[key]) for key in keys}
        if OPTIMIZER in wanted and wanted[OPTIMIZER]["kind"] == self.values[OPTIMIZER]["kind"]:
            raise ValueError(f"the optimizer is {wanted[OPTIMIZER]['kind']} already. Set its lr or weight_decay alone.")
        said = []
        for key, value in wanted.items():
            said.append(f"{key} {_shown(self.values[key])} -> {_shown(value)}")
            self._set(trainer, key, value, {})
        return f"after step {trainer.global_step}: {', '.join(said)}"

    def _roll_back(self, trainer: L.Trainer, step: int) -> str:
        checkpoint = Path(trainer.default_root_dir) / "checkpoints" / folder_name(step)
        _checkpointing(trainer).wait(trainer)
        trouble = None
        if trainer.is_global_zero:
            try:
                read_manifest(checkpoint)
            except DamagedCheckpointError as error:
                trouble = str(error)
        trouble = trainer.strategy.broadcast(trouble)
        if trouble is not None:
            raise ValueError(f"{trouble} Name the step of a checkpoint that is there.")
        if trainer.is_global_zero:
            set_aside_after(Path(trainer.default_root_dir), step)
            add_change(Path(trainer.default_root_dir), {"step": trainer.global_step, "rollback": step})
        trainer.strategy.barrier()
        return f"left at step {trainer.global_step}: the run goes on from step {step} when it is started again"

    def _look_up_changes(self, trainer: L.Trainer) -> None:
        changes = read_changes(Path(trainer.default_root_dir)) if trainer.is_global_zero else None
        changes = trainer.strategy.broadcast(changes)
        assert changes is not None
        self._to_come = [change for change in changes if change["step"] > trainer.global_step]

    def _set(self, trainer: L.Trainer, key: str, value: Any, facts: dict[str, Any] | None) -> None:
        """Make a value hold, and record it with these facts; None records nothing, as for what was recorded before."""
        before = self.values[key]
        self._settings[key].write(before, value)
        self.values[key] = value
        if key == OPTIMIZER:  # its settings are others, and are what it was made with
            self._settings = settings_of(trainer, trainer.lightning_module)
            of_optimizer = {k: s.value for k, s in self._settings.items() if k.startswith(OPTIMIZER)}
            others = {k: v for k, v in self.values.items() if not k.startswith(OPTIMIZER)}
            self.values = of_optimizer | others
        if facts is not None and trainer.is_global_zero:
            change = {"step": trainer.global_step, "key": key, "from": before, "to": value, **facts}
            add_change(Path(trainer.default_root_dir), change)

    def _put_back(self) -> None:
        for key, saved in (self._restored or {"values": {}})["values"].items():
            if key in self._settings:
                if not self._settings[key].is_restored and saved != self.values[key]:
                    self._settings[key].write(self.values[key], saved)
                self.values[key] = saved
        self._restored = None

    def _say(self, trainer: L.Trainer, request: dict[str, Any], said: str) -> None:
        if trainer.is_global_zero:
            log.info("lmstack control: %s", said)
            answer(request, said)


def _checkpointing(trainer: L.Trainer) -> Checkpointing:
    found = next((c for c in trainer.callbacks if isinstance(c, Checkpointing)), None)  # type: ignore[attr-defined]
    if found is None:
        raise ValueError("the run has no callbacks.checkpointing.")
    return found


def _joined(texts: dict[str, str]) -> dict[str, str]:
    """With the keys of an optimizer, where its kind is among them, and those of sources as one key each."""
    whole = [WEIGHTS, *([OPTIMIZER] if f"{OPTIMIZER}.kind" in texts else [])]
    joined: dict[str, str] = {}
    for key, text in texts.items():
        if key in (WEIGHTS, OPTIMIZER):
            below = "<source>=1" if key == WEIGHTS else "kind=muon"
            raise ValueError(f"{key}={text}: name what is below it, as {key}.{below}.")
        parent = next((name for name in whole if key.startswith(f"{name}.")), None)
        if parent is None:
            joined[key] = text
        else:
            fields = json.loads(joined.get(parent, "{}")) | {key.removeprefix(f"{parent}."): _read(text)}
            joined[parent] = json.dumps(fields)
    return joined


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["kind"]) if "kind" in value else json.dumps(value)
    if isinstance(value, float | int):
        return f"{value:g}"
    return "null" if value is None else str(value)
