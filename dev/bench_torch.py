#!/usr/bin/env python3
"""Times training steps of GPT-2 in PyTorch, as one would write it for speed: what train_gpt is compared with.

    python3 dev/bench_torch.py [--device cuda] [--model d12] [--batch 64] [--context 1024] [--steps 20] [--tokens SHARD]
                               [--dtype bf16] [--compile 1]

One line a step, as train_gpt prints it, and medians at the end, without the first steps, in which PyTorch compiles. Weights
are fp32; bf16 is autocast. Attention is scaled_dot_product_attention, the optimizer fused AdamW, gradients are clipped to a
norm of 1. Several batches, as in --batch 32,64,128, are tried in turn; one that does not fit is passed over. Without a
shard, tokens are random. Needs torch and numpy."""
import argparse
import statistics
import time

import numpy
import torch
from torch import nn
from torch.nn import functional as F

MODELS = {"d12": (12, 12, 768), "d24": (24, 16, 1024), "d36": (36, 20, 1280), "d48": (48, 25, 1600)}
V = 50257


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
    def __init__(self, L, NH, C):
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


def train(a, data, B):
    torch.manual_seed(1)
    T, device = a.context, torch.device(a.device)
    model = GPT(*MODELS[a.model]).to(device)
    run = torch.compile(model) if a.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = []
    for step in range(a.steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        at = step * B * T % (len(data) - B * T)
        x, y = (data[at + i:at + i + B * T].view(B, T).to(device, non_blocking=True) for i in (0, 1))
        with torch.autocast(device.type, torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()                                   # waits for the device
        times.append(1e3 * (time.perf_counter() - start))
        print(f"step {step} loss {value:.4f} {times[-1]:.1f} ms", flush=True)
    return statistics.median(times[min(5, len(times) - 1):])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="d12", choices=MODELS)
    parser.add_argument("--batch", default="64")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", type=int, default=1)
    a = parser.parse_args()
    batches = [int(b) for b in a.batch.split(",")]
    if a.tokens:
        data = torch.from_numpy(numpy.fromfile(a.tokens, dtype="<u2", offset=1024).astype(numpy.int64))
    else:
        data = torch.randint(V, (2 * max(batches) * a.context + 1,), generator=torch.Generator().manual_seed(1))
    for B in batches:
        try:
            ms = train(a, data, B)
        except torch.OutOfMemoryError:
            print(f"PyTorch {torch.__version__}, {a.model}, {a.dtype}, {B} x {a.context}: out of memory")
        else:
            memory = torch.cuda.max_memory_allocated() / 1e9 if a.device == "cuda" else 0
            print(f"PyTorch {torch.__version__}, {a.model}, {a.dtype}, {B} x {a.context}: median {ms:.1f} ms/step, "
                  f"{B * a.context / ms * 1e3:.0f} tok/s" + (f", {memory:.1f} GB" if memory else ""), flush=True)
        if a.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
