/* dev/host/display.h -- what a run shows of itself: one line a step; on a terminal each takes the place of the last.
   Elsewhere a long run shows some 200 of them; log.jsonl has all. */
#pragma once
#include "reports.h"

struct Display {
    bool terminal = isatty(STDOUT_FILENO);
    std::vector<double> losses = {};         // smoothed, for the sparkline
    double ms = 0;                           // smoothed
    bool midline = false;                    // a step line stands there, to be overwritten
    double floor, val_loss = NAN;
    long long steps;

    ~Display() { if (midline) printf("\n"); }                // what follows may be an error
    std::string sparkline() const {
        const int width = 12;
        if (losses.size() < 2) return "";
        std::vector<double> points;
        for (int i = 0; i < width; i++) points.push_back(losses[(losses.size() - 1) * i / (width - 1)]);
        auto [low, high] = std::minmax_element(points.begin(), points.end());
        std::string s = "  ";
        for (double p : points)
            s += std::string("▁▂▃▄▅▆▇█").substr(3 * int(7.99 * (p - *low) / (*high - *low + 1e-9)), 3);
        return s;
    }
    void step(const StepReport& r, const Notes& notes) {
        losses.push_back(losses.empty() ? r.loss : 0.9 * losses.back() + 0.1 * r.loss);
        ms = ms == 0 ? r.ms : 0.9 * ms + 0.1 * r.ms;
        const long long left = ms * (steps - r.step) / 1e3;
        std::string line = format("step %lld/%lld  loss %.4f", r.step, steps, r.loss);
        if (std::isfinite(floor)) line += format(" (floor %.4f)", floor);
        if (std::isfinite(val_loss)) line += format("  val %.4f", val_loss);
        line += format("  norm %.3f  lr %.2e  %.0f ms  %.0f tok/s  %s  ETA %lld:%02d:%02d", r.norm, r.lr, r.ms,
                       r.tokens / r.ms * 1e3, r.text(notes).c_str(), left / 3600, int(left / 60 % 60), int(left % 60));
        midline = terminal;
        if (terminal) printf("\r%s%s\x1b[K", line.c_str(), sparkline().c_str());
        const bool shown = r.step <= 20 || r.step == steps || r.step % std::max(1LL, steps / 200) == 0;
        if (!terminal && shown) printf("%s\n", line.c_str());
        fflush(stdout);
    }
    // an ordinary line between step lines
    __attribute__((format(printf, 2, 3))) void say(const char* fmt, ...) {
        va_list args;
        va_start(args, fmt);
        printf("%s%s\n", midline ? "\n" : "", vformat(fmt, args).c_str());
        midline = false;
        va_end(args);
        fflush(stdout);
    }
};
