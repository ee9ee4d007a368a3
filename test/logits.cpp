/* test/logits.cpp -- build/logits MODEL ID...
   Writes the logits after each of the given tokens to standard output: rows of V float32. For test/hf.py. */
#define NO_CPU_MAIN
#include "../train_gpt.cpp"

int main(int argc, char** argv) {
    try {
        if (argc < 3) die_usage("usage: build/logits MODEL ID...");
        ModelFile file = open_model(argv[1]);
        const Config c = config_of(file, 0);
        std::vector<int> x;
        for (int i = 2; i < argc; i++) x.push_back(atoi(argv[i]));
        for (int id : x) if (id < 0 || id >= c.V) die_usage("%d: not a token of %s", id, file.path.c_str());
        const int T = x.size();
        if (T > c.T) die_usage("%d tokens, but %s has positions for %d", T, file.path.c_str(), c.T);
        cpu::Model model(c, 1, T, false);
        load_tensors(stored(model), file.tensors, file.path);
        model.extend(x.data(), 1, 0, T);
        std::vector<float> logits(c.V);
        for (int t = 0; t < T; t++) {
            model.logits(t, 1, 1, logits.data());
            fwrite(logits.data(), sizeof(float), c.V, stdout);
        }
    } catch (const Error& e) {
        fprintf(stderr, "error: %s\n", e.line.c_str());
        return e.exit_code;
    }
}
