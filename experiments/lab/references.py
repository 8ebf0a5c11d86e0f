"""Reference numbers that more than one experiment is compared with."""

import numpy as np

LANGUAGE_MODEL = "tabular language model by enumeration, NumPy seed 0"
KL_GRADIENTS = {
    # (estimator, placement): relative error, cosine to grad KL(pi‖ref) and to grad KL(ref‖pi)
    ("k2", "token-sum"): (0.545, 0.845, 0.950),
    ("k3", "token-sum"): (0.663, 0.795, 0.931),
    ("k1", "sequence-mean"): (1.058, 0.047, np.nan),
    ("k2", "sequence-mean"): (0.819, 0.574, np.nan),
    ("k3", "sequence-mean"): (0.796, 0.606, np.nan),
}
"""Expected gradients of KL terms on that model, from an enumeration in NumPy that is independent of
this code; NaN where no number is given."""
THIRD_DIGIT = 6e-4
"""Half a unit of it, and as much again as it takes to round twice: 0.605492 stands as 0.606."""
