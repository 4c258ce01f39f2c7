#!/usr/bin/env bash
# Beauty and Sports on one GPU of the H100 or H200 class: many small models side by side, each slice under ten minutes.
#
#     bash benchmarks/gpu.sh DATA [MINUTES]      # DATA: folder with amazon14_beauty and amazon14_sports
#
# Call it again to go on: finished cells are not run twice, killed trainings resume from their checkpoints. A small model
# takes some 2 GB of GPU memory and a core; eighteen on 16 cores took 1.8 times as long a step as seven. Rows land
# in benchmarks/results.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?name the folder of the raw data}
seconds=$((${2:-9} * 60))

for suite in beauty sports; do
    started=$SECONDS
    timeout --signal=INT "$seconds" .venv/bin/hf-gr bench "$suite" --data "$data" --out bench --jobs 6 \
        --baselines-python .venv-baselines/bin/python --report benchmarks/RESULTS.md || status=$?
    echo "$suite: exit ${status:-0} after $((SECONDS - started)) s"
done
