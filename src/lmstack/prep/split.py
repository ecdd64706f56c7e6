"""Which documents are held out, decided by a hash: the same whatever else is in the corpus."""

import hashlib


def is_validation(key: str, seed: int, fraction: float) -> bool:
    """Whether documents with this key are held out for validation.

    Args:
        key: Split key of the document.
        seed: Another seed holds out other documents.
        fraction: Share of the keys to hold out, from 0 to 1.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64
