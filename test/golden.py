#!/usr/bin/env python3
"""test/golden.py [--write] CASE_DIR... -- what a golden case expects, computed anew in float64 from its config,
weights, batch and training, and compared with what stands there; or, with --write, put in its place. Needs PyTorch and
safetensors.

A fork of the network states it here once, in shapes() and network(), and writes its own cases: weights of another shape
are drawn, tensors of another size stored whole or in part as size demands. What a case is, and each formula:
test/golden/README.md."""
import importlib.util, json, math, os, sys
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import layer_norm, log_softmax, logsigmoid

torch.set_default_dtype(torch.float64)


def shapes(c):
    C, h = c["n_embd"], "transformer.h.%d."
    block = {"ln_1.weight": [C], "ln_1.bias": [C], "attn.c_attn.weight": [C, 3 * C], "attn.c_attn.bias": [3 * C],
             "attn.c_proj.weight": [C, C], "attn.c_proj.bias": [C], "ln_2.weight": [C], "ln_2.bias": [C],
             "mlp.c_fc.weight": [C, 4 * C], "mlp.c_fc.bias": [4 * C],
             "mlp.c_proj.weight": [4 * C, C], "mlp.c_proj.bias": [C]}
    s = {"transformer.wte.weight": [c["vocab_size"], C], "transformer.wpe.weight": [c["n_positions"], C],
         "transformer.ln_f.weight": [C], "transformer.ln_f.bias": [C]}
    s |= {h % l + name: shape for l in range(c["n_layer"]) for name, shape in block.items()
          if c.get("bias", True) or "ln_" in name or "bias" not in name}
    return s if c.get("tie_word_embeddings", True) else s | {"lm_head.weight": s["transformer.wte.weight"]}


def network(c, w, x):
    """logits (B,T,V) of tokens x (B,T), and what is compared on the way"""
    B, T = x.shape
    C, H, seen = c["n_embd"], c["n_head"], {}
    visible = torch.ones(T, T).tril().bool()
    eps = c.get("layer_norm_epsilon", 1e-5)
    norm = lambda name, x: layer_norm(x, (C,), w[name + ".weight"], w[name + ".bias"], eps)
    adapted = lambda name, x: c["lora_scale"] * (x @ w[name + ".lora_A"]) @ w[name + ".lora_B"]
    adapter = lambda name, x: adapted(name, x) if name + ".lora_A" in w else 0
    linear = lambda name, x: x @ w[name + ".weight"] + w.get(name + ".bias", 0) + adapter(name, x)
    gelu = lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    heads = lambda x: x.view(B, T, H, C // H).transpose(1, 2)
    s = seen["act.embed"] = w["transformer.wte.weight"][x] + w["transformer.wpe.weight"][:T]
    for l in range(c["n_layer"]):
        h = f"transformer.h.{l}."
        q, k, v = map(heads, linear(h + "attn.c_attn", norm(h + "ln_1", s)).split(C, -1))
        scores = (q @ k.transpose(2, 3) / math.sqrt(C // H)).masked_fill(~visible, -math.inf)
        s = s + linear(h + "attn.c_proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))
        s = seen[f"act.h.{l}"] = s + linear(h + "mlp.c_proj", gelu(linear(h + "mlp.c_fc", norm(h + "ln_2", s))))
    s = seen["act.ln_f"] = norm("transformer.ln_f", s)
    return s @ w.get("lm_head.weight", w["transformer.wte.weight"]).T, seen


# ---- from here on nothing depends on the network ----
def read(case, name):
    with open(f"{case}/{name}") as f:
        return json.load(f)


def weights_of(case, c):
    path = case + "/model.safetensors"
    if not os.path.exists(path):                     # a formula
        beside = os.path.dirname(os.path.abspath(__file__))
        spec = importlib.util.spec_from_file_location("make_model", beside + "/golden/make_model.py")
        make_model = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(make_model)
        formula, first, stored = read(case, "weights.json"), 0, {}
        for t in formula["tensors"]:
            n = math.prod(t["shape"])
            values = make_model.values(formula["seed"], first, n, t["offset"], t["scale"])
            stored[t["name"]] = torch.tensor(values).view(t["shape"])
            first += n
    else:
        stored = load_file(path)
    draw = torch.Generator().manual_seed(1)
    fits = lambda name, shape: name in stored and list(stored[name].shape) == shape
    new = {n: s for n, s in shapes(c).items() if not fits(n, s)}
    for name, shape in new.items():
        stored[name] = (("ln_" in name and "weight" in name) + 0.1 * torch.randn(shape, generator=draw)).float()
    return {n: stored[n].double().requires_grad_() for n in shapes(c)}, bool(new)


def loss_of(kind, batch, logits, denominator):
    t = lambda key: torch.tensor(batch[key], dtype=torch.float64)
    if kind["type"] == "reward":
        at = torch.tensor(batch["readout_positions"])
        r = logits[torch.arange(len(at)), at, kind["token_id"]]
        return -logsigmoid(r[: len(r) // 2] - r[len(r) // 2 :]).sum() / denominator, {"rewards": r}
    y = torch.tensor(batch["targets"])
    lp = log_softmax(logits, -1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    each = -lp * t("weights" if kind["type"] == "lm" else "advantages")
    if kind["type"] == "ppo":
        ratio, A, d, e = (lp - t("old_logprobs")).exp(), t("advantages"), t("ref_logprobs") - lp, kind["clip_eps"]
        each = -torch.min(ratio * A, ratio.clamp(1 - e, 1 + e) * A) + kind["kl_beta"] * (d.exp() - d - 1)
    return each[y >= 0].sum() / denominator, {"logprobs": torch.where(y >= 0, lp, 0)}


def lr_at(s, it):
    warmup, end, low = s.get("warmup_iters", 0), s.get("lr_decay_iters", 0), s.get("min_lr", 0)
    if it < warmup:
        return s["lr"] * (it + 1) / (warmup + 1)
    if s["type"] == "constant":
        return s["lr"]
    return low if it > end else low + (1 + math.cos(math.pi * (it - warmup) / (end - warmup))) / 2 * (s["lr"] - low)


def compute(case, old):
    """scalars, and every tensor whole, of a case; the numbers of the steps are those of the old one"""
    c, training, batch = read(case, "config.json"), read(case, "train.json"), read(case, "batch.json")
    w, drawn = weights_of(case, c)
    kind, o, clip = training["loss"], training["optimizer"], training.get("grad_clip", 0)
    x, y = torch.tensor(batch["inputs"]), torch.tensor(batch.get("targets", [-1]))
    each = torch.tensor(batch["weights"], dtype=torch.float64) if kind["type"] == "lm" else torch.ones_like(y)
    counted = each[y >= 0].sum()
    denominator = float(len(x) // 2 if kind["type"] == "reward" else counted)
    now = {"param_count": sum(p.numel() for p in w.values()), "denominator": denominator}
    now |= {key: [] for key in ("losses", "grad_norms", "clip_coefs", "lrs")}
    tensors, trained = {}, w
    if lora := training.get("lora"):
        trained = {n: p.double().requires_grad_() for n, p in load_file(case + "/lora.safetensors").items()}
        c["lora_scale"] = lora["alpha"] / lora["r"]
        w, now["trainable_count"] = w | trained, sum(p.numel() for p in trained.values())
        qkv = "transformer.h.0.attn.c_attn"
        merged = w[qkv + ".weight"] + c["lora_scale"] * w[qkv + ".lora_A"] @ w[qkv + ".lora_B"]
        tensors["merged." + qkv + ".weight"] = merged.detach()
    start, m, v = ({n: f(p.detach()) for n, p in trained.items()}
                   for f in (torch.clone, torch.zeros_like, torch.zeros_like))
    for it in range(training["steps"] + 1):
        logits, seen = network(c, w, x)
        loss, more = loss_of(kind, batch, logits, denominator)
        now["losses"].append(loss.item())
        if it == 0:
            tensors |= {"logits": logits.detach()} | {n: s.detach() for n, s in (seen | more).items()}
        if it == training["steps"]:
            break
        grads = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))
        norm = math.sqrt(sum((g * g).sum().item() for g in grads.values()))
        scale, lr = min(1, clip / (norm + 1e-6)) if clip else 1, lr_at(training["schedule"], it)
        now["grad_norms"].append(norm)
        now["clip_coefs"].append(scale)
        now["lrs"].append(lr)
        if it == 0:
            tensors |= {"grad." + n: g for n, g in grads.items()}
        with torch.no_grad():
            for n, p in trained.items():
                g = grads[n] * scale
                m[n] += (1 - o["beta1"]) * (g - m[n])
                v[n] += (1 - o["beta2"]) * (g * g - v[n])
                mhat, vhat = m[n] / (1 - o["beta1"] ** (it + 1)), v[n] / (1 - o["beta2"] ** (it + 1))
                p.mul_(1 - lr * o["weight_decay"] * (p.dim() == 2)).sub_(lr * mhat / (vhat.sqrt() + o["eps"]))
        if f"step{it + 1}" in old["tensors"]:
            tensors |= {f"step{it + 1}.{n}": p.detach().clone() for n, p in trained.items()}
    return now, tensors, {n: p.float() for n, p in start.items()} if drawn else None, start


def max_of(t):                                       # a NaN, if there is one
    return t.max().item() if t.numel() else 0.0


def summarized(name, t, start, old):
    """the entries of a tensor that are stored, and what expected.json says of it"""
    group, _, of = name.partition(".")
    before = old["tensors"].get(group, {}).get(of or name, {})
    given = t.dim() < 2 or before or group in ("act", "logprobs")
    stride = before.get("stride", 1) if given else max(1, t.numel() // 1500)
    whole = t - start[of] if group.startswith("step") else t
    keep = torch.ones(t.numel(), dtype=torch.bool)
    if "skip" in before:
        keep[slice(*before["skip"])] = False
    whole = whole.flatten()[keep]
    summary = {k: before[k] for k in ("skip",) if k in before} | ({"stride": stride} if stride > 1 else {}) | {
        "l2": whole.norm().item(), "sum": whole.sum().item()}
    return (t.flatten()[::stride] if stride > 1 else t), summary


def main(words):
    write, failed = "--write" in words, False
    for case in [word for word in words if word != "--write"]:
        old, stored = read(case, "expected.json"), load_file(case + "/expected.safetensors")
        now, tensors, drawn, start = compute(case, old)
        now["rewards"] = tensors.pop("rewards", torch.tensor([])).tolist()
        new, groups, worst = {}, {}, {}
        for name, t in tensors.items():
            group, _, of = name.partition(".")
            if group in ("act", "logprobs") and name not in stored:
                continue
            entries, summary = summarized(name, t, start, old)
            new[name] = entries.float().contiguous()
            if group not in ("act", "logprobs"):
                groups.setdefault(group, {})[of or name] = summary
            if not write and (name not in stored or stored[name].shape != new[name].shape):
                worst[name] = math.inf
            elif not write:
                apart, skip = (stored[name].double() - entries).abs().flatten(), summary.get("skip", [0, 0])
                at = torch.arange(len(apart)) * summary.get("stride", 1)
                worst[name] = max_of(apart[(at < skip[0]) | (at >= skip[1])])
        if write:
            if drawn:
                save_file(drawn, case + "/model.safetensors", {"format": "pt"})
                if os.path.exists(case + "/weights.json"):
                    os.remove(case + "/weights.json")
            save_file(new, case + "/expected.safetensors")
            with open(case + "/expected.json", "w") as f:
                json.dump({k: old[k] for k in ("case", "note") if k in old} | now | {"tensors": groups}, f, indent=1)
            print("wrote", case)
            continue
        for key, values in now.items():
            if isinstance(values, list):
                known = old.get(key, [])
            else:
                values, known = [values], [old.get(key, math.nan)]
            same_length = len(values) == len(known)
            worst[key] = max_of((torch.tensor(values) - torch.tensor(known)).abs()) if same_length else math.inf
        good = all(e <= 1e-6 for e in worst.values())
        at = max(worst, key=lambda name: math.inf if math.isnan(worst[name]) else worst[name])
        failed = failed or not good
        name = os.path.basename(case.rstrip("/"))
        print("ok" if good else "FAIL",
              f"golden.py/{name}: {len(worst)} numbers and tensors, off by {worst[at]:.1e} at most, {at}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
