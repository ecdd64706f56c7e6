"""`lmstack data look`: page through the documents of a preparation, with what became of each and why."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from lmstack.prep.blocks import read_records
from lmstack.prep.plan import STAGES_FOLDER
from lmstack.prep.summary import SUMMARY_FILE
from lmstack.prep.task import DOCUMENTS, DROPPED

_PAGE = 5


def look(
    *,
    path: str,
    stage: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    id: str | None = None,
    contains: str | None = None,
    limit: int = 20,
    characters: int = 800,
) -> None:
    """Page through the documents of a preparation: kept ones, or those that a stage dropped.

    Args:
        path: Folder of the preparation.
        stage: Show what this stage dropped; null shows what is left in the end.
        reason: Only drops whose reason has these words; without `stage`, of every stage.
        source: Only documents of this source.
        id: Follow one document through every stage.
        contains: Only documents with this text in them.
        limit: Most documents shown.
        characters: Of each text.

    Raises:
        ValueError: The folder holds no finished preparation, or there is no such stage.
    """
    folder = Path(path)
    names = stage_names(folder)
    if stage is not None and stage not in names:
        raise ValueError(f"stage={stage}: the stages of {path} are {', '.join(names)}.")
    if id is not None:
        found = history(folder, names, id)
    elif stage is None and reason is None:
        found = ((names[-1], record) for record in _records(folder, names[-1], DOCUMENTS))
    else:
        chosen = names if stage is None else [stage]
        found = ((name, record) for name in chosen for record in _records(folder, name, DROPPED))
    matching = (
        (name, record)
        for name, record in found
        if (source is None or record["source"] == source)
        and (reason is None or reason in record.get("reason", ""))
        and (contains is None or contains in record["text"])
    )
    _show(islice(matching, limit), characters)


def stage_names(folder: Path) -> list[str]:
    """The stages of a preparation, in order.

    Args:
        folder: Of the preparation.

    Raises:
        ValueError: It is not finished.
    """
    file = folder / SUMMARY_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is no finished preparation: it has no {SUMMARY_FILE}. Run lmstack data prepare.")
    return [stage["name"] for stage in json.loads(file.read_text(encoding="utf-8"))["stages"]]


def history(folder: Path, names: list[str], identity: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A document as each stage left it, to the one that dropped it.

    Args:
        folder: Of the preparation.
        names: Of its stages.
        identity: Id of the document.
    """
    for name in names:
        for kind in (DROPPED, DOCUMENTS):
            for record in _records(folder, name, kind):
                if record["id"] == identity:
                    yield name, record
                    break


def _records(folder: Path, stage: str, kind: str) -> Iterator[dict[str, Any]]:
    for file in sorted((folder / STAGES_FOLDER / stage / kind).iterdir()):
        yield from read_records(file)


def _show(documents: Iterator[tuple[str, dict[str, Any]]], characters: int) -> None:
    console = Console()
    number = 0
    for number, (stage, record) in enumerate(documents, 1):
        reason = record.get("reason")
        verdict = "kept" if reason is None else f"dropped: {reason} ({record['detail']})"
        text = Text(record["text"][:characters] + ("…" if len(record["text"]) > characters else ""))
        facts = {name: value for name, value in record["metadata"].items() if isinstance(value, str | int | float)}
        text.append("\n" + ", ".join(f"{name}={value}" for name, value in facts.items())[:400], style="dim")
        title = Text(f"{stage}: {verdict}", style="green" if reason is None else "red")
        console.print(Panel(text, title=title, subtitle=f"{record['source']} {record['id']}", title_align="left"))
        is_asked = console.is_terminal and sys.stdin.isatty()
        if is_asked and number % _PAGE == 0 and console.input("[dim]Enter for more, q to stop: [/]").strip() == "q":
            return
    if not number:
        console.print("no document fits")
