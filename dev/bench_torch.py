#!/usr/bin/env python3
"""Times training steps of GPT-2 in PyTorch, as one would write it for speed: what train_gpt is compared with.

    python3 dev/bench_torch.py [--device cuda] [--model d12] [--batch 64] [--context 1024] [--steps 20] [--tokens SHARD]
                               [--dtype bf16] [--compile 1]

                               [--sdpa any|flash|cudnn] [--kernels 1] [--learn OUT/log.jsonl --init CHECKPOINT]

Weights are fp32; bf16 is autocast. Attention is scaled_dot_product_attention, the optimizer fused AdamW, gradients are
clipped to a norm of 1. On a GPU the vocabulary is padded to 50304, so that rows of logits are aligned, and nothing
waits for the GPU after the first steps, in which PyTorch compiles: the rest are timed as a whole. On a CPU each step
is. Several batches, as in --batch 32,64,128, are tried in turn; one that does not fit is passed over; results stand at
the end. Without a shard, tokens are random. --model may also be layers,heads,channels. --kernels 1 times single
functions instead, at the shapes of dev/*.cu. --learn takes the first 40 steps of train_gpt's log again with
transformers, in fp32 and bf16, from the same checkpoint on one batch, the shard's first B T + 1 tokens, and compares
losses and norms. Needs torch and numpy."""
import argparse
import contextlib
import gc
import json
import statistics
import sys
import time

import numpy
import torch
from torch import nn
from torch.nn import functional as F

MODELS = {"d12": (12, 12, 768), "d24": (24, 16, 1024), "d36": (36, 20, 1280), "d48": (48, 25, 1600)}
V, WARM = 50257, 5
# How far loss and norm (relatively) may lie from fp32's at a step of a run on one batch: rounding to bf16 alone moves
# them apart, the norm of a batch that is learned by heart most of all. Wrong mathematics shows in the first steps.
LIMITS = {1: (0.003, 0.01), 5: (0.02, 0.03), 20: (0.02, 0.1), 40: (0.02, 0.3)}


class Block(nn.Module):
    def __init__(self, NH, C):
        super().__init__()
        self.NH = NH
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.NH, C // self.NH).transpose(1, 2) for z in self.qkv(self.ln1(x)).split(C, 2))
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(att.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, L, NH, C, V):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(1024, C)
        self.blocks, self.lnf = nn.Sequential(*(Block(NH, C) for _ in range(L))), nn.LayerNorm(C)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)

    def forward(self, x, y):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        logits = F.linear(self.lnf(self.blocks(h)), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def attention_of(name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return sdpa_kernel(backends[name]) if name in backends else contextlib.nullcontext()


def clipped_step(model, optimizer):
    """The gradients' norm, of which 1 is used."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def train(a, data, B):
    """Milliseconds a step."""
    torch.manual_seed(1)
    torch._dynamo.reset()                                     # or it makes code for any batch from the second on
    T, gpu = a.context, a.device.startswith("cuda")
    sizes = MODELS[a.model] if a.model in MODELS else map(int, a.model.split(","))
    model = GPT(*sizes, 50304 if gpu else V).to(a.device)
    run = torch.compile(model, dynamic=False) if a.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times, start = [], time.perf_counter()
    for step in range(a.steps):
        if step == min(WARM, a.steps - 1):
            times = []
            if gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
        begin = time.perf_counter()
        at = step * B * T % (len(data) - B * T)
        x, y = (data[at + i:at + i + B * T].view(B, T).to(a.device, non_blocking=True) for i in (0, 1))
        with torch.autocast(a.device, torch.bfloat16, enabled=a.dtype == "bf16"), attention_of(a.sdpa):
            loss = run(x, y)
        loss.backward()
        clipped_step(model, optimizer)
        if not gpu or step < WARM:
            value = loss.item()                               # waits for the device
            print(f"step {step} loss {value:.4f} {1e3 * (time.perf_counter() - begin):.1f} ms", flush=True)
        times.append(1e3 * (time.perf_counter() - begin))
    if not gpu:
        return statistics.median(times)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / len(times)


def learn(a, data):
    """Whether a run that the log a.learn tells of learned as transformers does, from a.init on the same batch."""
    from transformers import GPT2LMHeadModel, logging
    logging.disable_progress_bar()
    with open(a.learn) as f:
        events = [json.loads(line) for line in f]
    lr = float(events[0]["options"]["lr"])
    runs = [{e["step"]: (e["loss"], e["norm"]) for e in events if e["event"] == "step"}]
    x, y = (data[i:i + int(a.batch) * a.context].view(-1, a.context).to(a.device) for i in (0, 1))
    for bf16 in (True, False):
        model = GPT2LMHeadModel.from_pretrained(a.init, dtype=torch.float32).to(a.device)
        decayed = [[p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": decayed[0], "weight_decay": 0.1}, {"params": decayed[1], "weight_decay": 0}]
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
        runs.append({})
        for step in range(1, max(LIMITS) + 1):
            with torch.autocast(a.device, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(x).logits.float().flatten(0, 1), y.flatten())
            loss.backward()
            runs[-1][step] = loss.item(), clipped_step(model, optimizer).item()
    good = True
    print("| step | train_gpt: loss, norm | transformers, bf16 autocast | transformers, fp32 | limits |")
    print("|--:|--:|--:|--:|--:|")
    for step, (limit, relative) in LIMITS.items():
        (loss, norm), (want_loss, want_norm) = runs[0].get(step, (None, None)), runs[2][step]
        near = None not in (loss, norm) and abs(loss - want_loss) <= limit and abs(norm / want_norm - 1) <= relative
        good = good and near                                  # a NaN is not near
        cells = " | ".join("none" if None in run.get(step, (None,)) else f"{run[step][0]:.4f}, {run[step][1]:.4f}"
                           for run in runs)
        print(f"| {step} | {cells} | {limit}, {100 * relative:.0f} %{'' if near else ': FAIL'} |")
    print("ok" if good else "FAIL: not as transformers learns")
    return 0 if good else 1


def time_kernels():
    """PyTorch's functions beside the ladders of dev/, on a GPU: medians of 30 runs by its clock."""
    def time_of(f):
        times = []
        for _ in range(33):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            f()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times[3:])

    def both(name, f, *inputs):
        out = f(*inputs)
        d = torch.randn_like(out)
        forward = time_of(lambda: f(*inputs))
        backward = time_of(lambda: torch.autograd.grad(out, inputs, d, retain_graph=True))
        print(f"PyTorch {torch.__version__}, {name}: forward {forward:.3f} ms, backward {backward:.3f} ms", flush=True)

    def numbers(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for B, NH, HS in ((64, 12, 64), (16, 25, 64), (16, 8, 128)):
        for backend in ("flash", "cudnn"):
            with attention_of(backend):
                both(f"attention ({backend}), B={B} T=1024, {NH} heads of {HS}",
                     lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                     *(numbers(B, NH, 1024, HS) for _ in range(3)))
    both("layernorm, N=65536 C=768", lambda x, w, b: F.layer_norm(x, (768,), w, b), numbers(65536, 768), numbers(768),
         numbers(768))
    both("gelu, N=65536 4C=3072", lambda x: F.gelu(x, approximate="tanh"), numbers(65536, 3072))
    y = torch.randint(V, (8192,), device="cuda")
    both(f"cross-entropy, rows=8192 V={V}", lambda z: F.cross_entropy(z, y), numbers(8192, V))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="d12")
    parser.add_argument("--batch", default="64")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", type=int, default=1)
    parser.add_argument("--sdpa", default="any", choices=("any", "flash", "cudnn"))
    parser.add_argument("--kernels", type=int, default=0)
    parser.add_argument("--learn")
    parser.add_argument("--init")
    a = parser.parse_args()
    if a.kernels:
        return time_kernels()
    batches = [int(b) for b in a.batch.split(",")]
    if a.tokens:
        data = torch.from_numpy(numpy.fromfile(a.tokens, dtype="<u2", offset=1024).astype(numpy.int64))
    else:
        data = torch.randint(V, (2 * max(batches) * a.context + 1,), generator=torch.Generator().manual_seed(1))
    if a.learn:
        sys.exit(learn(a, data))
    results = []
    for B in batches:
        name = f"PyTorch {torch.__version__}, {a.model}, {a.dtype}, attention {a.sdpa}, {B} x {a.context}: "
        try:
            ms = train(a, data, B)
        except torch.OutOfMemoryError:
            results.append(name + "out of memory")
        else:
            results.append(name + f"{ms:.1f} ms/step, {B * a.context / ms * 1e3:.0f} tok/s")
            if a.device == "cuda":
                results[-1] += f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
        gc.collect()
        if a.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print("\n".join(results))


if __name__ == "__main__":
    main()
