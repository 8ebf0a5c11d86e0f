"""The package is imported before pytest collects doctests, so that each module exists once."""

import jdiv.divergences
import jdiv.regularized  # noqa: F401
