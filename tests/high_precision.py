"""The divergences by their definitions, in mpmath: slow, and nothing in common with jdiv's code.

`python tests/high_precision.py` recomputes values and gradients of `tests/data/divergences.json`
with 400 digits and says where the file differs.
"""

import json
import pathlib

import mpmath as mp

DATA = pathlib.Path(__file__).parent / "data" / "divergences.json"


def softmax(logits):
    """Probabilities; None is a logit of minus infinity."""
    weights = [mp.mpf(0) if z is None else mp.e ** mp.mpf(z) for z in logits]
    total = mp.fsum(weights)
    return [w / total for w in weights]


def _kl(p, q):
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return mp.inf
    return mp.fsum(a * mp.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _power_sum(p, q, a):
    """sum p^a q^(1-a), with 0 * inf = 0 where both are zero."""
    pairs = [(x, y) for x, y in zip(p, q, strict=True) if x > 0 or y > 0]
    if (a >= 1 and any(y == 0 for _, y in pairs)) or (a <= 0 and any(x == 0 for x, _ in pairs)):
        return mp.inf
    return mp.fsum(x**a * y ** (1 - a) for x, y in pairs if x > 0 and y > 0)


def _mix(p, q, w):
    return [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]


def _chi2(p, q):
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return mp.inf
    return mp.fsum((a - b) ** 2 / b for a, b in zip(p, q, strict=True) if b > 0)


def divergence(name, p, q, **parameters):
    """D(p, q) of two lists of probabilities."""
    x = {key: mp.mpf(value) for key, value in parameters.items()}
    pairs = list(zip(p, q, strict=True))
    match name:
        case "kl":
            return _kl(p, q)
        case "reverse_kl":
            return _kl(q, p)
        case "jeffreys":
            return _kl(p, q) + _kl(q, p)
        case "jensen_shannon":
            w, m = x["weight"], _mix(p, q, x["weight"])
            return w * _kl(p, m) + (1 - w) * _kl(q, m)
        case "skew_kl":
            return _kl(p, _mix(p, q, 1 - x["skew"]))
        case "total_variation":
            return mp.fsum(abs(a - b) for a, b in pairs) / 2
        case "squared_hellinger":
            return mp.fsum((mp.sqrt(a) - mp.sqrt(b)) ** 2 for a, b in pairs) / 2
        case "pearson_chi2":
            return _chi2(p, q)
        case "neyman_chi2":
            return _chi2(q, p)
        case "le_cam":
            return mp.fsum((a - b) ** 2 / (2 * (a + b)) for a, b in pairs if a + b > 0)
        case "alpha":
            a = x["alpha"]
            return (_power_sum(p, q, a) - 1) / (a * (a - 1))
        case "tsallis":
            return (_power_sum(p, q, x["index"]) - 1) / (x["index"] - 1)
        case "chi2_kl":
            return _chi2(p, q) / 2 + x["gamma"] * _kl(p, q)
        case "renyi":
            total = _power_sum(p, q, x["alpha"])
            return mp.inf if total in (0, mp.inf) else mp.log(total) / (x["alpha"] - 1)
        case "bhattacharyya":
            total = mp.fsum(mp.sqrt(a * b) for a, b in pairs)
            return mp.inf if total == 0 else -mp.log(total)
        case "cauchy_schwarz":
            cross = mp.fsum(a * b for a, b in pairs)
            squares = mp.fsum(a * a for a in p) * mp.fsum(b * b for b in q)
            return mp.inf if cross == 0 else -mp.log(cross**2 / squares)
        case "bregman":
            a = x["alpha"]
            terms = (
                (u**a - v**a) / (a * (a - 1)) - v ** (a - 1) * (u - v) / (a - 1) for u, v in pairs
            )
            return mp.fsum(terms)
    raise ValueError(name)


def value_and_gradients(name, p_logits, q_logits, **parameters):
    """The divergence and its central differences by each finite logit, None for the others."""
    step = mp.mpf(10) ** -(mp.mp.dps // 3)

    def at(which, index, change):
        logits = [list(p_logits), list(q_logits)]
        logits[which][index] = mp.mpf(logits[which][index]) + change
        return divergence(name, softmax(logits[0]), softmax(logits[1]), **parameters)

    value = divergence(name, softmax(p_logits), softmax(q_logits), **parameters)
    if value == mp.inf:
        return value, None, None
    gradients = [
        [
            None if z is None else (at(which, i, step) - at(which, i, -step)) / (2 * step)
            for i, z in enumerate(logits)
        ]
        for which, logits in enumerate((p_logits, q_logits))
    ]
    return value, *gradients


def _report():
    mp.mp.dps = 400
    for index, row in enumerate(json.loads(DATA.read_text())):
        parameters = {"index" if k == "q" else k: v for k, v in row["params"].items()}
        value, *gradients = value_and_gradients(
            row["name"], row["p_logits"], row["q_logits"], **parameters
        )
        if abs(float(value) - float(row["value"])) > 1e-14 * abs(float(value)):
            print(index, row["name"], "value", float(value), row["value"])
        for key, gradient in zip(("grad_p", "grad_q"), gradients, strict=True):
            if row[key] is None or gradient is None:
                continue
            exact = [float(g) for g in gradient if g is not None]
            error = max(
                abs(a - b)
                for a, b in zip(exact, [g for g in row[key] if g is not None], strict=True)
            )
            if error > 1e-9 * max(map(abs, exact)):
                print(index, row["name"], key, exact, row[key])


if __name__ == "__main__":
    _report()
