"""Personal data masked: what looks like an address, a number or a key becomes a placeholder that says what it was."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from lmstack.prep.document import Document, Verdict
from lmstack.prep.stage import Context, Filter, StageSettings

Kind = Literal["email", "ip", "phone", "id_cn", "id_us", "key"]
PLACEHOLDERS: dict[Kind, str] = {
    "email": "[EMAIL]",
    "ip": "[IP]",
    "phone": "[PHONE]",
    "id_cn": "[ID_CN]",
    "id_us": "[ID_US]",
    "key": "[KEY]",
}

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.-])(?<![A-Za-z]/)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_-]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![A-Za-z0-9_:])")
_IPV6_IN_USE = ipaddress.ip_network("2000::/3")
"""All public addresses so far, RFC 4291; what else fits the pattern is mostly code, such as the slice values[::2]."""

_ID_CN = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[0-9Xx](?![0-9A-Za-z])"
)
_ID_US = re.compile(r"(?<![A-Za-z0-9_-])(?!000|666|9\d\d)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![A-Za-z0-9_-])")
_PHONE_CN = re.compile(r"(?<![A-Za-z0-9_.-])(?:\+?86[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}(?![A-Za-z0-9_-]|\.\d)")
_PHONE_US = re.compile(
    r"(?<![A-Za-z0-9_.-])(?:\+?1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-. ]\d{4}(?![A-Za-z0-9_-]|\.\d)"
)
_PHONE_WORLD = re.compile(
    r"(?<![A-Za-z0-9_.+)\]])\+[1-9]\d{0,2}(?:[-. ]?(?:\(\d{1,4}\)|\d{1,4})){2,5}(?![A-Za-z0-9_-]|\.\d)"
)
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|glpat-[\w-]{20,}"
    r"|sk-(?:[A-Za-z]+-)?[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,})(?![A-Za-z0-9])",
    re.DOTALL,
)
_KEY_HINTS = ("PRIVATE KEY", "AKIA", "ASIA", "gh", "glpat", "sk-", "hf_", "AIza", "xox", "eyJ", "_live_", "_test_")
_CN_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


@dataclass(frozen=True, kw_only=True)
class MaskPersonalData(StageSettings):
    """Replaces personal data by typed placeholders such as [EMAIL]; nothing is dropped.

    Attributes:
        kind: `privacy`.
        mask: What to mask. Chinese ID cards are told by their check digit, US social security numbers by their ranges,
            keys by the prefixes of their issuers; private networks and 127.0.0.1 are no personal data.
    """

    kind: Literal["privacy"] = "privacy"
    mask: list[Kind] = field(default_factory=lambda: list(get_args(Kind)))

    def filter(self, context: Context) -> Filter:
        """The function that masks.

        Args:
            context: Of the partition.
        """

        def judge(document: Document) -> Verdict:
            text, found = mask_personal_data(document.text, self.mask)
            for kind, number in found.items():
                context.counts[f"masked {kind}"] += number
            return document.with_text(text)

        return judge


def mask_personal_data(text: str, kinds: list[Kind]) -> tuple[str, dict[Kind, int]]:
    """Text with placeholders, and how many of each kind were put.

    Args:
        text: Any.
        kinds: What to mask.
    """
    found: dict[Kind, int] = {}
    for kind in _ORDER:
        if kind in kinds and _may_hold(kind, text):
            for pattern, is_real in _RULES[kind]:
                text, number = _replace(text, pattern, is_real, PLACEHOLDERS[kind])
                if number:
                    found[kind] = found.get(kind, 0) + number
    return text, found


def is_chinese_id(text: str) -> bool:
    """Whether 18 characters carry the check digit of a Chinese identity card (GB 11643-1999).

    Args:
        text: The characters.
    """
    check = sum(int(digit) * weight for digit, weight in zip(text, _CN_WEIGHTS)) % 11
    return "10X98765432"[check] == text[-1].upper()


def is_public_address(text: str) -> bool:
    """Whether a text is an IP address of one machine on the public internet.

    Args:
        text: Such as 8.8.8.8.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and address not in _IPV6_IN_USE:
        return False
    return address.is_global and not address.is_multicast


def _replace(text: str, pattern: re.Pattern[str], is_real: Callable[[str], bool], placeholder: str) -> tuple[str, int]:
    number = 0

    def put(match: re.Match[str]) -> str:
        nonlocal number
        if not is_real(match[0]):
            return match[0]
        number += 1
        return placeholder

    return pattern.sub(put, text), number


def _may_hold(kind: Kind, text: str) -> bool:
    """A cheap test that spares most texts the expensive one."""
    if kind == "email":
        return "@" in text
    if kind == "key":
        return any(hint in text for hint in _KEY_HINTS)
    if kind == "ip":
        return _IPV4.search(text) is not None or "::" in text or text.count(":") >= 7
    return _DIGITS.search(text) is not None


_DIGITS = re.compile(r"\d[\d() .-]{5,}\d")
_ORDER: tuple[Kind, ...] = ("key", "email", "id_cn", "id_us", "ip", "phone")
"""A longer number before a shorter one that could be a part of it."""


def _is_real(_: str) -> bool:
    return True


def _is_phone(text: str) -> bool:
    is_decimal = text[1:].count(".") == 1 and text[1:].replace(".", "").isdigit()  # such as a degree of longitude
    return not is_decimal and 8 <= sum(character.isdigit() for character in text) <= 15


def _is_person(text: str) -> bool:
    """Not the address that a repository is cloned from, nor an image for dense screens, such as logo@2x.png."""
    return not text.startswith("git@") and not text.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"))


def _is_key(text: str) -> bool:
    """Not a name in a style sheet: after `sk-` comes a long run of characters, digits among them."""
    run = max(re.split("[-_]", text[3:]), key=len)
    return not text.startswith("sk-") or (len(run) >= 12 and any(character.isdigit() for character in run))


_RULES: dict[Kind, list[tuple[re.Pattern[str], Callable[[str], bool]]]] = {
    "key": [(_KEY, _is_key)],
    "email": [(_EMAIL, _is_person)],
    "id_cn": [(_ID_CN, is_chinese_id)],
    "id_us": [(_ID_US, _is_real)],
    "ip": [(_IPV4, is_public_address), (_IPV6, is_public_address)],
    "phone": [(_PHONE_CN, _is_real), (_PHONE_US, _is_real), (_PHONE_WORLD, _is_phone)],
}
