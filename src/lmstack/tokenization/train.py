"""Tokenizers made from text: byte-level BPE and Unigram, and byte and character tokenizers for small studies."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmstack.tokenization.tokenizer import END_OF_TEXT, Tokenizer
from lmstack.tokenization.word_split import DEFAULT_SPLIT, WordSplit


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    *,
    split: WordSplit = DEFAULT_SPLIT,
    show_progress: bool = False,
) -> Tokenizer:
    """Byte-level byte-pair encoding, the same for the same texts whatever the number of cores.

    Every byte is a token, so any text can be encoded. Special tokens get the last ids.

    Args:
        texts: What to count pairs in; read once.
        vocab_size: Number of tokens, the 256 bytes and the special tokens included.
        special_tokens: Tokens that stand for no text; the first one opens and ends documents.
        split: Words that no token crosses.
        show_progress: Draw bars on standard error.
    """
    sizes = train_bpe_sizes(texts, [vocab_size], special_tokens, split=split, show_progress=show_progress)
    return sizes[vocab_size]


def train_bpe_sizes(
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    *,
    split: WordSplit = DEFAULT_SPLIT,
    show_progress: bool = False,
) -> dict[int, Tokenizer]:
    """One tokenizer for each size, trained once: the merges of a small one are the first of a large one's.

    Args:
        texts: As in `train_bpe`.
        vocab_sizes: Numbers of tokens.
        special_tokens: As in `train_bpe`.
        split: As in `train_bpe`.
        show_progress: As in `train_bpe`.
    """
    for size in vocab_sizes:
        _refuse_too_small(size, special_tokens)
    backend = _byte_level(models.BPE(), split)
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_sizes) - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    backend.train_from_iterator(texts, trainer)
    _refuse_too_little_text(backend, max(vocab_sizes), special_tokens)
    return {
        size: _finish(_first_merges(backend, size - len(special_tokens), split), special_tokens) for size in vocab_sizes
    }


def train_unigram(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    *,
    split: WordSplit = DEFAULT_SPLIT,
    show_progress: bool = False,
) -> Tokenizer:
    """A unigram language model over bytes (arXiv:1804.10959): of all ways to cut a word, the most probable one.

    Its pieces are of bytes and every byte is a piece, so any text can be encoded and comes back as it was. The trainer
    adds in the order of a hash table: pieces and their scores may differ a little from one training to the next.

    Args:
        texts: As in `train_bpe`.
        vocab_size: As in `train_bpe`.
        special_tokens: As in `train_bpe`.
        split: As in `train_bpe`.
        show_progress: As in `train_bpe`.
    """
    _refuse_too_small(vocab_size, special_tokens)
    backend = _byte_level(models.Unigram(), split)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    backend.train_from_iterator(texts, trainer)
    _refuse_too_little_text(backend, vocab_size, special_tokens)
    return _finish(backend, special_tokens)


def byte_tokenizer(special_tokens: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
    """One token per UTF-8 byte, its id the byte's value; special tokens follow from 256.

    Args:
        special_tokens: As in `train_bpe`.
    """
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, special_tokens)


def char_tokenizer(texts: Iterable[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
    """One token per character that occurs in the texts, in order of code points.

    Args:
        texts: What to collect characters from.
        special_tokens: As in `train_bpe`; by default none, so documents are stored bare.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise ValueError("A character tokenizer needs text, and the texts given hold no character.")
    vocabulary = {character: index for index, character in enumerate(sorted(characters))}
    backend = Backend(models.WordLevel(vocab=vocabulary, unk_token=""))  # no unknown token: encoding refuses
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _finish(backend, special_tokens)


def _byte_level(model: Any, split: WordSplit) -> Backend:
    backend = Backend(model)
    words = pre_tokenizers.Split(Regex(split.pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _first_merges(backend: Backend, num_tokens: int, split: WordSplit) -> Backend:
    """What training would have stopped at with so many tokens: it ends with the merge that makes the last of them."""
    model = json.loads(backend.to_str())["model"]
    vocabulary = {token: index for token, index in model["vocab"].items() if index < num_tokens}
    merges: list[tuple[str, str]] = []
    made = len(pre_tokenizers.ByteLevel.alphabet())
    for left, right in model["merges"]:
        if made == num_tokens:
            break
        merges.append((left, right))
        made = max(made, 1 + model["vocab"][left + right])  # two merges may make the same token
    return _byte_level(models.BPE(vocab=vocabulary, merges=merges), split)


def _refuse_too_small(vocab_size: int, special_tokens: Sequence[str]) -> None:
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is below {smallest}: 256 bytes and {len(special_tokens)} special tokens. "
            f"Use at least {smallest}."
        )


def _refuse_too_little_text(backend: Backend, vocab_size: int, special_tokens: Sequence[str]) -> None:
    found = backend.get_vocab_size() + len(special_tokens)
    if found < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}, but the text is enough for {found} tokens only. "
            f"Give more text, or vocab_size={found} or less."
        )


def _finish(backend: Backend, special_tokens: Sequence[str]) -> Tokenizer:
    special = [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    backend.add_special_tokens(special)
    return Tokenizer(backend.to_str(), special_tokens[0] if special_tokens else None)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level tokenizers, as in GPT-2's encoder."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]
