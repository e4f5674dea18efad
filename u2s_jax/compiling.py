"""How steps are compiled: XLA's options by platform, and a cache that outlives the process."""

import functools
import pathlib

import jax

# Without 'individual convolution', which XLA adds by itself: of the demo's and ResNet-50's
# convolutions its newer kernels (YNNPACK) are as fast as the older ones (Eigen), or take up to
# three times as long; see benchmarks/README.md.
_CPU = {
  "xla_cpu_experimental_ynn_fusion_type": ",".join(
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_DOT")
  )
}


@functools.cache
def options() -> dict[str, str] | None:
  """`compiler_options` of `jax.jit` for the devices at hand; None: XLA's own."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_CPU)()
  except jax.errors.JaxRuntimeError:
    return None  # an experimental option: another jaxlib may not have it
  return _CPU


def use_cache(folder: pathlib.Path) -> None:
  """Compiles nothing twice: programs are kept in `folder`, unless JAX was told of another one.

  `JAX_COMPILATION_CACHE_DIR` names one for all runs.
  """
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(folder))
