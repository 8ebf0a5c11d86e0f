"""The first picture: a KL penalty that is a length bonus, from the results of a run.

    python -m docs.generate.picture runs/estimation/kl_penalties

writes docs/_static/kl_penalties.png.
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import xarray as xr

TARGET = pathlib.Path(__file__).parents[1] / "_static" / "kl_penalties.png"
LINES = {
    # Colors of Okabe and Ito, told apart by every eye; the ends of lines say what they are.
    "k1 sequence-mean": ("#D55E00", "-", "k1 in the loss,\naveraged over each sequence"),
    "k1 token-sum": ("#707070", ":", "k1 in the loss, summed"),
    "k3 sequence-mean": ("#009E73", "--", "k3 in the loss, averaged"),
    "k1 reward-to-go": ("#0072B2", "-", "k1 in the reward, to go"),
}


def draw(results: xr.Dataset) -> plt.Figure:
    """Length and KL along descents on four penalties."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.5), layout="constrained")
    for name, (color, style, label) in LINES.items():
        here = results.sel(loss=name, seed=0)
        wide = 3 if name == "k1 sequence-mean" else 2
        for axis, values in zip(axes, (here.length, here.kl), strict=True):
            axis.plot(results.step, values, color=color, linestyle=style, linewidth=wide)
        at = {"k1 sequence-mean": 4.0, "k1 token-sum": 0.4}.get(name, float(here.kl[-1]))
        axes[1].annotate(
            label, (results.step[-1], at), (8, 0), textcoords="offset points", color=color,
            va="center", annotation_clip=False,
        )  # fmt: skip
    for axis in axes:
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="gradient step", xlim=(0, 2000))
        axis.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
        axis.grid(color="#e4e4e4", linewidth=0.7)
    axes[0].set(ylabel="expected length, tokens", ylim=(1.8, 3.08))
    axes[0].set_title("Answers get longer …", loc="left", fontsize=10.5)
    axes[1].set(ylabel="KL(π‖ref), nats", yscale="log", ylim=(1e-6, 10))
    axes[1].set_title("… and the KL that is penalized grows", loc="left", fontsize=10.5)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw(xr.load_dataset(pathlib.Path(sys.argv[1]) / "results.nc")).savefig(TARGET, dpi=130)
