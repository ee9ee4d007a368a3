// What the tests share: one line a check, "ok", "FAIL" or "skip", and an exit code. `make test` counts the lines.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdio>

inline int failed = 0;

__attribute__((format(printf, 2, 3))) inline bool check(bool good, const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    printf("%s ", good ? "ok" : "FAIL");
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    failed += !good;
    return good;
}

// The largest error so far; a NaN stays, so that no later number can hide it.
inline void keep_worst(double& worst, double error) {
    if (!std::isnan(worst) && !(error <= worst)) worst = error;
}

__attribute__((format(printf, 1, 2))) inline void skip(const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    printf("skip ");
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
}
