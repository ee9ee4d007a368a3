/* dev/host/chat.h -- a conversation: what is typed, and the turns so far as a prompt. Turns and answers alternate as in
   a row of sft; the oldest are dropped when the context is full. The tokenizer's chat template formats a turn; without
   one a line is a prompt as it stands. */
#pragma once
#include "machine.h"
#include "texts.h"

struct Conversation {
    const Tokenizer& tokenizer;
    const int eot, context;
    const long long most;                    // tokens of an answer
    const bool terminal = isatty(STDIN_FILENO);
    std::vector<std::vector<int>> turns = {};                // each an end of text, what was said, and the answer

    static constexpr const char* HELP =
        "/new (or /reset)  forget all that was said\n"
        "/undo             forget the last turn\n"
        "/quit (or Ctrl-D) end; so does Ctrl-C, which ends an answer while there is one\n"
        "/help             this list\n";

    static void leave(int) {                 // by Ctrl-C at the prompt
        if (write(STDOUT_FILENO, "\n", 1)) {}
        _exit(0);
    }
    // The next line said; false at the end. A line of a single word that begins with / is a command, and is done here.
    bool listen(std::string& line) {
        if (terminal) signal(SIGINT, leave);
        for (;;) {
            if (terminal) printf("> ");
            if (terminal) fflush(stdout);
            line.clear();
            int c;
            while ((c = getchar()) != EOF && c != '\n') line += (char)c;
            if (line.ends_with('\r')) line.pop_back();
            const bool word = line.find_first_not_of("abcdefghijklmnopqrstuvwxyz", 1) == line.npos;
            const bool command = line.size() > 1 && line[0] == '/' && word;
            if (line == "/quit" || (c == EOF && line.empty())) {
                if (terminal && line.empty()) printf("\n");
                return false;
            }
            if (!command && terminal) {      // from here on the signal ends an answer
                stop_signal = 0;
                signal(SIGINT, on_signal);
            }
            if (!command) return true;
            if (line == "/help") printf("%s", HELP);
            else if (line == "/new" || line == "/reset") turns.clear();
            else if (line == "/undo" && !turns.empty()) turns.pop_back();
            else if (line == "/undo") printf("there is no turn to forget\n");
            else printf("%s is no command; /help lists them\n", line.c_str());
            fflush(stdout);
        }
    }
    // All turns, with what is said now, which is not answered (most is 0) if it does not fit by itself.
    Prompt ask(const std::string& said) {
        std::vector<int> turn = {eot};
        const std::string& form = tokenizer.chat_template;
        const std::string text = form.empty() ? said
            : ChatTemplate(form).turn("user", said) + ChatTemplate(form).opening(ASSISTANT);
        Tokenizer::Scratch scratch;
        tokenizer.encode(text, turn, scratch);
        const long long least = std::min<long long>(most, context / 4);
        Prompt p = {{}, 0};
        if (context - (long long)turn.size() < std::max(1LL, least)) {
            warn("what was said takes %zu tokens, and the context %d: it is not answered", turn.size(), context);
            return p;
        }
        turns.push_back(turn);
        for (;;) {
            p.tokens.clear();
            for (auto& t : turns) p.tokens.insert(p.tokens.end(), t.begin(), t.end());
            p.most = std::min<long long>(most, context - (long long)p.tokens.size());
            if (p.most >= std::max(1LL, least)) return p;
            warn("the context is full: the oldest turn is forgotten");
            turns.erase(turns.begin());
        }
    }
    // Until the end of what is typed: draw(prompt, n, show) gives the answer to line n, and shows it as it grows.
    template <typename F> void hold(F draw) {
        std::string line;
        for (uint64_t n = 1; listen(line); n++) {
            const Prompt p = ask(line);
            if (p.most == 0) continue;
            size_t shown = 0;
            auto show = [&](int, const Text& t) {
                t.show(shown);
                return !stop_signal;
            };
            answered(draw(p, n, show));
            write_out("\n");
        }
    }
    // What was shown of an answer becomes a part of its turn.
    void answered(const Text& text) {
        const std::vector<int> said = text.finish == Finish::STOP ? tokenizer.encode(text.response) : text.said();
        turns.back().insert(turns.back().end(), said.begin(), said.end());
    }
};
