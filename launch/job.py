"""What the launchers share: the arguments, the command that every host runs, how they say no."""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable

ROOT = pathlib.Path(__file__).parents[1]
BUCKETS = ("gs://", "s3://")


class Parser(argparse.ArgumentParser):
    """Refuses in one line, with exit code 2."""

    def error(self, message: str) -> None:
        """Says why and ends."""
        self.exit(2, f"{message}\n")


def parser(doc: str) -> Parser:
    """A parser with the arguments that every launcher has."""
    found = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--name", required=True, help="of the machines or of the job")
    found.add_argument("--config", required=True, help="configs/<area>/<name>.py[:scale]")
    found.add_argument("--workdir", required=True, help="a folder that all hosts see")
    found.add_argument("--dry_run", action="store_true", help="print what would be run")
    found.add_argument("options", nargs="*", metavar="-- OPTION", help="--config.<field>=<value>")
    return found


def parsed(found: Parser, argv: list[str]) -> argparse.Namespace:
    """The arguments, if they fit each other."""
    arguments = found.parse_args(argv)
    path = arguments.config.partition(":")[0]
    if pathlib.PurePath(path).is_absolute() or not (ROOT / path).is_file():
        found.error(f"--config must be a file of this repository, got {arguments.config!r}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", arguments.name):
        found.error(
            "--name must be lower-case letters, digits and -, at most 40 and a letter first,"
            f" got {arguments.name!r}"
        )
    for option in arguments.options:
        if not option.startswith(("--config.", "--overwrite")):
            found.error(f"behind -- are --config.<field>=<value> and --overwrite, got {option!r}")
    return arguments


def in_bucket(workdir: str) -> bool:
    """Whether the folder is in a bucket."""
    return workdir.startswith(BUCKETS) and len(workdir) > len(BUCKETS[0])


def command(arguments: argparse.Namespace, python: str) -> list[str]:
    """What every host runs."""
    return [
        python, "-m", "experiments.run", f"--config={arguments.config}",
        f"--workdir={arguments.workdir}", "--distributed", *arguments.options,
    ]  # fmt: skip


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


Step = tuple[list[str], str | None]
"""A command, and what it is given to read."""


def run(steps: Iterable[Step], *, dry_run: bool) -> int:
    """Runs the steps up to the first that fails, or prints them; the exit code."""
    for words, given in steps:
        if dry_run:
            print(shlex.join(words) + (f" <<'END'\n{given}END" if given else ""))
            continue
        try:
            done = subprocess.run(words, input=given, text=True, check=False)
        except FileNotFoundError:
            print(f"{words[0]} is not installed here", file=sys.stderr)
            return 2
        if done.returncode:
            return done.returncode
    return 0


def main(module_doc: str, add: Callable[[Parser], None], plan: Callable[..., list[Step]]) -> int:
    """The command line of a launcher: `add` adds its arguments, `plan` makes steps of them."""
    found = parser(module_doc)
    add(found)
    arguments = parsed(found, sys.argv[1:])
    return run(plan(found, arguments), dry_run=arguments.dry_run)
