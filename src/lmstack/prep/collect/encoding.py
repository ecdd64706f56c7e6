"""From bytes to text: byte-order marks, UTF-8, and otherwise what the bytes look like."""

import codecs

UNDECODABLE = "\ufffd".encode()
"""What stands in UTF-8 for bytes that could not be read."""

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SAMPLE_BYTES = 1 << 16
_MAX_BAD_SHARE = 0.05
"""Of the bytes above ASCII: with fewer that are no UTF-8, a text is damaged UTF-8 rather than something else."""


def detect_encoding(content: bytes) -> str:
    """The encoding of a text, as Python names it.

    Args:
        content: The text, or the beginning of it.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    sample = content[:_SAMPLE_BYTES]
    high = len(sample.translate(None, bytes(range(128))))
    bad = sample.decode("utf-8", "replace").count("\ufffd") - sample.count(UNDECODABLE)
    if bad <= 1 + _MAX_BAD_SHARE * high and bad < max(high, 1):  # one: the sample may end within a character
        return "utf-8"
    from resiliparse.parse.encoding import detect_encoding as detect

    found = detect(sample, max_len=_SAMPLE_BYTES) or "utf-8"
    try:
        return codecs.lookup(found).name
    except LookupError:
        return "utf-8"


def is_ascii_compatible(encoding: str) -> bool:
    """Whether a separator's bytes cannot begin inside another character, so that a file can be cut anywhere.

    Args:
        encoding: One that Python knows.
    """
    return codecs.lookup(encoding).name in ("utf-8", "ascii", "iso8859-1", "cp1252")


def decode(content: bytes, encoding: str) -> tuple[str, int]:
    """Text, and how many characters of it stand for bytes that could not be read.

    Args:
        content: The bytes.
        encoding: Their encoding.
    """
    try:
        return content.decode(encoding), 0
    except UnicodeDecodeError:
        text = content.decode(encoding, "replace")
        return text, text.count("\ufffd")


def without_surrogates(text: str) -> tuple[str, int]:
    r"""Text that can be written as UTF-8, and how many halves of surrogate pairs were replaced.

    Args:
        text: Perhaps from JSON, where `\ud800` can be written.
    """
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:
        cleaned = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return cleaned, cleaned.count("\ufffd")
