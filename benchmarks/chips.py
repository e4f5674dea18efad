"""GPUs and TPUs that `benchmarks.aot` compiles for, with their makers' public figures."""

import dataclasses

from benchmarks.program import Chip

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
  """The devices that a program is compiled for.

  Attributes:
    platform: 'gpu' or 'tpu'.
    topology: arguments of `topologies.get_topology_desc`.
    memory: bytes per device that JAX allocates for programs by default.
    chip: figures for the bound on time.
  """

  platform: str
  topology: dict[str, str]
  memory: int
  chip: Chip


# XLA's description of a GPU, in its names and units, without the figures of each model below.
_ANY_GPU = {
  "threads_per_block_limit": 1024,
  "threads_per_warp": 32,
  "threads_per_core_limit": 2048,
  "shared_memory_per_block": 49152,
  "block_dim_limit_x": 2147483647,
  "block_dim_limit_y": 65535,
  "block_dim_limit_z": 65535,
  "registers_per_core_limit": 65536,
  "registers_per_block_limit": 65536,
}
_H100 = {
  "core_count": 132,
  "fpus_per_core": 128,
  "clock_rate_ghz": 1.98,
  "l2_cache_size": 52428800,
  "shared_memory_per_core": 233472,
  "shared_memory_per_block_optin": 232448,
  "device_memory_size": 84942979072,
  "memory_bandwidth": 3352320000000,
  "cuda_compute_capability": "{ major: 9 minor: 0 }",
}
_A100 = {
  "core_count": 108,
  "fpus_per_core": 64,
  "clock_rate_ghz": 1.41,
  "l2_cache_size": 41943040,
  "shared_memory_per_core": 167936,
  "shared_memory_per_block_optin": 166912,
  "device_memory_size": 85100068864,
  "memory_bandwidth": 2039040000000,
  "cuda_compute_capability": "{ major: 8 minor: 0 }",
}
_L4 = {
  "core_count": 58,
  "fpus_per_core": 128,
  "clock_rate_ghz": 2.04,
  "l2_cache_size": 50331648,
  "shared_memory_per_core": 102400,
  "shared_memory_per_block_optin": 101376,
  "threads_per_core_limit": 1536,
  "device_memory_size": 23600000000,
  "memory_bandwidth": 300096000000,
  "cuda_compute_capability": "{ major: 8 minor: 9 }",
}


def _make_gpus(
  name: str, info: dict, *, peak: dict[str, float], link: float, count: int = 1
) -> Target:
  """Returns `count` GPUs of one host; `peak` is without sparsity, `link` in each direction."""
  fields = " ".join(f"{key}: {value}" for key, value in (_ANY_GPU | info).items())
  config = (
    f'gpu_device_info {{ {fields} }} platform_name: "CUDA" device_description_str: "{name}"'
    " dnn_version_info { major: 9 minor: 10 }"
  )
  shape = f"1x{count}x1"
  topology = {"platform": "cuda", "topology_name": shape, "topology": shape}
  return Target(
    "gpu",
    topology | {"target_config": config},
    int(0.75 * info["device_memory_size"]),  # XLA_PYTHON_CLIENT_MEM_FRACTION
    Chip(peak, info["memory_bandwidth"], link),
  )


def _make_tpus(
  name: str, *, peak: float, bandwidth: float, link: float, gibibytes: int, cores: str = "default"
) -> Target:
  """Returns a slice of a pod; by default TPUs multiply float32 numbers in bfloat16."""
  topology = {"platform": "tpu", "topology_name": name, "chip_config_name": cores}
  chip = Chip({"bfloat16": peak, "float32": peak}, bandwidth, link, scratch=1)
  return Target("tpu", topology, gibibytes * GIB, chip)


# JAX multiplies float32 numbers in TF32 on these GPUs.
_H100_PEAK = {"bfloat16": 989e12, "float32": 495e12}
_V5E = {"peak": 197e12, "bandwidth": 819e9, "link": 200e9, "gibibytes": 16}
TARGETS = {
  "h100": _make_gpus("NVIDIA H100 80GB HBM3", _H100, peak=_H100_PEAK, link=450e9),
  "h100x8": _make_gpus("NVIDIA H100 80GB HBM3", _H100, peak=_H100_PEAK, link=450e9, count=8),
  "a100": _make_gpus(
    "NVIDIA A100-SXM4-80GB", _A100, peak={"bfloat16": 312e12, "float32": 156e12}, link=300e9
  ),
  "l4": _make_gpus("NVIDIA L4", _L4, peak={"bfloat16": 121e12, "float32": 60e12}, link=32e9),
  "v5e-16": _make_tpus("v5e:4x4", **_V5E),
  "v5e-256": _make_tpus("v5e:16x16", **_V5E),
  # 32 cores; the two cores of a chip are one device
  "v4-32": _make_tpus(
    "v4:2x2x4", peak=275e12, bandwidth=1.228e12, link=300e9, gibibytes=32, cores="megacore"
  ),
}
