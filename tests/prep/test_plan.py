"""A stage's identity: it changes with its settings, with what comes before it, and with every file that it reads."""

import json
import os
from pathlib import Path

import pytest

import tiny_transformer
from lmstack.models.checkpoint import save_weights
from lmstack.prep.collect.source import Source
from lmstack.prep.datatrove import DatatroveFilter
from lmstack.prep.decontamination import Decontamination
from lmstack.prep.evaluation_sets import EvaluationSet
from lmstack.prep.normalisation import Normalise
from lmstack.prep.plan import make_plan
from lmstack.prep.quality.scored import PerplexityBuckets, QualityClassifier
from lmstack.prep.quality.word_list import WordList
from lmstack.prep.stage import Only, Stage

TASK = """
include: base.yaml
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "raw.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "exams").mkdir()
    for name in ("a", "b"):
        (tmp_path / "exams" / f"{name}.jsonl").write_text(json.dumps({"q": name}))
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "base.yaml").write_text("doc_to_text: q\n")
    (tmp_path / "items.jsonl").write_text(json.dumps({"q": "item"}))
    for name in ("words.txt", "quality.npz", "hosts.txt"):
        (tmp_path / name).write_text("word")
    save_weights(tmp_path / "model", tiny_transformer.transformer())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def identities(stage: Stage) -> list[str]:
    """Of the stage before the one in question, of that one, and of the one behind."""
    stages: dict[str, Stage] = {"before": Normalise(), "stage": stage, "behind": Normalise()}
    plan = make_plan(Path("out"), {"web": Source(paths="raw.jsonl")}, stages, 0)
    return [planned.identity for planned in plan.stages[1:]]


GLOBBED = Decontamination(benchmarks={"exam": EvaluationSet("exams/*.jsonl", fields=["q"])})
OF_TASK = Decontamination(benchmarks={"exam": EvaluationSet("task.yaml")})
PERPLEXITY = PerplexityBuckets(model="model")


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        (GLOBBED, "exams/b.jsonl"),
        (GLOBBED, "exams/new.jsonl"),
        (OF_TASK, "task.yaml"),
        (OF_TASK, "base.yaml"),
        (OF_TASK, "items.jsonl"),
        (WordList(file="words.txt"), "words.txt"),
        (QualityClassifier(model="quality.npz", min_score=0.5), "quality.npz"),
        (PERPLEXITY, "model/model.safetensors"),
        (DatatroveFilter(block="a.B", arguments={"lists": [{"file": "hosts.txt"}]}), "hosts.txt"),
    ],
)
def test_a_changed_file_changes_the_stage_and_what_follows(folder: Path, stage: Stage, file: str) -> None:
    before = identities(stage)
    assert identities(stage) == before
    path = folder / file
    content = path.read_bytes() if path.exists() else b"{}"
    path.write_bytes(content)  # of the same size: the time says that it is another
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))
    after = identities(stage)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]


def test_evaluation_files_that_are_missing_are_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/\*\.jsonl matches no file"):
        identities(Decontamination(benchmarks={"exam": EvaluationSet("nowhere/*.jsonl", fields=["q"])}))


def test_a_stage_for_a_source_that_is_not_there_is_refused(folder: Path) -> None:
    stage = Normalise(only=Only(sources=["webb"]))
    with pytest.raises(ValueError, match=r"normalise.only.sources names 'webb', which is none of web"):
        make_plan(folder / "out", {"web": Source(paths=str(folder / "a.jsonl"))}, {"normalise": stage}, 0)
