import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.shard_format import read_index, token_dtype, write_chunk, write_index
from lmstack.data.token_shards import TokenShards
from tiny_corpus import write_shards

DOCUMENTS = [[256, 1, 2], [256], [256, 3, 4, 5, 6, 7], [256, 8], [256, 9, 10, 11]]


def by_hand(documents: list[list[int]], start: int, length: int) -> tuple[list[int], list[int], list[int]]:
    """The stretch token by token."""
    stream = [(token, i == 0) for document in documents for i, token in enumerate(document)]
    tokens, document_ids, position_ids = [], [], []
    document = position = 0
    for k in range(length):
        token, opens = stream[(start + k) % len(stream)]
        if opens and k:
            document, position = document + 1, 0
        tokens.append(token)
        document_ids.append(document)
        position_ids.append(position)
        position += 1
    return tokens, document_ids, position_ids


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    per_chunk=st.integers(1, 5),
    length=st.integers(1, 30),
    starts=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
    vocab_size=st.sampled_from([300, 70_000]),
)
@settings(max_examples=60, deadline=None)
def test_any_stretch_equals_the_one_put_together_token_by_token(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    per_chunk: int,
    length: int,
    starts: list[int],
    vocab_size: int,
) -> None:
    ids = iter(range(vocab_size - 200, vocab_size))
    documents = [[next(ids) for _ in range(size)] for size in sizes]
    shards = TokenShards(write_shards(tmp_path_factory.mktemp("s"), documents, per_chunk, vocab_size))
    starts = [start % shards.num_tokens for start in starts]
    found = shards.gather(np.array(starts), length)
    for row, start in enumerate(starts):
        assert tuple(part[row].tolist() for part in found) == by_hand(documents, start, length)


def test_documents_are_told_apart_by_their_offsets_also_without_an_opening_token(tmp_path: Path) -> None:
    shards = TokenShards(write_shards(tmp_path, [[7, 7], [7], [7, 7, 7]]))
    assert (shards.num_tokens, shards.num_documents) == (6, 3)
    assert shards.gather(np.array([0]), 6).document_ids.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert [shards.document(i).tolist() for i in range(3)] == [[7, 7], [7], [7, 7, 7]]
    with pytest.raises(ValueError, match="no document 3"):
        shards.document(3)


def test_litdata_reads_what_is_written_here(tmp_path: Path) -> None:
    streaming = pytest.importorskip("litdata.streaming")
    write_shards(tmp_path / "s", DOCUMENTS, per_chunk=5)
    loader = streaming.item_loader.TokensLoader(block_size=4)
    theirs = streaming.StreamingDataset(str(tmp_path / "s"), item_loader=loader, shuffle=False)
    flat = [token for document in DOCUMENTS for token in document]
    assert [theirs[i].tolist() for i in range(len(theirs))] == [flat[i : i + 4] for i in range(0, 16, 4)]


@pytest.mark.filterwarnings("ignore:An item was larger")
def test_what_litdata_writes_is_read_here(tmp_path: Path) -> None:
    writer = pytest.importorskip("litdata.streaming.writer")
    item_loader = pytest.importorskip("litdata.streaming.item_loader")
    cache = writer.BinaryWriter(str(tmp_path), chunk_bytes=20, item_loader=item_loader.TokensLoader())
    for i, document in enumerate(DOCUMENTS):
        cache[i] = np.array(document, dtype=np.uint16)
    cache.done()
    cache.merge()
    shards = TokenShards(tmp_path)
    assert len(shards.chunks) > 1
    assert [shards.document(i).tolist() for i in range(shards.num_documents)] == DOCUMENTS
    starts = np.arange(shards.num_tokens)
    found = shards.gather(starts, 7)
    assert found.tokens.tolist() == [by_hand(DOCUMENTS, start, 7)[0] for start in starts]
    assert found.position_ids.tolist() == [by_hand(DOCUMENTS, start, 7)[2] for start in starts]


def test_more_chunks_than_can_be_open_at_once_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmstack.data.token_shards._MAX_OPEN_CHUNKS", 2)
    shards = TokenShards(write_shards(tmp_path, [[256, i] for i in range(20)], per_chunk=1))
    assert shards.gather(np.array([0]), 40).tokens[0, 1::2].tolist() == list(range(20))
    assert len(shards._open) == 2


def test_a_copy_in_another_process_opens_files_of_its_own(tmp_path: Path) -> None:
    shards = TokenShards(write_shards(tmp_path, DOCUMENTS))
    before = shards.gather(np.array([0]), 5).tokens
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._open
    assert np.array_equal(copy.gather(np.array([0]), 5).tokens, before)


def test_missing_cut_and_foreign_shards_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no index\.json"):
        TokenShards(tmp_path)
    folder = write_shards(tmp_path / "s", DOCUMENTS)
    TokenShards(folder).check_files()
    file = folder / "chunk-2.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"chunk-2\.bin is damaged"):
        TokenShards(folder).check_files()
    with pytest.raises(ValueError, match=r"chunk-2\.bin is damaged"):
        TokenShards(folder).gather(np.array([0]), 15)
    file.unlink()
    with pytest.raises(ValueError, match=r"chunk-2\.bin cannot be read"):
        TokenShards(folder).check_files()
    for text, message in {
        "{": "is damaged",
        '{"chunks": [], "config": {"data_format": ["jpeg"]}}': "not tokens",
        '{"chunks": [], "config": {"data_format": ["no_header_numpy:5"], "compression": "zstd"}}': "compressed",
    }.items():
        (folder / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            TokenShards(folder)


def test_a_document_that_offsets_cannot_reach_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmstack.data.shard_format.MAX_CHUNK_BYTES", 100)
    with pytest.raises(ValueError, match=r"holds at most 100\. Cut the document up"):
        write_chunk(tmp_path / "c.bin", [np.zeros(60, dtype=np.uint16)])
    assert not list(tmp_path.iterdir())


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    dtype = token_dtype(70_000)
    chunk = write_chunk(tmp_path / "c.bin", [np.array([1, 69_999], dtype=dtype)])
    write_index(tmp_path, [chunk], dtype)
    assert read_index(tmp_path / "index.json") == ([chunk], dtype)
    assert chunk.file_size(dtype) == (tmp_path / "c.bin").stat().st_size
