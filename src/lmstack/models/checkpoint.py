"""Weights as a folder, `model.safetensors` and `config.json`, readable by anything; ours or Hugging Face's."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.models.config import TransformerConfig
from lmstack.models.families import config_from_hugging_face, from_hugging_face, to_hugging_face
from lmstack.models.shard_files import MODULE, SHARDS, read_whole
from lmstack.models.transformer import Transformer

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
FORMAT = "lmstack"

State = dict[str, Tensor]


def save_config(folder: Path, config: TransformerConfig) -> None:
    """Write `config.json` alone, for weights that are written otherwise.

    Args:
        folder: Made when it does not exist.
        config: The shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(_text({"format": FORMAT, "transformer": config.to_dict()}))


def save_weights(folder: str | Path, transformer: Transformer | tuple[State, TransformerConfig]) -> None:
    """Write `model.safetensors` and `config.json`; a tied head is written once, as the embedding.

    Args:
        folder: Made when it does not exist.
        transformer: The model, or its state and config.
    """
    state, config = _state_and_config(transformer)
    _write(Path(folder), state, {"format": FORMAT, "transformer": config.to_dict()})


def save_hugging_face(folder: str | Path, transformer: Transformer | tuple[State, TransformerConfig]) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` reads.

    Args:
        folder: Made when it does not exist.
        transformer: The model, or its state and config.

    Raises:
        ValueError: No Hugging Face family computes this function; the message names what does not fit.
    """
    state, config = _state_and_config(transformer)
    hf_config, hf_state = to_hugging_face(config, state)
    dtype = str(state["embedding.weight"].dtype).removeprefix("torch.")
    _write(Path(folder), hf_state, {**hf_config, "torch_dtype": dtype})


def weights_folder(path: str | Path) -> Path:
    """The folder that holds the weights: `path` itself, or the newest whole checkpoint of a run.

    Args:
        path: A weights, checkpoint, run or Hugging Face folder.

    Raises:
        ValueError: There are no weights.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    newest = newest_valid_checkpoint(folder) if folder.is_dir() else None
    if newest is None:
        raise ValueError(
            f"{folder}: no {CONFIG} and no whole checkpoint in it. "
            "Give a run, checkpoint or weights folder, or a Hugging Face model's folder."
        )
    return newest


def read_weights(path: str | Path) -> tuple[State, TransformerConfig]:
    """State and config from a weights folder, a checkpoint folder, a run folder or a Hugging Face folder.

    Args:
        path: The folder. Of a run, its newest whole checkpoint is read.

    Raises:
        ValueError: There are no weights, or in a layout that is not known.
    """
    folder = weights_folder(path)
    values = json.loads((folder / CONFIG).read_text())
    state = _read_state(folder)
    if values.get("format") == FORMAT:
        return state, TransformerConfig.from_dict(values["transformer"])
    config, state = from_hugging_face(values, state)
    return state, config


def read_config(path: str | Path) -> TransformerConfig:
    """The config of a weights, checkpoint, run or Hugging Face folder.

    Args:
        path: As for `read_weights`.

    Raises:
        ValueError: There are no weights, or in a layout that is not known.
    """
    values = json.loads((weights_folder(path) / CONFIG).read_text())
    if values.get("format") == FORMAT:
        return TransformerConfig.from_dict(values["transformer"])
    return config_from_hugging_face(values)


def load_transformer(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """Build a transformer from a folder of weights.

    Args:
        path: A weights, checkpoint, run or Hugging Face folder.
        device: Where the model goes.
        dtype: Type of its parameters; None keeps the file's.

    Raises:
        ValueError: There are no weights, or they do not fit the config.
    """
    state, config = read_weights(path)
    with torch.device("meta"):
        transformer = Transformer(config)
    _check_names(transformer.state_dict(), state, str(path))
    for name, parameter in transformer.named_parameters():
        _check_shape(name, parameter, state[name])
    transformer.load_state_dict(state, assign=True)
    for parameter in transformer.parameters():
        parameter.requires_grad_()
    return transformer.to(device=device, dtype=dtype)


def load_weights_grown(transformer: Transformer, source: str | Path | State) -> None:
    """Warm start: copy weights of the same shapes, or of a smaller vocabulary.

    New rows of the embedding, of the head and of its bias start as the mean of the old ones: the new tokens then have
    the score of an average token, and the old tokens keep theirs.

    Args:
        transformer: Filled in place.
        source: A folder as for `load_transformer`, or the state of another transformer.

    Raises:
        ValueError: A name is missing or left over, or a shape differs in anything but a larger vocabulary. Nothing
            has been copied then.
    """
    state, where = (source, "the source") if isinstance(source, dict) else (read_weights(source)[0], str(source))
    own = transformer.state_dict()
    _check_names(own, state, where)
    for name, tensor in own.items():
        _check_shape(name, tensor, state[name], may_grow=name in ("embedding.weight", "head.weight", "head_bias"))
    with torch.no_grad():
        for name, tensor in own.items():
            old = state[name]
            tensor[: old.shape[0]].copy_(old)
            if old.shape[0] < tensor.shape[0]:
                tensor[old.shape[0] :] = old.float().mean(dim=0).to(tensor)


def _state_and_config(transformer: Transformer | tuple[State, TransformerConfig]) -> tuple[State, TransformerConfig]:
    if isinstance(transformer, Transformer):
        return transformer.state_dict(), transformer.config
    return transformer


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(_text(config))


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2) + "\n"


def _read_state(folder: Path) -> State:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    if (folder / SHARDS).is_dir():
        return read_whole(folder / SHARDS, f"{MODULE}transformer.")
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ValueError(f"{folder}: neither {WEIGHTS} nor {WEIGHTS_INDEX}. Other weight formats are not read.")
    files = sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
    state: State = {}
    for file in files:
        state.update(load_file(folder / file))
    return state


def _check_names(own: State, state: State, where: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        what = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} has no place in the model"
        raise ValueError(f"{where}: {what} ({len(missing)} missing, {len(extra)} too many). The configs differ.")


def _check_shape(name: str, own: Tensor, other: Tensor, *, may_grow: bool = False) -> None:
    if own.shape == other.shape:
        return
    if may_grow and own.shape[1:] == other.shape[1:] and own.shape[0] > other.shape[0]:
        return
    rule = (
        "Only the vocabulary may grow" if not may_grow else "The vocabulary may grow, not shrink, and no width change"
    )
    raise ValueError(f"{name}: shape {tuple(other.shape)} does not fit {tuple(own.shape)}. {rule}.")
