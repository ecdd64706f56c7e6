"""Where a stage that goes on from another one gets its transformer: shape, weights, adapters, what is frozen."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lmstack.models import Transformer, TransformerConfig
from lmstack.models.checkpoint import load_weights_grown, read_config, weights_folder
from lmstack.nn.lora import LoRAConfig, add_lora
from lmstack.stages.base import LanguageModule
from lmstack.tokenization import Tokenizer


def build_transformer(config: TransformerConfig | None, init_from: str | None) -> Transformer:
    """A transformer of the given shape, or of that of the weights to start from. Its weights are random.

    Args:
        config: The shape; None takes it from `init_from`.
        init_from: A run, checkpoint, weights or Hugging Face folder.

    Raises:
        ValueError: Neither is given.
    """
    if config is None and init_from is None:
        raise ValueError(
            "model.init_from=null and model.transformer=null: nothing says what to train. Set model.init_from to the "
            "run or folder to start from, or give a shape to start from random weights (model=llama_5m)."
        )
    return Transformer(read_config(init_from) if config is None else config)  # type: ignore[arg-type]


def warm_start(
    stage: LanguageModule,
    init_from: str | None,
    *,
    may_grow: bool,
    lora: LoRAConfig | None = None,
    frozen: Sequence[str] = (),
) -> None:
    """Make the vocabulary fit the data, load the weights unless a checkpoint is about to, put adapters on, freeze.

    Called in `setup`, before optimizers and strategies look at the model.

    Args:
        stage: Attached to its trainer.
        init_from: The weights; None keeps random ones.
        may_grow: Add rows to the vocabulary where the data's tokenizer has more tokens.
        lora: Adapters, which are then all that is trained; None trains the weights.
        frozen: Regular expressions; parameters whose name one of them finds something in are not trained.

    Raises:
        ValueError: The data's tokenizer is not that of the weights, or a pattern finds nothing.
    """
    tokenizer: Any = getattr(getattr(stage.trainer, "datamodule", None), "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        if init_from is not None and stage.trainer.ckpt_path is None:
            _check_tokenizer(tokenizer, init_from)
        _fit_vocabulary(stage, tokenizer.vocab_size, may_grow=may_grow)
    if init_from is not None and stage.trainer.ckpt_path is None:
        load_weights_grown(stage.transformer, init_from)
    if lora is not None:
        stage.lora = lora
        add_lora(stage.transformer, lora)
    freeze(stage, frozen)


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    r"""Train no parameter whose name a pattern finds something in.

    Args:
        module: Changed in place.
        patterns: Regular expressions, such as `blocks\.[0-3]\.` or `embedding`.

    Raises:
        ValueError: A pattern finds nothing, or nothing is left to train.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if re.search(pattern, name)]
        if not found:
            raise ValueError(
                f"model.freeze: {pattern!r} matches no parameter. Names look like {', '.join(list(parameters)[:3])}."
            )
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"model.freeze={list(patterns)} leaves no parameter to train. Freeze less.")


def without_dropout(transformer: Transformer) -> None:
    """Switch dropout off in training too: log-probabilities that are compared must not differ by chance.

    Args:
        transformer: Changed in place.
    """
    for part in transformer.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def freeze_head(transformer: Transformer) -> None:
    """Do not train what only logits need; a head tied to the embedding is needed anyway.

    Args:
        transformer: Changed in place.
    """
    if not transformer.config.tied_embeddings:
        transformer.head.requires_grad_(False)
    if transformer.head_bias is not None:
        transformer.head_bias.requires_grad_(False)


def _fit_vocabulary(stage: LanguageModule, needed: int, *, may_grow: bool) -> None:
    config = stage.transformer.config
    if config.vocab_size >= needed:
        return
    if not may_grow:
        raise ValueError(
            f"The data's tokenizer has {needed} tokens, model.transformer.vocab_size={config.vocab_size}. "
            f"Set model.transformer.vocab_size={needed} or more."
        )
    grown = Transformer(replace(config, vocab_size=needed))
    grown.checkpoint_activations(stage.transformer.activation_checkpointing)
    stage.transformer = grown


def _check_tokenizer(tokenizer: Tokenizer, init_from: str) -> None:
    folder = weights_folder(init_from) / "tokenizer"
    if not folder.is_dir():
        return
    own = Tokenizer.load(folder)
    if not tokenizer.extends(own):
        raise ValueError(
            f"The data's tokenizer gives tokens other ids than that of {init_from} ({folder}): the weights would be "
            f"used with the wrong tokens. Set data.tokenizer={folder}."
        )
