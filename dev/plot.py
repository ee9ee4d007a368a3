"""dev/plot.py -- draws the log.jsonl of one or more runs: loss, gradient norm, learning rate, speed, and what the later
stages log beside them; or the kernels of a table that `make bench` wrote: time beside its floor, and the roofline.
    python3 dev/plot.py runs/a [runs/b ...] [-o plot.png]        needs matplotlib; into the first directory, unless told
    python3 dev/plot.py build/bench.csv [-o bench.png]"""
import csv, itertools, json, os, sys

INK, GRID, COLORS = "#33383d", "#e6e8ea", ["#1f6fb4", "#d9541e", "#2e9e5b", "#8454b8", "#b8860b", "#3aa6b9"]
PANELS = (("norm", "gradient norm"), ("lr", "learning rate"), ("tokens_per_s", "tokens/s"))
LATER = (("reward", "reward"), ("kl", "KL from --init, nats/token"), ("length", "tokens of an answer"),
         ("accuracy", "pairs in the right order"), ("margin", "margin"), ("calibration_error", "calibration error"))


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


def column(events, name):
    """Steps and values, without those that were not finite (null in the log)."""
    points = [(e["step"], e[name]) for e in events if isinstance(e.get(name), (int, float))]
    return [x for x, _ in points], [y for _, y in points]


def smooth(values):
    """The mean of about 3 % of the run around each value, twice; of fewer near the ends, so that it stays in the
    middle."""
    for _ in range(2):
        n, sums = len(values), [0, *itertools.accumulate(values)]
        widths = [min(n // 70, i, n - 1 - i) for i in range(n)]
        values = [(sums[i + w + 1] - sums[i - w]) / (2 * w + 1) for i, w in enumerate(widths)]
    return values


def short(value, _):
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def pyplot():
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import matplotlib.ticker
    except ImportError:
        die("matplotlib is not installed; try: python3 -m pip install matplotlib")
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
                         "ytick.color": INK, "axes.edgecolor": INK, "axes.linewidth": 0.6, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
                         "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold",
                         "axes.xmargin": 0.01, "legend.frameon": False})
    return matplotlib, plt


def save(figure, out):
    try:
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as e:
        die(f"{out}: cannot write: {e}")
    print(f"wrote {out}")


def kernels(path):
    """{machine: {kernel: row}} of a table: of each kernel the largest shape, and of that what ships, or the fastest
    rung."""
    best = {}
    try:
        with open(path, encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                row.update({k: float(row[k]) for k in ("ms", "floor ms", "GB", "TFLOP")})
                if row["floor ms"] < 1e-3:                    # launching a kernel takes longer
                    continue
                rank = row["floor ms"], row["rung"] == "shipped", -row["ms"]
                old = best.setdefault(row["machine"], {}).get(row["kernel"])
                # rows of one shape, whose floors were measured apart, and differ a little
                same = old and old[1]["shape"] == row["shape"]
                if not old or (rank[1:] > old[0][1:] if same else rank > old[0]):
                    best[row["machine"]][row["kernel"]] = rank, row
    except OSError as e:
        die(f"{path}: cannot open: {e.strerror}; make bench writes build/bench.csv")
    except (KeyError, TypeError, ValueError):
        die(f"{path}: not a table of make bench")
    found = {machine: [row for _, row in rows.values()] for machine, rows in best.items()}
    return found or die(f"{path}: holds no rows")


def draw_kernels(tables, out):
    matplotlib, plt = pyplot()
    heights = [max(2.6, 0.6 + 0.21 * len(rows)) for rows in tables.values()]
    figure = plt.figure(figsize=(11, sum(heights) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(tables), 2, height_ratios=heights)
    for at, (machine, rows) in enumerate(tables.items()):
        bars, roofline = figure.add_subplot(grid[at, 0]), figure.add_subplot(grid[at, 1])
        rows = sorted(rows, key=lambda row: row["ms"])
        places = range(len(rows))
        bars.barh(places, [row["ms"] for row in rows], color=COLORS[0], height=0.66, label="time")
        bars.barh(places, [row["floor ms"] for row in rows], color=COLORS[4], height=0.3, label="floor")
        for y, row in zip(places, rows):
            bars.annotate(f" {100 * row['floor ms'] / row['ms']:.0f} %", (row["ms"], y), va="center", fontsize=7)
        bars.set_yticks(places, [f"{row['kernel']}, {row['shape']}" for row in rows], fontsize=6.5)
        bars.set_xscale("log")
        bars.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        bars.xaxis.set_major_formatter(short)
        bars.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        bars.set_xlim(min(row["floor ms"] for row in rows) / 2, 2 * max(row["ms"] for row in rows))
        bars.set_xlabel("ms; the share of the roof beside each bar")
        bars.set_title(machine)
        bars.legend(loc="lower right")
        # the roofs, in TB/s and TFLOP/s, as the floors tell them: each is what its fastest rows would need
        memory, compute = (max(row[k] / row["floor ms"] for row in rows) for k in ("GB", "TFLOP"))
        compute *= 1e3
        points = [(row["TFLOP"] / row["GB"] * 1e3, row["TFLOP"] / row["ms"] * 1e3, row)
                  for row in rows if row["TFLOP"] and row["GB"]]
        if points:
            reach = [min(x for x, _, _ in points) / 2, max(max(x for x, _, _ in points), compute / memory) * 2]
            xs = [reach[0], compute / memory, reach[1]]
            roofline.plot(xs, [min(memory * x, compute) for x in xs], color=INK, linewidth=1)
            roofline.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=COLORS[0], markersize=4)
            for x, y, row in points:
                roofline.annotate(row["kernel"], (x, y), fontsize=6.5, xytext=(3, -7), textcoords="offset points")
            roofline.set_xscale("log")
            roofline.set_yscale("log")
        roofline.set_xlabel("FLOPs a byte")
        roofline.set_title(f"TFLOP/s under {compute:.3g} TFLOP/s and {memory:.3g} TB/s")
    save(figure, out)


def stage_of(events):
    return events.get("run", [{}])[0].get("options", {}).get("stage", "pretrain")


def draw(runs, out):
    matplotlib, plt = pyplot()
    stages = {stage_of(events) for _, events in runs}
    titles = {("reward",): "loss, nats/pair", ("rl",): "PPO's loss"}
    title = titles.get(tuple(stages), "loss, nats/token" if stages <= {"pretrain", "sft"} else "loss")
    panels = [("loss", title), *PANELS]
    panels += [panel for panel in LATER if any(column(e["step"] + e.get("eval", []), panel[0])[0] for _, e in runs)]
    rows = (len(panels) + 1) // 3                             # of small ones, three a row
    figure = plt.figure(figsize=(9, 3.4 + 1.8 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=[1.9] + [1] * rows)
    loss = figure.add_subplot(grid[0, :])
    small = [figure.add_subplot(grid[1 + i // 3, i % 3]) for i in range(len(panels) - 1)]
    ends, floors, many = {axes: [0] for axes in [loss] + small}, set(), len(runs) > 1
    for (name, events), color in zip(runs, itertools.cycle(COLORS)):
        answers = "".join(f", answers right {e['right']} of {e['of']}" for e in events.get("answers", [])[-1:])
        for axes, (key, _) in zip([loss] + small, panels):
            x, y = column(events["step"], key)
            line = smooth(y) if key != "lr" else y
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.7)
            axes.plot(x, line, color=color, linewidth=1.3, label=(name if many else "training") + answers)
            ends[axes] += line                                # single spikes may leave the picture
            if "eval" not in events:
                continue
            x, y = column(events["eval"], "val_loss" if axes is loss and stage_of(events) != "rl" else key)
            axes.plot(x, y, "o", color=color, markersize=5, markeredgecolor="white",
                      label=None if many else "validation")
            ends[axes] += y
        floors |= set(column(events.get("run", []) + events.get("eval", []), "floor")[1])
    if many:
        loss.plot([], [], "o", color="#888", markersize=5, label="validation")
    for floor in floors:
        loss.axhline(floor, color=INK, linestyle=(0, (5, 3)), linewidth=0.9,
                     label="floor" if floor == max(floors) else None)
    for axes, (_, title) in zip([loss] + small, panels):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter(short)
        axes.yaxis.set_major_formatter(short)
        low, high = min(ends[axes]), max(ends[axes])
        axes.set_ylim(None if axes is loss else 1.06 * low, 1.06 * high or -0.06 * low or 1)
    if floors and 0 < 5 * min(floors) < max(ends[loss]):      # a floor far below the start: show ratios to it
        loss.set_yscale("log")
        low = 0.9 * min(floors)
        loss.set_ylim(low, 1.06 * max(ends[loss]))
        loss.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
        loss.yaxis.set_major_formatter(short)
        loss.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    loss.legend(loc="upper right")
    save(figure, out)


if __name__ == "__main__":
    words, out = sys.argv[1:], ""
    if "-o" in words[:-1]:
        at = words.index("-o")
        out, words = words[at + 1], words[:at] + words[at + 2:]
    if not words or any(word.startswith("-") for word in words):
        sys.exit("usage: python3 dev/plot.py RUN... | TABLE.csv [-o plot.png]")
    if words[0].endswith(".csv"):
        draw_kernels(kernels(words[0]), out or words[0][:-4] + ".png")
    else:
        draw([(os.path.basename(os.path.normpath(run)), read(run)) for run in words],
             out or os.path.join(words[0] if os.path.isdir(words[0]) else os.path.dirname(words[0]), "plot.png"))
