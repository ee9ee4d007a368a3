#!/usr/bin/env python3
"""Times training steps of GPT-2 124M on the CPU: train_gpt, PyTorch, and llm.c where a checkout is given.

    python3 dev/bench_cpu.py [--shapes 4x64,4x256,2x1024] [--rounds 3] [--steps 5] [--llmc DIR] [--threads N]

Same model (12 layers, 768 channels, vocabulary 50257, tied head), same random tokens, whole steps: forward, backward,
clipping, AdamW. The programs take turns, so that a machine which slows down slows all of them; figures are medians over
the steps of all rounds, the first step of a run left out. Memory is the largest that a process held for itself
(RssAnon). PyTorch (dev/bench_torch.py; pip install torch numpy) runs in float32 and in bfloat16 autocast, with and
without torch.compile. llm.c's program trains on B 4, T 64 only; it is compiled with gcc and its own flags, its best
here.
"""
import argparse
import array
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

L, NH, C, V = 12, 12, 768, 50257


def write_shard(path, tokens):
    with open(path, "wb") as f:
        f.write(struct.pack("<3i", 20240520, 1, tokens).ljust(1024, b"\0"))
        rng = random.Random(1)
        array.array("H", (rng.randrange(V) for _ in range(tokens))).tofile(f)


def watch(command, line_ms, enough, cwd=None, env=None):
    """Runs a command, reads milliseconds from its lines, and ends it when there are enough; also its peak memory."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=env)
    peak = 0

    def poll():
        nonlocal peak
        while process.poll() is None:
            try:
                with open(f"/proc/{process.pid}/status") as f:
                    found = re.search(r"RssAnon:\s+(\d+) kB", f.read())
                peak = max(peak, int(found.group(1)) * 1024 if found else 0)
            except OSError:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=poll)
    watcher.start()
    times, last = [], ""
    for line in process.stdout:
        last = line.strip() or last
        if found := re.search(line_ms, line):
            times.append(float(found.group(1)))
        if len(times) >= enough:
            process.kill()
            break
    process.wait()
    watcher.join()
    if len(times) < enough:
        sys.exit(f"error: {' '.join(command)}: {last}")
    return times[1:], peak


def ours(B, T, steps, work, dtype):
    out = os.path.join(work, "run")
    command = ["./train_gpt", "train", "--train", f"{work}/tokens.bin", "--init", "d12", "--batch", str(B), "--context",
               str(T), "--steps", str(steps + 2), "--sample-every", "0", "--dtype", dtype, "--out", out]
    result = watch(command, r"^step .* (\d+) ms ", steps + 1)
    subprocess.run(["rm", "-rf", out], check=True)
    return result


def torch_program(B, T, steps, work, dtype, compiled):
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "bench_torch.py"), "--device", "cpu",
               "--batch", str(B), "--context", str(T), "--steps", str(steps + 1), "--tokens", f"{work}/tokens.bin",
               "--dtype", dtype, "--compile", str(int(compiled))]
    return watch(command, r"^step .* (\S+) ms$", steps + 1)


def llmc(B, T, steps, work, directory):
    build = os.path.join(work, "llmc")
    if not os.path.exists(f"{build}/train_gpt2"):
        os.makedirs(f"{build}/dev/data/tinyshakespeare", exist_ok=True)
        subprocess.run(["gcc", "-Ofast", "-fno-finite-math-only", "-march=native", "-fopenmp", "-DOMP", "-o",
                        f"{build}/train_gpt2", f"{directory}/train_gpt2.c", "-lm", "-lgomp"], check=True)
        with open(f"{build}/gpt2_124M.bin", "wb") as f:
            f.write(struct.pack("<8i", 20240326, 3, 1024, V, L, NH, C, 50304).ljust(1024, b"\0"))
            rng = random.Random(2)
            row = array.array("f", (rng.gauss(0, 0.02) for _ in range(1 << 20)))
            left = 50304 * C + 1024 * C + L * (12 * C * C + 13 * C) + 2 * C
            while left > 0:
                row[:left].tofile(f)
                left -= len(row)
        for name in ("train", "val"):
            os.symlink(f"{work}/tokens.bin", f"{build}/dev/data/tinyshakespeare/tiny_shakespeare_{name}.bin")
    return watch(["./train_gpt2"], r"^step .*took (\S+) ms", steps + 1, cwd=build)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4x64,4x256,2x1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--llmc")
    a = parser.parse_args()
    if a.threads:
        os.environ["OMP_NUM_THREADS"] = str(a.threads)
    with open("/proc/cpuinfo") as f:
        cpu = re.search(r"model name\s*: (.*)", f.read())
    print(f"{cpu.group(1) if cpu else 'CPU'}, {a.threads or os.cpu_count()} threads,",
          f"medians of {a.rounds} x {a.steps} steps\n")
    print("| batch x context | program | ms/step | tokens/s | memory, GB | time, train_gpt fp32 = 1 |")
    print("|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as work:
        write_shard(f"{work}/tokens.bin", 1 << 16)
        for shape in a.shapes.split(","):
            B, T = map(int, shape.split("x"))
            programs = [(f"train_gpt {d}", lambda d=d: ours(B, T, a.steps, work, d)) for d in ("fp32", "bf16")]
            for dtype in ("fp32", "bf16"):
                for compiled in (False, True):
                    programs.append((f"PyTorch {dtype}{', compiled' if compiled else ''}",
                                     lambda d=dtype, c=compiled: torch_program(B, T, a.steps, work, d, c)))
            if a.llmc and (B, T) == (4, 64):
                programs.append(("llm.c", lambda: llmc(B, T, min(a.steps, 3), work, a.llmc)))
            times, memory = {name: [] for name, _ in programs}, dict.fromkeys((name for name, _ in programs), 0)
            for _ in range(a.rounds):
                for name, run in programs:
                    found, peak = run()
                    times[name] += found
                    memory[name] = max(memory[name], peak)
            base = statistics.median(times["train_gpt fp32"])
            for name, _ in programs:
                ms = statistics.median(times[name])
                print(f"| {B} x {T} | {name} | {ms:.0f} | {B * T / ms * 1e3:.0f} | {memory[name] / 1e9:.2f} |",
                      f"{ms / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
