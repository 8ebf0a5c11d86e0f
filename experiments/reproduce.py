"""Runs the experiments and writes their figures: `python -m experiments.reproduce`."""

import argparse
import pathlib
import time

import jax
import matplotlib

from configs.estimation import atlas as atlas_config
from experiments.estimation import atlas

matplotlib.use("Agg")


def main() -> None:
    """Computes the atlas and writes its table and figures into the working directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="quick", choices=("smoke", "quick", "full"))
    parser.add_argument("--workdir", default="runs", type=pathlib.Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    folder = arguments.workdir / "estimation" / "atlas"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    config = atlas_config.get_config(arguments.scale)
    with jax.enable_x64(True):
        results = atlas.run(config)
    (folder / "table.csv").write_text(atlas.table(results))
    for name, figure in atlas.figures(config, results).items():
        for suffix in ("png", "pdf"):
            figure.savefig(folder / "figures" / f"{name}.{suffix}", dpi=150)
    print(f"atlas: {len(list((folder / 'figures').glob('*.png')))} figures and a table in {folder}")
    print(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
