"""Tables of the pages on KL terms, trainers and edges, from the numbers in docs/_data."""

import json
import pathlib
from typing import Any

from docs.generate import audit, markdown, rows
from docs.generate.markdown import number

DATA = pathlib.Path(__file__).parents[1] / "_data"
RIGHT, WRONG = "good", "bad"
"""Classes of the style sheet."""


def marked(text: str, look: str) -> str:
    """Text in the colors of right and wrong; the words say it too."""
    return f'<span class="{look}">{text}</span>'


# ----------------------------------------------------------------------------------- KL terms

PLAIN, THROUGH, FIXED = ("k1", "k2", "k3"), "k3 with the gradient of k2", "k1 held fixed"
ON_POLICY = (
    ("reward to go", "in the reward, to go", PLAIN),
    ("reward of the sequence", "in the reward, of the sequence", PLAIN),
    ("loss, summed over tokens", "in the loss, summed over tokens", (*PLAIN, THROUGH, "full")),
    (
        "loss, averaged over each sequence",
        "in the loss, averaged over each sequence",
        (*PLAIN, "full"),
    ),
    ("loss, of the whole sequence", "in the loss, of the whole sequence", (*PLAIN, THROUGH)),
    ("loss, weights of tokens", "in the loss, with weights of tokens", PLAIN),
    ("loss, weights of prefixes", "in the loss, with weights of prefixes", (*PLAIN, FIXED)),
    ("loss, weight of the sequence", "in the loss, with the weight of the sequence", PLAIN),
    ("loss, and reward of later tokens", "in the loss, and later tokens in the reward", ("full",)),
)
OFF_POLICY = (
    ("loss, summed over tokens", "none, summed over tokens"),
    ("loss, weights of tokens", "of the token, differentiated"),
    ("loss, weights of tokens at most 2", "of the token, differentiated, clamped at 2"),
    ("loss, weights of tokens held fixed", "of the token, held fixed"),
    ("loss, weights of tokens held fixed, at most 2", "of the token, held fixed, clamped at 2"),
    ("loss, geometric mean of the weights", "of the sequence, its geometric mean, differentiated"),
    ("loss, weights of prefixes", "of the prefix, differentiated"),
    ("loss, weights of prefixes held fixed", "of the prefix, held fixed"),
    (
        "loss, weight of the sequence at each token",
        "of the sequence, at each token",
    ),
    ("loss, of the whole sequence", "none, of the whole sequence"),
    ("loss, weight of the sequence", "of the sequence, differentiated"),
    ("loss, weight of the sequence held fixed", "of the sequence, held fixed"),
    ("reward to go", "of the token, KL in the reward to go"),
)


def follows(term: dict[str, Any]) -> str:
    """What the expected gradient is."""
    if term["error"] < 1e-9:
        return marked("∇KL(π‖ref), exact", RIGHT)
    if term["error_of_other"] < 1e-9:
        return marked("∇KL(ref‖π), the other direction", WRONG)
    if term["cosine"] is None:
        return marked("0", WRONG)
    off = f", error {number(term['error'])}"
    if term["error_of_each"] < 1e-9:
        return marked("∇ of each token's KL(π‖ref)" + off, WRONG)
    if term["error_of_each_other"] < 1e-9:
        return marked("∇ of each token's KL(ref‖π)" + off, WRONG)
    if term["error_of_length"] < 1e-9:
        return marked("∇E[1/length]" + off, WRONG)
    return marked("none of these" + off, WRONG)


def kl_terms() -> str:
    """Placement times estimator, with samples of the policy."""
    data = json.loads((DATA / "kl_terms.json").read_text())
    rows = []
    for key, label, estimators in ON_POLICY:
        for estimator in estimators:
            term = data["terms"][f"{key}, {estimator}"]
            push = term["length_at_reference"]
            ends = "diverges", "–"
            if term["last_kl"] is not None:
                ends = number(term["last_kl"], 2), number(term["last_length"])
            reached = term["last_kl"] is not None and term["last_kl"] < 1e-2
            rows.append((
                label if estimator == estimators[0] else "", estimator, follows(term),
                "–" if term["cosine"] is None else number(term["cosine"]),
                number(term["gradient_sd"]), number(term["bias"]), number(term["sd"]),
                "0" if push == 0 else marked(f"{push:+.3f}", WRONG),
                marked(ends[0], RIGHT if reached else WRONG), ends[1],
            ))  # fmt: skip
    header = (
        "where the term stands", "estimator", "its expected gradient", "cosine to ∇KL",
        "sd of the gradient", "bias of the value", "sd of the value", "push on length at π = ref",
        "KL after 2,000 steps", "length then",
    )  # fmt: skip
    return markdown.table(header, rows, classes="kl")


def off_policy() -> str:
    """Weights, with samples of an older policy."""
    data = json.loads((DATA / "kl_terms.json").read_text())
    rows = []
    for key, label in OFF_POLICY:
        cells = []
        for estimator in (*PLAIN, THROUGH, FIXED):
            term = data["terms"].get(f"{key}, {estimator}")
            if term is None:
                cells.append("–")
                continue
            error, sd = term["off_policy"], number(term["off_policy_sd"])
            exact = error < 1e-9
            text = "exact" if exact else f"error {number(error)}"
            cells.append(marked(text, RIGHT if exact else WRONG) + f", sd {sd}")
        rows.append((label, *cells))
    header = "weight π/π_old", *PLAIN, THROUGH, FIXED
    return markdown.table(header, rows, classes="kl")


def kl_facts() -> str:
    """The instance that the tables are about."""
    data = json.loads((DATA / "kl_terms.json").read_text())
    return (
        f"At the start KL(π‖ref) is {number(data['kl'])} nats, KL(ref‖π)"
        f" {number(data['other_kl'])}, the expected length {number(data['length'])} tokens where"
        f" the reference has {number(data['reference_length'])}; the older policy is"
        f" KL(π‖π_old) = {number(data['old_kl'])} away."
    )


# ------------------------------------------------------------------------------------- edges


def outcome(seen: dict[str, Any]) -> str:
    """A cell: the value, then the two gradients."""
    if "refused" in seen:
        return "–"
    true, found = float(seen["true"]), float(seen["value"])
    if found != found:
        value = marked("NaN", WRONG)
    elif true == float("inf"):
        return marked(number(found), RIGHT if found == true else WRONG)
    else:
        near = abs(found - true) <= 1e-5 * abs(true)
        value = marked(edge_number(found), RIGHT if near else WRONG)
    if seen["by_p"] is None:
        return value
    gradients = [gradient(seen[key]) for key in ("by_p", "by_q")]
    return f"{value}<br>{gradients[0]}, {gradients[1]}"


def gradient(error: float | str) -> str:
    """`right`, NaN, or by how much it is wrong."""
    if error == "NaN":
        return marked("NaN", WRONG)
    # Of bfloat16 the resolution of a gradient that is itself rounded to it is 2^-9.
    if error < 4e-3:
        return marked("right" if error < 1e-5 else f"{error:.0e}".replace("e-0", "e-"), RIGHT)
    return marked(f"{100 * error:.0f} % off", WRONG)


def edges(divergence: str) -> str:
    """A row for each function."""
    data = json.loads((DATA / "edges.json").read_text())
    cases = list(data["kl"][0]["cases"])
    first = data[divergence][0]["cases"]
    truth = ["<em>true value</em>"] + [
        "∞" if first[case]["true"] == "inf" else edge_number(first[case]["true"]) for case in cases
    ]
    rows = [truth]
    for row in data[divergence]:
        name = f"**{row['library']}** <br>`{row['call']}`"
        rows.append([name, *(outcome(row["cases"][case]) for case in cases)])
    header = (
        "function", "p has a zero", "q has a zero, p not", "both have it",
        "close, float32", "close, bfloat16", "equal, bfloat16",
    )  # fmt: skip
    return markdown.table(header, rows, classes="edges")


def edge_number(x: float) -> str:
    """A true value."""
    return number(x, 4) if x == 0 or abs(x) >= 1e-3 else f"{x:.2e}"


def edges_summary() -> str:
    """What the tables say, counted."""
    data = json.loads((DATA / "edges.json").read_text())
    others = [row for row in data["kl"] + data["js"] if row["library"] != "jdiv"]
    graded = [row for row in others if row["cases"]["zero_of_p"]["by_p"] is not None]

    def failed(row: dict[str, Any], case: str) -> bool:
        seen = row["cases"][case]
        return "NaN" in (seen["by_p"], seen["by_q"]) or seen["value"] == "nan"

    broken = sum(failed(row, "zero_of_p") or failed(row, "zero_of_both") for row in graded)
    half = [row["cases"]["bfloat16"] for row in graded]
    near = sum(max(seen["by_p"], seen["by_q"]) < 0.05 for seen in half)
    negative = sum(seen["value"] < 0 for seen in half)
    return (
        f"Of {len(graded)} differentiable functions of {len({r['library'] for r in graded})} other"
        f" packages, {broken} have a NaN as value or gradient where a logit is masked; in bfloat16"
        f" {near or 'none'} has both gradients within 5 %, and {negative} return a negative"
        " divergence."
    )


def versions() -> str:
    """Packages that ran."""
    found = json.loads((DATA / "edges.json").read_text())["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def write(folder: pathlib.Path) -> None:
    """Writes the parts that pages include."""
    parts = {
        "kl_terms": kl_terms(), "off_policy": off_policy(), "kl_facts": kl_facts(),
        "edges_kl": edges("kl"), "edges_js": edges("js"), "versions": versions(),
        "edges_summary": edges_summary(),
        "rows": rows.table(), **audit.parts(),
    }  # fmt: skip
    for name, text in parts.items():
        markdown.save(folder / f"{name}.part.md", text + "\n")
