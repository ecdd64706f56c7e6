"""The side of the split that a document falls on: near-duplicates together, test documents set aside."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.split import is_validation
from lmstack.prep.stage import Context, Filter

KEY = "split_key"
HELD_OUT = "held out for test"
_TEST_SEED = 1 << 32
"""Added to the seed, so that test and validation are drawn apart."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Gives every document the key that decides its side, and sets test documents aside.

    The key is its cluster of near-duplicates where there is one, else the key that its source gave it, else a hash of
    its text: copies never fall on two sides.

    Attributes:
        kind: `hold_out`.
        test_fraction: Share of the keys set aside; their documents are among the dropped ones of this stage.
        seed: Another seed sets others aside.
    """

    kind: Literal["hold_out"] = "hold_out"
    test_fraction: float = 0.0
    seed: int = 0

    def filter(self, context: Context) -> Filter:
        """The function that gives keys.

        Args:
            context: Of the partition.
        """

        def judge(document: Document) -> Verdict:
            metadata = document.metadata
            key = metadata.get("cluster") or metadata.get("key")
            key = str(key or hashlib.blake2b(document.text.encode(), digest_size=16).hexdigest())
            marked = document.with_metadata(**{KEY: key})
            if is_validation(key, self.seed + _TEST_SEED, self.test_fraction):
                return Dropped(marked, HELD_OUT, "by its key")
            return marked

        return judge
