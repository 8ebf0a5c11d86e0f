"""Text, names and numbers as HTML."""

import html
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

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
    link = r'<a href="https://arxiv.org/abs/\2">\1\2</a>'
    return re.sub(r"(arXiv:|\b)(\d{4}\.\d{5})\b", link, marked)


PARTS = {
    "a_star_po": "A*-PO", "cauchy_schwarz": "Cauchy-Schwarz", "chi2_po": "χ²-PO", "f_dpg": "f-DPG",
    "f_dpo": "f-DPO", "h_dpo": "H-DPO", "half_precision": "half precision",
    "inference_aware": "inference-aware", "value_based": "value-based", "log_log": "log-log",
    "self_play": "self-play", "trade_off": "trade-off", "off_policy": "off-policy",
    "on_policy": "on-policy", "clip_cov": "Clip-Cov", "kl_cov": "KL-Cov",
}  # fmt: skip
"""Parts of names that are not written as words between spaces."""
UPPER = ("kl", "js", "tv", "dpo", "ipo", "ppo", "mdp", "dro", "gio", "jax", "dqn", "grpo", "rloo",
         "trpo", "inpo", "rspo", "rpo", "dv", "ucb", "ucb1", "reps", "spin", "mmd")  # fmt: skip
WRITTEN = {name: name.upper() for name in UPPER} | {
    "chi2": "χ²", "knn": "k-NN", "bonbon": "BoNBoN", "hypo": "HyPO", "infonce": "InfoNCE",
    "fastcb": "FastCB", "exp3": "Exp3", "schulmans": "Schulman's", "bernoulli": "Bernoulli",
    "munchausen": "Munchausen", "gaussian": "Gaussian", "smile": "SMILE",
}  # fmt: skip


def words(name: str) -> str:
    """A name as a title.

    >>> words("nearest_neighbours"), words("reverse-kl-seeks-modes"), words("f_dpg")
    ('Nearest neighbours', 'Reverse KL seeks modes', 'f-DPG')
    >>> words("k1_has_no_gradient"), words("chi2_po_repairs_it")
    ('k1 has no gradient', 'χ²-PO repairs it')
    """
    name = re.sub(r"[_ -]+", "_", name)
    for part, written in PARTS.items():
        name = re.sub(rf"(?<![a-z0-9]){part}(?![a-z0-9])", written.replace(" ", "_"), name)
    first, *others = [WRITTEN.get(word, word) for word in name.split("_")]
    kept = re.match(r"[a-z]\d|f-D|bfloat|float|χ", first)
    return " ".join([first if kept else first[:1].upper() + first[1:], *others])


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


def unbroken(value: float | None, after: str = "") -> str:
    """A number that stays on one line, with the comma after it."""
    return f'<span class="n">{number(value)}{after}</span>'


def listed(values: list[float | None]) -> str:
    """Numbers with commas between them."""
    *others, last = values
    return " ".join([*(unbroken(value, ",") for value in others), unbroken(last)])


def flat(value: Any) -> list[float | None]:
    """The numbers of a nested list, or of one number."""
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


def numbers(value: Any) -> str:
    """A number, a few of them, or how many there are and their range."""
    every = flat(value)
    if len(every) <= FEW:
        return listed(every)
    finite = [x for x in every if x is not None]
    if not finite:
        return f"{len(every)} numbers, none finite"
    span = f"{unbroken(min(finite))} to {unbroken(max(finite))}"
    lost = f", {len(every) - len(finite)} not finite" if len(finite) < len(every) else ""
    return f"{len(every)} numbers, {span}{lost}"


# ----------------------------------------------------------------------------------- bounds

Interval = tuple[float | None, float | None]


def bound(low: Any, high: Any, beside: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The bound in words; an end that is open is null. `beside` are numbers by name that it may
    be about.

    >>> def plain(*ends, **beside):
    ...     return re.sub("<.*?>", "", bound(*ends, {"the reference": beside.get("reference")}))
    >>> plain(None, [3.0, 3.0]), plain(0.5, 1.5), plain([None, 1.0], [None, 1.0])
    ('at most 3', '0.5 to 1.5', 'any; exactly 1')
    >>> plain([4.0, None, None, None], [None, -4.0, -4.0, -4.0])
    'at least 4; at most −4 (3 times)'
    >>> plain([0.49, 1.99], [0.51, 2.01], reference=[0.5, 2.0])
    'within 0.01 of the reference'
    """
    shapes = np.shape(low), np.shape(high)
    shape = np.broadcast_shapes(*shapes)
    pairs = list(zip(spread(low, shape), spread(high, shape), strict=True))
    for name, value in beside.items():
        around = fits(value, shape) and _around(pairs, spread(value, shape))
        if around:
            return f"{around} {name}"
    ends = [[pair[i] for pair in pairs] for i in (0, 1)]
    open_ends = [all(x is None for x in end) for end in ends]
    each = [interval(*pair) for pair in pairs]
    runs = [(text, len(list(same))) for text, same in itertools.groupby(each)]
    if len(runs) <= FEW:
        return "; ".join(text + f" ({n} times)" * (n > 1 < len(runs)) for text, n in runs)
    outer = [x for pair in pairs for x in pair if x is not None]
    span = f"{unbroken(min(outer))} to {unbroken(max(outer))}"
    if any(open_ends):
        return f"each at {'least' if open_ends[1] else 'most'} a number of its own, {span}"
    return f"each in an interval of its own, {span}"


def fits(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether there are such numbers, one for each place."""
    if value is None:
        return False
    try:
        return np.broadcast_shapes(np.shape(value), shape) == shape
    except ValueError:
        return False


def spread(value: Any, shape: tuple[int, ...]) -> list[float | None]:
    """The number for each place."""
    return np.broadcast_to(np.asarray(value, dtype=object), shape).ravel().tolist()


def interval(low: float | None, high: float | None) -> str:
    """The interval of one number in words."""
    if low is None:
        return "any" if high is None else f"at most {unbroken(high)}"
    if high is None:
        return f"at least {unbroken(low)}"
    if low == high:
        return f"exactly {unbroken(low)}"
    if low == -high:
        return f"within {radius(high)} of 0"
    if number(low) == number(high):
        return f"{unbroken((low + high) / 2)} ± {radius((high - low) / 2)}"
    return f"{unbroken(low)} to {unbroken(high)}"


def radius(value: float) -> str:
    """Half a width, to two digits: bounds are an error of rounding and a little more."""
    return unbroken(float(f"{value:.2g}"))


def _around(pairs: list[Interval], centers: list[float | None]) -> str:
    """`within 0.01 of` if the intervals are those around the centers, else nothing."""
    widths = []
    for (low, high), center in zip(pairs, centers, strict=True):
        if None in (low, high, center):
            return ""
        if abs((low + high) / 2 - center) > 0.01 * (high - low) + 1e-15 * abs(center):
            return ""
        widths.append((high - low) / 2)
    least, most = radius(min(widths)), radius(max(widths))
    if max(widths) == 0:
        return "exactly"
    return f"within {most} of" if least == most else f"each within {least} to {most} of"


# ------------------------------------------------------------------------------------ config


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
