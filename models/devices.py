"""Which device a session computes on: chosen once, asserted, said once.

onnxruntime-gpu on a machine without a GPU prints two red lines from C++, falls back silently, and its list of
providers is what was compiled in (measured). So the driver is looked for first, CUDA is asked for only if it is there,
and what the session really got is what counts.
"""

import ctypes
import functools
import logging
import sys
from pathlib import Path

import onnxruntime as ort

from recsys.errors import Unavailable

log = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def open_session(model: Path | bytes, *, threads: int = 1, require_gpu: bool = False) -> ort.InferenceSession:
    """A session on CUDA where there is a device, else on CPU. Raises Unavailable if a GPU was required in vain.

    threads: of one operator on CPU. 1 by default: batches are small, and a ranker shares its cores with Kafka's client.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads must not burn the other core
    wanted = [CUDA, CPU] if has_cuda() else [CPU]
    session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=wanted)
    got = session.get_providers()[0]
    if require_gpu and got != CUDA:
        raise Unavailable("a GPU was required, but CUDA did not come up; see `nvidia-smi`, or leave --require-gpu out")
    _say(got)
    return session


@functools.cache
def has_cuda() -> bool:
    """Whether the NVIDIA driver is here and counts a device; asks the driver itself, so neither torch nor CUDA loads."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False
    if found:
        ort.preload_dlls()  # CUDA and cuDNN from the wheels that torch brings
    return found


@functools.cache
def _say(provider: str) -> None:
    log.info("computing on %s", provider.removesuffix("ExecutionProvider"))
