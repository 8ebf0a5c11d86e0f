"""Text, names and numbers as HTML."""

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

FEW = 6
"""As many numbers are listed in a line; of more there is the range, and a table."""


def text(value: Any) -> str:
    """Escaped for an element or an attribute."""
    return html.escape(str(value))


def prose(value: str) -> str:
    """Escaped, with what stands in backticks as code, and papers as links.

    >>> prose("Table 1 of arXiv:2003.14089")
    'Table 1 of <a href="https://arxiv.org/abs/2003.14089">arXiv:2003.14089</a>'
    """
    marked = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", text(value))
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, marked)


UPPER = ("kl", "js", "tv", "dpo", "ipo", "ppo", "mdp", "dro", "gio", "jax")
WRITTEN = {name: name.upper() for name in UPPER} | {"chi2": "χ²", "knn": "k-NN"}
WRITTEN |= {name: name for name in ("bfloat16", "float32", "float64")}


def words(name: str) -> str:
    """A name as a title.

    >>> words("nearest_neighbours"), words("reverse-kl-seeks-modes")
    ('Nearest neighbours', 'Reverse KL seeks modes')
    """
    first, *others = [WRITTEN.get(word, word) for word in re.split(r"[_ -]+", name)]
    return " ".join(
        [first if first in WRITTEN.values() else first[:1].upper() + first[1:], *others]
    )


def anchor(*names: str) -> str:
    """An id.

    >>> anchor("claim", "estimation/atlas", "a <b>")
    'claim-estimation-atlas-a-b'
    """
    return re.sub(r"\W+", "-", "-".join(names)).strip("-")


def count(number: int, noun: str) -> str:
    """`1 claim`, `2 claims`, `3 processes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """A time as one says it.

    >>> duration(0.42), duration(63.2), duration(3723)
    ('0.4 s', '1 min 3 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


# ---------------------------------------------------------------------------------- numbers


def number(value: float | None) -> str:
    """Four significant digits, whole numbers in full; JSON has null for infinity and NaN.

    >>> number(-0.123456), number(250000.0), number(1.5e-9)
    ('−0.1235', '250000', '1.5 × 10<sup>−9</sup>')
    """
    if value is None:
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", "−")
    digits, _, power = f"{value:.4g}".replace("-", "−").partition("e")
    if not power:
        return digits
    return f"{digits} × 10<sup>{power[0].strip('+')}{power[1:].lstrip('0')}</sup>"


def unbroken(value: float | None) -> str:
    """A number that stays on one line."""
    return f'<span class="n">{number(value)}</span>'


def flat(value: Any) -> list[float | None]:
    """The numbers of a nested list, or of one number."""
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


def numbers(value: Any) -> str:
    """A number, a few of them, or how many there are and their range."""
    every = flat(value)
    if len(every) <= FEW:
        return ", ".join(map(unbroken, every))
    finite = [x for x in every if x is not None]
    if not finite:
        return f"{len(every)} numbers, none finite"
    span = f"{unbroken(min(finite))} to {unbroken(max(finite))}"
    lost = f", {len(every) - len(finite)} not finite" if len(finite) < len(every) else ""
    return f"{len(every)} numbers, {span}{lost}"


def bound(low: Any, high: Any) -> str:
    """The bound in words; an end that is open is null."""
    open_low, open_high = (all(x is None for x in flat(end)) for end in (low, high))
    if open_low and open_high:
        return "any number"
    if open_high:
        return f"at least {numbers(low)}"
    if open_low:
        return f"at most {numbers(high)}"
    if low == high:
        return f"exactly {numbers(low)}"
    if len(flat(low)) == len(flat(high)) == 1:
        return f"{numbers(low)} to {numbers(high)}"
    return f"from {numbers(low)}<br>to {numbers(high)}"


def sequence(values: list[Any]) -> str:
    """Labels of an axis; of many the first and the last."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", shown[-1]])


def fields(config: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    """`(dotted path, value)` of every field, as one would write it on the command line."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            yield path + name, ", ".join(map(str, value))
        else:
            yield path + name, str(value)
