"""The shape of the code: who may import whom, how long a function may be, what a wheel holds."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LONGEST = 60

# From the ground up; a module imports from its own floor and those below.
FLOORS = (
    ("jdiv.types", "jdiv.parallel", "jdiv.checkpoints"),
    ("jdiv.checks", "jdiv.numerics", "jdiv.roots"),
    ("jdiv.divergences", "jdiv.generators"),
    ("jdiv.estimators", "jdiv.regularized"),
    ("jdiv.mdp", "jdiv.bandits", "jdiv.games", "jdiv.policy", "jdiv.alignment", "jdiv.lm"),
    ("jdiv.distillation", "jdiv.decoding", "jdiv.unlearning"),
    ("jdiv",),
    ("configs",),
    ("experiments.lab",),
    ("experiments",),
)
FILES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for package in ("jdiv", "configs", "experiments")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def module(path):
    """`jdiv.policy` of jdiv/policy/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(path):
    """Modules of this repository that a file imports while it is imported itself."""
    inside = {id(n) for f in ast.walk(FILES[path]) if isinstance(f, FUNCTION) for n in ast.walk(f)}
    for node in ast.walk(FILES[path]):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in submodules]
        else:
            continue
        yield from (name for name in names if name in MODULES)


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def floor(name):
    """The floor of a module: that of the longest prefix."""
    fitting = [
        (len(prefix), number)
        for number, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    return max(fitting)[1]


def test_no_arrow_runs_upwards():
    upward = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imports(path)
        if floor(other) > floor(name)
    ]
    assert upward == []


def test_no_import_cycle():
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    # A package names its modules, and they may import siblings by way of it.
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {name: below - packages for name, below in graph.items() if name not in packages}
    done = set()
    while len(done) < len(graph):
        free = {name for name, below in graph.items() if name not in done and below <= done}
        assert free, f"a cycle among {sorted(set(graph) - done)}"
        done |= free


def test_no_experiment_imports_another():
    for name, path in MODULES.items():
        if name.startswith("experiments.") and not name.startswith("experiments.lab"):
            others = [
                other
                for other in imports(path)
                if other.count(".") == 2
                and other.startswith("experiments.")
                and not other.startswith("experiments.lab.")
            ]
            assert others == [], name


def functions():
    """Every function of library and experiments, with its length."""
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION):
                yield f"{module(path)}.{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_page():
    assert [f"{name} {lines}" for name, lines in functions() if lines > LONGEST] == []


def test_only_one_file_says_pmap_and_only_one_imports_orbax():
    def saying(*words):
        return {
            module(path)
            for path, tree in FILES.items()
            for node in ast.walk(tree)
            if (isinstance(node, ast.Attribute) and node.attr in words)
            or (isinstance(node, ast.Import) and node.names[0].name.split(".")[0] in words)
        }

    assert saying("pmap", "shard_map", "psum", "pmean", "pmax", "all_gather") == {"jdiv.parallel"}
    assert saying("orbax") == {"jdiv.checkpoints"}


@pytest.mark.parametrize(
    "statement",
    [
        "import jdiv; jdiv.mdp.Mdp; jdiv.policy.clipped.ppo_clip; jdiv.alignment.preference.dpo",
        "from jdiv import divergences as dv, generators; dv.kl; dv.alpha; generators.get('kl')",
        "from jdiv import policy; policy.tokens.sequence_mean; policy.advantages.grpo_advantages",
        "import jdiv; jdiv.generators.TABLE; jdiv.regularized.greedy; jdiv.games; jdiv.bandits",
        "import jdiv; jdiv.mdp.value_iteration.run; jdiv.policy.kl_terms.kl_penalty; jdiv.lm",
    ],
)
def test_public_names_are_found_by_their_path(statement):
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT)


def test_importing_the_library_imports_no_optional_package():
    optional = {"optax", "gymnax", "ott", "orbax", "matplotlib", "xarray", "flax", "chex", "scipy"}
    code = (
        "import jax, sys; before = set(sys.modules); import jdiv;"
        f" print(sorted({optional} & (set(sys.modules) - before)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]"
