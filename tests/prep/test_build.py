import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmstack.data.manifest import Manifest
from lmstack.data.shard_format import token_dtype
from lmstack.data.token_shards import TokenShards
from lmstack.prep import build, partition
from lmstack.prep.build import build_corpus
from lmstack.prep.readers import SourceConfig
from lmstack.prep.split import is_validation
from lmstack.tokenization import byte_tokenizer, char_tokenizer

BUILD = """
import sys
from lmstack.prep import build
from lmstack.prep.readers import SourceConfig
build._SMALLEST_PARTITION = 2000
output, texts, tokenizer, workers = sys.argv[1:]
if __name__ == "__main__":
    build.build_corpus(output, {"a": texts, "b": texts}, tokenizer, validation_fraction=0.2, num_workers=int(workers))
"""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    byte_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def texts(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for file in range(3):
        records = [{"text": f"document {file}/{i} " + "é" * int(rng.integers(50))} for i in range(80)]
        (tmp_path / f"t{file}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return str(tmp_path / "*.jsonl")


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_SMALLEST_PARTITION", 2000)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def stored(corpus: Path, split: str, source: str) -> list[str]:
    shards = TokenShards(corpus / split / source)
    documents = [shards.document(i).tolist() for i in range(shards.num_documents)]
    assert all(document[0] == 256 and 256 not in document[1:] for document in documents)
    return [bytes(document[1:]).decode() for document in documents]


def test_every_document_is_stored_once_on_the_side_that_its_hash_says(
    tmp_path: Path, tokenizer: Path, texts: str, small_partitions: None
) -> None:
    manifest = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, seed=5, num_workers=0)
    expected: dict[str, list[str]] = {"train": [], "validation": []}
    for file in sorted(tmp_path.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            import hashlib

            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            expected["validation" if is_validation(key, 5, 0.2) else "train"].append(text)
    for split in ("train", "validation"):
        assert stored(tmp_path / "c", split, "a") == expected[split]
        summary = getattr(manifest.sources["a"], split)
        assert summary.documents == len(expected[split]) > 0
        assert summary.bytes == sum(len(text.encode()) for text in expected[split])
        assert summary.tokens == summary.bytes + summary.documents
    assert not (tmp_path / "c" / ".build").exists()
    manifest.verify(tmp_path / "c")


def test_the_corpus_is_the_same_to_the_byte_for_any_number_of_workers(
    tmp_path: Path, tokenizer: Path, texts: str
) -> None:
    (tmp_path / "b.py").write_text(BUILD)
    for workers in ("0", "3"):
        arguments = [str(tmp_path / f"c{workers}"), texts, str(tokenizer), workers]
        done = subprocess.run([sys.executable, str(tmp_path / "b.py"), *arguments], capture_output=True, text=True)
        # The two sources hold the same documents, each on one side: no overlap, whatever the source.
        assert done.returncode == 0, done.stderr
    alone, together = contents(tmp_path / "c0"), contents(tmp_path / "c3")
    assert len([name for name in alone if "chunk" in name]) > 10
    assert alone == together


def test_a_build_killed_at_any_moment_goes_on_and_ends_the_same(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    slow = BUILD.replace(
        "output, texts",
        """
import time
from lmstack.prep import partition
write = partition.write_chunk
partition.write_chunk = lambda *a: (time.sleep(0.02), write(*a))[1]
output, texts""",
    )
    (tmp_path / "slow.py").write_text(slow)
    (tmp_path / "b.py").write_text(BUILD)
    whole = [sys.executable, str(tmp_path / "b.py"), str(tmp_path / "whole"), texts, str(tokenizer), "0"]
    subprocess.run(whole, check=True, capture_output=True)
    output = tmp_path / "killed"
    records = []
    for wait in (1, 4, 9):
        arguments = [str(output), texts, str(tokenizer), "0"]
        process = subprocess.Popen([sys.executable, str(tmp_path / "slow.py"), *arguments])
        deadline = time.monotonic() + 30
        while len(list(output.glob(".build/*.json"))) - 1 < wait and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "manifest.json").exists()
        records.append({file.name: file.stat().st_mtime_ns for file in output.glob(".build/partition-*.json")})
    assert len(records[0]) < len(records[2])
    assert records[0].items() <= records[2].items()  # finished partitions were kept, not written again
    with pytest.raises(ValueError, match=r"killed is unfinished.*lmstack data build"):
        Manifest.load(output)
    (output / "train" / "a" / "chunk-999999-0000.bin.7.tmp").write_bytes(b"left over")
    subprocess.run([*whole[:2], str(output), *whole[3:]], check=True, capture_output=True)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_worker_leaves_when_its_parent_is_killed(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    slow = BUILD.replace("output, texts", "import time\nwrite = build.build_partition\noutput, texts", 1)
    slow = slow.replace(
        'if __name__ == "__main__":',
        "from lmstack.prep import partition\npartition.write_chunk = lambda *a: time.sleep(60)\n"
        "if __name__ == '__main__':",
    )
    (tmp_path / "slow.py").write_text(slow)
    arguments = [str(tmp_path / "c"), texts, str(tokenizer), "2"]
    process = subprocess.Popen([sys.executable, str(tmp_path / "slow.py"), *arguments], start_new_session=True)
    deadline = time.monotonic() + 30
    while len(_in_group(process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while (left := _in_group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _in_group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group and "State:\tZ" not in (entry / "status").read_text():
                found.append(int(entry.name))
        except (OSError, ValueError):
            pass
    return found


def test_a_finished_corpus_is_returned_at_once_and_only_replaced_when_told_to(
    tmp_path: Path, tokenizer: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    before = contents(tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(build, "_run", lambda *_: pytest.fail("it was built again"))
        again = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    assert again == first
    changes: list[dict[str, object]] = [{"seed": 1}, {"validation_fraction": 0.3}, {"sources": {"b": texts}}]
    for change in changes:
        arguments = {"sources": {"a": texts}, "validation_fraction": 0.2, "num_workers": 0, **change}
        with pytest.raises(ValueError, match=r"finished corpus built from other inputs .*overwrite=true"):
            build_corpus(tmp_path / "c", tokenizer=tokenizer, **arguments)  # type: ignore[arg-type]
    assert contents(tmp_path / "c") == before
    replaced = build_corpus(
        tmp_path / "c", {"b": texts}, tokenizer, validation_fraction=0.2, num_workers=0, overwrite=True
    )
    assert list(replaced.sources) == ["b"]
    assert not (tmp_path / "c" / "train" / "a").exists()


def test_a_changed_file_and_another_tokenizer_are_other_inputs(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    byte_tokenizer(("<|endoftext|>", "<|pad|>")).save(tmp_path / "other")
    with pytest.raises(ValueError, match="built from another tokenizer"):
        build_corpus(tmp_path / "c", {"a": texts}, tmp_path / "other", validation_fraction=0.2, num_workers=0)
    with open(tmp_path / "t0.jsonl", "a") as stream:
        stream.write('\n{"text": "one more"}')
    with pytest.raises(ValueError, match="built from other inputs"):
        build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)


def test_an_unfinished_build_of_other_inputs_is_begun_afresh(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    (tmp_path / "empty.jsonl.gz").touch()
    with pytest.raises(ValueError, match="holds no documents"):
        build_corpus(tmp_path / "c", {"old": texts, "none": str(tmp_path / "empty.jsonl.gz")}, tokenizer, num_workers=0)
    assert (tmp_path / "c" / "train" / "old").exists()
    build_corpus(tmp_path / "c", {"new": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    build_corpus(tmp_path / "d", {"new": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


def test_a_document_on_both_sides_is_refused_and_quoted(tmp_path: Path, tokenizer: Path) -> None:
    train = tmp_path / "train.txt"
    train.write_text("one|two|three|four")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("five|two")
    with pytest.raises(ValueError, match=r"1 training documents are in validation too, such as 'two' \(a\)"):
        build_corpus(
            tmp_path / "c",
            {"a": SourceConfig(str(train), separator="|")},
            tokenizer,
            validation_sources={"b": SourceConfig(str(held_out), separator="|")},
            num_workers=0,
        )
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_copies_never_leak_when_the_split_is_by_hash_but_a_key_that_parts_them_is_refused(
    tmp_path: Path, tokenizer: Path
) -> None:
    records = [{"text": f"text {i % 20}", "site": f"site {i}"} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    file = str(tmp_path / "a.jsonl")
    manifest = build_corpus(tmp_path / "c", {"a": file}, tokenizer, validation_fraction=0.3, num_workers=0)
    assert manifest.total("train").documents % 10 == manifest.total("validation").documents % 10 == 0
    by_site = SourceConfig(file, key_field="site")
    with pytest.raises(ValueError, match="training documents are in validation too"):
        build_corpus(tmp_path / "d", {"a": by_site}, tokenizer, validation_fraction=0.3, num_workers=0)


def test_documents_with_one_key_stay_on_one_side(tmp_path: Path, tokenizer: Path) -> None:
    records = [{"text": f"site{i % 30} text {i}", "site": i % 30} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = SourceConfig(str(tmp_path / "a.jsonl"), key_field="site")
    build_corpus(tmp_path / "c", {"a": source}, tokenizer, validation_fraction=0.3, num_workers=0)
    sides = [{text.split()[0] for text in stored(tmp_path / "c", split, "a")} for split in ("train", "validation")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_sources_for_validation_only_leave_the_others_whole(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text")
    manifest = build_corpus(
        tmp_path / "c",
        {"a": str(tmp_path / "train.txt")},
        tokenizer,
        validation_sources={"a": str(tmp_path / "held_out.txt")},
        num_workers=0,
    )
    assert manifest.validation_fraction == 0.0
    assert stored(tmp_path / "c", "train", "a") == ["train text"]
    assert stored(tmp_path / "c", "validation", "a") == ["held_out text"]


def test_an_empty_side_is_refused_with_the_ways_out_unless_it_was_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("one document")
    source = {"a": str(tmp_path / "a.txt")}
    with pytest.raises(ValueError, match=r"side is empty: validation_fraction=0.01 of 1 documents .*separator"):
        build_corpus(tmp_path / "c", source, tokenizer, num_workers=0)
    manifest = build_corpus(tmp_path / "d", source, tokenizer, validation_fraction=0.0, num_workers=0)
    assert manifest.total("validation").documents == 0


def test_empty_documents_are_left_out(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n')
    manifest = build_corpus(tmp_path / "c", {"a": str(tmp_path / "a.jsonl")}, tokenizer, validation_fraction=0.0)
    assert manifest.total("train").documents == 1


def test_a_document_that_spells_the_end_of_text_does_not_end(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("before<|endoftext|>after")
    build_corpus(tmp_path / "c", {"a": str(tmp_path / "a.txt")}, tokenizer, validation_fraction=0.0, num_workers=0)
    assert stored(tmp_path / "c", "train", "a") == ["before<|endoftext|>after"]


def test_tokenizers_without_end_of_text_store_documents_bare(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab|ba|a")
    char_tokenizer(["ab"]).save(tmp_path / "t")
    source = SourceConfig(str(tmp_path / "a.txt"), separator="|")
    manifest = build_corpus(tmp_path / "c", {"a": source}, tmp_path / "t", validation_fraction=0.0, num_workers=0)
    shards = TokenShards(tmp_path / "c" / "train" / "a")
    assert [shards.document(i).tolist() for i in range(3)] == [[0, 1], [1, 0], [0]]
    assert manifest.tokenizer.eot_id is None


def test_chunks_are_bounded_and_long_documents_have_one_of_their_own(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("|".join(["x" * 10] * 30 + ["y" * 500] + ["z" * 10] * 5))
    source = SourceConfig(str(tmp_path / "a.txt"), separator="|")
    build_corpus(tmp_path / "c", {"a": source}, tokenizer, validation_fraction=0.0, num_workers=0, chunk_bytes=100)
    shards = TokenShards(tmp_path / "c" / "train" / "a")
    sizes = [chunk.num_tokens * 2 for chunk in shards.chunks]
    assert sum(sizes) == shards.num_tokens * 2
    assert sorted(sizes)[-2] < 100 + 22
    assert sorted(sizes)[-1] >= 1000
    assert "".join(stored(tmp_path / "c", "train", "a")) == "x" * 300 + "y" * 500 + "z" * 50


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_record_is_one_clear_error_and_leaves_no_manifest(
    tmp_path: Path, tokenizer: Path, texts: str, workers: int
) -> None:
    (tmp_path / "t1.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"^\S*t1\.jsonl is not utf-8: byte 0xff at offset 25 "):
        build_corpus(tmp_path / "c", {"a": texts, "b": texts}, tokenizer, num_workers=workers)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_full_disk_is_one_clear_error_and_what_is_finished_is_kept(
    tmp_path: Path, tokenizer: Path, texts: str, small_partitions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = partition.write_chunk, []

    def full(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(partition, "write_chunk", full)
    with pytest.raises(ValueError, match=r"disk of .* is full.*what is finished is kept"):
        build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    assert not (tmp_path / "c" / "manifest.json").exists()
    kept = len(list(tmp_path.glob("c/.build/partition-*.json")))
    assert kept >= 2
    monkeypatch.setattr(partition, "write_chunk", write)
    build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    build_corpus(tmp_path / "d", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


def test_two_builds_in_one_folder_are_refused(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    with build.locked(tmp_path / "c"), pytest.raises(ValueError, match="Another process is building"):
        build_corpus(tmp_path / "c", {"a": texts}, tokenizer, num_workers=0)


def test_a_folder_with_other_things_and_names_that_are_no_folders_are_refused(
    tmp_path: Path, tokenizer: Path, texts: str
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        build_corpus(tmp_path / "c", {"a": texts}, tokenizer)
    with pytest.raises(ValueError, match="source name 'a/b' cannot name a folder"):
        build_corpus(tmp_path / "d", {"a/b": texts}, tokenizer)
    with pytest.raises(ValueError, match="No sources"):
        build_corpus(tmp_path / "d", {}, tokenizer)
    with pytest.raises(ValueError, match=r"validation_fraction=1.5 is not in"):
        build_corpus(tmp_path / "d", {"a": texts}, tokenizer, validation_fraction=1.5)


def test_tokens_take_two_bytes_up_to_65536_ids_and_four_beyond() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def test_a_changed_or_missing_shard_does_not_verify(tmp_path: Path, tokenizer: Path, texts: str) -> None:
    manifest = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    (chunk, *_) = sorted((tmp_path / "c" / "train" / "a").glob("*.bin"))
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match=r"train/a are not those that the manifest describes"):
        manifest.verify(tmp_path / "c")
    chunk.unlink()
    with pytest.raises(ValueError, match=rf"{chunk.name} is missing"):
        manifest.verify(tmp_path / "c")


def test_a_build_killed_while_it_wrote_the_manifest_goes_on(tmp_path: Path, texts: str, tokenizer: Path) -> None:
    corpus = tmp_path / "c"
    whole = build_corpus(corpus, {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    (corpus / "manifest.json").rename(corpus / "manifest.json.4242.tmp")
    assert build_corpus(corpus, {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0) == whole
    assert sorted(entry.name for entry in corpus.iterdir()) == ["manifest.json", "tokenizer", "train", "validation"]


def test_what_a_finished_build_could_not_clear_away_is_cleared_away(
    tmp_path: Path, texts: str, tokenizer: Path
) -> None:
    build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    (tmp_path / "c" / ".build").mkdir()
    (tmp_path / "c" / ".build" / "partition-000000.json").write_text("{}")
    build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    assert not (tmp_path / "c" / ".build").exists()


def test_another_tokenizer_in_the_same_place_is_used(tmp_path: Path, texts: str, tokenizer: Path) -> None:
    first = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, validation_fraction=0.2, num_workers=0)
    char_tokenizer(["document /é0123456789"]).save(tokenizer)
    options = {"validation_fraction": 0.2, "num_workers": 0, "overwrite": True}
    again = build_corpus(tmp_path / "c", {"a": texts}, tokenizer, **options)
    assert again.total("train").tokens < first.total("train").tokens  # é is one character, but two bytes
