import os
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli import help as help_module
from lmstack.cli.option_list import option_list


@pytest.fixture(scope="module")
def options() -> str:
    return option_list()


def test_the_page_shows_groups_and_comes_before_the_list(
    lmstack: Any, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    made: list[list[str]] = []

    def make(argv: list[str], **_: Any) -> Any:
        made.append(argv)
        return type("Done", (), {"returncode": 0, "stdout": options, "stderr": ""})()

    monkeypatch.setattr(help_module.subprocess, "run", make)
    page = lmstack("fit", "--help").out
    assert "usage: lmstack fit --config" in page
    (optim,) = (line.split(maxsplit=1)[1] for line in page.splitlines() if line.split()[:1] == ["optim"])
    assert {"adamw", "fast", "muon", "slow"} <= set(optim.split(", "))  # the project's own beside the packaged ones
    assert optim.split(", ") == sorted(optim.split(", "))
    assert page.index("groups") < page.index("model.transformer.dim")
    assert "model.transformer.dim " in lmstack("validate", "--help").out
    assert len(made) == 1  # the second page takes the list from the cache


def test_a_change_of_the_source_makes_the_list_anew(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = help_module._cache_file()
    assert before == help_module._cache_file()
    source = Path(help_module.__file__)
    real = Path.stat

    def later(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:8], found.st_mtime + 1, found.st_ctime)) if path == source else found

    monkeypatch.setattr(Path, "stat", later)
    assert help_module._cache_file() != before


def test_every_key_has_its_type_default_and_meaning(options: str) -> None:
    assert "int (required). Width D of the residual stream." in options
    assert "float = 0.0. Probability, on the embedding" in options
    assert "rotary | learned | alibi | none (required). How order enters." in options
    assert "[rotary] float = 10000.0. Base of the wavelengths." in options
    assert "data.sequence_length" in options
    assert "trainer.max_steps" in options


def test_keys_that_belong_elsewhere_are_not_offered(options: str) -> None:
    assert "trainer.accumulate_grad_batches" not in options
    assert "trainer.max_epochs" not in options


def test_lines_fit_a_terminal(options: str) -> None:
    assert max(map(len, options.splitlines())) <= 120
