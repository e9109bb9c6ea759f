#!/usr/bin/env bash
# One token at a time from the same GGUF files by llama.cpp and by semisep, in turns, on two threads: the best of all
# rounds, as other work on a machine only ever takes away. Needs python3. FLAGS go to semisep (--exact-activations).
#
#     cargo build --release --bin semisep
#     [FLAGS=...] benches/quant_llama.sh LLAMA-BENCH target/release/semisep ROUNDS FILE.gguf...
set -euo pipefail
llama=$1 semisep=$2 rounds=$3
shift 3
results=$(mktemp -d)
trap 'rm -r "$results"' EXIT
for round in $(seq "$rounds"); do
    for file in "$@"; do
        to=$results/$(basename "$file" .gguf).$round
        "$llama" -m "$file" -t 2 -p 0 -n 64 -r 1 -o json > "$to.llama" 2> "$to.log" || { cat "$to.log" >&2; exit 1; }
        RAYON_NUM_THREADS=2 "$semisep" bench "$file" ${FLAGS:-} --lengths 32 --seconds 1 --json "$to.semisep" > /dev/null
    done
done
python3 - "$results" <<'PYTHON'
import collections, json, pathlib, sys

best = collections.defaultdict(lambda: [0.0, 0.0, 0])
reads = 0.0
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    name = path.name.rsplit(".", 2)[0]
    if path.suffix == ".llama":
        best[name][0] = max(best[name][0], json.loads(path.read_text())[0]["avg_ts"])
    elif path.suffix == ".semisep":
        report = json.loads(path.read_text())
        model = report["models"][0]
        length = model["lengths"][0]
        best[name][1] = max(best[name][1], length["decode_tokens_per_second"])
        best[name][2] = sum(row["bytes"] for row in model["weights"]) + length["state_bytes"]
        reads = max(reads, report["machine"]["read_bandwidth"])
print(f"reads at best {reads / 1e9:.1f} GB/s; shares are bytes of weights and states over it")
print("| file | MB | llama.cpp, tokens/s | share | semisep, tokens/s | share | ratio |")
print("|---|---|---|---|---|---|---|")
for name, (llama, ours, size) in best.items():
    share = lambda speed: f"{100 * speed * size / reads:.0f} %"
    print(f"| {name} | {size / 1e6:.1f} | {llama:.1f} | {share(llama)} | {ours:.1f} | {share(ours)} | {ours / llama:.2f} |")
PYTHON
