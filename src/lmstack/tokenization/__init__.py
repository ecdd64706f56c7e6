"""Text to token ids and back: byte-level BPE, bytes, characters, and any `tokenizer.json`."""

from lmstack.tokenization.chat_template import ChatTemplate, Rendered
from lmstack.tokenization.report import SourceReport, tokenizer_report
from lmstack.tokenization.tokenizer import END_OF_TEXT, Tokenizer
from lmstack.tokenization.train import byte_tokenizer, char_tokenizer, train_bpe

__all__ = [
    "END_OF_TEXT",
    "ChatTemplate",
    "Rendered",
    "SourceReport",
    "Tokenizer",
    "byte_tokenizer",
    "char_tokenizer",
    "tokenizer_report",
    "train_bpe",
]
