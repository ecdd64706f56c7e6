"""Made-up personal data for `dirty_corpus.py`, and what only looks like it."""

import random
import string
from collections.abc import Callable


def _email(draw: random.Random) -> str:
    names = ("anna.meier", "j_smith42", "li.wei", "marie-claire", "office", "k.ivanov")
    hosts = ("example.org", "mail.example.com", "uni.example.edu", "firma.example.de")
    return f"{draw.choice(names)}{draw.randrange(1000)}@{draw.choice(hosts)}"


def _ip(draw: random.Random) -> str:
    return (
        f"{draw.choice((23, 45, 81, 93, 142, 203))}.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randint(1, 254)}"
    )


def _phone(draw: random.Random) -> str:
    digits = [draw.randrange(10) for _ in range(8)]
    return draw.choice(
        (
            f"+1 {draw.randint(201, 989)}-{draw.randint(200, 999)}-{draw.randrange(10**4):04d}",
            f"({draw.randint(201, 989)}) {draw.randint(200, 999)}-{draw.randrange(10**4):04d}",
            "138" + "".join(map(str, digits)),
            f"+49 30 {draw.randint(1000000, 9999999)}",
        )
    )


def _id_cn(draw: random.Random) -> str:
    """With its check digit, GB 11643-1999."""
    born = f"{draw.randint(1950, 2005)}{draw.randint(1, 12):02d}{draw.randint(1, 28):02d}"
    body = f"{draw.choice((110101, 310104, 440305, 510107))}{born}{draw.randrange(1000):03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def _id_us(draw: random.Random) -> str:
    area = draw.choice([n for n in (draw.randint(1, 665), draw.randint(667, 899))])
    return f"{area:03d}-{draw.randint(1, 99):02d}-{draw.randint(1, 9999):04d}"


def _key(draw: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    token = "".join(draw.choices(letters, k=40))
    upper = "".join(draw.choices(string.ascii_uppercase + string.digits, k=16))
    return draw.choice((f"AKIA{upper}", f"ghp_{token[:36]}", f"sk-{token}", f"hf_{token[:34]}"))


PERSONAL: dict[str, Callable[[random.Random], str]] = {
    "email": _email, "ip": _ip, "phone": _phone, "id_cn": _id_cn, "id_us": _id_us, "key": _key,
}  # fmt: skip
INTRODUCTIONS = ("Reach us under", "The record says", "Please note", "It was sent from", "On file we have")
DECOYS: tuple[Callable[[random.Random], str], ...] = (
    lambda draw: f"{draw.randint(1, 99)},{draw.randrange(1000):03d},{draw.randrange(1000):03d}",
    lambda draw: f"{draw.randint(1990, 2025)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
    lambda draw: f"{draw.randint(1, 20)}.{draw.randrange(10)}.{draw.randrange(10)}",
    lambda draw: f"{draw.random():.12f}",
    lambda draw: f"@{draw.choice(('decorator', 'property', 'staticmethod'))}",
)
