"""Checkpoint folders are whole or absent."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmstack.models import checkpoint_folder
from lmstack.models.checkpoint_folder import (
    DamagedCheckpointError,
    atomic_folder,
    folder_name,
    newest_valid_checkpoint,
    read_manifest,
    remove_partial,
    step_of,
)


def write(run: Path, step: int, content: bytes = b"weights") -> Path:
    path = run / "checkpoints" / folder_name(step)
    with atomic_folder(path, {"step": step}) as folder:
        (folder / "model.safetensors").write_bytes(content)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return path


def test_the_manifest_names_every_file_with_its_hash(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, 3))
    assert manifest["step"] == 3
    assert manifest["files"]["model.safetensors"] == {
        "bytes": 7,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }
    assert sorted(manifest["files"]) == ["model.safetensors", "tokenizer/tokenizer.json"]
    assert step_of(tmp_path / folder_name(3)) == 3


DAMAGES = ["truncate", "flip", "delete", "no manifest", "empty manifest", "flip in manifest", "unreadable sector"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    weights = bad / "model.safetensors"
    match damage:
        case "truncate":
            os.truncate(weights, 3)
        case "flip":
            weights.write_bytes(b"wEights")
        case "delete":
            weights.unlink()
        case "no manifest":
            (bad / "manifest.json").unlink()
        case "empty manifest":
            (bad / "manifest.json").write_text("")
        case "flip in manifest":
            manifest = (bad / "manifest.json").read_text()
            (bad / "manifest.json").write_text(manifest.replace('"bytes"', '"cytes"', 1))
        case "unreadable sector":
            digest = checkpoint_folder._digest

            def read(file: Path) -> str:
                if bad in file.parents:
                    raise OSError(errno.EIO, "Input/output error", str(file))
                return digest(file)

            monkeypatch.setattr(checkpoint_folder, "_digest", read)
    with pytest.raises(DamagedCheckpointError, match="step-00000002"):
        read_manifest(bad)
    assert newest_valid_checkpoint(tmp_path) == good
    assert "step-00000002" in caplog.text


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path, 1)

    def fail() -> None:
        with atomic_folder(path, {}) as folder:
            (folder / "model.safetensors").write_bytes(b"new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["_digest", "_sync", "_swap"])
def test_dying_inside_a_write_keeps_the_previous_checkpoint(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path, 1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_folder, step, die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert newest_valid_checkpoint(tmp_path) == good


def test_kill_9_at_any_moment_of_writing_leaves_a_valid_newest_checkpoint(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_checkpoint_folder import write
for step in range(1, 10**6):
    write(Path({str(tmp_path)!r}), step, bytes(3_000_000))
    print(step, flush=True)
"""
    for attempt in range(6):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            written = int(process.stdout.readline())
            time.sleep(0.011 * attempt)
            process.send_signal(signal.SIGKILL)
            written = max([written, *(int(line) for line in process.stdout.read().split())])
        newest = newest_valid_checkpoint(tmp_path)
        assert newest is not None
        assert step_of(newest) >= written
        remove_partial(tmp_path)
        names = {p.name[:5] for p in (tmp_path / "checkpoints").iterdir()}
        assert names == {"step-"}
        assert json.loads((newest / "manifest.json").read_text())["step"] == step_of(newest)
