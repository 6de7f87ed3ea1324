"""Running a network that others wrote: unwrapped, quietly, on an example, whatever it returns."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from keyfilters.errors import KeyFiltersError
from keyfilters.threads import one_thread_if_forked

__all__ = [
    "call_order",
    "clean_name",
    "copied",
    "evaluating",
    "first_line",
    "main_tensor",
    "on_example",
    "quiet",
    "refuse_non_finite",
    "run",
    "undoing",
    "unwrapped",
]

T = TypeVar("T")
FOREIGN = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError)
WRAPPED = ("module", "_orig_mod")  # the second of torch.compile
WRAPPERS = re.compile(
    r"DataParallel|AveragedModel|OptimizedModule|Ema|EMA|MovingAverage|DeepSpeedEngine|DDP|FSDP"
)
SIDES = (64, 224, 32)  # of an example image in pixels, tried in this order
LENGTHS = (64, 1024, 16_000)  # of an example signal in samples


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DDP, torch.compile, AveragedModel or an EMA.

    A wrapper has one child, called ``module`` or ``_orig_mod``, no parameter of its own, and a
    class that is known to add nothing: others may prepare the images, and are part of the network.

    >>> inner = nn.Sequential(nn.Conv2d(3, 8, 1))
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    while True:
        children = dict(module.named_children())
        name = next(iter(children), "")
        known = any(WRAPPERS.search(kind.__name__) for kind in type(module).__mro__)
        if len(children) != 1 or name not in WRAPPED or module._parameters or not known:
            return module
        module = children[name]


def clean_name(name: str) -> str:
    """Return a dotted name without the parts that torch.compile adds.

    >>> clean_name("features._orig_mod.0")
    'features.0'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    line = next((x.strip() for x in str(error).splitlines() if x.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


@contextmanager
def evaluating(*networks: nn.Module | Tensor) -> Iterator[None]:
    """Hold networks in evaluation mode, and give every submodule its own mode back."""
    nets = [x for x in networks if isinstance(x, nn.Module)]
    before = [(module, module.training) for net in nets for module in net.modules()]
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for module, training in before:  # parents first, so that children have the last word
            module.train(training)  # not the flag alone: some modules merge weights in eval()
            module.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """Compute without gradients, and leave the global random state as it was.

    Not in inference mode: what a network keeps of a pass would be of no use in training.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), one_thread_if_forked():
        yield


def run(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the main output of a network, see `main_tensor`.

    Raises:
        KeyFiltersError: the network cannot take the images, or returns no tensor.

    >>> run(nn.Linear(4, 2), torch.ones(1, 3))
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: the network cannot take images of shape (1, 3): ...
    """
    try:
        with quiet(), _uncompiled(model):
            return main_tensor(model(images))
    except KeyFiltersError:
        raise
    except FOREIGN as error:
        raise KeyFiltersError(
            f"the network cannot take images of shape {tuple(images.shape)}: {first_line(error)}; "
            "give images of the channels, size, dtype and device that it was made for"
        ) from error


def _uncompiled(model: Any) -> AbstractContextManager[Any]:
    """Hold torch.compile off a network that has compiled parts, so that all calls are seen."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    if any(type(module).__name__ == "OptimizedModule" for module in parts):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def main_tensor(output: Any) -> Tensor:
    """Return the tensor that a network's output is about.

    Of a mapping or dataclass it is ``logits``, ``out`` or else the first floating tensor, of a
    tuple or list the first.

    Raises:
        KeyFiltersError: there is no floating tensor.

    >>> main_tensor({"aux": torch.zeros(1), "out": torch.ones(1)})
    tensor([1.])
    """
    found = next(_floating(output), None)
    if found is None:
        raise KeyFiltersError(
            f"the network returns a {type(output).__name__} without a floating tensor; wrap it in "
            "a module that returns one"
        )
    return found


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        named = [key for key in ("logits", "out") if key in value]
        parts = [value[key] for key in [*named, *(k for k in value if k not in named)]]
    elif isinstance(value, (tuple, list)):
        parts = value
    for part in parts:
        yield from _floating(part)


def refuse_non_finite(images: Tensor) -> None:
    """Raise if images are no tensor, or one holds NaN or infinity."""
    if not isinstance(images, Tensor):
        raise KeyFiltersError(
            f"images are a {type(images).__name__}; a torch.Tensor as the network takes it is "
            "expected"
        )
    bad = int((~images.isfinite().flatten(1).all(1)).sum()) if images.ndim > 1 else 0
    if bad:
        raise KeyFiltersError(
            f"{bad} of {len(images)} images hold NaN or infinity; leave them out, for example by "
            "images[images.isfinite().flatten(1).all(1)]"
        )


@contextmanager
def undoing(model: nn.Module, *, always: bool = False) -> Iterator[None]:
    """Give a module its parameters and buffers back if what is done in here fails, or always."""
    tensors = [x for x in [*model.parameters(), *model.buffers()] if not is_lazy(x)]
    kept = [(x, x.detach().clone()) for x in tensors]
    done = False
    try:
        yield
        done = not always
    finally:
        if not done:
            with torch.no_grad():
                for tensor, old in kept:
                    tensor.data.copy_(old)


def call_order(model: nn.Module, wanted: Iterable[nn.Module]) -> dict[nn.Module, int] | str:
    """Find the order in which modules of a network are called in a forward pass on an example.

    A copy runs that shares nothing, so that weights, caches, hooks and modes stay as they are, also
    where a forward pass changes weights, such as one with a max-norm constraint.

    Returns:
        Place of the first call of every module that is called; or why no pass could be made.
    """
    try:
        twin = _twin(model)
    except KeyFiltersError as error:
        return str(error)
    modules, twins = set(wanted), dict(twin.named_modules())
    owners = {twins[name]: module for name, module in model.named_modules() if module in modules}
    reason = "no example input is known"
    for images in _examples(model):
        seen: dict[nn.Module, int] = {}

        def note(module: nn.Module, *_: Any, seen: dict[nn.Module, int] = seen) -> None:
            seen.setdefault(owners[module], len(seen))

        handles = [module.register_forward_pre_hook(note) for module in owners]
        try:
            with quiet(), _uncompiled(twin):
                twin(images)
            return seen
        except Exception as error:  # of any kind: this is the network's own code
            reason = first_line(error)
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) == len(modules):  # it failed after the last of them
            return seen
    return f"no forward pass could be made ({reason})"


def on_example(model: nn.Module, look: Callable[[nn.Module, Tensor], T]) -> T | None:
    """Return ``look(copy, images)`` for a copy of a network, see `call_order`, and an example.

    The copy's modules have the names of the network's. None if `look` always raises.
    """
    with suppress(KeyFiltersError):
        twin = _twin(model)
        for images in _examples(model):
            with suppress(*FOREIGN):
                return look(twin, images)
    return None


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network, also where hooks have computed a weight with gradients.

    What cannot be copied raises a KeyFiltersError.
    """
    memo = {
        id(x): x.detach().clone()
        for module in model.modules()
        for x in vars(module).values()
        if isinstance(x, Tensor) and not x.is_leaf
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # of any kind: this is the network's own code
        raise KeyFiltersError(f"the network cannot be copied: {first_line(error)}") from error


def _twin(model: nn.Module) -> nn.Module:
    """Copy a network, in evaluation mode and without the user's hooks."""
    if any(is_lazy(x) or x.is_meta for x in [*model.parameters(), *model.buffers()]):
        raise KeyFiltersError("the network has no weights yet")
    twin = copied(model).eval()
    for module in twin.modules():
        module._forward_hooks.clear()
        pre = module._forward_pre_hooks
        for key in [k for k, hook in pre.items() if not _makes_weight(hook)]:
            del pre[key]
    return twin


def _makes_weight(hook: Any) -> bool:
    """Whether a hook is one of torch's own, without which a module has no weight."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _examples(model: nn.Module) -> Iterator[Tensor]:
    like = next((x for x in model.parameters() if x.is_floating_point()), None)
    if like is None:
        return
    given = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    config = given if isinstance(given, Mapping) else {}
    size = config.get("input_size")
    shapes: list[tuple[int, ...]] = []
    if size is not None and config.get("fixed_input_size"):
        shapes = [tuple(size)]
    else:
        first = next((m for m in model.modules() if hasattr(m, "in_channels")), None)
        guesses = [size[0]] if size else [getattr(first, "in_channels", None), 3, 1]
        channels = [c for c in dict.fromkeys(guesses) if isinstance(c, int) and c > 0]
        if isinstance(first, nn.Conv1d):
            shapes = [(c, length) for length in LENGTHS for c in channels]
        else:
            shapes = [(c, side, side) for side in SIDES for c in channels]
        shapes[1:1] = [tuple(size)] if size else []
    for shape in dict.fromkeys(shapes):
        with suppress(RuntimeError), torch.no_grad():
            yield torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
