"""Tokenizers made from text: byte-level BPE, and byte and character tokenizers for small studies."""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmstack.tokenization.tokenizer import END_OF_TEXT, Tokenizer

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-4 cuts text into words that no token crosses: a word takes its leading space, numbers go in threes."""


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
    """Byte-level byte-pair encoding, the same for the same texts whatever the number of cores.

    Every byte is a token, so any text can be encoded. Special tokens get the last ids.

    Args:
        texts: What to count pairs in; read once.
        vocab_size: Number of tokens, the 256 bytes and the special tokens included.
        special_tokens: Tokens that stand for no text; the first one opens and ends documents.
    """
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is below {smallest}: 256 bytes and {len(special_tokens)} special tokens. "
            f"Use at least {smallest}."
        )
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size() + len(special_tokens)
    if found < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}, but the text holds pairs for {found} tokens only. "
            f"Give more text, or vocab_size={found} or less."
        )
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


def _finish(backend: Backend, special_tokens: Sequence[str]) -> Tokenizer:
    special = [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    backend.add_special_tokens(special)
    return Tokenizer(backend.to_str(), special_tokens[0] if special_tokens else None)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level tokenizers, as in GPT-2's encoder."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]
