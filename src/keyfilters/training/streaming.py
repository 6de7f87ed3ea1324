"""Images that are decoded while the network trains, by processes that work ahead.

The order of an epoch is known beforehand: the processes get the parts that come next as requests,
from any step on. One pool of them serves training and testing in turn.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from keyfilters.errors import KeyFiltersError, UnreadableError
from keyfilters.training.decoding import Decoded, Decoder, Request
from keyfilters.training.labelled import StreamedData
from keyfilters.training.recipe import Recipe

__all__ = ["Streamed"]


class Streamed:
    """The images of one of several processes, decoded anew in every epoch.

    Args:
        recipe: its seed and augmentation.
        data: the files.
        device: where images go once they are needed.
        turns: places in the order of an epoch of each part that this process computes.
        share: numbers of the test images that it measures on.

    Attributes:
        skipped: name → reason of the files that could not be read so far.

    Raises:
        KeyFiltersError: as `Decoder`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: StreamedData,
        device: torch.device,
        turns: Sequence[slice],
        share: slice,
    ) -> None:
        self.skipped: dict[str, str] = {}
        self._data, self._device, self._turns, self._share = data, device, turns, share
        self._requests = _Requests()
        self._loader: DataLoader[Decoded] = DataLoader(
            Decoder(recipe, data),
            batch_size=None,  # a request is a whole part
            sampler=self._requests,
            num_workers=data.workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # else it draws from the caller's
            persistent_workers=data.workers > 0,
        )
        self._parts: Iterator[Decoded] = iter(())
        self._next = (-1, -1)  # epoch and turn of the part that comes next

    def take(self, epoch: int, turn: int) -> tuple[Tensor, Tensor]:
        """Return uint8 images and labels of a part on the device; quick if it is the next one.

        Raises:
            UnreadableError: a file cannot be read and the data say stop, or many cannot.
        """
        if (epoch, turn) != self._next:
            self._ask([(epoch, rows.start, rows.stop) for rows in self._turns[turn:]])
        rows = self._turns[turn]
        images, numbers = self._receive((epoch, rows.start, rows.stop))
        self._next = (epoch, turn + 1)
        if len(images) < rows.stop - rows.start:
            raise self._broken()
        return self._moved(images), self._moved(self._data.labels[numbers])

    def test(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images on the device and labels on the CPU, up to so many at a time.

        Raises:
            UnreadableError: as `take`.
        """
        self._next = (-1, -1)
        first, last = self._share.start, self._share.stop
        requests = [(-1, i, min(i + size, last)) for i in range(first, max(last, first + 1), size)]
        self._ask(requests)
        for request in requests:
            images, numbers = self._receive(request)
            if request[1] < request[2] and not len(images):
                raise self._broken()
            yield self._moved(images), self._data.test_labels[numbers]

    def _ask(self, requests: list[Request]) -> None:
        self._requests.coming = requests
        with _sentence():
            self._parts = iter(self._loader)

    def _receive(self, request: Request) -> tuple[Tensor, Tensor]:
        with _sentence():
            found, images, numbers, failed = next(self._parts)
        if tuple(found) != request:
            raise RuntimeError(f"asked for {request}, got {found}: two readers of one stream")
        self.skipped.update(failed)
        if failed and self._data.unreadable == "stop":
            name, reason = failed[0]
            raise UnreadableError(f"{name} cannot be read ({reason}); data.unreadable is stop")
        return images, numbers

    def _broken(self) -> UnreadableError:
        few = "; ".join(": ".join(one) for one in list(self.skipped.items())[-3:])
        return UnreadableError(f"too many images of {self._data.name} cannot be read ({few})")

    def _moved(self, values: Tensor) -> Tensor:
        return values.to(self._device, non_blocking=True)


class _Requests(Sampler[Request]):
    """What the loader is to ask for when it is next iterated over."""

    def __init__(self) -> None:
        self.coming: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.coming)


@contextmanager
def _sentence() -> Iterator[None]:
    """Say in one sentence that a process which decodes is gone."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        mend = "its memory or /dev/shm may be full: set fewer data.workers or a smaller batch.size"
        raise KeyFiltersError(f"a process that decodes images ended; {mend}") from error


def _unchanged(decoded: Any) -> Any:
    return decoded


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """A typed Ctrl-C reaches all processes; the one that trains ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
