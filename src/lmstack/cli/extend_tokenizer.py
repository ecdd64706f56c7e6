"""`lmstack tokenizer extend` and `resize`: more tokens, and a model that has rows for them."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from lmstack.cli.tokenizer import Sources, one_side, source_configs
from lmstack.prep.build import DEFAULT_VALIDATION_FRACTION
from lmstack.tokenization import Tokenizer
from lmstack.tokenization.extend import extend_from_text, extend_with_tokens, old_pieces

_NOT_CARRIED_OVER = ("adapters.safetensors", "score_head.safetensors")


def extend(
    *,
    tokenizer: str,
    output: str,
    tokens: list[str] | None = None,
    sources: Sources | None = None,
    num_new: int | None = None,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    seed: int = 0,
) -> None:
    """Give a tokenizer more tokens: named ones, or learnt from the text of a new domain. Old ids stay.

    Args:
        tokenizer: A tokenizer.json, or the folder that holds one.
        output: Folder to write the new tokenizer to.
        tokens: Texts that become tokens where they are whole words; Chinese ones anywhere.
        sources: Text to go on training on, by source name; for byte-pair tokenizers.
        num_new: Tokens to learn from the text.
        validation_fraction: Share of the documents that is held out.
        seed: Of the split.
    """
    if (tokens is None) == (sources is None) or (sources is None) != (num_new is None):
        raise ValueError("Give either tokens, or sources and num_new: where the new tokens come from.")
    if num_new is not None and num_new < 1:
        raise ValueError(f"num_new={num_new}: must be 1 or more.")
    old = Tokenizer.load(tokenizer)
    if tokens is not None:
        new = extend_with_tokens(old, tokens)
    else:
        assert sources is not None
        assert num_new is not None
        new = extend_from_text(old, _all_texts(sources, validation_fraction, seed), num_new)
    new.save(output)
    pieces = old_pieces(old, new)
    print(f"{output}: {new.vocab_size} tokens, {len(pieces)} of them new (fingerprint {new.fingerprint[:12]})")


def resize(
    *,
    checkpoint: str,
    tokenizer: str,
    output: str,
    old_tokenizer: str | None = None,
    multiple_of: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Give a model rows for the tokens of an extended tokenizer, each the mean of the pieces it was cut into before.

    Train on from the result with model.init_from.

    Args:
        checkpoint: A run's folder (its newest checkpoint), a checkpoint's folder, or a Hugging Face model's folder.
        tokenizer: The extended tokenizer.
        output: Folder to write weights, config and tokenizer to.
        old_tokenizer: The tokenizer that was extended; null is the one beside the weights.
        multiple_of: Pad the vocabulary to a multiple of this.
        noise: Standard deviation of noise on new rows, in those of the old ones.
        seed: Of the noise.
    """
    from lmstack.models.checkpoint import read_weights, save_weights, weights_folder
    from lmstack.models.checkpoint_folder import atomic_folder
    from lmstack.models.vocabulary_growth import grow_vocabulary

    if Path(output).exists():
        raise ValueError(f"output={output}: exists already. Remove it, or choose another name.")
    folder = weights_folder(checkpoint)
    for name in _NOT_CARRIED_OVER:
        if (folder / name).is_file():
            raise ValueError(f"{folder} holds {name}: only whole language models get new tokens.")
    beside = folder / "tokenizer"
    old = Tokenizer.load(old_tokenizer or (beside if beside.is_dir() else folder))
    new = Tokenizer.load(tokenizer)
    state, config = read_weights(folder)
    pieces = old_pieces(old, new)
    no_pieces: dict[int, list[int]] = {index: [] for index in range(old.vocab_size, new.vocab_size)}  # special tokens
    grown, grown_config = grow_vocabulary(
        state,
        config,
        no_pieces | pieces,
        num_tokens=new.vocab_size,
        multiple_of=multiple_of,
        noise=noise,
        seed=seed,
    )
    with atomic_folder(Path(output), {"resized_from": str(folder)}) as partial:
        save_weights(partial, (grown, grown_config))
        new.save(partial / "tokenizer")
    Console().print(
        f"{output}: {config.vocab_size} -> {grown_config.vocab_size} rows, {len(pieces)} of them means of old ones",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _all_texts(sources: Sources, validation_fraction: float, seed: int) -> Iterator[str]:
    configs = source_configs(sources)
    for name in configs:
        yield from one_side(configs, name, validation_fraction, seed)
