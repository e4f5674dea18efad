"""Eight simulated devices, and programs compiled once for all tests and their subprocesses.

Environment variables, because they have to be there before JAX is imported, here and there.
"""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

# New for every session, so that no test passes on a program of an earlier version.
_CACHE = tempfile.mkdtemp(prefix="u2s_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
