"""A graph whose inputs and outputs stay where it computes: what `gpu = "fast"` does with the sequence tower.

A plain call allocates, copies the whole table of vectors to the device (200 MB for 130,000 items) and launches each
kernel from here; for a small network that is most of the time. Here the table lies on the device and is copied again
only when a row that is asked for has changed; lists are padded to a few shapes, each with buffers of its own, and on
CUDA each shape is recorded at its first call and then replayed (a CUDA graph, which wants fixed addresses).

The same code runs on CPU, where the tests compare it with plain calls bit for bit. It has not been run on a GPU.
Called by sequence_tower.py.
"""

import itertools
from collections.abc import Mapping

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.devices import CUDA

FEWEST = 64  # candidates: below it a call costs the same


class Resident:
    """A session over one table and padded lists. Not thread-safe, but for `stop`.

    provider: where the session computes.
    """

    def __init__(self, session: ort.InferenceSession, provider: str) -> None:
        self._session, self._device = session, "cuda" if provider == CUDA else "cpu"
        self._places: dict[tuple[int, int], Place] = {}
        self._recordings = itertools.count(1)  # none comes again: CUDA would replay it over buffers that are gone
        self._known = np.empty((0, 0), np.float32)  # what the device has of the table
        self._table: ort.OrtValue | None = None
        self._stopped = False

    def run(self, inputs: Mapping[str, NDArray[np.generic]], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, (B, N, outputs). inputs: by name, with `candidates` (B, N) and `trail` (B, H) rows of vectors, -1 none."""
        self._follow(inputs, vectors)
        lists, candidates = inputs["candidates"].shape
        shape = _above(lists, 1), _above(candidates, FEWEST)
        if shape not in self._places:
            self._places[shape] = self._place(shape, inputs)
        place = self._places[shape]
        for name, of in place.inputs.items():
            given = inputs[name]
            padded = np.full(of.shape(), -1 if name in ("candidates", "trail") else 0, given.dtype)
            padded[tuple(slice(length) for length in given.shape)] = given
            of.update_inplace(padded)
        self._session.run_with_iobinding(place.binding, place.options)
        logits: NDArray[np.float32] = place.output.numpy()[:lists, :candidates]
        return logits

    def _follow(self, inputs: Mapping[str, NDArray[np.generic]], vectors: NDArray[np.float32]) -> None:
        """Bring the device's table up to date, where this call would see that it is not."""
        if vectors.shape != self._known.shape:  # the catalogue has grown: new addresses, nothing recorded holds
            self._places.clear()
            self._known = vectors.copy()
            self._table = ort.OrtValue.ortvalue_from_numpy(self._known, self._device, 0)
            return
        rows = np.unique(np.concatenate([inputs["candidates"].ravel(), inputs["trail"].ravel()]).astype(np.int64))
        rows = rows[rows >= 0]
        if (vectors[rows] != self._known[rows]).any() and self._table is not None:
            self._known = vectors.copy()
            self._table.update_inplace(self._known)

    def _place(self, shape: tuple[int, int], inputs: Mapping[str, NDArray[np.generic]]) -> "Place":
        lists, candidates = shape
        binding, options = self._session.io_binding(), ort.RunOptions()
        options.terminate = self._stopped
        options.add_run_config_entry("gpu_graph_id", str(next(self._recordings)))  # each place its own; not read on CPU
        bound = {}
        for name, given in inputs.items():
            size = (lists, candidates if name in ("features", "candidates") else given.shape[1], *given.shape[2:])
            bound[name] = ort.OrtValue.ortvalue_from_numpy(np.zeros(size, given.dtype), self._device, 0)
            binding.bind_ortvalue_input(name, bound[name])
        binding.bind_ortvalue_input("vectors", self._table)
        outputs = self._session.get_outputs()[0]
        output = ort.OrtValue.ortvalue_from_shape_and_type(
            [lists, candidates, outputs.shape[2]], np.float32, self._device, 0
        )
        binding.bind_ortvalue_output(outputs.name, output)
        return Place(bound, output, binding, options)

    def stop(self) -> None:
        """For another thread: the call in hand raises at its next operator, and so does every later one."""
        self._stopped = True
        for place in list(self._places.values()):
            place.options.terminate = True


class Place(msgspec.Struct, frozen=True):
    """The buffers of one shape, and how they are bound."""

    inputs: dict[str, ort.OrtValue]
    output: ort.OrtValue
    binding: ort.IOBinding
    options: ort.RunOptions


def _above(count: int, least: int) -> int:
    """The power of two that holds so many: a dozen shapes for all lists, at most half of each empty."""
    size = least
    while size < count:
        size *= 2
    return size
