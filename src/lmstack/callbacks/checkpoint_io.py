"""How a checkpoint becomes a folder, and is read back."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmstack.models.checkpoint import WEIGHTS, save_config, save_weights
from lmstack.models.checkpoint_folder import Entries, atomic_folder, manifest_entry, read_manifest
from lmstack.models.config import TransformerConfig
from lmstack.models.shard_files import SHARDS, write_shards
from lmstack.nn.lora import LoRAConfig, is_adapter, merged_state
from lmstack.parallel.gathering import everyones, on_first
from lmstack.parallel.sharded_state import with_tensors

TRAINING_STATE = "training_state.pt"
ADAPTERS = "adapters.safetensors"
AVERAGE_WEIGHTS = "average.safetensors"
_TRANSFORMER = "transformer."


class FolderCheckpointIO(CheckpointIO):
    """Lightning checkpoints as atomic folders: safetensors weights, config and tokenizer that load without Lightning,
    and the rest of the training state, read back without unpickling code.

    Args:
        asynchronous: Copy the state, and write the copy while training goes on; one write at a time. A failed write is
            raised at the next save, or at the end.

    Attributes:
        sharded: Whether strategies that cut the model should call `save_sharded`.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self._copies = _HostCopies()
        self.sharded = False
        self._executor: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the folder, or start to.

        Args:
            checkpoint: Lightning's dictionary, with the `lmstack` entry of `LanguageModule`: `transformer` (the
                config), `tokenizer`, `tokens_seen`; `extra_weights`, further safetensors files by
                name; `lora`, the config of adapters, with which `model.safetensors` is the merged weights,
                `adapters.safetensors` the adapters, and the training state holds all of them apart.
            path: The checkpoint folder.
            storage_options: Not supported.
        """
        if not self.asynchronous:
            self.write(checkpoint, path)
            return
        self.wait()
        self._executor = self._executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = self._executor.submit(self.write, self._copies.of(checkpoint), path)

    def wait(self) -> None:
        """Return when nothing is being written; raise what the last write raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def teardown(self) -> None:
        """Finish the last write."""
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def write(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write the folder.

        Args:
            checkpoint: As for `save_checkpoint`.
            path: The checkpoint folder.
        """
        state = dict(checkpoint)
        average = state.pop("weight_average", None)
        with atomic_folder(Path(path), _summary(state)) as folder:
            _write_weights(folder, state)
            if average is not None:
                save_file({name: tensor.contiguous() for name, tensor in average.items()}, folder / AVERAGE_WEIGHTS)
            _write_rest(folder, state)

    def save_sharded(self, checkpoint: dict[str, Any], tensors: dict[str, Tensor], path: str | Path) -> None:
        """Write the folder together: every process its part, the first one the rest and the manifest.

        Args:
            checkpoint: As for `save_checkpoint`, without `tensors`; the first process's is written.
            tensors: What this process holds of weights and optimizer state, see `write_shards`.
            path: The checkpoint folder.
        """
        entries: Entries = {}
        with ExitStack() as stack:
            folder = on_first(lambda: stack.enter_context(atomic_folder(Path(path), _summary(checkpoint), entries)))
            files = write_shards(folder / SHARDS, tensors)
            own = {file.relative_to(folder).as_posix(): manifest_entry(file) for file in files}
            for part in everyones(own):
                entries |= part

            def finish() -> None:
                save_config(folder, TransformerConfig.from_dict(checkpoint["lmstack"]["transformer"]))
                _write_rest(folder, dict(checkpoint))
                stack.close()

            on_first(finish)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder back, after checking every hash.

        Args:
            path: The checkpoint folder.
            map_location: Where tensors go; the CPU by default.
            weights_only: Ignored: nothing else is ever unpickled.
        """
        folder = Path(path)
        state = self.load_without_shards(folder, map_location)
        if (folder / SHARDS).is_dir():
            return with_tensors(state, folder / SHARDS)
        rest: dict[str, Tensor] = state.pop("state_dict_rest")
        is_whole = any(name.startswith(_TRANSFORMER) for name in rest)
        weights = {} if is_whole else load_file(folder / WEIGHTS)
        state["state_dict"] = {_TRANSFORMER + name: tensor for name, tensor in weights.items()} | rest
        if (folder / AVERAGE_WEIGHTS).exists():
            state["weight_average"] = load_file(folder / AVERAGE_WEIGHTS)
        return state

    def load_without_shards(self, path: str | Path, map_location: Any = None) -> dict[str, Any]:
        """The training state alone, after checking every hash; what is in shards is read elsewhere.

        Args:
            path: The checkpoint folder.
            map_location: Where tensors go; the CPU by default.
        """
        read_manifest(Path(path))
        state: dict[str, Any] = torch.load(
            Path(path) / TRAINING_STATE, map_location=map_location or "cpu", weights_only=True
        )
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint folder.

        Args:
            path: The checkpoint folder.
        """
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        doomed = Path(path).with_name(f".partial-removed-{Path(path).name}")
        Path(path).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _summary(state: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says."""
    return {"step": state["global_step"], "tokens_seen": state["lmstack"]["tokens_seen"], "metrics": _metrics(state)}


def _write_weights(folder: Path, state: dict[str, Any]) -> None:
    """Write what loads without Lightning; what of the module is not in it stays in the state."""
    facts = state["lmstack"]
    parameters: dict[str, Tensor] = state.pop("state_dict")
    weights = {k.removeprefix(_TRANSFORMER): v for k, v in parameters.items() if k.startswith(_TRANSFORMER)}
    extra_weights: dict[str, dict[str, Tensor]] = facts.get("extra_weights", {})
    if facts.get("lora") is not None:
        # What others load is merged; what training goes on from is kept as it is.
        state["state_dict_rest"] = parameters
        extra_weights = {**extra_weights, ADAPTERS: {k: v for k, v in weights.items() if is_adapter(k)}}
        weights = merged_state(weights, LoRAConfig(**facts["lora"]))
    else:
        state["state_dict_rest"] = {k: v for k, v in parameters.items() if not k.startswith(_TRANSFORMER)}
    save_weights(folder, (weights, TransformerConfig.from_dict(facts["transformer"])))
    facts_of_adapters = {"lora": json.dumps(facts["lora"])} if facts.get("lora") else None
    for name, tensors in extra_weights.items():
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / name, metadata=facts_of_adapters if name == ADAPTERS else None)


def _write_rest(folder: Path, state: dict[str, Any]) -> None:
    """Write the tokenizer and the training state."""
    facts = {name: value for name, value in state["lmstack"].items() if name != "extra_weights"}
    tokenizer = facts.pop("tokenizer")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer")
    with (folder / TRAINING_STATE).open("wb") as file:  # by itself torch would not say why a disk takes no more
        torch.save(state | {"lmstack": facts}, file)


class _HostCopies:
    """Copies of a state that training does not change, each in the memory of the one before.

    Memory that was never written takes the system three times as long to fill.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def of(self, state: dict[str, Any]) -> dict[str, Any]:
        """Tensors on the CPU, containers anew, everything else as it is; the copy before is lost.

        Args:
            state: What is copied.
        """
        spare, self._tensors = self._tensors, []
        copied: dict[str, Any] = self._copy(state, iter(spare))
        return copied

    def _copy(self, value: Any, spare: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            memory = next(spare, None)
            if memory is None or memory.shape != value.shape or memory.dtype != value.dtype:
                memory = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._tensors.append(memory.copy_(value.detach()))
            return memory
        if isinstance(value, dict):
            return type(value)((key, self._copy(item, spare)) for key, item in value.items())
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, spare) for item in value)
        return value


def _metrics(state: dict[str, Any]) -> dict[str, float]:
    for name, callback_state in state.get("callbacks", {}).items():
        if name.startswith("Checkpointing"):
            return dict(callback_state["metrics"])
    return {}
