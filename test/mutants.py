#!/usr/bin/env python3
"""test/mutants.py [--seed S] [--number N] [--first N] [--file F] -- tests the tests: breaks shipped code in one small
place after another, and sees whether they notice.

A mutant is one application of one of OPERATORS to a line of REGIONS, drawn from the seed. It is built in a copy of the
tree, build/mutants/1 or 2, and goes through the tests that concern its file, cheapest first, until one fails. Its line
tells which; or SURVIVED, with the lines before and after: then a check is missing, or the mutant does what the original
does, and joins EQUIVALENT. A mutant that does not compile is drawn again. One that runs for too long counts as caught.
Exit 1 if the share of caught ones is below LEAST. With --number 0 only REGIONS and EQUIVALENT are held against the
sources."""
import argparse, collections, concurrent.futures, glob, math, os, queue, random, re, shutil, signal, subprocess, sys
import threading

LEAST = 0.98
HOME = 'build/mutants'

# Where mutants are made: from one line to another, by a pattern each.
REGIONS = [
    ('train_gpt.cu', r'// ---- \d+\. layers', r'    Footprint needed\(int B\)'),
    ('train_gpt.cu', r'    void forward\(const int', r'// ---- \d+\. main'),
    ('dev/host/heuristics.h', r'^struct Plan', r'^\}  // namespace gpu'),
    ('dev/host/nccl.h', r'^/\* a vocabulary that ranks share', r'^\}  // namespace gpu'),
    ('train_gpt.cpp', r'// ---- \d+\. layers', r'^// Multiply-adds of all threads'),
    ('dev/host/vectors.h', r'^template <typename P> vec load', r'^\}  // namespace cpu'),
    ('dev/host/units.h', r'^inline void dots_multiply', r'^#else'),
    ('dev/host/units.h', r'^inline void side_by_side', r'^#else'),
    ('train_gpt.cpp', r'^template .* void gemm_pieces', r'^\}  // namespace cpu'),
    ('train_gpt.cpp', r'^/\* The network, for both', r'    std::string describe\(\)'),
    ('train_gpt.cpp', r'    void forward\(const int', r'// ---- \d+\. model files')]
# What tells people something, is told to the compiler or to a cache alone, or is checked before anything runs.
PASSED_OVER = re.compile(r'^\s*(//|#|/\*)|\bdie\(|format\(|static_assert|prefetch\(|c_str\(\)|__launch_bounds__'
                         r'|ASM\(|EMU\(|constexpr \w+ \w+ =')

NESTED = r'\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)'         # parentheses, up to three deep
OPERATORS = [                                # (pattern, replacement, kind)
    (r'__sync(threads|warp)\(\);', ';', 'no barrier'),
    (r'\b(barrier<\d>|mbarrier_wait|mbarrier_arrive|copies_wait<\d>|wgmma_wait<\d>|bulk_wait|bulk_wait_read)' + NESTED,
     '(void)0', 'no wait'),
    (r'\b(stores_visible|wgmma_fence|wgmma_commit|copies_commit|bulk_commit)\(\)', '(void)0', 'no fence'),
    (r'CHECK\((cuda(Event|Stream|Memset|Memcpy)\w*)' + NESTED + r'\)', '(void)0', 'no call'),
    (r'^(\s+)(upload|download|send|launch|store|load|std::fill\w*|std::copy\w*)' + NESTED + ';', r'\1;', 'no call'),
    (r'(?<=[\w)\]]) < (?=[\w(])', ' <= ', '<= for <'), (r' <= ', ' < ', '< for <='),
    (r'(?<=[\w)\]]) > (?=[\w(])', ' >= ', '>= for >'), (r' >= ', ' > ', '> for >='),
    (r' == ', ' != ', '!= for =='), (r' && (?!\w+ &)', ' || ', '|| for &&'), (r' \|\| ', ' && ', '&& for ||'),
    (r' \+= ', ' = ', '= for +='), (r' -= ', ' += ', '+= for -='), (r' \*= ', ' = ', '= for *='),
    (r'(?<=[\w)\]]) \+ (?=[\w(])', ' - ', '- for +'), (r'(?<=[\w)\]]) - (?=[\w(])', ' + ', '+ for -'),
    (r'(?<=[\w)\]]) \* (?=[\w(])', ' + ', '+ for *'), (r'(?<=[\w)\]]) / (?=[\w(])', ' * ', '* for /'),
    (r'(?<=[\w)\]]) % (?=[\w(])', ' / ', '/ for %'),
    (r'(?<![\w.<])([0-9]+)(?![\w.>])', lambda m: str(int(m[1]) + 1), 'a number and one'),
    (r'\bif (?!\(const|\(auto)(' + NESTED + ')', r'if (\1 || true)', 'no guard'),
    (r'\bif (?!\(const|\(auto)(' + NESTED + ')', r'if (\1 && false)', 'never'),
    (r'(?<=[(,] )(\w[\w.]*), (\w[\w.]*)(?=[,)])', r'\2, \1', 'arguments swapped'),
    (r'\bmin\(', 'max(', 'max for min'), (r'\bmax\(', 'min(', 'min for max'),
    (r'\b(true|false)\b(?=[,);])', lambda m: 'false' if m[1] == 'true' else 'true', 'the other truth')]

# Mutants that compute the same, by the text of the mutated line, and why. They do not count.
EQUIVALENT = {
    'if ((it == plans.end()) || true) {': 'a product is chosen anew each time',
    'warpgroup == 0 ? (void)0 : warpgroup == 1 ? barrier<2>(128) : barrier<3>(128);':
        'a warp makes room in rows that it alone reads, in the emulator',
    'warpgroup == 0 ? barrier<1>(128) : warpgroup == 1 ? (void)0 : barrier<3>(128);': 'the same',
    'warpgroup == 0 ? barrier<1>(128) : warpgroup == 1 ? barrier<2>(128) : (void)0;': 'the same',
    'a_panels.resize(std::max<size_t>(a_panels.size(), (size_t)(M - in_place + MR + 1) / MR * MR * KC));':
        'room that nobody needs',
    'if (a.row == 2 && a.col != 1) return rounded(a.t(), K, M).t();': 'numbers are rounded in another order',
    'if (M < MR) return gemm_rows<P>(to, a, b, M, N, K);': 'the same sums in the same order, with more copying',
    'const size_t chunks = std::max<size_t>(1, (N + most - 2) / most);': 'chunks of a row more, and so much room',
    'auto few = [&] { return ((M - 2) / tile_m + 1) * (integer)((N - 1) / tile_n + 1) < 4 * omp_get_max_threads(); };':
        'other tiles, the same sums',
    'if (m.all() >= have)': 'memory that is there to the byte',
    'for (int v = 0; v < V; v++) maximum = z[v] >= maximum ? z[v] : maximum;': 'one of two equal numbers',
    'if ((T != S) || true) for (int b = 0; b < B; b++)'
    ' std::copy_n(qkv + b * T * row, T * row, a.qkv + (b * S + t0) * row);': 'rows are copied to where they are',
    'if ((n == sorted) || true) {': 'more is sorted, and again',
    'for (int c0 = 0; c0 <= C; c0 += 32) {': 'a block of no columns',
    'int rows = 1, columns = 0, read_token = 0;': 'set before it is read',
    'if ((s.top_k == 1) && false) return int(std::find(logits, logits + V, maximum) - logits);': 'the long way to it',
    'real sums[33] = {};': 'room that nobody needs',
    'if (lane != 0) row[k] = r;': 'all lanes have the same r',
    'if (lane % 4 != 0) lse[((size_t)b * gridDim.y + h) * T + i] = maximum[r] / LOG2E + logf(total);':
        'the four lanes of a row have the same',
}

# By the name of what encloses it: the ladder that checks a kernel, alone.
LADDERS = [(r'few|attention_step|embedding_step|pick|Cut|cut|sum_before|key_of|number_of|Normed', 'decoding'),
           (r'attention|Tile|multiply_(transposed|results)|boxes|stage_rows|sum_rows|Shape|Walk|Probability|recompute'
            r'|wgmma|scores', 'attention'),
           (r'layernorm|rows_for|banked|Embedding\b', 'layernorm'), (r'embedding|sort_tokens', 'embedding'),
           (r'gelu|column_sums|partial', 'gelu'), (r'cross_entropy|add_loss', 'cross_entropy'),
           (r'adamw|squares|round_kernel', 'adamw'),
           (r'linear|matmul|Matmul|heuristic|fastest|random_kernel|differ', 'matmul')]
size = lambda d: sum(os.path.getsize(f) for f in glob.glob(d + '*'))
GOLDEN = ' '.join(sorted(glob.glob('test/golden/*/'), key=size))     # small ones first


# What a mutant goes through: (name, programs to build, command).
def tests_of(file, enclosing):
    if file in ('dev/host/vectors.h', 'dev/host/units.h'):
        return [('test_gemm', 'build/test_gemm', 'build/test_gemm'),
                ('test_gemm, sanitized', 'build/test_gemm SANITIZE=1', 'build/test_gemm')]
    if file == 'train_gpt.cpp':
        tests = [('golden', 'build/test_golden', 'build/test_golden ' + GOLDEN),
                 ('test_layers', 'build/test_layers', 'build/test_layers'),
                 ('test_gemm', 'build/test_gemm', 'build/test_gemm'),
                 ('--check', 'build/train_gpt_emulated', 'build/train_gpt_emulated --check'),
                 ('test_cases', 'train_gpt build/test_cases', 'build/test_cases')]
        if not shutil.which('mpirun'): return tests
        return tests + [('ranks.sh', 'train_gpt build/shards build/train_gpt_mpi', 'test/ranks.sh build/train_gpt_mpi')]
    tests = []
    for pattern, ladder in LADDERS:
        if re.search(pattern, enclosing):
            tests = [(ladder, f'build/emulated_{ladder}', f'build/emulated_{ladder} 1 tiny && build/emulated_{ladder}'),
                     (ladder + ', fp32', f'build/emulated_{ladder}_fp32', f'build/emulated_{ladder}_fp32')]
            break
    if re.search('Matmul|heuristic|fastest|random_kernel|differ', enclosing):
        tests.append(('heuristics', 'build/emulated_heuristics', 'build/emulated_heuristics'))
    return tests + [
        ('--check', 'build/train_gpt_emulated', 'build/train_gpt_emulated --check'),
        ('golden', 'build/emulated_golden', 'build/emulated_golden ' + GOLDEN),
        ('gpu.sh', 'train_gpt build/train_gpt_emulated build/train_gpt_emulated_fp32',
         'test/gpu.sh build/train_gpt_emulated'),
        ('ranks.sh', 'train_gpt build/shards build/train_gpt_emulated_fp32',
         'test/ranks.sh build/train_gpt_emulated_fp32')]


def run(directory, command):
    """Its exit code and output, up to the first FAIL. One that takes too long, by a processor's clock or by the wall's,
    fails."""
    env = dict(os.environ, OMP_NUM_THREADS='1', MAKEFLAGS='', STRESS='', MAKELEVEL='0')
    p = subprocess.Popen('ulimit -t 400; ' + command, shell=True, cwd=directory, env=env, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, start_new_session=True, text=True, errors='replace')
    end = lambda: os.killpg(p.pid, signal.SIGKILL)
    timer, output = threading.Timer(3600, end), ''
    timer.start()
    for line in p.stdout:
        output += line
        if line.startswith('FAIL'):
            end()
            break
    code = p.wait()
    timer.cancel()
    return code, output or 'says nothing'


def candidates():
    """All mutants: (file, line number, line, mutated line, kind, enclosing definition)."""
    for file, first, last in REGIONS:
        inside = comment = nvcc = False
        enclosing = ''
        for number, line in enumerate(SOURCE[file]):
            if not inside: inside = bool(re.search(first, line))
            elif re.search(last, line): break
            if re.match(r'template|struct \w+ {$', line): enclosing = line
            elif re.match(r'[\w_].*[({]', line): enclosing = line if not enclosing.endswith('>') else enclosing + line
            comment = comment or line.lstrip().startswith('/*')
            nvcc = line == '#if defined(__CUDACC__)' or nvcc and not re.match('#(else|endif)', line)  # its alone
            code = line.split('//')[0].rstrip()
            if inside and not comment and not nvcc and code and not PASSED_OVER.search(line):
                for pattern, replacement, kind in OPERATORS:
                    for m in re.finditer(pattern, code):
                        new = replacement(m) if callable(replacement) else m.expand(replacement)
                        mutated = code[:m.start()] + new + code[m.end():]
                        if mutated != code: yield file, number, line, mutated, kind, enclosing
            comment = comment and '*/' not in line
        else:
            sys.exit(f'FAIL mutants/regions: {file}: no line like {(last if inside else first)!r}')


def judge(slot, mutant):
    """What catches it, or None; and what that says."""
    directory = f'{HOME}/{slot}'
    file, number, line, mutated, kind, enclosing = mutant
    with open(f'{directory}/{file}', 'w') as f:
        f.write('\n'.join(SOURCE[file][:number] + [mutated] + SOURCE[file][number + 1:]))
    try:
        for name, programs, command in tests_of(file, enclosing):
            code, output = run(directory, f'make {programs}')
            if code and 'error:' not in output: sys.exit(f'error: make {programs}: ' + output.strip().split('\n')[-1])
            if code: return 'the compiler', ''
            code, output = run(directory, command)
            if code:
                last = output.strip().split('\n')[-1]
                return name, next((l for l in output.split('\n') if l.startswith('FAIL')), last)
        return None, ''
    finally:
        with open(f'{directory}/{file}', 'w') as f: f.write('\n'.join(SOURCE[file]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seed', default='1')
    parser.add_argument('--number', type=int, default=12)
    parser.add_argument('--first', type=int, default=0, help='how many of the first are left out')
    parser.add_argument('--file', help='of this file alone')
    o = parser.parse_args()
    # A mutant's place in the order hangs on itself and the seed, so that changes elsewhere leave it; and on how many
    # there are of its kind: of a hundred times as many, ten times as many are drawn.
    drawn = list(candidates())
    for line in EQUIVALENT.keys() - {m[3].strip() for m in drawn}:
        sys.exit(f'FAIL mutants/equivalent: no mutant is {line!r}')
    if not o.number:
        return print(f'ok mutants/regions: {len(drawn)} mutants in {len(REGIONS)},',
                     f'{len(EQUIVALENT)} equivalent ones among them')
    drawn = [m for m in drawn if o.file in (None, m[0])]
    kinds = collections.Counter(m[4] for m in drawn)
    drawn.sort(key=lambda m: random.Random(f'{o.seed} {m[0]} {m[3]} {m[4]}').random() * math.sqrt(kinds[m[4]]))
    print(f'seed {o.seed}, {o.number} of {len(drawn)} mutants', flush=True)
    slots = queue.Queue()
    for slot in (1, 2):
        shutil.rmtree(f'{HOME}/{slot}', ignore_errors=True)
        shutil.copytree('.', f'{HOME}/{slot}', ignore=shutil.ignore_patterns('.git', 'build', 'runs', '*.o'))
        os.makedirs(f'{HOME}/{slot}/build')
        slots.put(slot)
    caught, equivalent, survived, dead = {}, 0, 0, 0

    def one(mutant):
        slot = slots.get()
        try: return judge(slot, mutant)
        finally: slots.put(slot)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        at, waiting = iter(drawn[o.first:]), []
        def more():
            mutant = next(at)
            waiting.append((mutant, None if mutant[3].strip() in EQUIVALENT else pool.submit(one, mutant)))
        for _ in range(o.number): more()
        for mutant, future in waiting:       # grows
            file, number, line, mutated, kind, _ = mutant
            where = f'{file}:{number + 1}: {kind}'
            if not future:
                equivalent += 1
                print(f'{where}: equivalent: {EQUIVALENT[mutated.strip()]}', flush=True)
                continue
            by, what = future.result()
            if by == 'the compiler':
                dead += 1
                more()
            elif by:
                caught[by] = caught.get(by, 0) + 1
                print(f'{where}: caught by {by}: {what[:110]}', flush=True)
            else:
                survived += 1
                print(f'{where}: SURVIVED\n    - {line.strip()}\n    + {mutated.strip()}', flush=True)
    judged = sum(caught.values()) + survived
    print(', '.join(f'{n} by {by}' for by, n in sorted(caught.items(), key=lambda c: -c[1])))
    good = judged > 0 and judged - survived >= LEAST * judged
    print(f'{"ok" if good else "FAIL"} mutants/seed {o.seed}: {judged - survived} of {judged} caught;',
          f'{equivalent} are equivalent, {dead} more do not compile')
    return not good


if __name__ == '__main__':
    SOURCE = {file: open(file).read().split('\n') for file in {r[0] for r in REGIONS}}
    sys.exit(main())
