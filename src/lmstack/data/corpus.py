"""A finished corpus: its manifest, its tokenizer and its shards, on disk or in an object store."""

from functools import cached_property
from pathlib import Path

from lmstack.data.manifest import MANIFEST_FILE, TOKENIZER_FOLDER, Manifest, Split
from lmstack.data.remote import is_remote, join, local_copy
from lmstack.data.token_shards import TokenShards
from lmstack.tokenization.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer


class Corpus:
    """What `lmstack data build` wrote.

    Args:
        path: Its folder or URL.

    Raises:
        ValueError: It does not exist, is not finished, or its tokenizer is not the one it was built with.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self.manifest = Manifest.load(local_copy(self.path, MANIFEST_FILE))
        if self.tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise ValueError(
                f"The tokenizer in {join(self.path, TOKENIZER_FOLDER)} is not the one that the shards were made with: "
                f"fingerprint {self.tokenizer.fingerprint[:12]}, expected {self.manifest.tokenizer.fingerprint[:12]}. "
                "Put the right one back, or build the corpus again with overwrite=true."
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shards."""
        folder = join(self.path, TOKENIZER_FOLDER)
        local_copy(folder, CONFIG_FILE)
        return Tokenizer.load(local_copy(folder, TOKENIZER_FILE))

    def shards(self, split: Split, source: str) -> TokenShards:
        """The token stream of one side of one source.

        Args:
            split: Which side.
            source: Name of the source.

        Raises:
            ValueError: The shards are not there, or are not what the manifest describes.
        """
        folder = join(self.path, split, source)
        shards = TokenShards(folder)
        expected = getattr(self.manifest.sources[source], split)
        if (shards.num_tokens, shards.num_documents) != (expected.tokens, expected.documents):
            raise ValueError(
                f"{folder} holds {shards.num_tokens} tokens in {shards.num_documents} documents, the manifest says "
                f"{expected.tokens} in {expected.documents}. Build the corpus again with overwrite=true."
            )
        if not is_remote(self.path):
            shards.check_files()
        return shards
