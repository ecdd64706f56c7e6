"""What often goes wrong, on the packaged pretraining config: one clear line, an exit status, nothing left behind."""

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmstack.callbacks import checkpoint_io
from lmstack.cli.main import main
from lmstack.models.checkpoint_folder import checkpoints_in, folder_name, newest_valid_checkpoint
from tiny_corpus import tiny_corpus

CONF = Path(__file__).parents[2] / "conf" / "pretrain.yaml"
SMALL = [
    "data.path=corpus",
    "data.sequence_length=16",
    "data.micro_batch_size=2",
    "data.global_batch_size=2",
    "model=byte_tiny",
    "model.transformer.dim=16",
    "model.transformer.num_layers=1",
    "optim=adamw",
    "schedule=constant",
    "model.schedule.warmup=0",
    "trainer=debug",
    "callbacks=minimal",
    "callbacks.checkpointing.every_n_steps=1",
    "logger=csv",
]
FIT = ["fit", "--config", str(CONF), *SMALL]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = {"a": [f"document number {i}, and some more of it" for i in range(12)]}
    return tiny_corpus(tmp_path_factory.mktemp("built"), texts, {"a": ["never seen before, neither of them"] * 2})


@pytest.fixture(autouse=True)
def _a_project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copytree(built, tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LMSTACK_TRACEBACK", raising=False)
    monkeypatch.setenv("LMSTACK_RUN_ID", "none")
    names = ("lightning", "lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's: this module asks what the user sees, not what Lightning warns of
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    assert main([*FIT, *overrides]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lmstack: error: ")
    assert err.count("\n") == 1, err
    assert not list(Path().glob("runs/*"))
    return err.removeprefix("lmstack: error: ").strip()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=abc", "model.dim: no such key (value 'abc'). Did you mean model.transformer.dim (an int)?"),
        ("model.dmi=3", "model.dmi: no such key (value 3). Did you mean model.transformer.dim (an int)?"),
        ("model.transformer.num_heads=abc", "model.transformer.num_heads: expected int, got 'abc'"),
        (
            "model.transformer.dmi=3",
            "model.transformer.dmi: no such key (value 3). Did you mean model.transformer.dim ",
        ),
        ("model.init_from=nowhere", "nowhere: no config.json and no whole checkpoint in it."),
        ("ckpt_path=nowhere", "ckpt_path: 'nowhere' is not there."),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2: one batch of the loader is one "),
        ("data.max_tokens=64 trainer.max_steps=2", "trainer.max_steps=2 and data.max_tokens=64 both set the length "),
        ("optim=muon optim=adamw", "optim is given twice, as `optim=adamw` and as `optim=muon`. Give it once."),
        ("model.transformer.vocab_size=100", "The model's vocab_size=100 is smaller than the 257 tokens of the corpus"),
    ],
)
def test_a_wrong_value_is_said_in_a_line(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *override.split()).startswith(message)


def test_a_missing_config_file_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(CONF.with_name("pretrian.yaml"))]) == 2
    err = capsys.readouterr().err
    assert err == f"lmstack: error: {CONF.with_name('pretrian.yaml')}: no such file. Did you mean {CONF}?\n"


def cut_shard(corpus: Path) -> str:
    chunk = next((corpus / "train" / "a").glob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-4])
    return f"{chunk.name} is damaged"


def no_manifest(corpus: Path) -> str:
    (corpus / "manifest.json").unlink()
    return "data.path: the corpus 'corpus' is unfinished (it has no manifest.json). Build it with `lmstack data build`"


def torn_manifest(corpus: Path) -> str:
    manifest = corpus / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    return "data.path: corpus/manifest.json is damaged"


def manifest_without_sources(corpus: Path) -> str:
    manifest = corpus / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["sources"]
    manifest.write_text(json.dumps(values))
    return "The manifest.json of corpus is damaged (KeyError('sources')). Build the corpus again"


def another_tokenizer(corpus: Path) -> str:
    file = corpus / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": {"type": "NFC"}}))
    return "The tokenizer in corpus/tokenizer is not the one that the shards were made with"


@pytest.mark.parametrize("damage", [cut_shard, no_manifest, torn_manifest, manifest_without_sources, another_tokenizer])
def test_a_corpus_that_cannot_be_read_is_named(damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    message = damage(Path("corpus"))
    assert message in refused(capsys)


def test_a_corpus_that_may_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_text = Path.read_text

    def denied(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name == "manifest.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", denied)
    assert refused(capsys) == "data.path: cannot read corpus/manifest.json: Permission denied."


def assert_only_the_first_checkpoint_is_there() -> None:
    assert [folder.name for folder in checkpoints_in(Path("runs/debug"))] == [folder_name(1)]
    assert [path.name for path in Path("runs/debug/checkpoints").iterdir()] == [folder_name(1)]  # no partial one
    assert newest_valid_checkpoint(Path("runs/debug")) is not None


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_disk_that_fills_up_while_saving_costs_only_that_checkpoint(
    asynchronous: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, saved = checkpoint_io.torch.save, []

    def until_full(*args: Any) -> None:
        if saved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[1]))
        saved.append(args[1])
        save(*args)

    with monkeypatch.context() as full:
        full.setattr(checkpoint_io.torch, "save", until_full)
        assert main([*FIT, f"callbacks.checkpointing.asynchronous={asynchronous}"]) == 1
    err = capsys.readouterr().err
    assert "lmstack: error: no space left on device: " in err
    assert "Free some and go on with ckpt_path=last." in err
    assert "Traceback" not in err
    assert_only_the_first_checkpoint_is_there()
    assert main([*FIT, "ckpt_path=last"]) == 0
    assert newest_valid_checkpoint(Path("runs/debug")).name == folder_name(4)  # type: ignore[union-attr]


def test_a_file_that_the_system_cuts_off_is_said_in_a_line() -> None:
    """A real write that fails, in the writer of the weights or of the training state, whichever comes first."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "lmstack", *FIT]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("lmstack: error: ")]
    assert len(errors) == 1
    assert "file too large" in errors[0].lower() or "no space left" in errors[0]
    assert not list(Path("runs").rglob("*partial*"))
    assert not list(Path("runs").glob("*/checkpoints/step-*"))
