"""The text that every Python carries: its language reference, and its library's docstrings and source.

No text comes twice: the source is given without the docstrings, and copies of a module are dropped. Modules that
belong together share a split key across the two, so none of them is seen in training and in validation.
"""

import ast
import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

_LEFT_OUT_FOLDERS = frozenset(
    {"__pycache__", "_bundled", "idle_test", "lib-dynload", "pydoc_data", "site-packages", "test", "tests"}
)
"""Tests, installed packages, and what is generated or given as the reference."""

_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")
_GENERATED_TABLES = ("encodings/", "lib2to3/pgen2/", "html/entities.py", "stringprep.py", "ctypes/macholib/")
_KEPT_ENCODINGS = ("encodings/__init__.py", "encodings/aliases.py", "encodings/idna.py", "encodings/punycode.py")

_SAME_GROUP = {"sre_compile": "re", "sre_constants": "re", "sre_parse": "re", "cProfile": "profile"}
_SMALLEST_TEXT = 64
"""Bytes. What is smaller is a licence line or a comment, and the same in many modules."""

REFERENCE = "python:reference"
_MODULE_TEXTS = ("python:docstrings", "python:source")

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sizes(name: str) -> list[int]:
    """Bytes to read for each item of a text: a topic of the reference, or a module.

    Args:
        name: `python:reference`, `python:docstrings` or `python:source`.
    """
    if name == REFERENCE:
        return [len(text.encode()) for text, _ in topics()]
    if name not in _MODULE_TEXTS:
        raise ValueError(f"{name!r} is not a text of this Python. Use one of {sorted((REFERENCE, *_MODULE_TEXTS))}.")
    return [module_file.stat().st_size for module_file, _ in modules()]


def documents(name: str, start: int, stop: int) -> Iterator[tuple[str, str]]:
    """Text and split key of the items `start` to `stop`; the text is empty where there is nothing to say.

    Args:
        name: As in `sizes`.
        start: First item.
        stop: One past the last.
    """
    if name == REFERENCE:
        for text, topic in topics()[start:stop]:
            yield text, f"topic {topic}"
        return
    for file, relative in modules()[start:stop]:
        text = _both_texts(file, module_name(relative))[_MODULE_TEXTS.index(name)]
        yield text if len(text.encode()) >= _SMALLEST_TEXT else "", f"module {module_group(relative)}"


def module_group(relative: str) -> str:
    """The family of a module file, which stays on one side of the split: `_pydecimal.py` goes with `decimal.py`.

    Args:
        relative: Path of the file in the library, with forward slashes.
    """
    top = PurePosixPath(relative).parts[0].removesuffix(".py")
    stem = top.lstrip("_")
    if top != stem and stem.startswith("py"):
        stem = stem.removeprefix("py").lstrip("_")
    return _SAME_GROUP.get(stem, stem)


def docstrings(module: str, tree: ast.Module) -> str:
    """Every docstring of a module under the name of what it documents, in order.

    Args:
        module: Dotted name of the module.
        tree: The parsed module.
    """
    entries = []
    for name, node in definitions(tree, module):
        text = ast.get_docstring(node, clean=True)
        if text and text.strip():
            entries.append(f"{name}{_signature(node)}\n\n{text.strip()}\n")
    return "\n\n".join(entries)


def without_docstrings(source: str, tree: ast.Module) -> str:
    """The source code of a module with its docstrings cut out; it still parses.

    Args:
        source: The source code, its lines ended by line feeds.
        tree: The same, parsed.
    """
    lines = [f"{line}\n" for line in source.split("\n")]  # as the parser counts: form feeds end no line
    for _, node in definitions(tree, ""):
        if ast.get_docstring(node, clean=False) is not None:
            _cut(lines, node)
    return "".join(lines).strip("\n") + "\n"


def _cut(lines: list[str], node: Definition) -> None:
    """Blank out a docstring, leaving other lines where they are so that positions stay valid."""
    docstring = node.body[0]
    first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
    head = lines[first].encode()[: docstring.col_offset].decode()
    tail = lines[last].encode()[docstring.end_col_offset :].decode()
    only = len(node.body) == 1 and not isinstance(node, ast.Module)
    kept = f"{head}pass{tail}" if only else f"{head}{tail.lstrip(' ;')}"
    if not kept.strip():
        kept = ""
        following = last + 1
        if following < len(lines) and not lines[following].strip():
            lines[following] = ""  # the blank line after it
    lines[first : last + 1] = [kept] + [""] * (last - first)


def definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, Definition]]:
    """The module, its classes and its functions with their dotted names, in the order of the source.

    Args:
        tree: The parsed module.
        module: Its dotted name.
    """
    yield module, tree
    todo = [(module, statement) for statement in reversed(tree.body)]
    while todo:
        prefix, node = todo.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = f"{prefix}.{node.name}"
            yield prefix, node
        todo += [(prefix, statement) for statement in reversed(_nested_statements(node))]


def _nested_statements(node: ast.AST) -> list[ast.stmt]:
    """Statements inside a statement; looking into every expression as well takes ten times as long."""
    nested: list[ast.stmt] = list(getattr(node, "body", ()))
    for handler in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        nested += handler.body
    return [*nested, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]


def _signature(node: Definition) -> str:
    return f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""


@cache
def _both_texts(file: Path, module: str) -> tuple[str, str]:
    """Docstrings and source of a module; parsing is what takes the time, and often both are wanted."""
    with tokenize.open(file) as stream:  # reads the encoding declared in the file
        source = stream.read()
    tree = ast.parse(source)
    return docstrings(module, tree), without_docstrings(source, tree)


@lru_cache
def topics() -> list[tuple[str, str]]:
    """Text and name of each topic; a text that explains two is there once."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise ValueError(
            "This Python comes without pydoc_data, so there is no python:reference. Leave it out."
        ) from None
    return sorted({text: topic for topic, text in sorted(topics.items())}.items(), key=lambda item: item[1])


@lru_cache
def modules() -> list[tuple[Path, str]]:
    """File and relative path of each module, sorted; copies and generated tables are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    found = []
    for relative in sorted(_walk(root)):
        file = root / relative
        digest = hashlib.sha256(file.read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            found.append((file, relative))
    return found


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in _LEFT_OUT_FOLDERS and not s.startswith(_LEFT_OUT_PREFIXES)]
        for file in files:
            relative = Path(folder, file).relative_to(root).as_posix()
            is_table = relative.startswith(_GENERATED_TABLES) and relative not in _KEPT_ENCODINGS
            if relative.endswith(".py") and not relative.startswith(_LEFT_OUT_PREFIXES) and not is_table:
                yield relative


def module_name(relative: str) -> str:
    """Dotted name of a module.

    Args:
        relative: Path of its file in the library, with forward slashes.
    """
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
