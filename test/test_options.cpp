/* test/test_options.cpp -- wrong command lines, each with the one line it must end in, exit code 2, and nothing
   touched. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"
#include "check.h"

static const struct { const char *words, *line; } WRONG[] = {
    {"fly", "fly: unknown verb; expected train, sample, chat, eval, graph or merge"},
    {"Train", "Train: unknown verb; expected train, sample, chat, eval, graph or merge"},
    {"-x", "-x: unknown verb; expected train, sample, chat, eval, graph or merge"},
    {"train --out OUT", "train: --train is missing: token shards to train on; --resume goes on with a run"},
    {"train --train a.bin", "train: --out is missing: directory of the run; merge: of the model"},
    {"--resume", "train: --out is missing: directory of the run; merge: of the model"},
    {"sample", "sample: --model is missing: run, checkpoint, Hugging Face directory, .safetensors, llm.c .bin"},
    {"eval --val a.bin", "eval: --model is missing: run, checkpoint, Hugging Face directory, .safetensors, llm.c .bin"},
    {"eval --model m", "eval: give --val, --choices or --answers"},
    {"graph", "graph: --model is missing: run, checkpoint, Hugging Face directory, .safetensors, llm.c .bin"},
    {"train --frobnicate 3", "--frobnicate: unknown option; train_gpt --help lists them"},
    {"train --step 3", "--step: unknown option, nearest is --steps; train_gpt --help lists them"},
    {"train --Steps 3", "--Steps: unknown option, nearest is --steps; train_gpt --help lists them"},
    {"train -steps 3", "-steps: unknown option, nearest is --steps; train_gpt --help lists them"},
    {"train steps 3", "steps: unknown option, nearest is --steps; train_gpt --help lists them"},
    {"train --steps 3 more", "more: unknown option; train_gpt --help lists them"},
    {"train --batch_size 3", "--batch-size: unknown option, nearest is --batch; train_gpt --help lists them"},
    {"train --max-steps 3", "--max-steps: unknown option, nearest is --steps; train_gpt --help lists them"},
    {"train --wieght-decay=0",
     "--wieght-decay: unknown option, nearest is --weight-decay; train_gpt --help lists them"},
    {"sample --temprature 1", "--temprature: unknown option, nearest is --temperature; train_gpt --help lists them"},
    {"train --min_lr fast", "--min-lr fast: not a number"},
    {"train --min-lr 1 --min_lr 1", "--min-lr: given twice"},
    {"train --train TRAIN --out OUT --init d7",
     "--init d7: no such file or directory, and no size of a model: those are d6, d12, d24, d36, d48, custom"},
    {"train --", "--: unknown option; train_gpt --help lists them"},
    {"train --=3", "--: unknown option; train_gpt --help lists them"},
    {"train --verb train", "--verb: unknown option, nearest is --zero; train_gpt --help lists them"},
    {"train --steps", "--steps: needs a value"},
    {"train --steps=", "--steps: needs a value"},
    {"train --out", "--out: needs a value"},
    {"train --out=", "--out: needs a value"},
    {"train --steps 3 --steps 4", "--steps: given twice"},
    {"train --steps 3 --steps=3", "--steps: given twice"},
    {"train --resume --resume", "--resume: given twice"},
    {"train --resume=1", "--resume: takes no value"},
    {"train --resume 1", "1: unknown option; train_gpt --help lists them"},
    {"train --temperature 1", "--temperature: not an option of train"},
    {"train --model m", "--model: not an option of train"},
    {"sample --steps 3", "--steps: not an option of sample"},
    {"sample --train a", "--train: not an option of sample"},
    {"eval --prompt a", "--prompt: not an option of eval"},
    {"eval --out a", "--out: not an option of eval"},
    {"graph --val a", "--val: not an option of graph"},
    {"graph --seed 1", "--seed: not an option of graph"},
    {"train --steps 10k", "--steps 10k: not an integer"},
    {"train --steps ten", "--steps ten: not an integer"},
    {"train --steps 1e3", "--steps 1e3: not an integer"},
    {"train --steps 3.5", "--steps 3.5: not an integer"},
    {"train --steps 0x10", "--steps 0x10: not an integer"},
    {"train --steps -", "--steps -: not an integer"},
    {"train --steps --resume", "--steps --resume: not an integer"},
    {"train --steps 0", "--steps 0: must lie in 1..1000000000000"},
    {"train --steps -5", "--steps -5: must lie in 1..1000000000000"},
    {"train --steps 99999999999999999999", "--steps 99999999999999999999: must lie in 1..1000000000000"},
    {"train --batch 0", "--batch 0: must lie in 1..1048576"},
    {"train --layers 1001", "--layers 1001: must lie in 1..1000"},
    {"train --heads -1", "--heads -1: must lie in 1..1000"},
    {"train --vocab 0", "--vocab 0: must lie in 1..16777216"},
    {"train --context 0", "--context 0: must lie in 1..1048576"},
    {"train --bias 2", "--bias 2: must lie in 0..1"},
    {"train --bias yes", "--bias yes: not an integer"},
    {"train --tied -1", "--tied -1: must lie in 0..1"},
    {"train --keep 0", "--keep 0: must lie in 1..1000000"},
    {"train --threads 0", "--threads 0: must lie in 1..4096"},
    {"train --seed -1", "--seed -1: must lie in 0..9007199254740992"},
    {"train --eval-every -1", "--eval-every -1: must lie in 0..1000000000000"},
    {"train --lr fast", "--lr fast: not a number"},
    {"train --lr 1e-3x", "--lr 1e-3x: not a number"},
    {"train --lr nan", "--lr nan: not a number"},
    {"train --lr inf", "--lr inf: not a number"},
    {"train --lr 0x1p3", "--lr 0x1p3: not a number"},
    {"train --lr -1", "--lr -1: must lie in 0..1000"},
    {"train --lr 1e999", "--lr 1e999: must lie in 0..1000"},
    {"train --lr 1,5", "--lr 1,5: not a number"},
    {"train --beta1 1", "--beta1 1: must lie in 0..0.999999999"},
    {"train --beta2 1.5", "--beta2 1.5: must lie in 0..0.999999999"},
    {"train --eps 2", "--eps 2: must lie in 1e-30..1"},
    {"train --clip -1", "--clip -1: must lie in 0..1e30"},
    {"train --epochs 0", "--epochs 0: must lie in 0.000001..1000000"},
    {"train --steps 3 --epochs 2 --train a --out OUT", "--epochs: give --steps or --epochs, not both"},
    {"train --schedule cos", "--schedule cos: must be one of cosine|linear|wsd|constant"},
    {"train --schedule cosine|linear", "--schedule cosine|linear: must be one of cosine|linear|wsd|constant"},
    {"train --dtype fp64", "--dtype fp64: must be one of fp32|bf16"},
    {"train --raw u8", "--raw u8: must be one of u16"},
    {"train --rows all", "--rows all: must be one of packed|documents|sliding"},
    {"sample --model m --prompt a --prompt-file b", "--prompt-file: give --prompt or --prompt-file, not both"},
    {"train --train TRAIN TRAIN",
     "build/test_options_data/train.bin: stands after no option; a pattern needs quotes: --train '*.bin'"},
    {"train --train TRAIN --out OUT --init gpt2",
     "--init gpt2: no such file or directory, and no size of a model: those are d6, d12, d24, d36, d48, custom; "
     "dev/data/download.sh gpt2-124M fetches the published GPT-2 into data/gpt2-124M"},
    {"sample --temperature -0.5", "--temperature -0.5: must lie in 0..1000"},
    {"sample --temperature warm", "--temperature warm: not a number"},
    {"sample --top-k -1", "--top-k -1: must lie in 0..16777216"},
    {"sample --top-p 0", "--top-p 0: must lie in 0.000001..1"},
    {"sample --top-p 1.01", "--top-p 1.01: must lie in 0.000001..1"},
    {"sample --tokens 0", "--tokens 0: must lie in 1..1000000000"},
    {"sample --model m --prompts a --prompt-file b", "--prompts: give --prompt-file or --prompts, not both"},
    {"sample --model m --best-of 2 --samples 2", "--best-of: give --samples or --best-of, not both"},
    {"sample --model m --best-of 2 --vote 2", "--vote: give --best-of or --vote, not both"},
    {"sample --model m --vote-after x", "--vote-after: is for --vote"},
    {"sample --model m --vote 2 --vote-after \\x", "--vote-after \"\\\\x\": after \\ expected n, t, r or another \\"},
    {"sample --model m --stop a --stop b\\", "--stop \"b\\\\\": after \\ expected n, t, r or another \\"},
    {"sample --model m --reward r", "--reward: is for --best-of"},
    {"eval --model m --val a --reward r", "--reward: is for --best-of"},
    {"eval --model m --val a --best-of 2", "--best-of: is for --answers"},
    {"eval --model m --choices a --vote 2", "--vote: is for --answers"},
    {"eval --model m --val a --examples e", "--examples: is for --answers"},
    {"sample --stop=", "--stop: needs a value"},
    {"sample --vote 1", "--vote 1: must lie in 2..4096"},
    {"sample --format json", "--format json: must be one of text|jsonl"},
    {"sample --min-p 1.1", "--min-p 1.1: must lie in 0..1"},
    {"sample --repetition-penalty 0", "--repetition-penalty 0: must lie in 0.01..100"},
    {"chat --format jsonl", "--format: not an option of chat"},
    {"chat --vote 2", "--vote: not an option of chat"},
    {"train --stop a", "--stop: not an option of train"},
    {"sample --samples 0", "--samples 0: must lie in 1..4096"},
    // wrong only together, or only for this data; TRAIN is a shard of 100 tokens below 50
    {"train --train TRAIN --out OUT --init custom", "--init custom: give --layers, --heads and --channels"},
    {"train --train TRAIN --out OUT --init custom --layers 2 --heads 2",
     "--init custom: give --layers, --heads and --channels"},
    {"train --train TRAIN --out OUT --init d6 --heads 7", "--channels 384: not a multiple of --heads 7"},
    {"train --train TRAIN --out OUT --init d6 --channels 100", "--channels 100: not a multiple of --heads 6"},
    {"train --train TRAIN --out OUT --context 8 --batch 2 --tokens-per-step 24",
     "--tokens-per-step 24: not a multiple of batch x context = 16"},
    {"train --train TRAIN --out OUT --context 8 --tokens-per-step 1",
     "--tokens-per-step 1: not a multiple of batch x context = 32"},
    {"train --train TRAIN --out OUT --vocab 50 --context 8 --rows documents",
     "--rows documents: needs a tokenizer, to know the end of text"},
    {"train --train TRAIN --out OUT --vocab 50 --context 8 --answers none.bin",
     "--answers: needs a tokenizer, to know the end of text"},
    {"train --frob\x1bnicate\n", "--frob\\x1bnicate\\x0a: unknown option; train_gpt --help lists them"},
};

int main() {
    const std::string dir = "build/test_options_data", out = dir + "/out", shard = dir + "/train.bin";
    fs::remove_all(dir);
    fs::create_directories(dir);
    std::vector<int> tokens(100);
    for (int i = 0; i < 100; i++) tokens[i] = i % 50;
    write_shard(shard, tokens, 50);
    for (auto& wrong : WRONG) {
        std::vector<std::string> words;
        for (const char* p = wrong.words; *p;) {
            size_t n = strcspn(p, " ");
            std::string word(p, n);
            words.push_back(word == "OUT" ? out : word == "TRAIN" ? shard : word);
            p += n + (p[n] == ' ');
        }
        Error got{0, "nothing was found wrong"};
        try {
            run_verb<cpu::Model>(parse_options(words));
        } catch (const Error& e) { got = e; }
        const bool good = got.exit_code == 2 && got.line == wrong.line;
        const std::string differs = good ? "" : format(": exit %d, '%s', expected '%s'", got.exit_code,
                                                       got.line.c_str(), wrong.line);
        check(good && !fs::exists(out), "options/%s%s", wrong.words, differs.c_str());
    }
    Options o = parse_options({"train", "--train=a b", "--out", "x", "--lr", "3e-4", "--min-lr=0", "--resume",
                               "--steps", "+5"});
    check(o.train == "a b" && o.lr == 3e-4 && o.min_lr == 0 && o.resume && o.steps == 5 && o.beta2 == 0.95,
          "options/right ones are taken");
    o = parse_options({"sample", "--model", "m", "--prompt", "", "--top-k", "3"});
    check(o.verb == "sample" && o.has("prompt") && o.top_k == 3, "options/an empty prompt is a prompt");
    o = parse_options({"sample", "--model", "m", "--stop", "\\n\\n", "--stop=</s>", "--vote", "3", "--vote-after",
                       "\\tso"});
    check(o.stop == text_list({"\n\n", "</s>"}) && o.vote_after == "\tso", "options/stop strings, with escapes");
    o = parse_options({"train", "--train=a", "--out", "x", "--min_lr=0.25", "--tokens_per_step", "64"});
    check(o.min_lr == 0.25 && o.tokens_per_step == 64, "options/underscores are dashes");
    // what is printed at the start, read by a shell and again by the program
    o = parse_options({"train", "--train", "it's [1] $HOME*.bin", "--out", "a \"b\"", "--lr", "3e-4", "--epochs",
                       "2.5", "--resume"});
    const std::string command = command_line(TRAIN_GPT, o.verb, o.table());
    FILE* shell = popen(("printf '%s\n' " + command.substr(strlen("./" PROGRAM " "))).c_str(), "r");
    std::vector<std::string> words;
    for (char line[256]; fgets(line, sizeof line, shell);) words.push_back(std::string(line, strcspn(line, "\n")));
    pclose(shell);
    Options again = parse_options(words);
    check(options_json(again.table(), 't') == options_json(o.table(), 't') && again.resume,
          "options/a run's options as a command: %s", command.c_str());
    check(parse_options({"--train", "a", "--out", "b"}).verb == "train",
          "options/train is the verb where none is given");
    return failed > 0;
}
