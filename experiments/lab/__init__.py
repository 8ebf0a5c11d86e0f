"""The engine behind the experiments: sweeps, programs, records, claims, figures, the report."""
