"""Draw the history of `make bench-gateway`: our figures as multiples of smg's in the same run, and print them beside each other."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "llamero", "svg.fonttype": "none"})
import matplotlib.pyplot as plt

source, picture = sys.argv[1:]
runs = [json.loads(line) for line in pathlib.Path(source).read_text().splitlines()]
names = {
    "shortPerCpuSecond": "1 KB prompts a CPU second",
    "tokensPerCpuSecond": "streamed tokens a CPU second",
    "longPerCpuSecond": "220 KB prompts a CPU second",
}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, label in names.items():
    ratios = [run["ours"][name] / run["smg"][name] for run in runs]
    axis.plot(range(1, len(ratios) + 1), ratios, marker="o", label=label)
    for run, ratio in zip(runs, ratios):
        print(f"{run['date']} {label:30} {run['ours'][name]:12.0f}, {ratio:.2f} times smg's {run['smg'][name]:.0f}")
for run in runs:
    for who in ("ours", "smg"):
        short, streams = run[who]["shortMillis"], run[who]["streams"]
        print(f"{run['date']} {who:5} adds {short['p50Added']:.2f} ms (p99 {short['p99Added']:.2f}) at {short['rate']}/s; "
              f"{streams['bytesEach'] / 1000:.1f} kB a stream at {streams['count']}")
axis.axhline(2, color="#999", linewidth=1)
axis.set(title="Times smg (mark 2)", xlabel="run", ylabel="times")
axis.set_ylim(bottom=0)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False)
figure.savefig(picture, metadata={"Date": None})
