"""What the documentation and the configs say is there: links, commands, files, tests."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lmstack.cli.args import parse_arguments
from lmstack.cli.control import parse_request
from lmstack.cli.main import FUNCTIONS, TOOLS, TRAINING

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAPS = ROOT / "docs" / "explanation" / "traps.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONF_FILE = re.compile(r"conf/[\w/.-]+\.yaml")
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
each_document = pytest.mark.parametrize("document", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(text) if language in languages]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))


def heading_anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """What follows `lmstack` in blocks of shell and in inline code."""
    shell = "\n".join(body.replace("\\\n", " ") for body in blocks(text, "", "sh", "bash", "console"))
    lines = [line.removeprefix("$ ") for line in shell.splitlines()]
    lines += re.findall(r"`(lmstack [^`]+)`", BLOCK.sub("", text))
    for line in lines:
        for part in re.split(r"\s(?:&&|\|\|?)\s|; ", line):
            if re.match(r"(?:\S*/)?lmstack(?: (?!\|)|$)", part.strip()):
                yield shlex.split(part.strip(), comments=True)[1:]


def documented_files() -> set[str]:
    """Config files that a document shows whole, with their name in the first line."""
    text = "\n".join(document.read_text() for document in DOCS)
    return {body.splitlines()[0].removeprefix("# ") for body in blocks(text, "yaml") if body.startswith("# conf/")}


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in links(document.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.relative_to(ROOT)}: {link}"
        if anchor:
            assert anchor in heading_anchors(target.read_text()), f"{document.relative_to(ROOT)}: {link}"


@each_document
def test_every_command_shown_exists_and_its_line_can_be_read(document: Path) -> None:
    text = document.read_text()
    for command in commands(text):
        name, *rest = command or ["--help"]
        if name in ("--help", "--version"):
            continue
        where = f"{document.relative_to(ROOT)}: lmstack {shlex.join(command)}"
        assert name in TRAINING | TOOLS, where
        if name == "control":
            assert not rest or parse_request(rest), where
            continue
        subcommands = FUNCTIONS.get(name)
        if isinstance(subcommands, dict) and rest:
            assert rest[0] in {*subcommands, "--help"}, where
            rest = rest[1:]
        arguments = parse_arguments([word for word in rest if word not in ("...", "…")])
        for override in arguments.overrides:
            if override.key in GROUPS - {"tokenizer", "sources"} and override.value:
                for option in override.value.split(","):
                    known = (CONF / override.key / f"{option}.yaml").exists() or option == "null"
                    assert known or f"conf/{override.key}/{option}.yaml" in documented_files(), where


@each_document
def test_every_config_file_named_exists_or_is_shown(document: Path) -> None:
    text = document.read_text()
    for name in set(CONF_FILE.findall(text)) - documented_files():
        assert (ROOT / name).exists(), f"{document.relative_to(ROOT)}: {name}"


@each_document
def test_every_block_of_yaml_and_python_can_be_read(document: Path) -> None:
    text = document.read_text()
    for body in blocks(text, "yaml"):
        yaml.safe_load(body)
    for body in blocks(text, "python"):
        ast.parse(body)


@pytest.mark.parametrize(
    "document", [d for d in DOCS if blocks(d.read_text(), "python")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_python_of_a_document_runs_from_top_to_bottom(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for body in blocks(document.read_text(), "python"):
        exec(compile(body, str(document), "exec"), namespace)


def test_every_config_file_is_a_root_or_can_be_chosen() -> None:
    """A file in a folder that no defaults list names is dead, unless a command of that name takes it as its root."""
    chosen: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        for entry in (yaml.safe_load(path.read_text()) or {}).get("defaults", []):
            if isinstance(entry, dict):
                chosen |= {str(key).split()[-1].strip("/").partition("@")[0] for key in entry}
    used_by_tools = {"corpus", "tokenizer", "pipeline"}  # --config conf/corpus/<name>.yaml
    assert GROUPS - used_by_tools == chosen
    named = "\n".join(file.read_text() for file in (ROOT / "Makefile", *DOCS))
    for path in CONF.rglob("*.yaml"):
        folder = path.parent.relative_to(CONF).as_posix()
        if folder == ".":
            continue
        assert folder in GROUPS, f"{path}: deeper than conf/<group>/<option>.yaml"
        if folder in used_by_tools:
            assert path.relative_to(ROOT).as_posix() in named, f"{path}: no command uses it"


def test_config_files_that_are_commands_of_the_makefile_exist() -> None:
    for name in CONF_FILE.findall((ROOT / "Makefile").read_text()):
        assert (ROOT / name).exists(), name


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "misc", "core"}
    for folder in ("src", "tests", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert empty.isdisjoint({*path.relative_to(ROOT).with_suffix("").parts, *path.stem.split("_")}), path


def test_the_tests_in_the_table_of_traps_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TRAPS.read_text())
    assert len(named) > 30
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert test in {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}, test


def test_every_kind_of_stage_has_a_page_of_its_own() -> None:
    from typing import get_args

    from lmstack.prep.stage_kinds import StageConfig

    overview = (ROOT / "docs/explanation/corpus_filters.md").read_text(encoding="utf-8")
    linked = dict(re.findall(r"^\| \[`(\w+)`\]\(([\w/]+\.md)\)", overview, re.MULTILINE))
    assert set(linked) == {stage.__dataclass_fields__["kind"].default for stage in get_args(StageConfig)}
    for kind, page in linked.items():
        assert f"`{kind}`" in (ROOT / "docs/explanation" / page).read_text(encoding="utf-8")


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        if path.parent.name == "filters":
            continue  # these are in the overview of the stages, which the test above reads
        assert name == "README.md" or f"({name})" in index, name
