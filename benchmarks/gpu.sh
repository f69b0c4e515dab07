#!/usr/bin/env bash
# Measure the networks on this machine's NVIDIA GPU, in at most nine minutes: correctness, latency, throughput, memory,
# power, roofline. Needs torch, onnx, numpy, Pillow and nvidia-ml-py; uses tensorrt, tensorrt-rtx and onnxruntime-gpu
# if they are installed. Without a GPU, or with --cpu, it measures the processor. See docs/gpu.md and --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# CUDA numbers boards as NVML does, so that power is read from the board that works.
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; fi
fi
# Replaces the shell, so that a signal reaches the program that keeps the results.
exec "$PYTHON" -m benchmarks.engine.gpu "$@"
