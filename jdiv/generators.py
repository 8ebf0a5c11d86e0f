"""`jdiv.divergences.generators` by its short name, for `import jdiv.generators`."""

from __future__ import annotations

import sys

from jdiv.divergences import generators

sys.modules[__name__] = generators
