"""What a corpus is: its sources, counts, tokenizer and content hashes, in `manifest.json`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lmstack.data.shard_format import INDEX_FILE, read_index, write_json

MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT_VERSION = 1

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class SplitSummary:
    """One side of one source.

    Attributes:
        documents: Number of documents.
        tokens: Tokens stored, the one that opens each document included.
        bytes: UTF-8 bytes of text.
        sha256: Of the chunk files, in order.
    """

    documents: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceSummary:
    """One named source.

    Attributes:
        paths: Where it was read from.
        train: Its training side.
        validation: Its validation side.
    """

    paths: tuple[str, ...]
    train: SplitSummary
    validation: SplitSummary


@dataclass(frozen=True)
class TokenizerSummary:
    """What the tokens mean.

    Attributes:
        fingerprint: `Tokenizer.fingerprint`.
        vocab_size: Number of token ids.
        eot_id: The token that opens each document; None when documents are stored bare.
    """

    fingerprint: str
    vocab_size: int
    eot_id: int | None


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`, which is written last: a corpus without it is unfinished.

    Attributes:
        tokenizer: What the tokens mean.
        sources: The sources by name, in the order in which they were given.
        seed: Of the split into training and validation documents.
        validation_fraction: Share of the documents that was held out by hash.
        token_dtype: Type of a stored token.
        inputs: Fingerprint of everything the corpus was built from: files, settings, tokenizer.
        created_with: Versions of the software.
        format_version: Of the layout of the folder.
    """

    tokenizer: TokenizerSummary
    sources: dict[str, SourceSummary]
    seed: int
    validation_fraction: float
    token_dtype: str
    inputs: str
    created_with: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens and their meaning: equal for corpora that train the same."""
        hashes = {name: [getattr(source, split).sha256 for split in SPLITS] for name, source in self.sources.items()}
        content = json.dumps([self.tokenizer.fingerprint, self.tokenizer.eot_id, hashes])
        return hashlib.sha256(content.encode()).hexdigest()

    def total(self, split: Split) -> SplitSummary:
        """Sums over the sources.

        Args:
            split: Which side.
        """
        parts = [getattr(source, split) for source in self.sources.values()]
        sums = (sum(getattr(part, field) for part in parts) for field in ("documents", "tokens", "bytes"))
        return SplitSummary(*sums, sha256=combine_hashes([part.sha256 for part in parts]))

    @classmethod
    def load(cls, file: Path) -> "Manifest":
        """Read a manifest.

        Args:
            file: A `manifest.json`, or the folder of a corpus.
        """
        folder = file if file.name != MANIFEST_FILE else file.parent
        try:
            content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            state = "is unfinished" if folder.is_dir() else "does not exist"
            raise ValueError(
                f"The corpus {folder} {state}: there is no {MANIFEST_FILE}. Build it (the same command goes on where "
                f"it stopped), such as: lmstack data build --config conf/corpus/{folder.name}.yaml output={folder}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{folder / MANIFEST_FILE} is not JSON: {error}. Build the corpus again.") from error
        return cls.from_dict(content, str(folder))

    @classmethod
    def from_dict(cls, content: dict[str, Any], where: str) -> "Manifest":
        """The inverse of `to_dict`.

        Args:
            content: What `to_dict` gave.
            where: Where it was read, for the error message.
        """
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where} has format_version {version}; this lmstack reads {FORMAT_VERSION}. "
                "Build the corpus again with overwrite=true."
            )
        try:
            sources = {
                name: SourceSummary(
                    tuple(source["paths"]), SplitSummary(**source["train"]), SplitSummary(**source["validation"])
                )
                for name, source in content["sources"].items()
            }
            return cls(**{**content, "tokenizer": TokenizerSummary(**content["tokenizer"]), "sources": sources})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The {MANIFEST_FILE} of {where} is damaged ({error!r}). Build the corpus again with overwrite=true."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all.

        Args:
            folder: Folder of the corpus.
        """
        write_json(folder / MANIFEST_FILE, self.to_dict())

    def verify(self, folder: Path) -> None:
        """Check every byte of the shards against the hashes.

        Args:
            folder: Folder of the corpus.

        Raises:
            ValueError: A shard is missing or was changed; it is named.
        """
        for name, source in self.sources.items():
            for split in SPLITS:
                shards = folder / split / name
                found = hash_shards(shards)
                if found != getattr(source, split).sha256:
                    raise ValueError(
                        f"The shards in {shards} are not those that the manifest describes: SHA-256 {found[:12]}, "
                        f"expected {getattr(source, split).sha256[:12]}. Build the corpus again with overwrite=true."
                    )


def hash_shards(folder: Path) -> str:
    """SHA-256 of the chunk files of a folder, in the order of its index.

    Args:
        folder: A folder with an `index.json`.
    """
    chunks, _ = read_index(folder / INDEX_FILE)
    return combine_hashes([_hash_file(folder / chunk.filename) for chunk in chunks])


def combine_hashes(hashes: Sequence[str]) -> str:
    """The hash of a folder from the hashes of its chunk files, which many processes can compute.

    Args:
        hashes: SHA-256 of each chunk file, in order.
    """
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hash_file(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"{file} is missing. Build the corpus again with overwrite=true.") from None
