"""Text to token ids and back: byte-level BPE, bytes, characters, and any `tokenizer.json`."""

from lmstack.tokenization.chat_template import ChatTemplate, Rendered
from lmstack.tokenization.comparison import compare_tokenizers
from lmstack.tokenization.tokenizer import END_OF_TEXT, Tokenizer
from lmstack.tokenization.train import byte_tokenizer, char_tokenizer, train_bpe, train_bpe_sizes, train_unigram
from lmstack.tokenization.word_split import WordSplit

__all__ = [
    "END_OF_TEXT",
    "ChatTemplate",
    "Rendered",
    "Tokenizer",
    "WordSplit",
    "byte_tokenizer",
    "char_tokenizer",
    "compare_tokenizers",
    "train_bpe",
    "train_bpe_sizes",
    "train_unigram",
]
