"""Draw the history of `make bench-control`: seconds until pods are created and groups ready, as multiples of a plain Deployment's."""

import collections
import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "llamero", "svg.fonttype": "none"})
import matplotlib.pyplot as plt

source, picture = sys.argv[1:]
sizes = collections.defaultdict(list)
for line in pathlib.Path(source).read_text().splitlines():
    run = json.loads(line)
    sizes[run["pods"]].append(run)

marks = {"created": 1.5, "ready": 2.0}
figure, axes = plt.subplots(1, len(marks), figsize=(9, 2.8), layout="constrained")
for axis, (what, mark) in zip(axes, marks.items()):
    for pods, runs in sorted(sizes.items()):
        ratios = [run["start"][what] / max(run["reference"][what], 0.01) for run in runs]
        axis.plot(range(1, len(ratios) + 1), ratios, marker="o", label=f"{pods} pods")
        for run, ratio in zip(runs, ratios):
            print(f"{pods:6} pods {what:8} {run['start'][what]:7.2f} s, {ratio:.2f} times the reference's {run['reference'][what]:.2f} s")
    axis.axhline(mark, color="#999", linewidth=1)
    axis.set(title=f"{what} (mark {mark})", xlabel="run", ylabel="times a plain Deployment")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
figure.savefig(picture, metadata={"Date": None})
