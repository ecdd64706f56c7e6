"""The runner: same bytes for any number of processes and wherever it was killed; only what changed is done again."""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmstack.prep.blocks import read_documents, read_dropped
from lmstack.prep.collect.source import Source
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.document import Document, Verdict
from lmstack.prep.normalisation import Normalise
from lmstack.prep.plan import Plan
from lmstack.prep.pool import process_pool
from lmstack.prep.prepare import StageResult, prepare_documents
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.quality.word_list import WordList
from lmstack.prep.stage import Only, Stage
from lmstack.prep.task import documents_file, dropped_file

STAGES: dict[str, Stage] = {
    "normalise": Normalise(),
    "short": Gopher(min_units=4, min_stop_words=0, min_alphabetic=0.0, only=Only(sources=["lines"])),
    "exact": ExactDuplicates(),
    "privacy": MaskPersonalData(),
}
WORDS = ["the", "model", "reads", "text", "and", "learns", "what", "comes", "next", "in", "every", "line", "of", "it"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    draw = random.Random(3)
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + "  " for _ in range(40)]
        records = [json.dumps({"text": f"{line} ann{i}@example.com", "n": i}) for i, line in enumerate(lines)]
        (folder / f"{number}.jsonl").write_text("\n".join([*records, *records[:5], "{broken"]))
    with gzip.open(folder / "more.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"text": "one more line that is long enough to stay"}) + "\n")
    (folder / "note.txt").write_text("A note\u00a0of its own.\r\nWith two lines.")
    return {"lines": Source(paths=str(folder / "*.jsonl*")), "notes": Source(paths=str(folder / "*.txt"))}


@pytest.fixture(autouse=True)
def _small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmstack.prep.plan._SMALLEST_PARTITION", 3000)


def prepare(output: Path, sources: dict[str, Source], stages: dict[str, Stage] = STAGES, workers: int = 1) -> Any:
    with process_pool(workers) as run:
        return prepare_documents(output, sources, stages, run)


def content(output: Path) -> dict[str, str]:
    """Hash of every file but the tallies, which hold times."""
    files = [file for file in (output / "stages").rglob("*") if file.is_file() and "tallies" not in file.parts]
    return {file.relative_to(output).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kept(plan: Plan) -> Iterator[Document]:
    for partition in plan.partitions:
        yield from read_documents(documents_file(plan.folder(len(plan.stages) - 1), partition.index))


def test_every_document_is_kept_or_dropped_with_a_reason(tmp_path: Path, sources: dict[str, Source]) -> None:
    plan, results = prepare(tmp_path / "out", sources)
    assert len(plan.partitions) > 3
    before = results[0].tally
    assert before.taken.documents == 4 * 46 + 2
    assert {reason: amount.documents for reason, amount in before.dropped.items()} == {"not JSON": 4}, before.examples
    for earlier, later in pairwise(results):
        assert later.tally.taken.documents == earlier.tally.kept.documents
        dropped = sum(amount.documents for amount in later.tally.dropped.values())
        assert later.tally.taken.documents == later.tally.kept.documents + dropped
    assert results[3].tally.dropped["exact duplicate"].documents >= 10
    assert results[4].tally.counts["masked email"] == results[4].tally.kept.documents - 2
    documents = list(kept(plan))
    assert len(documents) == results[-1].tally.kept.documents
    assert any(document.text == "A note of its own.\nWith two lines." for document in documents)
    assert {document.metadata.get("n") for document in documents} >= {0, 1, 39}


def test_a_stage_looks_only_at_what_it_is_told_to(tmp_path: Path, sources: dict[str, Source]) -> None:
    stages: dict[str, Stage] = {"short": Gopher(only=Only(sources=["notes"]))}
    _, results = prepare(tmp_path / "out", sources, stages)
    assert results[1].by_source["lines"].dropped == {}
    assert results[1].by_source["notes"].dropped["too few words"].documents == 1


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, sources: dict[str, Source]) -> None:
    prepare(tmp_path / "one", sources)
    prepare(tmp_path / "three", sources, workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


class Stop(Exception):
    """Stands for the end of the process."""


def stopping_after(tasks: int) -> Callable[..., Iterator[Any]]:
    def run(function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
        nonlocal tasks
        for item in reversed(items):  # another order than when nothing stops it
            if tasks == 0:
                raise Stop
            tasks -= 1
            yield function(item)

    return run


def test_a_run_that_is_stopped_after_any_task_ends_the_same(tmp_path: Path, sources: dict[str, Source]) -> None:
    prepare(tmp_path / "whole", sources)
    stops = 0
    while True:
        try:
            prepare_documents(tmp_path / "stopped", sources, STAGES, stopping_after(7))
            break
        except Stop:
            stops += 1
    assert stops > 4
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_what_is_half_written_does_not_count(
    tmp_path: Path, sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "whole", sources)
    calls = 0

    def broken(self: Normalise, context: object) -> Callable[[Document], Verdict]:
        judge = whole(self, context)  # type: ignore[arg-type]

        def stop_in_the_middle(document: Document) -> Verdict:
            nonlocal calls
            calls += 1
            if calls == 100:
                raise Stop
            return judge(document)

        return stop_in_the_middle

    whole = Normalise.filter
    monkeypatch.setattr(Normalise, "filter", broken)
    with pytest.raises(Stop):
        prepare(tmp_path / "broken", sources)
    monkeypatch.undo()
    monkeypatch.setattr("lmstack.prep.plan._SMALLEST_PARTITION", 3000)
    (tmp_path / "broken" / "stages" / "normalise" / "documents" / "000003.jsonl.zst.77.tmp").write_bytes(b"torn")
    prepare(tmp_path / "broken", sources)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_only_what_changed_and_what_follows_is_done_again(tmp_path: Path, sources: dict[str, Source]) -> None:
    prepare(tmp_path / "out", sources)
    _, again = prepare(tmp_path / "out", sources)
    assert [result.wall_seconds for result in again] == [0.0] * 5
    changed = {**STAGES, "exact": ExactDuplicates(only=Only(sources=["lines"]))}
    _, results = prepare(tmp_path / "out", sources, changed)
    assert [result.wall_seconds > 0 for result in results] == [False, False, False, True, True]
    without = {name: stage for name, stage in STAGES.items() if name != "exact"}
    _, results = prepare(tmp_path / "out", sources, without)
    assert [result.wall_seconds > 0 for result in results] == [False, False, False, True]
    assert not (tmp_path / "out" / "stages" / "exact").exists()


def test_a_changed_source_file_is_read_again(tmp_path: Path, sources: dict[str, Source]) -> None:
    prepare(tmp_path / "out", sources)
    (tmp_path / "raw" / "note.txt").write_text("Another note that says something else.")
    plan, results = prepare(tmp_path / "out", sources)
    assert all(result.wall_seconds > 0 for result in results)
    assert any("Another note" in document.text for document in kept(plan))


def test_a_dropped_document_is_written_with_its_reason(tmp_path: Path, sources: dict[str, Source]) -> None:
    plan, _ = prepare(tmp_path / "out", sources)
    files = [dropped_file(plan.folder(2), partition.index) for partition in plan.partitions]
    found = [dropped for file in files for dropped in read_dropped(file)]
    assert {dropped.reason for dropped in found} >= {"too few words"}
    assert all(len(dropped.document.text.split()) < 4 for dropped in found if dropped.reason == "too few words")
    assert any("less than 4" in dropped.detail for dropped in found)


@pytest.mark.parametrize("name", ["", "a/b", "collect", ".hidden"])
def test_a_stage_must_have_the_name_of_a_folder(tmp_path: Path, sources: dict[str, Source], name: str) -> None:
    with pytest.raises(ValueError, match="cannot be that of"):
        prepare(tmp_path / "out", sources, {name: Normalise()})


def test_a_source_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no file"):
        prepare(tmp_path / "out", {"lines": Source(paths=str(tmp_path / "nothing*.txt"))})


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, sources: dict[str, Source]) -> None:
    draw = random.Random(11)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nimport lmstack.prep.plan\nlmstack.prep.plan._SMALLEST_PARTITION = 3000\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom lmstack.prep.collect.source import Source\n"
        "from test_prepare import STAGES, prepare\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path / 'raw')!r})\n"
        "    patterns = {'lines': '*.jsonl*', 'notes': '*.txt'}\n"
        "    sources = {name: Source(paths=str(folder / files)) for name, files in patterns.items()}\n"
        f"    prepare(Path({str(tmp_path)!r}, sys.argv[1]), sources, workers=2)\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, str(script), "whole"], check=True)
    seconds = time.monotonic() - began
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, str(script), "killed"], stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.3, 0.8) * seconds * (1 + kills / 4))
            assert process.returncode == 0, errors
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(1)  # the workers see that their parent is gone
            assert kills < 60
    assert kills
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_the_result_of_a_stage_names_its_sources(tmp_path: Path, sources: dict[str, Source]) -> None:
    _, results = prepare(tmp_path / "out", sources)
    last: StageResult = results[-1]
    assert set(last.by_source) == {"lines", "notes"}
    assert sum(tally.kept.documents for tally in last.by_source.values()) == last.tally.kept.documents


def test_killed_as_it_cleared_away_what_other_settings_wrote_it_ends_the_same(
    tmp_path: Path, sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "whole", sources)
    prepare(tmp_path / "killed", sources)
    rmtree = shutil.rmtree

    def stopped(folder: Path, **_: Any) -> None:
        if folder.name == "short":
            rmtree(folder / "dropped")
            raise Stop
        rmtree(folder)

    monkeypatch.setattr("lmstack.prep.prepare.shutil.rmtree", stopped)
    with pytest.raises(Stop):
        prepare(tmp_path / "killed", sources, {**STAGES, "short": Gopher(min_units=9)})
    monkeypatch.setattr("lmstack.prep.prepare.shutil.rmtree", rmtree)
    prepare(tmp_path / "killed", sources)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_changed_word_list_is_read_again_by_the_same_process(tmp_path: Path, sources: dict[str, Source]) -> None:
    words = tmp_path / "words.txt"
    stages: dict[str, Stage] = {"words": WordList(file=str(words))}
    words.write_text("model\n")
    _, first = prepare(tmp_path / "out", sources, stages)
    words.write_text("nowhere in the text\n")
    _, second = prepare(tmp_path / "out", sources, stages)
    assert first[1].tally.dropped["words of the list"].documents > 0
    assert not second[1].tally.dropped
