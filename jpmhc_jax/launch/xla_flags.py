"""XLA flags by hardware, each with its reason. The launchers set them; a run by hand needs none of them."""

GPU = {
  "--xla_gpu_enable_latency_hiding_scheduler=true": "gathers of fsdp and gradient sums run while kernels compute",
  "--xla_gpu_enable_highest_priority_async_stream=true": "a collective that is ready goes before the next kernel",
  "--xla_gpu_enable_while_loop_double_buffering=true": "collectives of one turn of a scan overlap the next turn",
  "--xla_gpu_all_reduce_combine_threshold_bytes=134217728": "one sum for the many small gradients of the connections",
}

TPU = {
  "--xla_tpu_enable_async_collective_fusion=true": "collectives run beside the fusions that do not need them",
  "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": "the same for the gathers of fsdp",
  "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": "such a fusion may spread over several kernels",
  "--xla_tpu_overlap_compute_collective_tc=true": "matrix products hide the exchange on the same core",
  "--xla_enable_async_all_gather=true": "gathers start early and are waited for late",
}

TPU_SLICES = {
  "--xla_tpu_enable_data_parallel_all_reduce_opt=true": "the gradient sum between slices overlaps the backward pass",
  "--xla_tpu_data_parallel_opt_different_sized_ops=true": "also where the gradients differ in size",
}


def gpu_environment() -> dict[str, str]:
  """XLA_FLAGS, and the share of GPU memory that the process takes: the rest is for NCCL and the driver."""
  return {"XLA_FLAGS": " ".join(GPU), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}


def tpu_environment(slices: int) -> dict[str, str]:
  """LIBTPU_INIT_ARGS: the TPU's compiler lives in libtpu and reads its flags there."""
  return {"LIBTPU_INIT_ARGS": " ".join(TPU | (TPU_SLICES if slices > 1 else {}))}
