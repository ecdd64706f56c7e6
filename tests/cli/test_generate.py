"""`lmstack generate` on a tiny checkpoint: what is printed where, and what is refused how."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmstack.callbacks.checkpoint_io import AVERAGE_WEIGHTS
from lmstack.cli.generate import generate
from lmstack.cli.generation_inputs import checkpoint_folder, read_prompts
from lmstack.cli.main import main
from lmstack.generation import GenerationEngine, SamplingParams
from lmstack.models.checkpoint import load_transformer, save_hugging_face, save_weights
from lmstack.models.checkpoint_folder import atomic_folder, folder_name
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.models.transformer import Transformer
from lmstack.tokenization import byte_tokenizer

TOKENIZER = byte_tokenizer()


def transformer(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    config = TransformerConfig(
        vocab_size=TOKENIZER.vocab_size,
        max_seq_len=32,
        dim=16,
        num_layers=1,
        num_heads=2,
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=16),
        initialization=GaussianInit(std=0.4),
    )
    return Transformer(config)


def save_checkpoint(run: Path, step: int) -> Path:
    path = run / "checkpoints" / folder_name(step)
    with atomic_folder(path, {"step": step, "metrics": {}}) as folder:
        save_weights(folder, transformer(seed=step))
        TOKENIZER.save(folder / "tokenizer")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "runs" / "demo", 1)
    save_checkpoint(tmp_path / "runs" / "demo", 2)
    return tmp_path / "runs" / "demo"


def expected(checkpoint: Path, prompt: str, **changes) -> str:
    engine = GenerationEngine(load_transformer(checkpoint), TOKENIZER)
    params = SamplingParams(**{"max_new_tokens": 9, "temperature": 0.8, "stop_ids": (256,)} | changes)
    return engine.generate([engine.encode_prompt(prompt)], params)[0].text


def test_a_run_folder_streams_from_its_newest_checkpoint_and_reports_speed_apart(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", f"checkpoint={run}", "prompt=def ", "max_new_tokens=9"]) == 0
    out, err = capsys.readouterr()
    assert out == "def " + expected(run / "checkpoints" / folder_name(2), "def ") + "\n"
    assert "step-00000002" in err
    assert "tokens/s, stopped at max_new_tokens" in err


@pytest.mark.parametrize(
    "prompt",
    [
        "a, b = {1: [2]}",
        "  spaced  ",
        "1e3",
        "x=y 'q' \"r",
        "cost ${x}",
        "${",
        "a \\${b:'c'} \\\\${d}",
        "${checkpoint}",
        "???",
    ],
)
def test_a_prompt_is_taken_as_typed(run: Path, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", f"checkpoint={run}", f"prompt={prompt}", "max_new_tokens=1"]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_averaged_weights_are_used_on_request_and_refused_where_there_are_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / folder_name(2)
    with pytest.raises(ValueError, match=r"weights=average: .*step-00000002 holds no average of the weights"):
        generate(checkpoint=str(run), prompt="ab", weights="average")
    average = transformer(seed=9)
    tensors = {f"transformer.{name}": tensor for name, tensor in average.state_dict().items()}
    save_file(tensors, newest / AVERAGE_WEIGHTS)
    save_weights(tmp_path / "average", average)
    capsys.readouterr()
    generate(checkpoint=str(newest), prompt="ab", max_new_tokens=20, weights="average")
    assert capsys.readouterr().out == "ab" + expected(tmp_path / "average", "ab", max_new_tokens=20) + "\n"
    generate(checkpoint=str(newest), prompt="ab", max_new_tokens=20)
    assert capsys.readouterr().out == "ab" + expected(newest, "ab", max_new_tokens=20) + "\n"


def test_an_average_of_something_else_than_the_transformer_is_refused(run: Path) -> None:
    newest = run / "checkpoints" / folder_name(2)
    save_file({"transformer.blocks.0.adapter": torch.zeros(2)}, newest / AVERAGE_WEIGHTS)
    with pytest.raises(ValueError, match=r"the source: .* is missing"):
        generate(checkpoint=str(newest), prompt="ab", weights="average")


def test_options_reach_the_sampler(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    options |= {"repetition_penalty": 1.3}
    words = [f"{name}={value}" for name, value in options.items()]
    first = run / "checkpoints" / folder_name(1)
    assert main(["generate", f"checkpoint={first}", "prompt=a", *words]) == 0
    assert capsys.readouterr().out == "a" + expected(first, "a", **options) + "\n"
    stop = expected(first, "a", **options)[3]
    assert main(["generate", f"checkpoint={first}", "prompt=a", *words, f"stop={json.dumps([stop])}"]) == 0
    assert capsys.readouterr().out == "a" + expected(first, "a", **options).split(stop)[0] + "\n"


def test_a_hugging_face_folder_generates_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_hugging_face(tmp_path / "hf", transformer(seed=2))
    TOKENIZER.save(tmp_path / "hf")
    generate(checkpoint=str(run), prompt="ab", max_new_tokens=20)
    ours = capsys.readouterr().out
    generate(checkpoint=str(tmp_path / "hf"), prompt="ab", max_new_tokens=20)
    assert capsys.readouterr().out == ours


def test_a_file_of_prompts_becomes_a_file_of_samples(run: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text('{"prompt": "two\\nlines"}\n{"prompt": ""}\n{"prompt": "c"}\n')
    words = [f"checkpoint={run}", f"prompts={prompts}", f"output={output}", "num_samples=2", "max_new_tokens=9"]
    assert main(["generate", *words, "batch_size=4", "seed=5"]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [(p, s) for p in ("two\nlines", "", "c") for s in (5, 6)]
    for row in rows:
        text = expected(run / "checkpoints" / folder_name(2), row["prompt"], seed=row["seed"])
        assert row["completion"] == text
    assert main(["generate", *words]) == 2  # does not write over it
    assert len(output.read_text(encoding="utf-8").splitlines()) == 6


def test_several_samples_are_printed_one_after_another(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(checkpoint=str(run), prompt="ab", num_samples=3, max_new_tokens=9)
    texts = [expected(run / "checkpoints" / folder_name(2), "ab", seed=seed) for seed in range(3)]
    out, err = capsys.readouterr()
    assert out == "".join(f"ab{text}\n\n" for text in texts)
    assert "27 tokens" in err or any(len(TOKENIZER.encode(text)) < 9 for text in texts)


def test_standard_input_is_the_prompt_when_none_is_given(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    generate(checkpoint=str(run), max_new_tokens=9)
    assert capsys.readouterr().out == "abc" + expected(run / "checkpoints" / folder_name(2), "abc") + "\n"


def test_a_terminal_asks_for_prompts_until_the_end_and_survives_a_bad_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("ab\n" + "x" * 40 + "\ncd\n"))
    generate(checkpoint=str(run), max_new_tokens=3)
    out, err = capsys.readouterr()
    newest = run / "checkpoints" / folder_name(2)
    for prompt in ("ab", "cd"):
        assert prompt + expected(newest, prompt, max_new_tokens=3) in out
    assert "has 41 tokens" in err


def test_what_a_model_writes_cannot_drive_the_terminal(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    generate(checkpoint=str(run), prompt="\x1b]0;title\x07", max_new_tokens=1)
    assert "\x1b]" not in capsys.readouterr().out


def test_a_damaged_checkpoint_is_passed_over_in_a_run_and_refused_by_name(run: Path) -> None:
    newest = run / "checkpoints" / folder_name(2)
    (newest / "model.safetensors").write_bytes(b"torn")
    assert checkpoint_folder(run).name == folder_name(1)
    with pytest.raises(ValueError, match=r"model\.safetensors has 4 bytes"):
        checkpoint_folder(newest)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/dmo", r"no such folder\. Did you mean .*runs/demo\? Folders in .*runs: demo/"),
        ("runs/x/y/z", r"no such folder\. Folders in .*runs: demo/"),
        ("nothing", "no such folder"),
        ("runs", r"neither a run .* nor a folder of weights .* Folders in .*runs: demo/"),
        ("runs/demo/checkpoints", r"neither .* Folders in .*: step-00000001/, step-00000002/"),
    ],
)
def test_a_checkpoint_that_is_not_there_lists_what_is(run: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint_folder(run.parents[1] / path)


def test_a_run_without_a_whole_checkpoint_is_refused(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint that is whole"):
        checkpoint_folder(run)


def test_a_folder_without_a_tokenizer_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "checkpoints" / folder_name(1), tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizer")
    (tmp_path / "bare" / "manifest.json").unlink()
    assert main(["generate", f"checkpoint={tmp_path / 'bare'}", "prompt=a"]) == 2
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=a", "prompts=b"], "prompt and prompts are both given"),
        (["prompts=nowhere.txt"], "prompts=nowhere.txt: no such file"),
        (["prompt=a", "num_samples=0"], "num_samples=0: must be at least 1"),
        (["prompt=a", "top_p=1.5"], "sampling.top_p=1.5"),
        (["prompt=a", "temprature=1"], "temperature"),
        (["prompt=a", "top_k=few"], "top_k"),
    ],
)
def test_mistakes_are_said_in_a_line(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", f"checkpoint={run}", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\n three \n")
    assert read_prompts(lines) == ["one", "", " three "]
    lines.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(lines)
    objects = tmp_path / "prompts.jsonl"
    objects.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match="line 2: expected an object"):
        read_prompts(objects)
    objects.write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_prompts(objects)
