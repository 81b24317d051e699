"""An interpreter for pickles of tensors, which imports, calls and builds nothing that a pickle names.

`pickle.Unpickler` with a restricted `find_class` still allocates whatever a length or a memo index claims, and hashes
keys nested deeply enough to overflow the C stack. This interpreter knows only the opcodes a checkpoint is made of (the
approach of torch/_weights_only_unpickler.py), and its globals only by name; `pickletools` decodes their arguments. What
a training program saves beside the state dict (paths, namespaces, its own classes) becomes an `Opaque` that only names
its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from pythia_dynamics.checkpoints.formats.slices import DTYPE_BITS
from pythia_dynamics.errors import FormatError

__all__ = ["DTYPES", "MAX_PICKLE_BYTES", "Opaque", "PickledStorage", "PickledTensor", "read_pickle", "type_name"]

MAX_PICKLE_BYTES = 16 * 2**20
"""Longest accepted pickle: about 100,000 tensors of 150 bytes each. That of Pythia 12b has 67 KB."""

MAX_OPCODES = 1_000_000
"""Opcodes of one pickle: about 30,000 tensors. Each keeps at most about 100 bytes besides its own text."""

MAX_INT = 2**63
"""Numbers are below this: torch's sizes are signed 64-bit integers."""

MAX_RANK = 64
"""Axes of a tensor: torch's limit."""

MAX_KEY_LENGTH = 255
"""Characters of a storage's name; torch numbers them."""

MAX_GLOBAL_LENGTH = 1024
"""Characters of the name of a class or function with its module; those of torch have fewer than 100."""

STORAGES = {
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.UntypedStorage": None,
    "torch.storage.UntypedStorage": None,
}
"""dtype of each storage class of torch, None where it is untyped."""

DTYPES = {f"torch.{name}": name for name, bits in DTYPE_BITS.items() if bits >= 8}
"""dtype of each global that is a torch dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class PickledStorage:
    """A storage that a pickle refers to.

    Parameters
    ----------
    key
        Its name.
    dtype
        A key of `DTYPE_BITS`, None where the storage is untyped.
    numel
        Its length in elements of `dtype`, in bytes where it is untyped.
    """

    key: str
    dtype: str | None
    numel: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A tensor that a pickle describes: a view of a storage. At most 64 axes; every number is in [0, 2^63).

    Parameters
    ----------
    storage
        The storage.
    dtype
        A key of `DTYPE_BITS`.
    offset
        Position in the storage of the first element, in elements.
    shape
        Sizes of the axes.
    stride
        Distance of neighbours along each axis, in elements.
    """

    storage: PickledStorage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """An object of a class or a function that no tensor needs. It was not made: only the name is known.

    Parameters
    ----------
    name
        Of the class or function, with its module.
    """

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Global:
    name: str


KEYS = (str, float, bool, type(None), _Global, Opaque)
"""Types of keys besides integers. Old versions of Lightning save their callbacks by class."""


def read_pickle(data: bytes, *, file: str) -> object:
    """The object a pickle describes: of dicts, lists, tuples, strings, numbers, `PickledTensor` and `Opaque` only.

    Parameters
    ----------
    data
        The pickle.
    file
        Name of the checkpoint, for messages.

    Raises
    ------
    FormatError
        When the pickle is damaged, too long, or uses an opcode that no checkpoint needs.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise FormatError(f"{file}: its data.pkl of {len(data)} bytes is larger than any state dict's")
    return _Reader(file).load(data)


def type_name(value: object) -> str:
    """The name of the type of a value from `read_pickle`, for messages."""
    if isinstance(value, (_Global, Opaque)):
        return value.name
    return {PickledTensor: "tensor", PickledStorage: "storage"}.get(type(value), type(value).__name__)


class _Reader:
    """Interpreter of protocols 2 to 5. Keys are of `KEYS` and integers only: no hash recurses or is costly."""

    def __init__(self, file: str) -> None:
        self.file, self.position = file, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[str, _Global] = {}

    def load(self, data: bytes) -> object:
        from pickletools import genops  # only here, since it imports `pickle`

        stream = BytesIO(data)
        operations = genops(stream)
        for _ in range(MAX_OPCODES):
            self.position = stream.tell()
            code = data[self.position : self.position + 1]
            if code and code not in OPCODES:  # before an argument is read that is not needed
                self.refuse(f"the pickle opcode 0x{code.hex()}")
            try:
                opcode, argument, _ = next(operations)
            except (ValueError, DeprecationWarning):  # the latter of an escape in a global, where warnings are errors
                self.damaged("is cut short, or holds a string that is not valid")
            if code == b".":
                return self.pop()
            OPCODES[code](self, *(() if opcode.arg is None else (argument,)))
        raise FormatError(f"{self.file}: its data.pkl has more opcodes than any state dict")

    def damaged(self, what: str) -> NoReturn:
        raise FormatError(f"{self.file}: its data.pkl {what} (byte {self.position}); the file is damaged")

    def refuse(self, what: str) -> NoReturn:
        raise FormatError(
            f"{self.file}: its data.pkl uses {what}, which no state dict needs, so it is not read; "
            "if you trust it, save model.state_dict() alone or convert it to safetensors"
        )

    # The stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.damaged("takes more from its stack than it put there")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def pop_group(self) -> list[Any]:
        if not self.marks:
            self.damaged("closes a group it never opened")
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    # Opcodes that do more than push

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.damaged("refers to an object it never had")
        self.push(self.memo[index])

    def wrap(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is Opaque:
            return
        if type(target) is not list:
            self.damaged("appends to an object that is not a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is Opaque:
            return
        if type(target) is not dict or len(items) % 2:
            self.damaged("sets items of an object that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in KEYS and not (type(key) is int and abs(key) < MAX_INT):
                self.refuse(f"a {type_name(key)} as a key")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def find(self, name: str) -> None:
        """`name` is module and name with a space between, as `pickletools` joins them."""
        if len(name) > MAX_GLOBAL_LENGTH or not name.isprintable():
            self.damaged("names a global by what is no name")
        name = name.replace(" ", ".", 1)
        self.push(self.globals.setdefault(name, _Global(name)))

    def find_by_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            self.damaged("names a global by an object that is not a string")
        self.find(f"{module} {name}")

    def build(self) -> None:
        # A state dict's `_metadata`: attributes of an OrderedDict, which nothing here needs.
        self.pop()
        if type(self.top()) not in (dict, Opaque):
            self.refuse(f"a state for a {type_name(self.top())}")

    def call(self, known: Mapping[str, Call]) -> None:
        """The result of a known call, else an opaque object. A class inside another is an `Opaque` itself."""
        arguments, function = self.pop(), self.pop()
        if type(function) not in (_Global, Opaque) or type(arguments) is not tuple:
            self.refuse(f"a call of {type_name(function)}")
        make = known.get(function.name) if type(function) is _Global else None
        self.push(make(self, arguments) if make else Opaque(function.name))

    def persistent(self) -> None:
        given = self.pop()
        if type(given) is not tuple or len(given) != 5 or type(given[0]) is not str or given[0] != "storage":
            self.refuse("a persistent object other than a storage")
        _, kind, key, _, numel = given
        if type(kind) is not _Global or kind.name not in STORAGES:
            self.refuse(f"a storage of {type_name(kind)}")
        if type(key) is not str or len(key) > MAX_KEY_LENGTH or not _is_count(numel):
            self.damaged("describes a storage wrongly")
        self.push(PickledStorage(key, STORAGES[kind.name], numel))

    # The calls a state dict is made of

    def ordered_dict(self, arguments: tuple[Any, ...]) -> dict[object, object]:
        if arguments:
            self.refuse("an OrderedDict with arguments")
        return {}

    def tensor(self, arguments: tuple[Any, ...], count: int) -> PickledTensor:
        """(storage, offset, shape, stride, requires_grad, hooks[, dtype][, metadata]); `count` without the metadata"""
        if not count <= len(arguments) <= count + 1 or type(arguments[0]) is not PickledStorage:
            self.damaged("describes a tensor wrongly")
        storage, offset, shape, stride, _, _, *given = arguments[:count]
        dtype = storage.dtype or "uint8"
        if given:
            if type(given[0]) is not _Global or given[0].name not in DTYPES:
                self.refuse(f"{type_name(given[0])} as a dtype")
            dtype = DTYPES[given[0].name]
        if (
            type(shape) is not tuple
            or type(stride) is not tuple
            or not len(shape) == len(stride) <= MAX_RANK
            or not all(map(_is_count, (offset, *shape, *stride)))
        ):
            self.damaged("describes a tensor wrongly")
        if any(arguments[count:]):
            self.refuse("a tensor with a lazy conjugation or negation")
        return PickledTensor(storage, dtype, offset, shape, stride)

    def of_type(self, arguments: tuple[Any, ...]) -> object:
        """(function, type, arguments, state): a subclass of a tensor, of which only the tensor matters"""
        if len(arguments) != 4 or type(arguments[0]) is not _Global or type(arguments[2]) is not tuple:
            self.damaged("describes a tensor wrongly")
        call = TENSORS.get(arguments[0].name)
        return call(self, arguments[2]) if call else Opaque(arguments[0].name)

    def parameter(self, arguments: tuple[Any, ...]) -> PickledTensor:
        """(tensor, requires_grad, hooks[, state])"""
        if not arguments or type(arguments[0]) is not PickledTensor:
            self.damaged("makes a parameter of an object that is not a tensor")
        return arguments[0]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_INT


Call = Callable[[_Reader, tuple[Any, ...]], object]

TENSORS: dict[str, Call] = {
    "torch._utils._rebuild_tensor_v2": lambda r, arguments: r.tensor(arguments, 6),
    "torch._utils._rebuild_tensor_v3": lambda r, arguments: r.tensor(arguments, 7),
}

CALLS: dict[str, Call] = {
    **TENSORS,
    "collections.OrderedDict": _Reader.ordered_dict,
    "torch._tensor._rebuild_from_type_v2": _Reader.of_type,
    "torch._utils._rebuild_parameter": _Reader.parameter,
    "torch._utils._rebuild_parameter_with_state": _Reader.parameter,
}

OPCODES: dict[bytes, Callable[..., object]] = {
    **dict.fromkeys((b"J", b"K", b"M", b"\x8a", b"G", b"X", b"\x8c"), _Reader.push),  # numbers and strings
    **dict.fromkeys((b"\x80", b"\x95"), lambda r, _: None),  # protocol and frame
    **dict.fromkeys((b"q", b"r"), _Reader.put),
    **dict.fromkeys((b"h", b"j"), _Reader.get),
    b".": _Reader.pop,
    b"(": _Reader.mark,
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"C": lambda r, _: r.push(Opaque("builtins.bytes")),
    b")": lambda r: r.push(()),
    b"\x85": lambda r: r.wrap(1),
    b"\x86": lambda r: r.wrap(2),
    b"\x87": lambda r: r.wrap(3),
    b"t": lambda r: r.push(tuple(r.pop_group())),
    b"]": lambda r: r.push([]),
    b"a": lambda r: r.append([r.pop()]),
    b"e": lambda r: r.append(r.pop_group()),
    b"}": lambda r: r.push({}),
    b"s": _Reader.set_item,
    b"u": lambda r: r.set_items(r.pop_group()),
    b"\x94": lambda r: r.put(len(r.memo)),
    b"c": _Reader.find,
    b"\x93": _Reader.find_by_stack,
    b"R": lambda r: r.call(CALLS),
    b"\x81": lambda r: r.call({}),  # an object of a class
    b"b": _Reader.build,
    b"Q": _Reader.persistent,
}
