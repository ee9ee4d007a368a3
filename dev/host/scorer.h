/* dev/host/scorer.h -- a program that scores answers: it stays alive, reads a line {"prompt": ..., "response": ...} for
   each and writes a number a line, in the same order. Whatever else it does ends in one line. */
#pragma once
#include "machine.h"
#include "tokenizer.h"
#include <poll.h>
#include <sys/wait.h>

struct Scorer {
    const std::string command;
    const double timeout;                    // seconds without a line of its
    pid_t pid = -1;
    int to = -1, from = -1;

    Scorer(const std::string& command, double timeout) : command(command), timeout(timeout) {
        int in[2], out[2];
        const bool piped = pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0;
        if (piped) pid = fork();
        if (pid < 0) fail("cannot start: %s", strerror(errno));
        if (pid == 0) {                      // a group of its own: the keys that stop a run are not for it
            setpgid(0, 0);
            dup2(in[0], 0);
            dup2(out[1], 1);
            signal(SIGPIPE, SIG_DFL);
            execl("/bin/sh", "sh", "-c", command.c_str(), (char*)nullptr);
            _exit(127);
        }
        close(in[0]);
        close(out[1]);
        to = in[1];
        from = out[0];
        for (int end : {to, from}) fcntl(end, F_SETFL, O_NONBLOCK);
    }
    Scorer(const Scorer&) = delete;
    ~Scorer() {
        close(to);
        close(from);
        for (int i = 0; i < 100 && waitpid(pid, nullptr, WNOHANG) == 0; i++) usleep(1000);   // its input has ended
        kill(-pid, SIGKILL);
        waitpid(pid, nullptr, 0);
    }

    // A score for each pair of prompt and response. Reads while it writes, for either pipe may be full.
    std::vector<double> scores(const std::vector<std::pair<std::string, std::string>>& answers) {
        std::string given, said;
        for (auto& [prompt, response] : answers)
            given += "{\"prompt\": " + json_quote(valid_utf8(prompt)) +
                     ", \"response\": " + json_quote(valid_utf8(response)) + "}\n";
        std::vector<double> scores;
        double last = seconds();
        size_t written = 0;
        while (written < given.size() || scores.size() < answers.size()) {
            pollfd ends[] = {{from, POLLIN, 0}, {written < given.size() ? to : -1, POLLOUT, 0}};
            const double left = last + timeout - seconds();
            if (left <= 0)
                fail("no answer within %g seconds, after %zu of %zu scores; it has to write each line at once (in "
                     "Python print(..., flush=True) or python3 -u); --reward-timeout gives it longer", timeout,
                     scores.size(), answers.size());
            if (poll(ends, 2, std::min(left * 1e3 + 1, 1e6)) < 0 && errno != EINTR)
                fail("cannot wait for it: %s", strerror(errno));
            if (ends[1].revents) {
                const ssize_t n = write(to, &given[written], given.size() - written);
                if (n < 0 && errno != EAGAIN) ended(scores.size(), answers.size());
                if (n > 0) last = seconds();
                if (n > 0) written += n;
            }
            if (!ends[0].revents) continue;
            char bytes[65536];
            const ssize_t n = read(from, bytes, sizeof bytes);
            if (n == 0) ended(scores.size(), answers.size());
            if (n > 0) last = seconds();
            if (n > 0) said.append(bytes, n);
            size_t begin = 0;
            while (said.find('\n', begin) != said.npos) {
                const size_t end = said.find('\n', begin);
                const std::string line = said.substr(begin, end - begin);
                begin = end + 1;
                char* after;
                const double score = strtod(line.c_str(), &after);
                if (scores.size() == answers.size())
                    fail("more than %zu lines for as many answers: '%s'", answers.size(), shown_line(line).c_str());
                if (after == line.c_str() || after[strspn(after, " \t\r")] || !(std::fabs(score) <= 1e30))
                    fail("line %zu: '%s' is no number up to 1e30 in size; a score a line, and nothing else, belongs on "
                         "its standard output", scores.size() + 1, shown_line(line).c_str());
                scores.push_back(score);
            }
            said.erase(0, begin);
        }
        if (!said.empty())
            fail("more than %zu lines for as many answers: '%s'", answers.size(), shown_line(said).c_str());
        return scores;
    }
    // Gives answers these as rewards; shown(ids) is the text of tokens.
    template <typename A, typename F> void reward(std::vector<A>& answers, F shown) {
        std::vector<std::pair<std::string, std::string>> texts;
        for (const A& a : answers) texts.push_back({shown(a.example[0]), shown(a.tokens)});
        const std::vector<double> found = scores(texts);
        for (size_t i = 0; i < answers.size(); i++) answers[i].reward = found[i];
    }

private:
    static std::string shown_line(const std::string& line) { return valid_utf8(line.substr(0, 60)); }
    [[noreturn]] void ended(size_t got, size_t wanted) {
        int status = 0, done = waitpid(pid, &status, WNOHANG);
        for (int i = 0; i < 1000 && !done; i++) {
            usleep(1000);
            done = waitpid(pid, &status, WNOHANG);
        }
        std::string how = "closed its output";
        if (done && WIFSIGNALED(status)) how = format("ended by signal %d", WTERMSIG(status));
        else if (done) how = format("ended with exit code %d", WEXITSTATUS(status));
        fail("it %s after %zu of %zu scores", how.c_str(), got, wanted);
    }
    __attribute__((format(printf, 2, 3), noreturn)) void fail(const char* fmt, ...) {
        va_list args;
        va_start(args, fmt);
        const std::string what = vformat(fmt, args);
        va_end(args);
        die("--reward-command %s: %s", shell_quote(command).c_str(), what.c_str());
    }
};
