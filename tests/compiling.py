"""XLA flags of the tests, for fast compilation of small programs."""

from __future__ import annotations

# LLVM's optimisations and XLA's own emitters of fusions cost more than they save: with these flags
# the step of a tiny model compiles in a sixth of the processor time.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    # A loaded machine takes its time between the first and the last of eight simulated devices.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
