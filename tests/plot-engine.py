"""Draw and print what `llamero-worker bench --json` measured: speeds as parts of the machine's bounds, medians of all runs."""

import collections
import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "llamero", "svg.fonttype": "none"})
import matplotlib.pyplot as plt

source, picture = sys.argv[1:]
runs = collections.defaultdict(list)
for line in pathlib.Path(source).read_text().splitlines():
    run = json.loads(line)
    kind = "FP8" if run["model"].endswith("-FP8") else "bf16"
    runs[f"{kind}, {run['threads']} thread{'s' * (run['threads'] > 1)}"].append(run)

median = lambda of, pick: statistics.median(pick(run) for run in of)
parts = [
    ("decode", "of the bound that memory bandwidth sets", "ratioToBandwidth"),
    ("prefill", "of the peak of bf16 dot products", "ratioToPeak"),
]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
for axis, (name, bound, ratio) in zip(axes, parts):
    shares = [100 * median(of, lambda run: run[name][ratio]) for of in runs.values()]
    bars = axis.barh(list(runs), shares, color="#4a7a5c", zorder=2)
    speeds = [median(of, lambda run: run[name]["tokensPerSecond"]) for of in runs.values()]
    axis.bar_label(bars, [f"{share:.0f} %, {speed:.0f} tokens/s" for share, speed in zip(shares, speeds)], padding=9, backgroundcolor="white", zorder=3)
    axis.set(xlim=(0, 140), xlabel=f"% {bound}", title=name)
    axis.axvline(100, color="#999", linewidth=1, zorder=1)
    axis.spines[["top", "right"]].set_visible(False)
    for kind, share, speed in zip(runs, shares, speeds):
        print(f"{name:8} {kind:16} {speed:7.1f} tokens/s  {share:3.0f} % {bound}")
axes[0].invert_yaxis()
figure.savefig(picture, metadata={"Date": None})
