"""test/hf.py -- train_gpt against PyTorch, Hugging Face's transformers and TRL, and tiktoken. Run by test/hf.sh,
from the root.

One line a check: ok, FAIL or skip, then the counts; exit 1 if any failed. Models are tiny and random, with random
biases and layernorms too, since those that begin as 0 or 1 would not show a wrong place. MERGES= and TEXT= as in
`make test`. Nothing is downloaded here."""
import json, os, random, shutil, subprocess, sys, unicodedata, warnings
import numpy as np
import datasets, peft, tiktoken, torch, transformers, trl
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
DIR = "build/hf_data"
shutil.rmtree(DIR, ignore_errors=True)
os.makedirs(DIR)
passed = failed = skipped = 0


def check(good, name, detail=""):
    global passed, failed
    passed += bool(good)
    failed += not good
    print("ok" if good else "FAIL", f"{name}: {detail}" if detail else name, flush=True)


def skip(name, why):
    global skipped
    skipped += 1
    print("skip", name + ":", why, flush=True)


def run(*words, ok=True):
    """Standard output of one of our programs; of one that must refuse (ok=False), its line on standard error."""
    r = subprocess.run([str(w) for w in words], capture_output=True)
    if (r.returncode == 0) != ok:
        raise RuntimeError(f"{words[0]} {words[1]}: exit {r.returncode}: {r.stderr.decode(errors='replace').strip()}")
    return r.stdout if ok else r.stderr.decode().strip()


def guarded(name, f):
    """f's own checks; an exception in it is one failed check."""
    try:
        f()
    except Exception as e:
        check(False, name, f"{type(e).__name__}: {str(e)[:300]}")


def write_shard(path, tokens):
    header = np.array([20240520, 1, len(tokens)] + [0] * 253, "<i4")
    np.concatenate([header.view("<u2"), np.array(tokens, "<u2")]).tofile(path)


def random_model(layers=2, heads=3, channels=36, vocab=97, context=24, tied=True, seed=1, **other):
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=channels, vocab_size=vocab, n_positions=context,
                        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None, **other)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.1 if p.dim() == 2 else 0.3) + (".ln_" in name and name.endswith("weight")))
    return model


def same_logits(name, path, model, lengths=(1, 7, None)):
    """Ours and Hugging Face's logits on random tokens; None: a full context."""
    worst, rng = 0, np.random.default_rng(0)
    for length in lengths:
        ids = rng.integers(0, model.config.vocab_size, length or model.config.n_positions)
        with torch.no_grad():
            theirs = model(torch.tensor(ids[None])).logits[0].numpy()
        ours = np.frombuffer(run("build/logits", path, *ids), "<f4").reshape(theirs.shape)
        worst = max(worst, np.abs(ours - theirs).max() / max(1, np.abs(theirs).max()))
    check(worst <= 1e-4, name, f"logits differ by {worst:.1e}")


def same_greedy(name, path, model, lengths):
    T, rng = model.config.n_positions, np.random.default_rng(1)
    for length in lengths:
        prompt = rng.integers(0, model.config.vocab_size, length)
        with torch.no_grad():
            theirs = model.generate(torch.tensor(prompt[None]), attention_mask=torch.ones(1, length, dtype=torch.long),
                                    max_new_tokens=T - length + 1, do_sample=False, pad_token_id=0)[0].tolist()
        ours = run("./train_gpt", "sample", "--model", path, "--prompt", " ".join(map(str, prompt)), "--temperature", 0,
                   "--tokens", T - length + 1)
        ours = list(map(int, ours.split()))
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        check(ours == theirs, f"{name} from {length} of {T}", "" if ours == theirs else f"differ at token {at}")


def ours_in_hf(name, heads, channels, bias, tied, layers=2, vocab=97, context=24):
    out, data = f"{DIR}/{name}", f"{DIR}/{name}.bin"
    write_shard(data, np.random.default_rng(2).integers(0, vocab, 4000) // 3 * 3 % vocab)
    run("./train_gpt", "train", "--train", data, "--init", "custom", "--layers", layers, "--heads", heads,
        "--channels", channels, "--vocab", vocab, "--context", context, "--bias", bias, "--tied", tied, "--batch", 4,
        "--steps", 30, "--lr", 0.02, "--sample-every", 0, "--out", out)
    checkpoint = out + "/step_00000030"
    model, info = GPT2LMHeadModel.from_pretrained(checkpoint, output_loading_info=True)
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    check(not wrong, f"ours in HF, {name}: every tensor has its place", wrong or "")
    same_logits(f"ours in HF, {name}", checkpoint, model.float().eval())
    same_greedy(f"ours in HF, {name}: greedy", out, model.float().eval(), (1, context // 2))


def hf_in_ours():
    def saved(name, model):
        model.save_pretrained(f"{DIR}/{name}")
        return f"{DIR}/{name}"
    model = random_model()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        half = random_model()
        with torch.no_grad():                                        # numbers that float16 has only as subnormals
            for block in half.transformer.h:
                for p, scale in ((block.ln_2.weight, 3e3), (block.ln_2.bias, 3e3), (block.mlp.c_fc.weight, 1 / 3e3)):
                    p.mul_(scale)
        half = half.to(dtype)
        path = saved(str(dtype)[6:], half)
        written = {str(t.dtype) for t in load_file(path + "/model.safetensors").values()}
        check(written == {str(dtype)}, f"HF wrote {dtype}")
        same_logits(f"HF in ours, {dtype}", path, half.float())
    path = f"{DIR}/no_prefix"
    model.transformer.save_pretrained(path)
    check("wte.weight" in load_file(path + "/model.safetensors"), "HF wrote no prefix")
    same_logits("HF in ours, without prefix", path, model)
    tensors = load_file(path + "/model.safetensors")
    for kind, mask in (("float", torch.ones(1, 1, 24, 24).tril()), ("bool", torch.ones(1, 1, 24, 24).tril().bool())):
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = mask.clone()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, path + "/model.safetensors", {"format": "pt"})
        same_logits(f"HF in ours, with {kind} mask buffers as in the published file", path, model)
    path = saved("tied_stored", model)
    tensors = load_file(path + "/model.safetensors")
    tensors["lm_head.weight"] = model.lm_head.weight.detach().clone()
    save_file(tensors, path + "/model.safetensors", {"format": "pt"})
    same_logits("HF in ours, tied with the head stored", path, model)
    for name, options in (("untied", dict(tied=False)), ("head size 5", dict(heads=5, channels=25)),
                          ("one head", dict(heads=1)), ("layer_norm_epsilon 0.01", dict(layer_norm_epsilon=0.01)),
                          ("n_inner 4C", dict(n_inner=144)),
                          ("gelu_pytorch_tanh", dict(activation_function="gelu_pytorch_tanh")),
                          ("long and wide", dict(layers=3, heads=4, channels=128, vocab=2000, context=300))):
        model = random_model(**options)
        same_logits(f"HF in ours, {name}", saved(name.replace(" ", "_"), model), model)
    model = random_model(heads=2, channels=128)
    shutil.copy(saved("alone", model) + "/model.safetensors", f"{DIR}/alone.safetensors")
    same_logits("HF in ours, a .safetensors alone", f"{DIR}/alone.safetensors", model)
    model = random_model(context=40)
    same_greedy("HF in ours: greedy", saved("greedy", model), model, (1, 2, 7, 20, 39, 40))
    for name, options in (("activation gelu", dict(activation_function="gelu")), ("n_inner 100", dict(n_inner=100)),
                          ("unscaled attention", dict(scale_attn_weights=False))):
        line = run("build/logits", saved("refused_" + name.replace(" ", "_"), random_model(**options)), 1, ok=False)
        check(line.startswith("error: ") and "\n" not in line and "not computed here" in line, f"refused: {name}", line)
    model.save_pretrained(f"{DIR}/split", max_shard_size="20KB")
    parts = [name for name in os.listdir(f"{DIR}/split") if name.startswith("model-")]
    check(len(parts) > 1, "HF wrote several files", f"{len(parts)}")
    same_logits("HF in ours, several files", f"{DIR}/split", model)


def sampling():
    """What is drawn against what transformers would draw from, whose own order of penalty, temperature and cuts gives
    the probabilities; and the log-probabilities that we write, also around a full context."""
    model, path = random_model(context=40, seed=6), f"{DIR}/sampling"
    model.save_pretrained(path)
    prompt = [3, 14, 15, 9, 2, 6, 5, 3, 14]
    words = ("sample", "--model", path, "--prompt", " ".join(map(str, prompt)), "--format", "jsonl")

    def ours(*more):
        return [json.loads(line) for line in run("./train_gpt", *words, *more).decode().splitlines()]

    def theirs(tokens, **settings):
        settings = dict(dict(top_k=0, top_p=1.0, do_sample=True), **settings)
        return model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                              pad_token_id=0, max_new_tokens=tokens, output_scores=True, return_dict_in_generate=True,
                              **settings)

    for settings in (dict(repetition_penalty=1.7), dict(repetition_penalty=0.6, temperature=0.6), dict(min_p=0.3),
                     dict(min_p=0.2, temperature=1.6), dict(min_p=0.25, top_k=12, top_p=0.8),
                     dict(min_p=0.1, top_p=0.6, temperature=1.3, repetition_penalty=2.5)):
        p = torch.softmax(theirs(1, **settings).scores[0][0].double(), -1).numpy()
        options = [w for k, v in settings.items() for w in ("--" + k.replace("_", "-"), v)]
        n = 4 * 4096
        drawn = [t["tokens"][0] for seed in range(4)
                 for t in ours("--tokens", 1, "--samples", 4096, "--seed", seed, *options)]
        count = np.bincount(drawn, minlength=len(p))
        z = np.abs(count - n * p) / np.sqrt(n * p * (1 - p) + 1e-9)
        check(len(drawn) == n and not count[p == 0].any() and (count[p * n > 20] > 0).all() and z.max() < 5,
              f"transformers draw, {settings}",
              f"{(p > 0).sum()} tokens, off by {z.max():.1f} standard deviations")
    for penalty in (1.5, 0.7):
        want = theirs(31, do_sample=False, repetition_penalty=penalty).sequences[0, len(prompt):].tolist()
        written = ours("--tokens", 31, "--temperature", 0, "--repetition-penalty", penalty)[0]["tokens"]
        check(written == want, f"transformers' greedy text, repetition_penalty {penalty}")
    errors, texts = [], ours("--tokens", 70, "--samples", 3, "--temperature", 2, "--top-k", 40)
    for t in texts:
        ids, logprobs, row = t["prompt_tokens"] + t["tokens"], t["prompt_logprobs"] + t["logprobs"], []
        for i in range(1, len(ids)):
            row = (row + [ids[i - 1]])[-20 if len(row) == 40 else 0:]
            with torch.no_grad():
                z = torch.log_softmax(model(torch.tensor([row])).logits[0, -1], -1)
            errors.append(abs(z[ids[i]].item() - logprobs[i]))
    check(len(errors) == 3 * 78 and all(e <= 1e-4 for e in errors), "transformers' log-probabilities",
          f"differ by {max(errors):.1e}")


def adapters():
    """An adapter of ours in PEFT, and one of PEFT's in ours, each beside its model and merged into it."""
    base, shard = DIR + "/adapted", DIR + "/adapted.bin"
    random_model().save_pretrained(base)
    write_shard(shard, np.random.default_rng(2).integers(0, 97, 500))
    model = lambda: GPT2LMHeadModel.from_pretrained(base).eval()
    run("./train_gpt", "train", "--train", shard, "--init", base, "--lora-rank", 3, "--lora-targets", "qkv,fcproj",
        "--steps", 6, "--lr", 3e-2, "--context", 24, "--sample-every", 0, "--out", DIR + "/adapter")
    ours = peft.PeftModel.from_pretrained(model(), DIR + "/adapter/step_00000006").eval()
    run("./train_gpt", "merge", "--model", DIR + "/adapter", "--out", DIR + "/merged")
    same_logits("adapter of ours in PEFT", DIR + "/merged", ours)
    x = torch.arange(24)[None]
    with torch.no_grad():
        moved = (ours(x).logits - model()(x).logits).abs().max().item()
    check(moved > 0.05, "adapter of ours in PEFT: it changes the model", f"logits by {moved:.2f}")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(model(), config).eval()
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    theirs.save_pretrained(DIR + "/peft")
    for name, words in (("named beside it", ["--model", base, "--adapter", DIR + "/peft"]),
                        ("found by it", ["--model", DIR + "/peft"])):
        shutil.rmtree(DIR + "/merged")
        run("./train_gpt", "merge", *words, "--out", DIR + "/merged")
        same_logits(f"adapter of PEFT in ours, its model {name}", DIR + "/merged", theirs)


def llmc_in_ours():
    for version, dtype in ((3, torch.float32), (5, torch.bfloat16)):
        model = random_model(heads=2, channels=24).to(dtype)
        c, w = model.config, model.transformer.state_dict()
        padded = (c.vocab_size + 127) // 128 * 128
        zeros = torch.zeros(padded - c.vocab_size, c.n_embd, dtype=dtype)
        tensors = [torch.cat([w["wte.weight"], zeros]), w["wpe.weight"]]
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            for kind in ("weight", "bias"):
                tensors += [w[f"h.{layer}.{name}.{kind}"].t() for layer in range(c.n_layer)]           # t(): (out, in)
        tensors += [w["ln_f.weight"], w["ln_f.bias"]]
        header = [20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded] + [0] * 248
        with open(f"{DIR}/llmc_{version}.bin", "wb") as f:
            f.write(np.array(header, "<i4").tobytes())
            for t in tensors:
                f.write(t.contiguous().view(torch.int16 if version == 5 else torch.int32).numpy().tobytes())
        same_logits(f"llm.c version {version} in ours", f"{DIR}/llmc_{version}.bin", model.float())


def training_step():
    """Three AdamW steps on one batch, in two micro-batches and clipped. A large eps keeps entries without a gradient,
    whose direction is rounding noise, from moving by lr."""
    for tied in (True, False):
        name, T, rows = f"training, {'tied' if tied else 'untied'}", 24, 4
        model = random_model(tied=tied).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0
        start, out = f"{DIR}/start_{tied}", f"{DIR}/step_{tied}"
        model.save_pretrained(start)
        ids = np.random.default_rng(3).integers(0, 97, rows * T + 1)
        write_shard(out + ".bin", ids)
        run("./train_gpt", "train", "--train", out + ".bin", "--init", start, "--context", T, "--batch", 2,
            "--tokens-per-step", rows * T, "--steps", 3, "--lr", 0.01, "--schedule", "constant", "--eps", 0.001,
            "--sample-every", 0, "--out", out)
        groups = [[p for p in model.parameters() if (p.dim() == 2) == matrix] for matrix in (True, False)]
        groups = [dict(params=g, weight_decay=decay) for g, decay in zip(groups, (0.1, 0))]
        adamw = torch.optim.AdamW(groups, 0.01, (0.9, 0.95), 0.001)
        for _ in range(3):
            adamw.zero_grad()
            logits = model(torch.tensor(ids[:-1].reshape(rows, T))).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[1:])).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
            adamw.step()
        ours, theirs = load_file(out + "/step_00000003/model.safetensors"), model.state_dict()
        worst, where = max((float((ours[k] - theirs[k]).abs().max()), k) for k in ours)
        check(worst <= 1e-5, name, f"weights differ by {worst:.1e} ({where})")


def random_text(size, seed=4):
    """Words, numbers, blanks and anything else that this Python's Unicode knows, in runs of mixed kinds."""
    rng, kinds = random.Random(seed), {"L": [], "N": [], "Z": list("\t\n\r \x0b\x0c\x85"), "other": []}
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Cs"):
            kinds[category[0] if category[0] in kinds else "other"].append(chr(code))
    ascii_runs = [" ", "  ", " \n", "'s", "'ll", "'re x", "the", " The", "123", " 42", "don't", "<|endoftext|>", "...",
                  " a'd", "I've", "I'm"]
    parts, length = [], 0
    while length < size:
        other = "".join(rng.choices(kinds[rng.choice(list(kinds))], k=rng.randint(1, 4)))
        parts.append(rng.choice([rng.choice(ascii_runs), other]))
        length += len(parts[-1].encode())
    return "".join(parts)


def tokenizers(name, merges, texts):
    printable = [b for b in range(256) if 33 <= b <= 126 or b >= 161 and b != 173]
    order = printable + [b for b in range(256) if b not in printable]
    byte_of = {chr(b if i < 188 else 256 + i - 188): b for i, b in enumerate(order)}
    ranks = {bytes([b]): i for i, b in enumerate(order)}
    for line in open(merges, encoding="utf-8").read().split("\n"):
        if line and not line.startswith("#version"):
            ranks[bytes(byte_of[c] for c in line.replace(" ", "", 1))] = len(ranks)
    eot = len(ranks)
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": eot})
    for kind, text in texts.items():
        path = f"{DIR}/{name}_{kind}".replace(" ", "_")
        with open(path + ".txt", "wb") as f:
            f.write(text.encode())
        run("build/shards", "encode", "--in", path + ".txt", "--out", path + "/x", "--tokenizer", merges)
        shard = np.fromfile(path + "/x_train.bin", "<u2")[512:].tolist()
        detail = f"{len(shard) - 1} tokens"
        check(shard == [eot] + theirs.encode_ordinary(text), f"tiktoken, {name}, {kind}", detail)
        hf = GPT2Tokenizer.from_pretrained(path)                     # our merges.txt and vocab.json
        # end of text inside a text is ordinary to us; HF makes a token of it unless it is told not to
        ids = hf.encode(text, add_special_tokens=False, split_special_tokens=True)
        check(shard == [eot] + ids and hf.eos_token_id == eot, f"HF GPT2Tokenizer, {name}, {kind}", detail)


def tokenizer_settings(training, text):
    """A tokenizer.json beside merges: the ids are the same, or it is refused by the name of what differs."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer, pre_tokenizers
    with open(f"{DIR}/settings.txt", "w", encoding="utf-8") as f:
        f.write(text)
    def without_regex(t): t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    def other(t): t.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, options, change, words in (
            ("as it is", {}, None, None), ("lowercase", dict(lowercase=True), None, "normalizer: found"),
            ("a blank before", dict(add_prefix_space=True), None, "add_prefix_space"),
            ("no regex", {}, without_regex, "use_regex"), ("another pre_tokenizer", {}, other, "pre_tokenizer: found"),
            ("a special token", {}, lambda t: t.add_special_tokens(["<|sep|>"]), None),
            ("a token", {}, lambda t: t.add_tokens(["tokenizer"]), "added_tokens: found")):
        made, path = ByteLevelBPETokenizer(**options), f"{DIR}/settings_{name.replace(' ', '_')}"
        made.train([training], vocab_size=600, special_tokens=["<|endoftext|>"])
        if change:
            change(made._tokenizer)
        os.makedirs(path)
        made._tokenizer.save(path + "/tokenizer.json")
        made._tokenizer.model.save(path)
        out = run("build/shards", "encode", "--in", f"{DIR}/settings.txt", "--tokenizer", path,
                  "--out", path + "_out/x", ok=not words)
        if words:
            check(words in out and "\n" not in out, f"tokenizer.json refused: {name}", out)
            continue
        shard = np.fromfile(path + "_out/x_train.bin", "<u2")[512:].tolist()
        theirs = Tokenizer.from_file(path + "/tokenizer.json")
        theirs.encode_special_tokens = True                          # as split_special_tokens above
        check(shard[1:] == theirs.encode(text).ids, f"tokenizer.json, {name}")


def added_tokens(training, text):
    """What is saved of a tokenizer with added tokens has their ids, and the end of text's, in AutoTokenizer too."""
    from tokenizers import ByteLevelBPETokenizer
    user, eot, bot, end = "<|user|>", "<|endoftext|>", "<|assistant|>", "<|im_end|>"
    text = user + text + bot + end + eot
    with open(f"{DIR}/added.txt", "w", encoding="utf-8") as f:
        f.write(text)
    for number, (added, whole, eos) in enumerate((
            ((user, eot, bot), True, eot), ((user, eot), True, eot), ((eot, user), True, eot), ((eot,), True, eot),
            ((user, eot, bot), False, eot), ((user, end), False, end), ((eot, user, end), False, end),
            ((user, bot, eot), False, eot))):
        made, path = ByteLevelBPETokenizer(), f"{DIR}/added_{number}"
        made.train([training], vocab_size=400)
        os.makedirs(path)
        first = made.get_vocab_size()
        ids = {name: first + i for i, name in enumerate(added)}
        if whole:
            made._tokenizer.add_special_tokens(list(added))
            made._tokenizer.save(path + "/tokenizer.json")           # alone, and then as its refusal says
            line = run("build/shards", "encode", "--in", f"{DIR}/added.txt", "--out", path + "_out/x", "--tokenizer",
                       path + "/tokenizer.json" * (number % 2), ok=False)
            subprocess.run(f"PATH={os.path.dirname(sys.executable)}:$PATH; " + line[line.index("python3 -c"):],
                           shell=True, check=True)
        else:
            made._tokenizer.model.save(path)
            with open(path + "/added_tokens.json", "w") as f:
                json.dump(ids, f)
            with open(path + "/tokenizer_config.json", "w") as f:
                json.dump({"eos_token": eos}, f)
        run("build/shards", "encode", "--in", f"{DIR}/added.txt", "--tokenizer", path, "--out", path + "_out/x")
        shard = np.fromfile(path + "_out/x_train.bin", "<u2")[512:].tolist()
        again = run("build/shards", "decode", "--in", path + "_out/x_train.bin", "--tokenizer", path + "_out",
                    "--eot", "").decode()
        with open(path + "_out/config.json", "w") as f:              # as a checkpoint has
            json.dump({"model_type": "gpt2"}, f)
        hf = AutoTokenizer.from_pretrained(path + "_out")
        theirs = [hf.eos_token_id] + hf.encode(text, add_special_tokens=False, split_special_tokens=True)
        check(shard[0] == ids[eos] and shard == theirs and hf.get_added_vocab() == ids and len(hf) == first + len(ids)
              and again == text,
              f"added tokens {', '.join(added)}, {'in tokenizer.json' if whole else 'listed'}", hf.get_added_vocab())


def all_tokenizers():
    source = open("dev/host/tokenizer.h", encoding="utf-8").read()
    text = open(os.environ["TEXT"], encoding="utf-8", newline="").read() if os.environ.get("TEXT") else source
    texts = {"text": text, "random Unicode": random_text(1 << 20)}
    with open(f"{DIR}/bpe.txt", "w", encoding="utf-8") as f:
        f.write(source + " it's don't we're I've I'm she'll he'd" * 1000)
    run("build/shards", "bpe", "--in", f"{DIR}/bpe.txt", "--out", f"{DIR}/bpe", "--vocab", 1000)
    # merges across every apostrophe, or a forgotten ending would change nothing
    made = {line.replace(" ", "") for line in open(f"{DIR}/bpe/merges.txt", encoding="utf-8").read().split("\n")[1:]}
    with open(f"{DIR}/bpe/merges.txt", "a", encoding="utf-8") as f:
        for ending in ("s", "t", "re", "ve", "m", "ll", "d"):
            if "'" + ending not in made and (ending in made or len(ending) == 1):
                f.write(f"' {ending}\n")
    guarded("tokenizers, own BPE", lambda: tokenizers("own BPE", f"{DIR}/bpe/merges.txt", texts))
    if os.environ.get("MERGES"):
        guarded("tokenizers, GPT-2", lambda: tokenizers("GPT-2", os.environ["MERGES"], texts))
    else:
        skip("tokenizers, GPT-2", "give MERGES=vocab.bpe")
    guarded("tokenizer.json", lambda: tokenizer_settings(f"{DIR}/bpe.txt", source))
    guarded("added tokens", lambda: added_tokens(f"{DIR}/bpe.txt", source))
    # a checkpoint is a whole HF directory: model and tokenizer
    run("build/shards", "encode", "--in", "dev/host/tokenizer.h", "--out", f"{DIR}/words/x",
        "--tokenizer", f"{DIR}/bpe/merges.txt")
    run("./train_gpt", "train", "--train", f"{DIR}/words/x_train.bin", "--init", "custom", "--layers", 1, "--heads", 2,
        "--channels", 16, "--context", 64, "--steps", 2, "--sample-every", 0, "--out", f"{DIR}/words/run")
    checkpoint = f"{DIR}/words/run/step_00000002"
    shard = np.fromfile(f"{DIR}/words/x_train.bin", "<u2")[512:].tolist()
    hf, config = AutoTokenizer.from_pretrained(checkpoint), GPT2LMHeadModel.from_pretrained(checkpoint).config
    check([hf.eos_token_id] + hf.encode(source, add_special_tokens=False, split_special_tokens=True) == shard,
          "AutoTokenizer opens our checkpoint", type(hf).__name__)
    check(config.eos_token_id == config.bos_token_id == hf.eos_token_id == config.vocab_size - 1,
          "config and tokenizer agree on the end of text")


def stage(of, start, name, shard, rows, *options):
    """The steps that a run of ours logs, each of so many rows in two micro-batches."""
    context = json.load(open(start + "/config.json"))["n_positions"]
    run("./train_gpt", "train", "--stage", of, "--init", start, "--train", shard, "--out", f"{DIR}/{name}",
        "--batch", rows // 2, "--tokens-per-step", rows * context, "--sample-every", 0,
        "--schedule", "constant", "--lr", 0.01, "--eps", 0.001, *options)
    events = [json.loads(line) for line in open(f"{DIR}/{name}/log.jsonl")]
    return [e for e in events if e["event"] == "step"]


def trl_stage(trainer, config, model, tokenizer, data, batch, steps, settings={}, **functions):
    """The steps that TRL logs, each of one batch."""
    args = config(f"{DIR}/trl", use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, logging_steps=1,
                  save_strategy="no", gradient_checkpointing=False, max_steps=steps, per_device_train_batch_size=batch,
                  lr_scheduler_type="constant", learning_rate=0.01, adam_beta2=0.95, adam_epsilon=0.001,
                  weight_decay=0.1, **settings)
    made = trainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer,
                   **functions)
    made.remove_callback(transformers.PrinterCallback)
    made.train()
    return [e for e in made.state.log_history if "grad_norm" in e]


def same_figures(name, pairs, detail=""):
    worst = max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)
    check(all(abs(a - b) <= 1e-4 * abs(b) for a, b in pairs), "TRL, " + name, f"differ by {worst:.1e}{detail}")


def same_steps(name, ours, theirs, detail=""):
    pairs = [((a["loss"], b["loss"]), (a["norm"], b["grad_norm"])) for a, b in zip(ours, theirs, strict=True)]
    same_figures(f"{name}: losses and norms", sum(pairs, ()), detail)


def examples(name, rows):
    """An example shard of them, and the tokenizer beside it."""
    path = f"{DIR}/{name}"
    os.makedirs(path)
    with open(path + "/rows.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    run("build/shards", "examples", "--in", path + "/rows.jsonl", "--tokenizer", "bytes", "--out", path + "/rows.bin")
    return path + "/rows.bin", GPT2Tokenizer.from_pretrained(path)


def start_of(name, context, change=lambda model: None):
    model = random_model(vocab=257, context=context, tied=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    with torch.no_grad():
        change(model)
    model.save_pretrained(f"{DIR}/{name}")
    return f"{DIR}/{name}"


def sft_steps():
    """Responses alone count, each with the end of text behind it; TRL finds them by itself."""
    start, words = start_of("sft_start", 160), ["a", "be", "see", "deer", "eagle", "finch and gull", "hen", "ibis"]
    pairs = [{"prompt": word + "?", "completion": word * n} for n, word in enumerate(words[:4], 1)]
    chats = [{"messages": [dict(role=("user", "assistant")[i % 2], content=word) for i, word in enumerate(words[n:])]}
             for n in (0, 2, 4, 6)]
    template = ("{{ eos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}\n"
                "<|assistant|>\n{% else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}"
                "{% endfor %}")
    for name, rows, settings in (("pairs", pairs, {}), ("dialogues", chats, dict(assistant_only_loss=True))):
        shard, tokenizer = examples("sft_" + name, rows)
        ours = stage("sft", start, "sft_run_" + name, shard, 4, "--rows", "documents", "--steps", 2)
        tokenizer.chat_template = template
        if name == "pairs":
            rows = [{**row, "prompt": tokenizer.eos_token + row["prompt"]} for row in rows]
        theirs = trl_stage(trl.SFTTrainer, trl.SFTConfig, GPT2LMHeadModel.from_pretrained(start), tokenizer, rows, 4, 2,
                           settings)
        same_steps(f"sft of {name}", ours, theirs)


def reward_steps():
    """Our reward is the logit of end of text behind an answer; TRL's model reads its score at the last token that is no
    padding: the same place, of ids without an end of text behind them."""
    rows = [{"prompt": f"{n}?", "chosen": "yes" * n, "rejected": "maybe"} for n in range(1, 5)]
    start = start_of("reward_start", 32)
    shard, tokenizer = examples("reward_pairs", rows)
    ours = stage("reward", start, "reward_run", shard, 8, "--steps", 2)
    model, eot = GPT2ForSequenceClassification.from_pretrained(start, num_labels=1), tokenizer.eos_token_id
    with torch.no_grad():
        model.score.weight.copy_(load_file(start + "/model.safetensors")["lm_head.weight"][eot:eot + 1])
    ids = [{key + "_ids": [eot] + tokenizer(row["prompt"] + row[key])["input_ids"] for key in ("chosen", "rejected")}
           for row in rows]
    theirs = trl_stage(trl.RewardTrainer, trl.RewardConfig, model, tokenizer, ids, 4, 2)
    same_steps("reward", ours, theirs)
    same_figures("reward, accuracy and margin",
                 [(a[k], b[k]) for a, b in zip(ours, theirs) for k in ("accuracy", "margin")])


def rl_steps():
    """Our answers, which the reward command writes down, in TRL's GRPO. A step of one pass, and two of two passes: in
    later ones neither is the ratio 1 nor the divergence 0, and each has its own number of an AdamW step. Prompts have
    one length, since TRL pads them on the left and GPT2LMHeadModel counts positions from there. Loss dapo is the sum
    over all tokens by their number; without use_bias_correction_kl=False the divergence would count times the ratio."""
    def few_letters(model):                  # so that answers pass through JSON, and some end
        model.transformer.ln_f.weight[0] = 0
        model.transformer.ln_f.bias[0] = 1
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[[i for i in range(256) if not 64 <= i < 76], 0] = -100
    most, group, drawn = 7, 4, f"{DIR}/drawn.jsonl"
    start, prompts = start_of("rl_start", 32, few_letters), [{"prompt": text} for text in ("one?", "two?")]
    shard, tokenizer = examples("rl_prompts", prompts)
    def ours(passes, steps):
        score = f"while read -r line; do printf '%s\\n' \"$line\" >> {drawn}_{passes}; echo ${{#line}}e-1; done"
        return stage("rl", start, f"rl_run_{passes}", shard, 2 * group, "--group", group, "--response-tokens", most,
                     "--kl", 0.5, "--ppo-clip", 0.1, "--reward-command", score, "--rl-passes", passes, "--steps", steps)
    first, later = ours(1, 1), ours(2, 2)
    eot, lines = tokenizer.eos_token_id, open(drawn + "_2").read().splitlines()
    def rollout(*_):                         # the answers of the next step
        now, lines[:] = lines[:2 * group], lines[2 * group:]
        ids = [[tokenizer(json.loads(line)[part])["input_ids"] for line in now] for part in ("prompt", "response")]
        return {"prompt_ids": [[eot] + prompt for prompt in ids[0]], "logprobs": None, "line": now,
                "completion_ids": [answer + [eot] * (len(answer) < most) for answer in ids[1]]}
    theirs = trl_stage(
        trl.GRPOTrainer, trl.GRPOConfig, GPT2LMHeadModel.from_pretrained(start), tokenizer, prompts, 2 * group, 4,
        dict(num_generations=group, max_completion_length=most, num_iterations=2, beta=0.5, epsilon=0.1,
             loss_type="dapo", scale_rewards="none", use_bias_correction_kl=False),
        rollout_func=rollout, reward_funcs=lambda line, **_: [len(text) / 10 for text in line])
    clipped, kl = [e["clip_ratio/region_mean"] for e in theirs], [e["kl"] for e in theirs]
    same_steps("rl, 1 pass", first, theirs[:1])
    same_steps("rl, the last of 2 passes", later, theirs[1::2],
               f"; clipped {clipped[1]:.0%} and {clipped[3]:.0%} of tokens, KL {kl[1]:.2f} and {kl[3]:.2f}")
    same_figures("rl, rewards, KL and what is clipped",
                 [(later[i]["reward"], theirs[2 * i]["reward"]) for i in (0, 1)] + [(later[1]["kl"], kl[2])] +
                 [(later[i]["clipped"], (clipped[2 * i] + clipped[2 * i + 1]) / 2) for i in (0, 1)])


print(f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}, "
      f"tiktoken {tiktoken.__version__}")
for variant in (("head size 12", 3, 36, 1, 1), ("no bias", 3, 36, 0, 1), ("untied", 5, 35, 1, 0),
                ("no bias, untied", 2, 48, 0, 0), ("one head of 17", 1, 17, 1, 1), ("head size 64", 2, 128, 1, 1)):
    guarded(f"ours in HF, {variant[0]}", lambda: ours_in_hf(*variant))
guarded("HF in ours", hf_in_ours)
guarded("sampling", sampling)
guarded("adapters", adapters)
guarded("llm.c in ours", llmc_in_ours)
guarded("training", training_step)
guarded("tokenizers", all_tokenizers)
guarded("TRL, sft", sft_steps)
guarded("TRL, reward", reward_steps)
guarded("TRL, rl", rl_steps)
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(failed > 0)
