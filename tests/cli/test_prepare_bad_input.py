"""What cannot be read is passed over, and said in the line of the stage, in summary.json and in the report."""

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lmstack.cli.main import main
from lmstack.tokenization import byte_tokenizer

LIMIT = 1 << 16

CONFIG = """
output: {folder}/out
sources:
  web: {{paths: {folder}/raw, max_document_bytes: {limit}}}
  globbed: {{paths: "{folder}/odd/*.jsonl"}}
  nothing: {{paths: {folder}/nothing}}
stages: {{exact: {{kind: exact_duplicates}}}}
shards: {{tokenizer: {folder}/tokenizer, validation_fraction: 0.3}}
executor: {{kind: local, num_workers: 1}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("raw", "odd/folder.jsonl", "nothing", "conf"):
        (tmp_path / name).mkdir(parents=True)
    write_bad_files(tmp_path / "raw")
    (tmp_path / "odd" / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "odd" / "fine.jsonl").write_bytes(lines({"text": "Behind a glob."}))
    (tmp_path / "nothing" / "one.txt").write_bytes(b"")
    (tmp_path / "nothing" / "two.jsonl").write_bytes(b"\n\n")
    byte_tokenizer().save(tmp_path / "tokenizer")
    file = tmp_path / "conf" / "corpus.yaml"
    file.write_text(CONFIG.format(folder=tmp_path, limit=LIMIT))
    return file


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_bad_files(raw: Path) -> None:
    """A file of every kind of damage, with good documents before and behind it."""
    members = [gzip.compress(lines({"text": f"gzip {n} {'good ' * n}"})) for n in range(3)]
    members[1] = members[1][:20] + b"\0\0\0\0" + members[1][24:]
    (raw / "member.jsonl.gz").write_bytes(b"".join(members))
    frames = [zstandard.compress(lines({"text": f"zstd {n}"})) for n in range(2)]
    (raw / "cut.jsonl.zst").write_bytes(b"".join(frames)[:-5])
    (raw / "long.jsonl").write_bytes(
        lines({"text": "before"}, {"text": "x" * (1 << 20)}) + b"y" * (1 << 20) + b"\n" + lines({"text": "behind"})
    )
    (raw / "records.jsonl").write_bytes(
        b'[1]\n"a"\nnot json\n{"body": "x"}\n{"text": 3}\n{"text": " "}\n'
        b'{"text": "good", "position": 7, "language": []}\n'
    )
    (raw / "array.jsonl").write_text(json.dumps([{"text": "in an array"}, 3], indent=1))
    (raw / "utf8.jsonl").write_bytes(b'{"text": "Z\xc3\xbcrich and G\xffnf"}\n')
    (raw / "bad.parquet").write_bytes(b"PAR1 but nothing else PAR1")
    (raw / "table.csv").write_text("text\n" + "z" * (1 << 20) + "\nfine row\n")
    (raw / "empty.md").write_bytes(b"")
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>page</p>"
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\nContent-Type: application/http\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(page)
    records = [head + page + b"\r\n\r\n", head + page[:-4], head + page + b"\r\n\r\n"]
    (raw / "crawl.warc.gz").write_bytes(b"".join(map(gzip.compress, records)))
    (raw / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"A name that is no UTF-8.")


REASONS = {
    "corrupt gzip member": 1,
    "corrupt zstd frame": 1,
    "too long": 2,
    "no record": 3,
    "not JSON": 1,
    "no text field": 2,
    "empty": 3,
    "empty file": 1,
    "unreadable file": 3,
    "bad CSV row": 1,
    "corrupt WARC record": 1,
}
TEXTS = 13


def test_all_that_cannot_be_read_is_said_in_three_places(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "--config", str(config)]) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("collect"))
    output = config.parents[1] / "out"
    collect = json.loads((output / "summary.json").read_text())["stages"][0]
    report = (output / "report.html").read_text()
    assert {reason: amount["documents"] for reason, amount in collect["tally"]["dropped"].items()} == REASONS
    assert collect["tally"]["kept"]["documents"] == TEXTS
    for reason, number in REASONS.items():
        assert f"{reason} {number}" in said
        assert reason in report
    assert collect["tally"]["counts"] == {
        "files that are one JSON array": 1,
        "texts with undecodable bytes": 1,
        "undecodable bytes": 1,
    }
    assert "undecodable bytes 1" in said
    assert "undecodable bytes" in report
    assert "nothing is left of nothing" in said
    assert collect["by_source"]["nothing"]["dropped"].keys() == {"empty", "empty file"}
    assert "Is a directory" in report
    assert "gone.jsonl" in report


def test_what_stands_around_damage_is_kept(config: Path) -> None:
    from lmstack.prep.blocks import read_documents

    main(["data", "prepare", "--config", str(config)])
    files = (config.parents[1] / "out" / "stages" / "collect" / "documents").iterdir()
    texts = {document.text.split("\n")[0] for file in files for document in read_documents(file)}
    assert texts >= {"gzip 0 ", "gzip 2 good good ", "zstd 0", "before", "behind", "good", "in an array", "fine row"}
    assert texts >= {"A name that is no UTF-8.", "Behind a glob.", "<p>page</p>"}
    assert "zstd 1" not in texts


def test_a_corpus_of_which_nothing_is_left_has_a_report(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "prepare", "--config", str(config), "~sources.web", "~sources.globbed"]
    assert main(command) == 2
    assert "No document is left to train on" in capsys.readouterr().err
    assert "empty file" in (config.parents[1] / "out" / "report.html").read_text()


def test_a_glob_that_names_nothing_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "--config", str(config), "sources.nothing.paths=nowhere/*.txt"]) == 2
    assert "Source 'nothing': nowhere/*.txt names no file" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [3_000, 20_000, 60_000])
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(config: Path, allowed: int) -> None:
    command = ["data", "prepare", "--config", str(config)]
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({allowed}, {allowed}))\n"
        f"from lmstack.cli.main import main; sys.exit(main({command!r}))"
    )
    raw = config.parents[1] / "raw" / "much.jsonl"
    raw.write_bytes(b"".join(lines({"text": os.urandom(9_000).hex()}) for _ in range(9)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert "Free some space and run the same command again: what is finished is kept." in done.stderr
    assert "Traceback" not in done.stderr
    output = config.parents[1] / "out"
    assert not list(output.rglob("*.tmp"))
    assert main(command) == 0
    assert json.loads((output / "summary.json").read_text())["stages"][0]["tally"]["kept"]["documents"] == TEXTS + 9


def test_an_output_that_cannot_be_written_is_said(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "out")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["data", "prepare", "--config", str(config)]) == 1
    assert "lmstack: error: Read-only file system: out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("line", [b'{"text": "%s"}\n', b"%s\n"], ids=["JSON", "not JSON"])
def test_a_line_of_200_megabytes_is_dropped_in_little_memory(config: Path, line: bytes) -> None:
    long = config.parents[1] / "raw" / "200mb.jsonl"
    before, after = line.split(b"%s")
    with open(long, "wb") as stream:
        stream.write(lines({"text": "first"}) + before)
        for _ in range(200):
            stream.write(b"longer " * (1_000_000 // 7))
        stream.write(after + lines({"text": "last"}))
    command = ["data", "prepare", "--config", str(config), "sources.web.max_document_bytes=16777216"]
    script = (
        f"from lmstack.cli.main import main; from pathlib import Path; import sys; status = main({command!r})\n"
        # not getrusage: its peak is at least that of the process that started this one, here the whole test suite
        "line = next(line for line in Path('/proc/self/status').open() if line.startswith('VmHWM'))\n"
        "print('peak', int(line.split()[1]) // 1024); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    collect = json.loads((config.parents[1] / "out" / "summary.json").read_text())["stages"][0]["tally"]
    assert collect["dropped"]["too long"]["documents"] >= 1
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    assert peak < 450, f"{peak} MB, of which 150 to 200 are Python and its libraries"
