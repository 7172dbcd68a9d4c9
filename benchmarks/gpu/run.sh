#!/usr/bin/env bash
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
# All that a GPU can tell in one go of less than 10 minutes: the Llama-2-7B benchmark, then the tests marked `gpu`.
#   PYTHON=.venv/bin/python benchmarks/gpu/run.sh [options of llama2_7b.py]
# Ends with the worse of the two exit codes. The results are in benchmarks/results/gpu_llama2_7b.json, whole at any time.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH=. HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-python3}
timeout 480 "$PYTHON" -W ignore benchmarks/gpu/llama2_7b.py "$@"
benchmark=$?
timeout 100 "$PYTHON" -m pytest -m gpu tests/test_gpu.py
tests=$?
exit $((benchmark > tests ? benchmark : tests))
