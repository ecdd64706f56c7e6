"""Questions and answers about Python, made from the documentation that every Python carries.

Demonstrations to imitate, ranked answers to learn a reward from, and prompts to practise on, split by what is asked
about. It is a stand-in for people's questions and judgements that needs no download: answers are the documentation's
own first sentences, and worse answers are made worse by known means. Nothing is imported or run to get at them.
"""

import ast
import hashlib
import json
import os
import random
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmstack.prep.stdlib_corpus import definitions, module_name, modules, topics

DEMONSTRATIONS = "demonstrations.jsonl"
COMPARISONS = "comparisons.jsonl"
PROMPTS = "prompts.jsonl"
HELD_OUT_PROMPTS = "held_out_prompts.jsonl"

_SHARES = ((DEMONSTRATIONS, 0.5), (COMPARISONS, 0.3), (PROMPTS, 0.15), (HELD_OUT_PROMPTS, 0.05))
"""Shares of the subjects: each is asked about in one file only."""

_LONGEST_SIGNATURE = 60
_SHORTEST_ANSWER, _LONGEST_ANSWER = 24, 160
NUM_RANKED = 4


@dataclass(frozen=True)
class Subject:
    """Something that can be asked about.

    Attributes:
        name: Dotted name of a function or class, or a topic of the language reference.
        answer: First sentence of its documentation.
        signature: Its arguments in parentheses; empty where there are none to show.
        is_topic: Whether it is a topic.
    """

    name: str
    answer: str
    signature: str = ""
    is_topic: bool = False

    def questions(self) -> list[tuple[str, str]]:
        """Questions about it, each with its answer."""
        if self.is_topic:
            return [(f'What does the Python reference say about "{self.name}"?', self.answer)]
        pairs = [(f"What does {self.name} do?", self.answer)]
        if self.signature:
            pairs.append((f"How do I call {self.name}?", f"{self.name.rpartition('.')[2]}{self.signature}"))
        return pairs


def write_assistant_data(output: str | Path, *, seed: int = 0) -> dict[str, int]:
    """Write `demonstrations.jsonl`, `comparisons.jsonl`, `prompts.jsonl` and `held_out_prompts.jsonl`.

    Args:
        output: Folder; made if need be. Files are replaced whole or not at all.
        seed: Another seed is another split and other worse answers.

    Returns:
        Rows of each file.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = list(subjects_of_this_python())
    split = _split(subjects, seed)
    rows: dict[str, list[dict[str, Any]]] = {
        DEMONSTRATIONS: [_demonstration(*pair) for s in split[DEMONSTRATIONS] for pair in s.questions()],
        COMPARISONS: [_comparison(s, split[COMPARISONS], seed) for s in split[COMPARISONS]],
        PROMPTS: [_prompt(s) for s in split[PROMPTS]],
        HELD_OUT_PROMPTS: [_prompt(s) for s in split[HELD_OUT_PROMPTS]],
    }
    for name, content in rows.items():
        random.Random(f"{seed} {name}").shuffle(content)
        beside = folder / f".{name}.partial"
        beside.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        os.replace(beside, folder / name)
    return {name: len(content) for name, content in rows.items()}


def subjects_of_this_python() -> Iterator[Subject]:
    """Public functions and classes of the standard library and topics of the reference, each answer once."""
    seen: set[str] = set()
    for subject in (*_symbols(), *_reference()):
        if subject.answer not in seen:
            seen.add(subject.answer)
            yield subject


def _symbols() -> Iterator[Subject]:
    for file, relative in modules():
        module = module_name(relative)
        if any(part.startswith("_") for part in module.split(".")):
            continue
        with tokenize.open(file) as stream:
            tree = ast.parse(stream.read())
        for name, node in definitions(tree, module):
            if isinstance(node, ast.Module) or any(part.startswith("_") for part in name.split(".")):
                continue
            answer = first_sentence(ast.get_docstring(node) or "")
            if answer:
                yield Subject(name, answer, _signature(node))


def _reference() -> Iterator[Subject]:
    for text, topic in topics():
        body = re.split(r"\n[*=\-~^\"]{3,}\n", text, maxsplit=1)[-1]
        answer = first_sentence(body)
        if answer:
            yield Subject(topic, answer, is_topic=True)


def first_sentence(text: str) -> str:
    """The first sentence of a documentation text on one line; empty where it makes no answer.

    Args:
        text: The text.
    """
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    match = re.match(r".+?[.!?](?=\s|$)", paragraph)
    sentence = match.group() if match else f"{paragraph}."
    is_prose = sentence[0:1].isalpha() and "->" not in sentence and ">>>" not in sentence
    return sentence if is_prose and _SHORTEST_ANSWER <= len(sentence) <= _LONGEST_ANSWER else ""


def _signature(node: ast.AST) -> str:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    text = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ")
    text = "" if text in ("self", "cls") else text
    return f"({text})" if 0 < len(text) <= _LONGEST_SIGNATURE else ""


def _split(subjects: list[Subject], seed: int) -> dict[str, list[Subject]]:
    """Subjects by file, by the hash of their name: a subject stays where it is when others come or go."""
    split: dict[str, list[Subject]] = {name: [] for name, _ in _SHARES}
    for subject in subjects:
        digest = hashlib.sha256(f"{seed} {subject.name}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        for name, share in _SHARES:
            if place < share:
                split[name].append(subject)
                break
            place -= share
    return split


def _demonstration(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _prompt(subject: Subject) -> dict[str, Any]:
    question, answer = subject.questions()[0]
    return {"messages": [{"role": "user", "content": question}], "answer": answer}


def _comparison(subject: Subject, others: list[Subject], seed: int) -> dict[str, Any]:
    """The right answer before three that are worse, by how bad they are."""
    draw = random.Random(f"{seed} {subject.name} worse")
    question, answer = subject.questions()[0]
    chosen = sorted(draw.sample(range(len(_WORSE)), NUM_RANKED - 1))
    answers = [answer]
    for number in chosen:
        worse = _WORSE[number](answer, others, draw)
        while worse in answers:
            worse = _of_another(answer, others, draw)
        answers.append(worse)
    return {"prompt": question, "answers": answers}


def _of_another(answer: str, others: list[Subject], draw: random.Random) -> str:
    return next(s.answer for s in iter(lambda: draw.choice(others), None) if s.answer != answer)


def _truncated(answer: str, _: list[Subject], draw: random.Random) -> str:
    words = answer.split()
    return " ".join(words[: max(1, round(len(words) * draw.uniform(0.2, 0.6)))])


def _repeated(answer: str, _: list[Subject], draw: random.Random) -> str:
    words = answer.split()
    piece = " ".join(words[: draw.randint(1, min(4, len(words)))])
    return " ".join([piece] * max(2, round(len(answer) * draw.uniform(1.0, 1.8) / (len(piece) + 1))))


def _garbled(answer: str, _: list[Subject], draw: random.Random) -> str:
    words = answer.split()
    draw.shuffle(words)
    return " ".join(words)


_WORSE: tuple[Callable[[str, list[Subject], random.Random], str], ...] = (
    _of_another,
    _truncated,
    _garbled,
    _repeated,
)
"""From bad to worse. Lengths say nothing: one is shorter than the right answer, one longer, two are as long."""
