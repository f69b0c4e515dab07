#!/usr/bin/env bash
# Measure the networks on this machine's NVIDIA GPU, in at most nine minutes: correctness, latency, throughput, memory,
# power, roofline. Needs torch, onnx, numpy, Pillow and nvidia-ml-py; uses tensorrt, tensorrt-rtx and onnxruntime-gpu
# where they are. Without a GPU, or with --cpu, the same on the processor. See docs/gpu.md; --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# NVML counts boards in this order; CUDA then does too, so that power is read on the board that works.
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; fi
fi
# In place of the shell, so that a signal to this command reaches the program that keeps the results.
exec "$PYTHON" -m benchmarks.engine.gpu "$@"
