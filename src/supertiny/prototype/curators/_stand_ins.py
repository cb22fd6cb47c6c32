"""Personal data in a text, found by shape and checked by its own sum, and stand-ins of the same shape for it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+(?!\w)")
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}(?!\w)")
_CARD = re.compile(r"(?<![\w.])(?:\d{13,19}|\d{4}(?:[ -]\d{4,6}){2,3}(?:[ -]\d{1,3})?)(?!\w)")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)")
# What + or 0 begins is a number in its own right; of others, the groups say it: North America's, a Chinese or an Indian
# mobile's, three times three digits; or, without groups, the digits with which such numbers begin.
_PHONE = re.compile(
    r"""(?<![\w.,+-])(?:
    (?:\+|00|\(?0)[\d ()/.-]{0,30}(?<=\d)
    | (?:1[ .-]?)?(?:\(\d{3}\)[ ]?|\d{3}[ .-])\d{3}[ .-]\d{4}
    | 1[3-9]\d[ -]\d{4}[ -]\d{4}
    | [6-9]\d{4}[ -]\d{5}
    | (?<!\d[ ])[6-9]\d{2}[ ]\d{3}[ ]\d{3}(?![ ]\d)
    | [2-9]\d{2}[2-9]\d{6} | [6-9]\d{9} | 1[3-9]\d{9}
    )(?!\w)""",
    re.VERBOSE,
)
_AMOUNT = re.compile(r"\d+0000|\d{3} \d{3} 000")  # a round number that stands like one of those
_DATE = re.compile(r"(?<![\d.])(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{2,4})(?![\d.])")
Kind = Literal["email", "iban", "card", "ip", "phone", "name"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are looked for: what is an e-mail address is no phone number too."""

_NAMES = (
    "Alex", "Robin", "Sam", "Kim", "Charlie", "Jamie", "Taylor", "Morgan", "Casey", "Jordan", "Riley", "Quinn",
    "Avery", "Rowan", "Sasha", "Noor", "Ariel", "Dana", "Jules", "Lee", "Mika", "Nico", "Remy", "Toni", "Yuki",
    "Andrea", "Devon", "Elliot", "Frankie", "Harper", "Indigo", "Kit", "Lennox", "Marley", "Ollie", "Parker",
)  # fmt: skip


@dataclass
class StandIns:
    """Same original, same stand-in; other originals, other stand-ins, as far as the shape has room for them."""

    key: bytes
    kinds: Sequence[str]
    name_patterns: Sequence[re.Pattern[str]] = ()
    """Find names; the first group is the name where there is one."""
    _known: dict[tuple[str, str], str] = field(default_factory=dict)
    _taken: set[tuple[str, str]] = field(default_factory=set)
    _numbers: dict[int, tuple[str, int]] = field(default_factory=dict)

    def scrubbed(self, text: str, counts: Counter[str] | None = None) -> str:
        """The text with stand-ins; `counts` is told how many of each kind there were."""
        places: list[tuple[int, int, str]] = []
        for kind in KINDS:
            for start, end, plain in self._found(kind, text):
                if all(end <= other or start >= past for other, past, _ in places):
                    places.append((start, end, self._shaped(text[start:end], kind, plain)))
                    if counts is not None:
                        counts[kind] += 1
        for start, end, instead in sorted(places, reverse=True):
            text = text[:start] + instead + text[end:]
        return text

    def instead_of_number(self, number: int, counts: Counter[str]) -> int:
        """What stands for a number that a text gave as a phone or card number; any other number itself."""
        kind, instead = self._numbers.get(number, ("", number))
        if kind:
            counts[kind] += 1
        return instead

    def _found(self, kind: str, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, the original without its shape) of what is found."""
        if kind not in self.kinds:
            return
        if kind == "name":
            for found in (found for pattern in self.name_patterns for found in pattern.finditer(text)):
                group = 1 if found.re.groups and found.group(1) else 0
                if found.group(group):
                    yield *found.span(group), found.group(group).casefold()
            return
        pattern, plain_of = _FINDERS[kind]
        at = 0
        while (spot := pattern.search(text, at)) is not None:
            length, plain = _longest(spot.group(), plain_of)
            if plain is not None:
                yield spot.start(), spot.start() + length, plain
            at = spot.start() + max(1, length)

    def _shaped(self, original: str, kind: str, plain: str) -> str:
        if (kind, plain) not in self._known:
            made = self._known[kind, plain] = self._fresh(kind, plain)
            if kind in ("phone", "card"):
                self._numbers[int(plain)] = kind, int(made)
        return _shaped(original, self._known[kind, plain], kind)

    def _fresh(self, kind: str, plain: str) -> str:
        """A stand-in that no other original has; where the shape has no room left, one that is shared."""
        made = ""
        for attempt in range(100):
            made = _MAKERS[kind](plain, _Stream(self.key, f"{kind}:{plain}:{attempt}"))
            if attempt >= 20 and kind == "name":  # the short list is used up
                made += _MAKERS[kind](plain, _Stream(self.key, f"{kind}:{attempt}:{plain}"))
            if (kind, made) not in self._taken and made != plain:
                break
        self._taken.add((kind, made))
        return made


class _Stream:
    """Digits and choices that the key and a text decide."""

    def __init__(self, key: bytes, text: str) -> None:
        self.number = int.from_bytes(hmac.new(key, text.encode(errors="replace"), hashlib.sha512).digest(), "big")

    def below(self, size: int) -> int:
        self.number, drawn = divmod(self.number, size)
        return drawn

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))


def _longest(text: str, plain_of: Callable[[str], str | None]) -> tuple[int, str | None]:
    """Length of the longest beginning in whole words that is one, and what it is: a time or a word may stand behind."""
    while text:
        plain = plain_of(text)
        if plain is not None:
            return len(text), plain
        text = text.rpartition(" ")[0].rstrip()
    return 0, None


def _plain_email(text: str) -> str | None:
    return text.casefold()


def _plain_iban(text: str) -> str | None:
    """Without blanks, where its check digits are right."""
    plain = text.replace(" ", "").upper()
    number = "".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])
    return plain if 15 <= len(plain) <= 34 and int(number) % 97 == 1 else None


def _plain_card(text: str) -> str | None:
    """Its digits, where Luhn's sum is right."""
    plain = re.sub(r"\D", "", text)
    return plain if 13 <= len(plain) <= 19 and _luhn(plain) == 0 and len(set(plain)) > 1 else None


def _plain_ip(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # C::D is an address by the letter, and code by common sense.
    is_code = ":" in text and (len(text) < 6 or not any(letter.isdigit() for letter in text))
    return None if is_code or address.is_loopback or address.is_unspecified else address.compressed


def _plain_phone(text: str) -> str | None:
    """Its digits, where there are as many as a phone number has, and it is no date, fraction or round amount."""
    plain = re.sub(r"\D", "", text)
    is_other = _DATE.search(text) or text.startswith("0.") or _AMOUNT.fullmatch(text)
    return plain if 8 <= len(plain) <= 15 and not is_other else None


def _luhn(digits: str) -> int:
    """Luhn's sum modulo 10; 0 for a valid number."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10


def _new_email(plain: str, stream: _Stream) -> str:
    return f"{_NAMES[stream.below(len(_NAMES))].lower()}{stream.digits(4)}@example.com"


def _new_iban(plain: str, stream: _Stream) -> str:
    body = "".join(str(stream.below(10)) if letter.isdigit() else chr(65 + stream.below(26)) for letter in plain[4:])
    number = "".join(str(int(letter, 36)) for letter in body + plain[:2] + "00")
    return f"{plain[:2]}{98 - int(number) % 97:02d}{body}"


def _new_card(plain: str, stream: _Stream) -> str:
    body = "9999" + stream.digits(len(plain) - 5)  # no card begins with these
    return body + str(-_luhn(body + "0") % 10)


def _new_ip(plain: str, stream: _Stream) -> str:
    if ":" in plain:
        return ipaddress.IPv6Address((0x20010DB8 << 96) + stream.below(1 << 64)).compressed
    network = ("192.0.2", "198.51.100", "203.0.113")[stream.below(3)]  # set aside for documents
    return f"{network}.{1 + stream.below(254)}"


def _new_phone(plain: str, stream: _Stream) -> str:
    return (
        "555" + stream.digits(len(plain) - 3) if not plain.startswith("0") else "0555" + stream.digits(len(plain) - 4)
    )


def _new_name(plain: str, stream: _Stream) -> str:
    return _NAMES[stream.below(len(_NAMES))].casefold()


def _shaped(original: str, made: str, kind: str) -> str:
    """The stand-in with the original's blanks, signs and capitals."""
    if kind == "name":
        return (
            made.upper() if original.isupper() and len(original) > 1 else made if original.islower() else made.title()
        )
    if kind in ("email", "ip"):
        return made
    letters = iter(made)
    return "".join(next(letters, "") if letter.isalnum() else letter for letter in original)


_FINDERS: Mapping[str, tuple[re.Pattern[str], Callable[[str], str | None]]] = {
    "email": (_EMAIL, _plain_email),
    "iban": (_IBAN, _plain_iban),
    "card": (_CARD, _plain_card),
    "ip": (_IP, _plain_ip),
    "phone": (_PHONE, _plain_phone),
}
_MAKERS: Mapping[str, Callable[[str, _Stream], str]] = {
    "email": _new_email,
    "iban": _new_iban,
    "card": _new_card,
    "ip": _new_ip,
    "phone": _new_phone,
    "name": _new_name,
}
