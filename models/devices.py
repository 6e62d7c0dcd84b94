"""Which device a session computes on: chosen once, asserted, said once.

onnxruntime-gpu on a machine without a GPU prints two red lines from C++, falls back silently, and its list of
providers is what was compiled in (measured). So the driver is looked for first, CUDA is asked for only if it is there,
and what the session really got is what counts. Called by the towers and the scorer; nothing else opens a graph.
"""

import contextlib
import ctypes
import functools
import io
import logging
import sys
from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from recsys.errors import ModelRejected, Unavailable

log = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# auto: a GPU where there is one. require: none, and the role does not start. fast: where there is one, by half precision,
# buffers that stay and CUDA graphs (resident.py); the same scores to three digits, no longer to the bit.
Gpu = Literal["auto", "require", "fast"]
# TF32 keeps 10 bits of a number, so that a graph would no longer agree with torch to the tolerance of its export.
CUDA_OPTIONS = {"use_tf32": "0"}
# ONNX Runtime's errors have no base class of their own, and a corrupt graph raises one of several.
ORT_ERRORS = tuple(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception))


def open_session(
    model: Path | bytes, *, gpu: Gpu = "auto", threads: int = 1, cpu: bool = False, replayed: bool = False
) -> tuple[ort.InferenceSession, str]:
    """A session on CUDA where there is a device, else on CPU; and the provider that it really got.

    cpu: there even so. replayed: as CUDA graphs, for who calls it through resident.py. threads: of one operator on CPU, 0
    for all cores. 1 by default: batches are small, and a ranker shares its cores with Kafka's client. Raises Unavailable if a GPU was required in vain, ModelRejected if the graph is none.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    # An idle thread that spins takes the core from Kafka's client.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    missing = why_no_cuda()
    if gpu == "require" and missing:
        raise Unavailable(f'a GPU was required, but there is {missing}; see `nvidia-smi`, or set gpu = "auto"')
    how = {**CUDA_OPTIONS, "enable_cuda_graph": "1"} if replayed else CUDA_OPTIONS
    providers = [CPU] if missing or cpu else [(CUDA, how), CPU]
    try:
        session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=providers)
    except ORT_ERRORS as error:
        name = model if isinstance(model, Path) else "the graph"
        raise ModelRejected(
            f"{name} cannot be loaded by ONNX Runtime: {type(error).__name__}; make it again"
        ) from error
    provider: str = session.get_providers()[0]
    if gpu == "require" and not cpu and provider != CUDA:
        raise Unavailable("a GPU was required, but CUDA did not come up; `slatecast doctor` says what is installed")
    if not cpu:
        _say(provider, missing)
    session.disable_fallback()  # to go on without the GPU is for the ladder to decide, and to say
    return session, provider


@functools.cache
def why_no_cuda() -> str:
    """What is missing for CUDA, or an empty string. Asks the driver itself, so that neither torch nor CUDA loads."""
    if CUDA not in ort.get_available_providers():
        return "an onnxruntime built without CUDA"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        found = False
    if not found:
        return "no CUDA device"
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints, and our stdout is for data
        ort.preload_dlls()  # CUDA and cuDNN from the wheels that torch brings
    if said.getvalue():
        log.warning("loading CUDA: %s", said.getvalue().strip())
    return ""


@functools.cache
def _say(provider: str, missing: str) -> None:
    if missing:
        log.info("scoring on CPU: %s", missing)
    elif provider == CUDA:
        log.info("scoring on CUDA")
    else:
        log.warning("scoring on CPU though there is a CUDA device: are CUDA and cuDNN installed? `slatecast doctor`")
