"""Experiments: each reproduces a claim of a paper as a number that can fail and a figure.

Of a command of this package, `python -m experiments.<name>`, this is the first that runs. Importing
the rest takes seconds, in which Ctrl-C ends the process in one line as it does later.
"""

import os
import signal
import sys


def _interrupted(number, frame):
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if sys.argv[:1] == ["-m"]:  # what Python puts there while it looks for the command
    signal.signal(signal.SIGINT, _interrupted)
