import ast
from pathlib import Path

import pytest

from lmstack.prep import stdlib_corpus

SOURCE = '''\
"""Module text, long enough."""
# comment
import os  # \x0c form feed does not end a line

class A:
    """Class é text."""

    def f(self, x, *, y=1): "One line."; return x

    def only(self):
        """Nothing but this."""

    async def g(self):
        r"""Raw
        text."""; z = 1
        if z:
            def inner():
                """Inner text."""
                return "not a docstring"
        return inner

def last(): """Only."""
'''


def stripped(tree: ast.AST) -> str:
    """The tree without docstrings, by another way."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.dump(tree)


def test_source_without_docstrings_is_the_same_program_and_holds_none_of_their_text() -> None:
    cut = stdlib_corpus.without_docstrings(SOURCE, ast.parse(SOURCE))
    assert ast.dump(ast.parse(cut)) == stripped(ast.parse(SOURCE))
    assert '"""' not in cut
    assert "not a docstring" in cut
    assert "# comment" in cut


@pytest.mark.parametrize("name", ["json/decoder.py", "textwrap.py", "decimal.py", "enum.py", "dataclasses.py"])
def test_modules_of_this_python_without_docstrings_are_the_same_programs(name: str) -> None:
    file = next(file for file, relative in stdlib_corpus.modules() if relative == name)
    source = file.read_text(encoding="utf-8")
    cut = stdlib_corpus.without_docstrings(source, ast.parse(source))
    assert ast.dump(ast.parse(cut)) == stripped(ast.parse(source))


def test_docstrings_come_in_the_order_of_the_source_under_their_names_and_signatures() -> None:
    text = stdlib_corpus.docstrings("m", ast.parse(SOURCE))
    headings = [line for line in text.splitlines() if line.startswith("m")]
    assert headings == [
        "m",
        "m.A",
        "m.A.f(self, x, *, y=1)",
        "m.A.only(self)",
        "m.A.g(self)",
        "m.A.g.inner()",
        "m.last()",
    ]
    assert "Class é text." in text
    assert "Raw\ntext." in text
    assert "not a docstring" not in text


@pytest.mark.parametrize(
    ("relative", "group"),
    [
        ("json/decoder.py", "json"),
        ("_pydecimal.py", "decimal"),
        ("decimal.py", "decimal"),
        ("_py_abc.py", "abc"),
        ("_threading_local.py", "threading_local"),
        ("pydoc.py", "pydoc"),
        ("sre_parse.py", "re"),
    ],
)
def test_modules_that_share_their_text_share_a_group(relative: str, group: str) -> None:
    assert stdlib_corpus.module_group(relative) == group


def test_the_reference_has_each_text_once_and_keys_of_its_own() -> None:
    name = "python:reference"
    found = list(stdlib_corpus.documents(name, 0, len(stdlib_corpus.sizes(name))))
    assert len({text for text, _ in found}) == len(found) > 50
    assert [len(text.encode()) for text, _ in found] == stdlib_corpus.sizes(name)
    assert all(key.startswith("topic ") for _, key in found)


def test_tests_packages_and_tables_are_left_out_and_no_file_comes_twice() -> None:
    modules = stdlib_corpus.modules()
    names = [relative for _, relative in modules]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "encodings/idna.py"} <= set(names)
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "site-packages", "idle_test", "pydoc_data", "__pycache__"}
    assert not [
        name for name in names if name.startswith(("_sysconfigdata", "config-")) or name == "encodings/cp1252.py"
    ]
    contents = [file.read_bytes() for file, _ in modules]
    assert len(set(contents)) == len(contents)


def test_source_and_docstrings_of_a_module_have_the_same_key() -> None:
    index = [relative for _, relative in stdlib_corpus.modules()].index("textwrap.py")
    (docstrings,) = stdlib_corpus.documents("python:docstrings", index, index + 1)
    (source,) = stdlib_corpus.documents("python:source", index, index + 1)
    assert docstrings[1] == source[1] == "module textwrap"
    assert "Wrap a single paragraph of text" in docstrings[0]
    assert "Wrap a single paragraph of text" not in source[0]
