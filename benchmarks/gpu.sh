#!/usr/bin/env bash
# Measure fundax on one GPU: at most 8 minutes on a card of the H100's class, where jax and torch are installed.
#
#   benchmarks/gpu.sh [FOLDER]            # results in FOLDER (default benchmarks/results/gpu): all.json and all.md
#   SMOKE=1 benchmarks/gpu.sh [FOLDER]    # every part once at a tiny size, on a CPU
#
# Parts: golden tests on the device, a training step of ViT-B/16 and L/14 in fundax and in PyTorch (eager, compiled), ring and
# dense loss, attention, and the wait for data from shards. A part that fails or takes too long is named; the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
smoke=${SMOKE:-}
mkdir -p "$out"
export FUNDAX_RESULTS=$out HF_HUB_OFFLINE=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/programs}
failed=()

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "$name: $((SECONDS - start)) s"
    else
        echo "$name: failed or took more than $limit s; see $out/$name.log"
        failed+=("$name")
    fi
}

if [[ -n $smoke ]]; then
    export JAX_PLATFORMS=cpu
    sizes=(tiny) paths=(plain) step=(--batch 2 --rounds 1 --no-compile) tests=tests/golden/test_openclip_schedules.py
    attention=(--tokens 5 --batch 1 --heads 1 --width 8 --repeats 1) ring=(--batches 64 --width 8 --repeats 1)
    wait=(--batch 4 --steps 2 --images 8)
else
    sizes=(B/16 L/14) paths=(plain cudnn) step=(--batch 0 --rounds 10 --dtype bfloat16) tests=tests/golden
    attention=(--dtype bfloat16 --batch 64 --heads 16) ring=(--batches 16384 32768 65536)
    wait=(--batch 256 --steps 30 --images 2048)
fi

for size in "${sizes[@]}"; do
    torch=()
    python -c 'import torch, transformers' 2>/dev/null || torch=(--no-torch)
    for path in "${paths[@]}"; do
        name=train_step_${size/\//}_$path
        part "$name" 100 python benchmarks/train_step.py --size "$size" --text-depth 0 --attention "$path" "${step[@]}" \
            "${torch[@]}" --name "$name"
        torch=(--no-torch) # with the first attention only
    done
done
part attention 60 python benchmarks/attention.py "${attention[@]}"
part loss_time 60 python benchmarks/loss_memory.py --time "${ring[@]}"
part data_wait 60 python benchmarks/data_wait.py "${wait[@]}"
# fp32 products of a GPU are rounded to TF32 unless they are asked for at their full precision
FUNDAX_TEST_PLATFORM=${smoke:+cpu} JAX_DEFAULT_MATMUL_PRECISION=highest part tests 120 python -m pytest -n 0 -q "$tests"
python benchmarks/record.py "$out"
if ((${#failed[@]})); then
    echo "not measured: ${failed[*]}"
    exit 1
fi
