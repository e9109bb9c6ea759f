#!/usr/bin/env bash
# From a large sharded checkpoint of random weights to its first token: time against reading the bytes once, peak memory
# against the weights' bytes. Needs GNU time, 12 GB of disk and 8 GB of memory.
#
#     cargo build --release --bin semisep && benches/load_speed.sh target/release/semisep FOLDER
set -euo pipefail
semisep=$1
folder=$2/load-speed
if [ ! -d "$folder" ]; then
    "$semisep" export mamba-2.8b --dtype bf16 --max-shard-size 2GB --out "$folder"
fi
bytes=$(cat "$folder"/*.safetensors | wc -c)
echo "$(ls "$folder"/*.safetensors | wc -l) shards, $bytes bytes"
for round in 1 2 3; do
    start=$(date +%s.%N)
    cat "$folder"/*.safetensors > /dev/null
    end=$(date +%s.%N)
    read_s=$(echo "$end - $start" | bc)
    start=$(date +%s.%N)
    # The speed is told once the token is there; memory by `time` when all has ended.
    out=$(/usr/bin/time -f "%e %M" "$semisep" generate "$folder" --dtype bf16 -p a -n 1 2>&1 > /dev/null | while read -r line; do
        case $line in *"first token"*) echo "$(date +%s.%N) - $start" | bc ;; *) echo "$line" ;; esac
    done | tail -2 | tr '\n' ' ')
    echo "$out $read_s $bytes" | awk '{ printf "read %.2f s; to the first token %.2f s (%.2f times), to the end %.2f s; peak %.2f GB (%.2f of the weights)\n", $4, $1, $1 / $4, $2, $3 * 1024 / 1e9, $3 * 1024 / $5 }'
done
