"""dev/plot.py -- draws the log.jsonl of one or more runs: loss, gradient norm, learning rate, speed.
    python3 dev/plot.py runs/a [runs/b ...] [-o plot.png]        needs matplotlib"""
import json, math, os, sys

INK, GRID, COLORS = "#33383d", "#e6e8ea", ["#1f6fb4", "#d9541e", "#2e9e5b", "#8454b8", "#b8860b", "#3aa6b9"]


def die(line):
    sys.exit("error: " + line)


def read(run):
    """{event: [objects]} of a run's log; a directory or the file itself."""
    path, events = os.path.join(run, "log.jsonl") if os.path.isdir(run) else run, {}
    try:
        lines = open(path, encoding="utf-8", errors="replace").read().split("\n")
    except OSError as e:
        die(f"{path}: cannot open: {e.strerror}; give the --out of a run")
    for i, line in enumerate(lines[:-1]):                     # what follows the last newline is nothing, or torn
        try:
            event = json.loads(line)
            events.setdefault(event["event"], []).append(event)
        except (ValueError, KeyError, TypeError):
            die(f"{path}: line {i + 1}: not an event of a run's log")
    return events if "step" in events else die(f"{path}: holds no steps yet")


def column(events, x, y):
    points = [(e[x], e[y]) for e in events if isinstance(e.get(y), (int, float))]
    return [p[0] for p in points], [p[1] for p in points]


def smooth(values):
    """A mean over about 2 % of the run, weighted exponentially; without the pull of the first value."""
    keep, total, weight, out = 1 - 1 / max(1, len(values) / 50), 0, 0, []
    for v in values:
        total, weight = keep * total + v, keep * weight + 1
        out.append(total / weight)
    return out


def main(words):
    out = "plot.png"
    if "-o" in words:
        at = words.index("-o")
        if at + 1 == len(words):
            die("-o: needs a file name")
        out, words = words[at + 1], words[:at] + words[at + 2:]
    if not words or words[0].startswith("-"):
        sys.exit("usage: python3 dev/plot.py RUN... [-o plot.png]")
    runs = [(os.path.basename(os.path.normpath(run)), read(run)) for run in words]
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        die("matplotlib is not installed; try: python3 -m pip install matplotlib")

    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
                         "axes.edgecolor": INK, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
                         "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold", "lines.linewidth": 1.3,
                         "legend.frameon": False, "xtick.major.width": 0.6, "ytick.major.width": 0.6})
    figure = plt.figure(figsize=(9, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[1.9, 1])
    loss, small = figure.add_subplot(grid[0, :]), [figure.add_subplot(grid[1, i]) for i in range(3)]
    floors = set()
    for i, (name, events) in enumerate(runs):
        color, steps, evals = COLORS[i % len(COLORS)], events["step"], events.get("eval", [])
        x, y = column(steps, "step", "loss")
        loss.plot(x, y, color=color, alpha=0.25, linewidth=0.7)
        loss.plot(x, smooth(y), color=color, label="training loss" if len(runs) == 1 else name)
        x, y = column(evals, "step", "val_loss")
        loss.plot(x, y, "o", color=color, markersize=5, markeredgecolor="white", label="validation" if len(runs) == 1 else None)
        floors |= {e["floor"] for e in events.get("run", []) + evals if isinstance(e.get("floor"), (int, float))}
        for axes, key in zip(small, ("norm", "lr", "tokens_per_s")):
            x, y = column(steps, "step", key)
            faint = key != "lr"
            axes.plot(x, y, color=color, alpha=0.25 if faint else 1, linewidth=0.7 if faint else 1.3)
            if faint:
                axes.plot(x, smooth(y), color=color)
    for k, floor in enumerate(sorted(floors)):
        loss.axhline(floor, color=INK, linestyle=(0, (5, 3)), linewidth=0.9, label=None if k else "floor")
    if len(runs) > 1:                                         # one entry for the points of all runs
        loss.plot([], [], "o", color="#888", markersize=5, label="validation")
    # the first steps fall from ln V: keep them in sight, but let the rest have the height
    losses = sorted(v for _, e in runs for v in column(e["step"], "step", "loss")[1])
    if losses and losses[0] > 0 and losses[-1] > 4 * losses[len(losses) // 2]:
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter("{x:g}"), loss.yaxis.set_minor_formatter("{x:g}")
    norms = sorted(v for _, e in runs for v in column(e["step"], "step", "norm")[1])
    if norms:
        small[0].set_ylim(0, min(norms[-1], 4 * norms[int(0.95 * (len(norms) - 1))]) * 1.05 or 1)
    small[2].set_ylim(bottom=0)
    small[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    small[2].yaxis.set_major_formatter(lambda v, _: f"{v / 1e6:g}M" if v >= 1e6 else f"{v / 1e3:g}k" if v >= 1e3 else f"{v:g}")
    for axes, title in zip([loss] + small, ("loss, nats/token", "gradient norm", "learning rate", "tokens/s")):
        axes.set_title(title)
        axes.margins(x=0.01)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step")
    loss.legend(loc="upper right")
    try:
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as e:
        die(f"{out}: cannot write: {e}")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
