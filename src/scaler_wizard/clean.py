"""Is a text fit to learn from, and what in it belongs to a person? Simple rules, each with its name."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module

from scaler_wizard.errors import ScalerError

LEAST_WORDS = 20
LANGUAGE_SAMPLE = 2000
SAMPLE = 20_000
"""Characters that a rule looks at."""
LOOKED_AT = 500
"""Words, evenly spread over these, whose letters are looked at one by one."""

EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+\b")
PHONE = re.compile(r"(?<![\w.])\+\d{1,3}[ .\-/]?(?:\(?\d{1,4}\)?[ .\-/]?){2,5}\d{2,4}(?![\w])")
ADDRESS = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
ACCOUNT = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")


def flaw(text: str) -> str | None:
    """The first rule that a text breaks, None for a sound one; after the rules of Gopher (arXiv:2112.11446)."""
    words = text[:SAMPLE].split()
    if len(words) < LEAST_WORDS:
        return f"fewer than {LEAST_WORDS} words"
    if not 2.5 <= sum(map(len, words)) / len(words) <= 12:
        return "words too short or too long for running text"
    some = words[:: 1 + len(words) // LOOKED_AT]
    if sum(any(map(str.isalpha, word)) for word in some) < 0.7 * len(some):
        return "hardly any letters"
    lines = [line.strip() for line in text[:SAMPLE].splitlines() if line.strip()]
    if len(lines) >= 10 and len(set(lines)) < 0.7 * len(lines):
        return "mostly repeated lines"
    if max(Counter(words).values()) > 0.25 * len(words):
        return "one word over and over"
    return None


def language_of(text: str) -> str:
    """ISO 639-1 code of a text's language, by its beginning."""
    try:
        identify = import_module("py3langid").classify
    except ModuleNotFoundError:
        raise ScalerError("py3langid is needed to tell languages", 'pip install "scaler-wizard[data]"') from None
    return str(identify(text[:LANGUAGE_SAMPLE])[0])


def masked(text: str) -> tuple[str, Counter[str]]:
    """The text with what identifies a person or an account replaced by its kind, and how often each kind stood there.

    Finds e-mail addresses, international phone numbers, IPv4 addresses, card numbers (by their check digit) and IBANs
    (by theirs). Names and street addresses are not found.
    """
    found: Counter[str] = Counter()

    def put(kind: str) -> object:
        def replace(match: re.Match[str]) -> str:
            if (kind == "CARD" and not _luhn(match[0])) or (kind == "IBAN" and not _iban(match[0])):
                return match[0]
            found[kind] += 1
            return f"<{kind}>"

        return replace

    for kind, pattern in (("EMAIL", EMAIL), ("IBAN", ACCOUNT), ("CARD", CARD), ("PHONE", PHONE), ("IP", ADDRESS)):
        text = pattern.sub(put(kind), text)  # type: ignore[call-overload]
    return text, found


def _luhn(number: str) -> bool:
    digits = [int(sign) for sign in reversed(number) if sign.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(number: str) -> bool:
    plain = number.replace(" ", "")
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1
