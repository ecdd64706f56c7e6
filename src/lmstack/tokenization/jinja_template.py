"""A user's chat template in Transformers' language, rendered in a sandbox, with the mask taken from the rendering."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from lmstack.tokenization.template_pieces import Piece
from lmstack.tokenization.tokenizer import Tokenizer

_GUARD, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
"""Unicode noncharacters, which no text may hold: inside what only looks like a special token, and around what a
`{% generation %}` block writes."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


class JinjaTemplate:
    """A template, compiled.

    With `{% generation %}` blocks, the i-th block is the i-th assistant message. Without, an assistant message is what
    a rendering up to it has more than a rendering of the messages before it, the opening of the turn included there.

    Args:
        source: The template.
        tokenizer: Gives the names of special tokens.
        bos_token: What the template writes for `bos_token`.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, bos_token: str = ""):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise  # no clock: the same messages are the same tokens tomorrow
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The chat template does not parse, line {error.lineno}: {error.message}.") from error
        self._has_blocks = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._variables = {"bos_token": bos_token, "eos_token": tokenizer.eot_token or ""}
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @classmethod
    def compiled(cls, source: str, tokenizer: Tokenizer, bos_token: str = "") -> "JinjaTemplate":
        """The template, compiled once for each tokenizer.

        Args:
            source: The template.
            tokenizer: As in the constructor.
            bos_token: As in the constructor.
        """
        return _compiled(source, tokenizer, bos_token)

    def pieces(self, messages: Sequence[Mapping[str, Any]], trained: Sequence[bool], *, is_prompt: bool) -> list[Piece]:
        """A conversation in pieces.

        Args:
            messages: The conversation.
            trained: Whether each message is learnt; only the assistant's can be.
            is_prompt: Whether the opening of the assistant's turn follows.

        Raises:
            ValueError: The template refuses the messages, or it does not say what the assistant wrote.
        """
        wrong = [message["role"] for message, is_t in zip(messages, trained) if is_t and message["role"] != "assistant"]
        if wrong:
            raise ValueError(f"A Jinja template marks the assistant's messages only; train_on names {wrong[0]!r}.")
        guarded = [self._guard(dict(message)) for message in messages]
        whole = self._render(guarded, is_prompt=is_prompt)
        wanted = [is_t for message, is_t in zip(messages, trained) if message["role"] == "assistant"]
        if self._has_blocks:
            whole, spans = _take_marks(whole)
            if len(spans) != len(wanted):
                raise ValueError(
                    f"The chat template wrote {len(spans)} {{% generation %}} blocks for {len(wanted)} assistant "
                    "messages. Put one block around what it writes for each."
                )
        else:
            spans = [] if is_prompt else [self._span(guarded, k, whole) for k in _assistant_turns(messages)]
        return list(self._cut(whole, spans, wanted))

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The special token that ends an assistant's message.

        Args:
            tokenizer: Gives its id.

        Raises:
            ValueError: The message does not end with a special token.
        """
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        trained = [piece for piece in self.pieces(messages, [False, True], is_prompt=False) if piece.is_trained]
        if not trained or not trained[-1].is_special:
            raise ValueError(
                "The chat template does not end the assistant's message with a special token, so generation cannot "
                "know where to stop. Let it write one, such as eos_token."
            )
        end = tokenizer.token_id(trained[-1].text)
        assert end is not None
        return (end,)

    def _render(self, messages: list[dict[str, Any]], *, is_prompt: bool) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=is_prompt, **self._variables)
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template cannot render these messages: {error}.") from error

    def _span(self, messages: list[dict[str, Any]], turn: int, whole: str) -> tuple[int, int]:
        """Where in the whole rendering a message of the assistant stands."""
        before, after = (
            self._render(messages[:turn], is_prompt=True),
            self._render(messages[: turn + 1], is_prompt=False),
        )
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"The chat template writes message {turn + 1} differently when more messages follow, or not after the "
                "opening of the assistant's turn. Put a {% generation %} block around what the assistant writes."
            )
        return len(before), len(after)

    def _cut(self, whole: str, spans: list[tuple[int, int]], wanted: list[bool]) -> Iterator[Piece]:
        """The rendering in pieces: at special tokens, and where an assistant's message begins and ends."""
        position = 0
        for (start, end), is_trained in zip(spans, wanted, strict=False):
            yield from self._split(whole[position:start], is_trained=False)
            own = list(self._split(whole[start:end], is_trained=is_trained))
            # What follows the special token that ends the turn is the template's, not the assistant's.
            last = max((i for i, piece in enumerate(own) if piece.is_special), default=len(own) - 1)
            yield from own[: last + 1]
            yield from (piece._replace(is_trained=False) for piece in own[last + 1 :])
            position = end
        yield from self._split(whole[position:], is_trained=False)

    def _split(self, rendered: str, *, is_trained: bool) -> Iterator[Piece]:
        position = 0
        for found in self._special.finditer(rendered):
            if found.start() > position:
                yield Piece(rendered[position : found.start()].replace(_GUARD, ""), False, is_trained)
            yield Piece(found.group(), True, is_trained)
            position = found.end()
        if position < len(rendered):
            yield Piece(rendered[position:].replace(_GUARD, ""), False, is_trained)

    def _guard(self, value: Any) -> Any:
        """A value in which no text looks like a special token."""
        if isinstance(value, str):
            if any(mark in value for mark in (_GUARD, _BEGIN, _END)):
                raise ValueError("A message holds U+FDD0, U+FDD1 or U+FDD2, which are not characters. Remove them.")
            return self._special.sub(lambda found: found.group()[0] + _GUARD + found.group()[1:], value)
        if isinstance(value, Mapping):
            return {key: self._guard(item) for key, item in value.items()}
        return [self._guard(item) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=8)
def _compiled(source: str, tokenizer: Tokenizer, bos_token: str) -> JinjaTemplate:
    return JinjaTemplate(source, tokenizer, bos_token)


def _take_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The rendering without marks, and the spans between them."""
    clean, spans = "", []
    for part in marked.split(_BEGIN):
        written, mark, rest = part.partition(_END)
        if mark:
            spans.append((len(clean), len(clean) + len(written)))
        clean += written + rest
    return clean, spans


def _assistant_turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return [k for k, message in enumerate(messages) if message["role"] == "assistant"]


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
