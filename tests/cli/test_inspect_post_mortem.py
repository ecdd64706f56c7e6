"""A run fails; what it leaves is shown, and gives the same loss again."""

import warnings
from pathlib import Path

import pytest

from lmstack.cli.main import main
from tiny_corpus import tiny_corpus

CONF = Path(__file__).parents[2] / "conf" / "pretrain.yaml"
FIT = [
    "fit",
    "--config",
    str(CONF),
    "data.path=corpus",
    "data.sequence_length=16",
    "data.micro_batch_size=2",
    "data.global_batch_size=2",
    "model=byte_tiny",
    "model.transformer.dim=16",
    "model.transformer.num_layers=1",
    "model.transformer.dropout=0.3",
    "schedule=constant",
    "trainer=debug",
    "trainer.default_root_dir=run",
    "callbacks=minimal",
    "callbacks.fail.class_path=failing_step.FailAtStep",
    "callbacks.fail.step=2",
    "logger=csv",
]


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSTACK_RUN_ID", "none")
    texts = {"a": [f"document number {i}, and some more of it" for i in range(12)]}
    tiny_corpus(Path(), texts, {"a": ["never seen before, neither of them"] * 2})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="fell off the bus"):
            main(FIT)
    return Path("run/post_mortem/step-00000002-rank-0")


def test_it_is_shown_and_its_loss_is_the_same_again(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", f"post_mortem={failed}", "rows=1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("RuntimeError: fell off the bus\nstep 2, rank 0 of 1 on ")
    assert "in on_before_backward" in shown
    assert "step 2: 1 micro-batches, 2 rows, 32 tokens" in shown
    assert f"micro-batch 0: loss {Path('loss.txt').read_text()} over 32, again" in shown


def test_what_is_missing_is_said(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "post_mortem=run"]) == 2
    assert "post_mortem: 'run' has no facts.json" in capsys.readouterr().err
    Path("corpus").rename("elsewhere")
    assert main(["inspect", f"post_mortem={failed}", "model.transformer.vocab_size=257"]) == 0
    assert "not decoded, as the data is not there" in capsys.readouterr().out
    (failed / "batch.pt").unlink()
    assert main(["inspect", f"post_mortem={failed}"]) == 0
    assert "no batch was kept" in capsys.readouterr().out
