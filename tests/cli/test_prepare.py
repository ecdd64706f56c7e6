"""`lmstack data prepare` and `look`: from a config to shards and a report, here, as Slurm jobs, and on Ray."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.main import main
from lmstack.data.manifest import Manifest
from lmstack.prep.blocks import read_dropped
from lmstack.prep.shards import build_shards
from lmstack.tokenization import byte_tokenizer

CONFIG = """
output: {output}
sources:
  web: {{paths: {raw}, metadata: {{licence: none}}}}
stages:
  normalise: {{kind: normalise}}
  language: {{kind: language, keep: [en]}}
  short: {{kind: gopher, min_units: 6, min_stop_words: 0, only: {{languages: [en]}}}}
  exact: {{kind: exact_duplicates}}
  absent: null
shards: {{tokenizer: {tokenizer}, validation_fraction: 0.2, test_fraction: 0.1, seed: 1}}
executor: {{kind: local, num_workers: 1}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    english = [f"The train number {n} leaves the station in the morning and comes back at night." for n in range(60)]
    texts = [*english, english[0], "短い文章です。これは日本語で書かれています。", "Too short this."]
    (raw / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    byte_tokenizer().save(tmp_path / "tokenizer")
    file = tmp_path / "conf" / "corpus.yaml"
    file.parent.mkdir()
    file.write_text(CONFIG.format(output=tmp_path / "out", raw=raw, tokenizer=tmp_path / "tokenizer"))
    return file


def test_a_config_becomes_shards_and_a_report(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "--config", str(config)]) == 0
    manifest = Manifest.load(tmp_path / "out" / "corpus")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names = [stage["name"] for stage in summary["stages"]]
    assert names == ["collect", "normalise", "language", "short", "exact", "hold_out"]
    dropped = {stage["name"]: stage["tally"]["dropped"] for stage in summary["stages"]}
    assert dropped["language"]["language ja"]["documents"] == 1
    assert dropped["short"]["too few words"]["documents"] == 1
    assert dropped["exact"]["exact duplicate"]["documents"] == 1
    num_test = dropped["hold_out"]["held out for test"]["documents"]
    documents = [manifest.total(split).documents for split in ("train", "validation")]
    assert sum(documents) == 60 - num_test
    assert min(*documents, num_test) > 0
    report = (tmp_path / "out" / "report.html").read_text()
    for text in ("too few words", "language ja", "exact duplicate", "training tokens", "<svg", "Too short this."):
        assert text in report
    assert "report.html" in capsys.readouterr().out


def test_a_set_of_texts_can_be_the_validation_side_of_several_corpora(config: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"text": f"Held out {n}."}) + "\n" for n in range(3)))
    fingerprints = set()
    for stage in ("short", "exact"):
        overrides = ["shards.validation_fraction=0", f"shards.validation_sources.fixed.paths={held_out}"]
        name = f"output={tmp_path / stage}"
        assert main(["data", "prepare", "--config", str(config), name, f"stages.{stage}=null", *overrides]) == 0
        manifest = Manifest.load(tmp_path / stage / "corpus")
        assert manifest.total("validation").documents == manifest.sources["fixed"].validation.documents == 3
        fingerprints.add(manifest.sources["fixed"].validation)
    assert len(fingerprints) == 1


def test_the_workers_of_stages_are_gone_before_those_that_tokenize_come(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    def counted(*arguments: Any) -> Manifest:
        alive.append(len(multiprocessing.active_children()))
        return build_shards(*arguments)

    monkeypatch.setattr("lmstack.cli.prepare.build_shards", counted)
    config.write_text(config.read_text().replace("num_workers: 1", "num_workers: 2"))
    assert main(["data", "prepare", "--config", str(config)]) == 0
    assert alive == [0]


def test_look_shows_what_was_dropped_and_follows_a_document(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "prepare", "--config", str(config)])
    capsys.readouterr()
    assert main(["data", "look", f"path={tmp_path / 'out'}", "stage=short"]) == 0
    shown = capsys.readouterr().out
    assert "too few words" in shown
    assert "Too short this." in shown
    files = (tmp_path / "out" / "stages" / "exact" / "dropped").iterdir()
    identity = next(drop.document.id for file in files for drop in read_dropped(file))
    main(["data", "look", f"path={tmp_path / 'out'}", f"id={identity}"])
    shown = capsys.readouterr().out
    assert [shown.count(name) for name in ("normalise: kept", "exact: dropped", "hold_out")] == [1, 1, 0]
    assert main(["data", "look", f"path={tmp_path / 'out'}", "stage=nothing"]) == 2
    main(["data", "look", f"path={tmp_path / 'out'}", "contains=number 7 ", "limit=3"])
    assert "number 7 leaves" in capsys.readouterr().out


def shards(output: Path) -> dict[str, str]:
    files = [*(output / "corpus").rglob("*.bin"), *(output / "stages").rglob("documents/*")]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
array = re.search(r"--array=0-(\\d+)", text)
for index in range(int(array[1]) + 1) if array else [None]:
    environment = dict(os.environ) | ({{}} if index is None else {{"SLURM_ARRAY_TASK_ID": str(index)}})
    subprocess.run(["bash", sys.argv[-1]], env=environment, check=True, stdout=sys.stderr)
print(17)
"""


def test_slurm_job_files_are_written_each_waiting_for_the_one_before(config: Path, tmp_path: Path) -> None:
    overrides = [
        "executor.kind=slurm",
        "~executor.num_workers",
        "executor.num_jobs=4",
        "executor.options.partition=cpu",
    ]
    assert main(["data", "prepare", "--config", str(config), *overrides]) == 0
    jobs = sorted(file.name for file in (tmp_path / "out" / "jobs").glob("*.sbatch"))
    assert jobs == [
        "00_collect_collect.sbatch",
        "01_normalise_filter.sbatch",
        "02_language_filter.sbatch",
        "03_short_filter.sbatch",
        "04_exact_survey.sbatch",
        "05_exact_decide.sbatch",
        "06_exact_filter.sbatch",
        "07_hold_out_survey.sbatch",
        "08_hold_out_decide.sbatch",
        "09_hold_out_filter.sbatch",
        "10_finish.sbatch",
    ]
    script = (tmp_path / "out" / "jobs" / "submit.sh").read_text()
    assert script.count("--dependency=afterok:$job") == 10
    job = (tmp_path / "out" / "jobs" / jobs[1]).read_text()
    assert "#SBATCH --partition=cpu" in job
    assert "#SBATCH --array=0-0" in job  # one partition


@pytest.mark.slow
def test_slurm_jobs_write_what_one_machine_writes(config: Path, tmp_path: Path) -> None:
    main(["data", "prepare", "--config", str(config), f"output={tmp_path / 'here'}"])
    overrides = ["executor.kind=slurm", "~executor.num_workers", "executor.num_jobs=2"]
    main(["data", "prepare", "--config", str(config), *overrides])
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(python=sys.executable, log=str(tmp_path / "log")))
    (folder / "sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", str(tmp_path / "out" / "jobs" / "submit.sh")], env=environment, check=True)
    assert len((tmp_path / "log").read_text().splitlines()) == 11
    assert shards(tmp_path / "out") == shards(tmp_path / "here")
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_ray_writes_what_one_machine_writes(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    main(["data", "prepare", "--config", str(config), f"output={tmp_path / 'here'}"])
    script = (
        f"from lmstack.cli.main import main; import sys; sys.exit(main(['data', 'prepare', '--config', {str(config)!r}"
    )
    script += ", 'executor.kind=ray', 'executor.num_workers=2']))"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert shards(tmp_path / "out") == shards(tmp_path / "here")


def test_a_step_that_is_not_in_the_plan_is_refused(config: Path) -> None:
    command = ["data", "prepare_step", "--config", str(config), "~executor", "step=99", "part=0", "num_parts=1"]
    assert main(command) == 2
