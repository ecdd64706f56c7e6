"""Conversations in the layouts that people store them in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lmstack.data.records import Record

Message = dict[str, Any]
Schema = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""What roles are called, and what they are called here."""

_PROMPTS = ("prompt", "question", "query", "instruction")
_COMPLETIONS = ("completion", "response", "answer", "output", "chosen")


@dataclass(frozen=True)
class Conversation:
    """Messages in order.

    Attributes:
        messages: Each with `role` and `content`; some with `train` or `weight`.
        where: File and line it came from.
        row: The whole record.
    """

    messages: list[Message]
    where: str
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[Message]:
        """Everything before the last answer."""
        ends_with_answer = self.messages[-1]["role"] == "assistant"
        return self.messages[:-1] if ends_with_answer else self.messages

    @property
    def prompt_text(self) -> str:
        """What identifies the prompt: the roles and texts before the first answer."""
        texts = []
        for message in self.messages:
            if message["role"] == "assistant":
                break
            texts.append(f"{message['role']}: {message['content'].strip()}")
        return "\n".join(texts)


def detect_schema(record: Record) -> Schema:
    """Which layout a record has, by its fields.

    Args:
        record: The first one of a file, say.

    Raises:
        ValueError: None fits.
    """
    names = record.values.keys()
    if isinstance(record.values.get("messages"), list):
        return "messages"
    if any(isinstance(record.values.get(name), list) for name in ("conversations", "conversation")):
        return "sharegpt"
    if "instruction" in names and "output" in names:
        return "alpaca"
    if _first(record.values, _PROMPTS) is not None and _first(record.values, _COMPLETIONS) is not None:
        return "prompt_completion"
    raise ValueError(
        f"{record.where}: fields {sorted(names)} are of no known layout: messages; conversations (ShareGPT); "
        "instruction, input and output (Alpaca); prompt and completion. Rename the fields, or set data.schema."
    )


def read_conversation(record: Record, schema: Schema, *, needs_answer: bool = True) -> Conversation:
    """A record as a conversation.

    Args:
        record: In the layout `schema`.
        schema: The layout.
        needs_answer: Whether it must end with an answer that is not empty; prompts need none.

    Raises:
        ValueError: A field is missing or of the wrong type, a role is not known, a text is empty; file and line are
            named.
    """
    messages = _READERS[schema](record)
    if not needs_answer and messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise ValueError(f"{record.where}: the conversation has no messages.")
    for number, message in enumerate(messages, start=1):
        if not str(message["content"]).strip() and message["role"] != "system":
            raise ValueError(f"{record.where}: message {number} ({message['role']}) is empty.")
    if needs_answer and not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{record.where}: no message of the assistant, so there is nothing to learn.")
    return Conversation(messages, record.where, record.values)


def clean_messages(messages: Any, where: str, *, role_key: str = "role", content_key: str = "content") -> list[Message]:
    """Messages under the names and roles used here.

    Args:
        messages: A list of objects.
        where: For messages of errors.
        role_key: Field of the role.
        content_key: Field of the text.

    Raises:
        ValueError: A field is missing, or a role is not known.
    """
    if not isinstance(messages, list):
        raise ValueError(f"{where}: expected a list of messages, got {type(messages).__name__}.")
    cleaned = []
    for number, message in enumerate(messages, start=1):
        missing = [key for key in (role_key, content_key) if not isinstance(message, dict) or key not in message]
        if missing:
            raise ValueError(f"{where}: message {number} has no {missing[0]!r}.")
        role = _ROLES.get(str(message[role_key]).lower())
        if role is None:
            raise ValueError(
                f"{where}: message {number} has the role {message[role_key]!r}. Known roles: {', '.join(_ROLES)}."
            )
        if not isinstance(message[content_key], str):
            raise ValueError(
                f"{where}: the {content_key} of message {number} is {type(message[content_key]).__name__}, not text."
            )
        kept = {key: message[key] for key in ("train", "weight") if key in message}
        cleaned.append({"role": role, "content": message[content_key], **kept})
    return cleaned


def _messages(record: Record) -> list[Message]:
    return clean_messages(_required(record, "messages"), record.where)


def _sharegpt(record: Record) -> list[Message]:
    name = "conversation" if "conversation" in record.values else "conversations"
    messages = clean_messages(_required(record, name), record.where, role_key="from", content_key="value")
    system = record.values.get("system")
    return [{"role": "system", "content": system}, *messages] if isinstance(system, str) and system else messages


def _alpaca(record: Record) -> list[Message]:
    instruction, answer = _text(record, "instruction"), _text(record, "output")
    extra = record.values.get("input") or ""
    question = f"{instruction}\n\n{extra}" if str(extra).strip() else instruction
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for old_question, old_answer in reversed(record.values.get("history") or []):
        messages = [{"role": "user", "content": old_question}, {"role": "assistant", "content": old_answer}, *messages]
    system = record.values.get("system")
    return [{"role": "system", "content": system}, *messages] if isinstance(system, str) and system else messages


def _prompt_completion(record: Record) -> list[Message]:
    prompt = _first(record.values, _PROMPTS) or "prompt"
    completion = _first(record.values, _COMPLETIONS)
    value = _required(record, prompt)
    before = clean_messages(value, record.where) if isinstance(value, list) else [_user(record, prompt)]
    if completion is None:
        return before
    return [*before, {"role": "assistant", "content": _text(record, completion)}]


_READERS: dict[str, Callable[[Record], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


def _user(record: Record, name: str) -> Message:
    return {"role": "user", "content": _text(record, name)}


def _required(record: Record, name: str) -> Any:
    if name not in record.values:
        raise ValueError(f"{record.where}: no field {name!r}. It has {sorted(record.values)}.")
    return record.values[name]


def _text(record: Record, name: str) -> str:
    value = _required(record, name)
    if not isinstance(value, str):
        raise ValueError(f"{record.where}: {name!r} is {type(value).__name__}, not text.")
    return value


def _first(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in values), None)
