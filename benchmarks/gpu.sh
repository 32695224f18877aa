#!/bin/bash
# What a GPU is asked, in at most 8 minutes: tests, training step, inference, panoptic head, two small trainings.
#
#   bash benchmarks/gpu.sh RESULTS            # rows go to RESULTS/*.jsonl; copy them to benchmarks/results/
#
# Needs the package with its development extras, and the data set nuclei in $UPSNET_DATASETS (left out without it).
set -u
out=${1:?folder for the results}
python=${PYTHON:-python}
mkdir -p "$out"
cd "$(dirname "$0")/.." || exit 1
$python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' || exit 1

step() { # name, seconds at most, command: its output goes to the console, and its JSON lines to a file
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" | grep '^{' >> "$out/$name.jsonl"
    echo "exit code ${PIPESTATUS[0]}"
}

step tests 120 $python -m pytest -q -m "gpu and not slow" tests/test_gpu.py tests/ops/test_kernels.py \
    tests/models/upsnet/test_official_head.py
step training 130 $python benchmarks/training.py --device cuda --repeats 5
step ddp 60 $python benchmarks/training.py --device cuda --repeats 5 --cases r50-800x1333-b2-recorded-ddp
step panoptic_head 40 $python benchmarks/panoptic_head.py --sizes 0 --batches 1 8 --instances 50
step export 50 $python benchmarks/export.py --config coco_r50 --size 800 1344 --forms eager cuda_graph
step shapes 60 $python -m upsnet train --config shapes_r18 --output "$out/shapes" data.num_workers=8
[ -d "${UPSNET_DATASETS:-/nonexistent}/nuclei" ] &&
    step nuclei 60 $python -m upsnet train --config nuclei_r18 --output "$out/nuclei" data.num_workers=12
tail -n 1 "$out"/shapes.log "$out"/nuclei.log 2> /dev/null
