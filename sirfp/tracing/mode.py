"""The dispatch mode that follows a model's channels while the model runs once."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .channel_labels import Array, Consumer, Dims, Labels, Product, Split, Tap
from .codes import arguments, described, operation
from .emissions import EmittedValues
from .functions import FunctionWatch
from .makers import FILLING, MADE, REMADE, UNLABELLED
from .pointwise import pointwise
from .table import COUNTED, HIGHER_ORDER, RULES
from .tensor_table import TensorTable
from .unread import UnreadParts

logger = logging.getLogger(__name__)

_NOTHING = nullcontext()


class ChannelTrace(EmittedValues, TorchDispatchMode):
    """Intercepts every ATen operation, runs it on its real tensors and applies its rule.

    Labels are stored by weak reference to the tensor, so a new tensor at the address of a freed one has no labels. An
    operation without a rule freezes the labels of all its inputs, so channels are cut only if all their operations have
    rules.

    Args:
        state: the model's parameters and floating-point buffers by name; each gets new labels on every dimension longer
            than one.
        regrouped: names of the weights of group norms whose number of groups can be set after a cut.
        heads: {number of an operation that splits channels: k} for splits that lose whole heads: rows of the k-th
            dimension before the innermost. All other splits lose the same index from each row.
        kernels: names of the weights of convolutions, as `convolution_weights` returns them.

    Raises:
        RuntimeError: no rule is registered, so every channel would be frozen; import `sirfp.tracing`.
    """

    def __init__(
        self,
        state: dict[str, torch.Tensor],
        regrouped: Iterable[str] = (),
        heads: Mapping[int, int] | None = None,
        kernels: Iterable[str] = (),
    ):
        if "aten::convolution" not in RULES:
            raise RuntimeError("the table of rules is empty: import sirfp.tracing, which imports the modules of rules")
        super().__init__()
        self.regrouped, self.heads = frozenset(regrouped), dict(heads or {})
        self.operations = 0  # number of the operation that runs; the same in every trace of a model
        self.splits: dict[int, Split] = {}  # by the number of the operation
        self.owner: Callable[[], str] = str  # returns the name of the module whose forward runs
        self.attended: list[Array] = []  # dimensions that batched products and attention sum over or carry
        self.labels, self.unread = Labels(), UnreadParts()
        self.products: list[Product] = []
        self.taps: list[Tap] = []
        self.consumers: list[Consumer] = []
        self.positions: dict[str, Array | None] = {}  # of norms whose cut depends on which channels were neighbours
        self.normed: list[tuple[torch.Tensor, Consumer | None]] = []  # running mean, the layer before the norm
        self.touched: set[str] = set()
        self.counting = True  # False in the training pass: products are those of inference
        self.steady = False  # True in the training pass: PyTorch's dropouts return their input
        self.ran: list[tuple] = []  # the operations so far with their shapes and numbers
        self.shared: Any = None  # a `SharedMemory` that is told of each write
        self.before: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # shape, steps of a tensor before its change
        self._dims = TensorTable()
        self._names = TensorTable()
        self._read: set[int] = set()  # identities of the weights of layers called in evaluation mode
        self._when_read = TensorTable()  # tensor -> (labels, reason) to freeze when the tensor is read
        self._made_by = TensorTable()  # output of a convolution -> its Consumer
        self._broadcast = TensorTable()  # expanded tensor -> {dimension: labels that it meets}
        self._split_by = TensorTable()  # output of a split -> (number of its operation, axes it split)
        self._made = TensorTable()  # tensors of one value that the code made
        self._joined = TensorTable()  # tensor without labels -> (axis, parts) of which the code made some
        self._functions = FunctionWatch(trace=weakref.proxy(self))
        self.state_dims: dict[str, Dims] = {}
        for name, tensor in state.items():
            dims = [self.labels.fresh(n) if n > 1 else None for n in tensor.shape]
            self.state_dims[name] = dims
            self._dims[tensor] = dims
            self._names[tensor] = name
        self.given = self.labels.count  # all later labels are made in a pass
        sides = (side for name in kernels if name in state for side in self.state_dims[name][2:])
        self._area = {int(side[0]) for side in sides if side is not None}

    supports_higher_order_operators = True
    notes_reads = True
    """Whether what operations read is noted for `unread`; a subclass that needs no `unread` saves the time."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True makes PyTorch import its compiler on the first call, which takes seconds

    def __enter__(self):
        self._functions.steady = self.steady
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *exc):
        super().__exit__(*exc)
        self._functions.__exit__(*exc)

    @property
    def pooling(self) -> int:
        """Above 0 inside F.adaptive_avg_pool2d, which fvcore counts; means elsewhere are not counted."""
        return self._functions.pooling

    # ---- methods for rules ----------------------------------------------------------------------
    def dims(self, tensor: Any) -> Dims:
        """Returns the labels of each dimension of a tensor; all None if it has no labels."""
        known = self._dims.get(tensor)
        return known if known is not None else [None] * tensor.dim()

    def dim(self, tensor: torch.Tensor, index: int) -> Array | None:
        return self.dims(tensor)[index]

    def set(self, tensor: torch.Tensor, dims: Dims) -> None:
        """Sets the labels of a result; a dimension of length one never has labels."""
        shape = tensor.shape
        if len(dims) != len(shape):
            raise AssertionError(f"{len(dims)} label arrays for {len(shape)} dimensions")
        held: Dims = [None] * len(shape)
        some = False
        for index, labels in enumerate(dims):
            if labels is not None:
                if len(labels) != shape[index]:
                    raise AssertionError(f"{len(labels)} labels for dimension {index} of {tuple(shape)}")
                if len(labels) != 1:
                    held[index], some = labels, True
        if some:
            self._dims[tensor] = held
        elif tensor in self._dims:
            del self._dims[tensor]

    def name(self, tensor: Any) -> str | None:
        """Returns the name of a parameter or buffer, None for any other tensor."""
        return self._names.get(tensor) if isinstance(tensor, torch.Tensor) else None

    def when_read(self, tensor: torch.Tensor, labels: Array | None, reason: str) -> None:
        """Freezes labels when an operation reads the tensor or the model returns it."""
        self._when_read[tensor] = (labels, reason)

    def is_state(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor in self._names

    def fit_made(self, tensor: torch.Tensor, axis: int, labels: Array | None) -> bool:
        """Gives labels to a dimension without any of a tensor that the code made; False if it made no such tensor.

        The code may follow the width, as `x.new_zeros(len(x), x.shape[1])` does, or write it: the trial shows which.
        """
        whole = tensor if tensor._base is None else tensor._base
        made = tensor in self._made and whole in self._made
        if self.dim(tensor, axis) is not None or not (made or self._fit_joined(tensor, axis, labels)):
            return False
        dims = list(self.dims(tensor))
        dims[axis] = labels
        self.set(tensor, dims)
        return True

    def _fit_joined(self, tensor: torch.Tensor, axis: int, labels: Array | None) -> bool:
        """Gives labels to the parts that the code made of a joined tensor, and freezes those of its other parts."""
        joined, parts = self._joined.get(tensor, (None, ()))
        if joined != axis % tensor.dim() or labels is None:
            return False
        for part, own in zip(parts, np.split(labels, np.cumsum([p.shape[joined] for p in parts])[:-1]), strict=True):
            if not self.fit_made(part, joined, own):
                self.labels.freeze(own, "cat joins it with a part of fixed size")
        return True

    def is_area(self, labels: Array) -> bool:
        """True for the labels of a spatial dimension of a convolution's weight."""
        return int(labels[0]) in self._area

    def count(self, op: str, factor: float, *sides: Array | None) -> None:
        if self.counting:
            self.products.append(Product(op, float(factor), tuple(s for s in sides if s is not None)))

    def reads(self, output: torch.Tensor, weight: torch.Tensor, labels: Array, emitted: Any, groups: int = 1) -> None:
        """Notes that a layer reads channels to compute its output.

        Args:
            output: the layer's output.
            weight: the layer's weight.
            labels: labels of its input channels, (I,).
            emitted: the mean of what each tap reads of these channels when they are emptied, (I, taps), or None if
                unknown.
            groups: the layer's number of groups.
        """
        if emitted is None:
            emitted = torch.full((len(labels), 1), torch.nan, device=weight.device)
        positions = output.numel() // weight.shape[0]
        consumer = self._made_by[output] = Consumer(weight, labels, emitted, groups, positions)
        if self.counting:
            self._read.add(id(weight))
        if self.counting or id(weight) not in self._read:  # a second pass makes the same calls again
            self.consumers.append(consumer)

    def maker(self, tensor: torch.Tensor) -> Consumer | None:
        return self._made_by.get(tensor)

    def outer(self, flat: np.ndarray, varying: list[int]) -> int:
        """Returns k if the split that runs loses rows of the k-th dimension before the innermost.

        Args:
            flat: the labels of the new dimensions.
            varying: the dimensions along which they vary.
        """
        return self.heads.get(self.operations, 0)

    def note_split(self, out: torch.Tensor, axes: list[int], labels: Array, whole: Array) -> None:
        """Notes that the operation that runs splits channels into the dimensions `axes` of its output; see `Split`."""
        self._split_by[out] = (self.operations, axes)
        self.splits[self.operations] = Split(labels, whole, len(axes), self.owner())

    def split_by(self, tensor: torch.Tensor) -> tuple[int, list[int]] | None:
        """Returns the number of the operation that made a tensor by splitting channels, and the dimensions it made."""
        return self._split_by.get(tensor)

    def note_broadcast(self, tensor: torch.Tensor, axis: int, labels: Array | None) -> None:
        """Notes that an expanded dimension, which has no channels of its own, meets channels."""
        if labels is not None:
            self._broadcast.setdefault(tensor, {})[axis % tensor.dim()] = labels

    def broadcast(self, tensor: torch.Tensor) -> dict[int, Array]:
        """Returns the channels that expanded dimensions of a tensor meet, {dimension: labels}."""
        return self._broadcast.get(tensor, {})

    def read(self, tensor: torch.Tensor) -> None:
        """Notes a reader of a tensor that works by operations which the trace does not see."""
        self._note_reads([tensor])
        consumer = self.maker(tensor)
        if consumer is not None:
            consumer.readers += 1

    def present(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor as such operations read it: as it is. A subclass may zero removed channels."""
        return tensor

    def freeze_tensors(self, tensors: Any, reason: str) -> None:
        for tensor in tensors:
            for labels in self.dims(tensor):
                self.labels.freeze(labels, reason)
            self.labels.freeze(*self._when_read.get(tensor, (None, "")))

    # ---- the forward pass -----------------------------------------------------------------------
    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Runs an operation. A subclass may compute something else."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs an operation and applies its rule to the labels of its inputs and outputs."""
        kwargs = kwargs or {}
        known = operation(func)
        if known is None:
            return self._higher_order(func, args, kwargs)
        name = known.name
        self.operations += 1
        leaves = arguments(args, kwargs)
        inputs = [t for t in leaves if isinstance(t, torch.Tensor)]
        self._note_reads(inputs)
        labelled = [t for t in inputs if t in self._dims]
        into_part = known.writes and inputs and inputs[0]._is_view() and inputs[0] not in self._dims
        self.ran.append(described(name, leaves))
        if known.writes and inputs:
            self._note_write(inputs[0])
            if not labelled and not (len(inputs) == 1 and (name in FILLING or known.pointwise)):
                self._forget_made([inputs[0], *tree_leaves(kwargs)])
            elif inputs[0]._is_view():
                self._forget_made([inputs[0]])
        out = self.compute(func, args, kwargs)
        if name in MADE or (name in REMADE and inputs[0] in self._made):
            self._made[out] = True
        if name == "aten::cat" and not labelled and any(t in self._made for t in inputs):
            parts = [t for t in inputs if t.dim() == out.dim()]
            self._joined[out] = (args[1] if len(args) > 1 else 0) % out.dim(), parts
        if name in UNLABELLED or not (labelled or name in COUNTED):
            return out
        if into_part and labelled:
            self.freeze_tensors(labelled, f"{name} writes into a part of another tensor")
            return out
        rule = RULES.get(name, pointwise if known.pointwise else None)
        if rule is None:
            self.freeze_tensors(labelled, f"{name} has no rule")
            return out
        for consumer in filter(None, map(self.maker, inputs)):
            consumer.readers += 1
        before = self._labels_of(labelled) if self.notes_reads else []
        with self._overwriting(inputs) if known.writes else _NOTHING:
            try:
                rule(self, func, args, kwargs, out)
            except Exception as error:  # a use that the rule does not cover: freeze instead of failing
                logger.debug("the rule for %s failed on %s: %s", name, [tuple(t.shape) for t in inputs], error)
                self.freeze_tensors(labelled, f"{name} is used in a way that its rule does not cover")
        if self.notes_reads:
            self.unread.note_operation(name, before, self._labels_of(out))
        return out

    def _higher_order(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Does the same for an operation that runs functions, whose own operations are not seen."""
        name = func.name()
        self.operations += 1
        leaves = tree_leaves((args, kwargs))
        inputs = [t for t in leaves if isinstance(t, torch.Tensor)]
        self._note_reads(inputs)
        self.ran.append(described(name, leaves))
        out = func(*args, **kwargs)
        rule = HIGHER_ORDER.get(name)
        if rule is None:
            self.freeze_tensors((t for t in inputs if t in self._dims), f"{name} has no rule")
        else:
            for consumer in filter(None, map(self.maker, inputs)):
                consumer.readers += 1
            before = self._labels_of(inputs)
            rule(self, func, args, kwargs, out)
            self.unread.note_operation(name, before, self._labels_of(out))
        return out

    def _labels_of(self, tensors: Any) -> list[Array]:
        """Returns the labels of all dimensions of a tensor or of a sequence of tensors."""
        several = tensors if isinstance(tensors, (tuple, list)) else [tensors]
        return [d for t in several if isinstance(t, torch.Tensor) for d in self._dims.get(t, ()) if d is not None]

    def _note_write(self, tensor: torch.Tensor) -> None:
        if tensor.layout == torch.strided:
            self.before = tuple(tensor.shape), tensor.stride()
        if self.shared is not None:
            self.shared.before_write(tensor)

    def _forget_made(self, written: Iterable[Any]) -> None:
        """Notes that tensors that the code made no longer have one value: some of their channels differ from others."""
        for tensor in written:
            if isinstance(tensor, torch.Tensor):
                for whole in (tensor, tensor._base):
                    if whole is not None:
                        self._made.pop(whole)

    def _note_reads(self, inputs: list[torch.Tensor]) -> None:
        """Notes the parameters and buffers that are read, and freezes the labels that wait for a read (`when_read`)."""
        waiting = len(self._when_read) > 0
        for tensor in inputs:
            name = self._names.get(tensor)
            if name is not None:
                self.touched.add(name)
            if waiting:
                self.labels.freeze(*self._when_read.get(tensor, (None, "")))

    @contextmanager
    def _overwriting(self, inputs: list[torch.Tensor]) -> Iterator[None]:
        """Drops the constants (`emitted`) of tensors that an operation overwrites, unless its rule sets new ones."""
        written = [t for t in (inputs[0], inputs[0]._base) if t is not None]
        before = [self.emitted(t, maps=True) for t in written]
        yield
        for tensor, old in zip(written, before, strict=True):
            if old is not None and self.emitted(tensor, maps=True) is old:
                self.forget_emitted(tensor)
