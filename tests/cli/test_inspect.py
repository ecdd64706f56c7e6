"""`lmstack inspect` shows the rows that training will take, and says what is wrong with a config."""

import json
import re
from pathlib import Path

import pytest

from lmstack.cli.main import main
from lmstack.data.modules.pretraining import PretrainingData
from lmstack.prep.build import build_corpus
from lmstack.tokenization import byte_tokenizer
from tiny_chats import chats, comparisons, rows_file, saved_tokenizer

CONFIG = """\
stage: causal_lm
data: {{path: {path}, sequence_length: 16, micro_batch_size: 2, global_batch_size: 4, max_tokens: 200}}
trainer: {{default_root_dir: {path}/run}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    byte_tokenizer().save(folder / "tokenizer")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(f"text {number}: " + "ab\x1b!" * (number % 7))
    sources = {"texts": str(texts)}
    build_corpus(folder / "corpus", sources, folder / "tokenizer", validation_fraction=0.0, num_workers=1)
    file = folder / "study.yaml"
    file.write_text(CONFIG.format(path=folder / "corpus"))
    return file


def data_module(config: Path) -> PretrainingData:
    data = PretrainingData(str(config.parent / "corpus"), 16, 2, 4, max_tokens=200)
    data.setup()
    return data


def test_it_shows_the_rows_of_the_step_that_training_takes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_module(config)
    steps = list(data.train_dataloader())
    assert len(steps) == 4
    for step in (0, 2):
        assert main(["inspect", "--config", str(config), f"batch={step}", "rows=4"]) == 0
        out = capsys.readouterr().out
        rows = re.split(r"\nrow \d+: .*\n", out)
        shown = [re.sub(r"──.*\n|[⟦⟧\n]", "", row) for row in rows[1:]]
        stored = [
            data.tokenizer.decode([*ids, labels[-1]]).replace("\x1b", "\\x1b")
            for batch in steps[step]
            for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)
        ]
        assert shown == stored
        assert f"step {step}: 2 micro-batches, 4 rows, 64 tokens, 64 supervised" in out


def test_documents_are_told_apart_by_their_ids_and_positions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", str(config), "rows=4"]) == 0
    out = capsys.readouterr().out
    (batch, _) = next(iter(data_module(config).train_dataloader()))
    last = int(batch.document_ids[0].max())
    position = int(batch.position_ids[0][-1])
    first_row = out.split("\nrow 1:")[0]
    assert f"{last + 1} documents" in first_row
    assert re.search(rf"── document {last} · positions 0–{position} ·", first_row) or last == 0


def test_rows_are_two_unless_asked_for(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", str(config)]) == 0
    assert len(re.findall(r"^row \d", capsys.readouterr().out, re.MULTILINE)) == 2


def test_no_colour_codes_reach_a_pipe(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", str(config)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_shorter_last_step_shows_its_padding(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", str(config), "batch=3", "rows=4"]) == 0
    out = capsys.readouterr().out
    assert "8 tokens, 8 supervised" in out
    assert "── padding · 16 tokens" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch=4"], "batch=4: the run has 4 optimizer steps. Use 0 to 3."),
        (["batch=few"], "batch: expected a number from 0 on, got 'few'"),
        (["data.sequence_lenth=3"], "Did you mean data.sequence_length"),
        (["data.sequence_length=abc"], "data.sequence_length: expected int, got 'abc'"),
        (["data.path=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_said_in_a_line(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--config", str(config), *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--help"]) == 0
    assert "batch=0" in capsys.readouterr().out


POST_TRAINING = {
    "sft": ("chats", "sequence_length: 96, micro_batch_size: 2, global_batch_size: 2"),
    "dpo": ("comparisons", "sequence_length: 96, micro_batch_size: 2, global_batch_size: 2"),
    "grpo": ("chats", "max_prompt_tokens: 64, prompts_per_step: 3, num_episodes: 30"),
}


@pytest.mark.parametrize("stage", POST_TRAINING)
def test_it_shows_conversations_comparisons_and_prompts(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, shape = POST_TRAINING[stage]
    path = rows_file(tmp_path / "rows.jsonl", chats(20) if rows == "chats" else comparisons(20))
    file = tmp_path / "study.yaml"
    file.write_text(
        f"stage: {stage}\ndata: {{path: {path}, tokenizer: {saved_tokenizer(tmp_path)}, chat_template: chatml, "
        f"add_special_tokens: true, {shape}}}\n"
    )
    assert main(["inspect", "--config", str(file), "batch=1", "rows=2"]) == 0
    out = capsys.readouterr().out
    if stage == "sft":
        assert re.search(r"<\|im_start\|>user\nquestion \d+ .*<\|im_end\|>\n<\|im_start\|>assistant\n⟦answer \d", out)
    elif stage == "dpo":
        assert re.search(r"supervised, prompt 0: better than \d and worse than \d of its answers, (un)?wanted", out)
        assert re.search(r"⟦(good|fair|bad) \d+\.*<\|im_end\|>⟧", out)
    else:
        assert "step 1: 3 prompts" in out
        assert re.search(r"prompt 0: \d+ tokens, .*rows\.jsonl, line \d+\n<\|im_start\|>user\nquestion", out)
        assert re.search(r"its row: {'prompt': 'question \d+", out)


def test_a_decision_of_the_spike_guard_is_shown_with_its_text_and_where_it_comes_from(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After rows 2 to 6 were left out, the run's second step begins at row 8."""
    data = data_module(config)
    loader = data.train_dataloader()
    loader.skip(2, 6)
    expected = list(loader)[1]
    folder = config.parent / "corpus" / "run"
    folder.mkdir(exist_ok=True)
    skip = {"decision": 0, "action": "skip", "step": 2, "rows": [8, 12], "samples_seen": 4, "skipped": [[2, 6]]}
    lines = [skip | {"loss": 9.5, "origins": data.describe_rows(8, 12)}, {"decision": 1, "action": "rollback"}]
    (folder / "spikes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["inspect", "--config", str(config), "spike=0", "rows=1"]) == 0
    out = capsys.readouterr().out
    assert "action skip, step 2, rows [8, 12], loss 9.5" in out
    assert re.search(r"row 8, source texts, epoch 0, token \d+, documents \[\d+, \d+\]", out)
    shown = re.sub(r"──.*\n|[⟦⟧\n]", "", re.split(r"\nrow \d+: .*\n", out)[1])
    ids = [*expected[0].input_ids[0].tolist(), int(expected[0].labels[0][-1])]
    assert shown == data.tokenizer.decode(ids).replace("\x1b", "\\x1b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spike=1"], "spike=1: this is a rollback. Skipped steps are 0."),
        (["spike=7"], "has 2 decisions"),
        (["spike=0", "batch=0"], "give one of them"),
    ],
)
def test_a_decision_that_cannot_be_shown_is_refused(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.parent / "corpus" / "run"
    folder.mkdir(exist_ok=True)
    skip = {"decision": 0, "action": "skip", "step": 2, "samples_seen": 4, "skipped": []}
    lines = [skip, {"decision": 1, "action": "rollback"}]
    (folder / "spikes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["inspect", "--config", str(config), *words]) == 2
    assert message in capsys.readouterr().err
