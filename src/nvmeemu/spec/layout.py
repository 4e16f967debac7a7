"""Binary layouts declared as data: little-endian records, their fields, bits and counts. Knows no NVMe.

A layout is a class whose attributes are fields; the one declaration reads, writes, documents and (for the native
engine) generates C. ``count`` is a "0's based" field: it holds one less than it means, and reads as what it means.

    class Point(Record, size=8):
        x = uint(0, 4)
        far = bit(4, 31)

    p = Point(x=7); p.far = True; bytes(p)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntFlag
from struct import Struct
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from nvmeemu.spec.names import Names

T = TypeVar("T")
R = TypeVar("R", bound="Record")
Buffer = bytes | bytearray | memoryview


class Field(Generic[T]):
    """``size`` bytes at ``offset`` of a record, read and written as a ``T``."""

    name = ""
    show: Callable[[Any], str] = repr

    def __init__(self, offset: int, size: int, get: Callable[[Buffer], T], put: Callable[[bytearray, T], None]) -> None:
        self.offset = offset
        self.size = size
        self.get = get
        self.put = put

    def __set_name__(self, owner: type[Record], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, record: None, owner: type[Record]) -> Field[T]: ...
    @overload
    def __get__(self, record: Record, owner: type[Record]) -> T: ...
    def __get__(self, record: Record | None, owner: type[Record]) -> Field[T] | T:
        return self if record is None else self.get(record.data)

    def __set__(self, record: Record, value: T) -> None:
        if not isinstance(record.data, bytearray):
            raise TypeError(f"{type(record).__name__} is a view of read-only data")
        self.put(record.data, value)


class Number(Field[int]):
    """An unsigned number in bits ``high:low`` of the ``size`` bytes at ``offset``. If it is 0's based, 0 means 1."""

    names: Names | None = None

    def __init__(self, offset: int, size: int, high: int, low: int, zero_based: bool = False) -> None:
        self.high, self.low, self.zero_based = high, low, zero_based
        one = int(zero_based)
        top = (1 << (high - low + 1)) - 1
        mask = top << low
        end = offset + size
        from_bytes = int.from_bytes

        def get(data: Buffer) -> int:
            return (from_bytes(data[offset:end], "little") >> low & top) + one

        def put(data: bytearray, value: int) -> None:
            if not 0 <= value - one <= top:
                raise ValueError(f"{value} does not fit {self.name or 'the field'}")
            old = int.from_bytes(data[offset:end], "little")
            data[offset:end] = (old & ~mask | value - one << low).to_bytes(size, "little")

        super().__init__(offset, size, get, put)


def uint(offset: int, size: int) -> Number:
    """An unsigned number that fills its ``size`` bytes."""
    return Number(offset, size, size * 8 - 1, 0)


def address(offset: int) -> Number:
    """Where something is in the host's memory: 64 bits."""
    field = uint(offset, 8)
    field.show = hex
    return field


def bits(offset: int, high: int, low: int, size: int = 4) -> Number:
    """Bits ``high:low`` of the ``size``-byte word at ``offset``."""
    return Number(offset, size, high, low)


def count(offset: int, high: int, low: int, size: int = 4) -> Number:
    """Bits ``high:low`` that hold a 0's based number: it reads as 1 where the bits are 0."""
    return Number(offset, size, high, low, zero_based=True)


def named(offset: int, high: int, low: int, names: Names, size: int = 4) -> Number:
    """Bits ``high:low`` whose number has a name: it reads as the member of ``names``, or as an int if there is none."""
    field = Number(offset, size, high, low)
    get, members = field.get, names.members

    def get_named(data: Buffer) -> int:
        value = get(data)
        return members.get(value, value)

    field.get, field.show = get_named, lambda value: str(members.get(value, hex(value)))
    field.names = names
    return field


def flags(offset: int, size: int, kind: type[IntFlag]) -> Number:
    """``size`` bytes whose bits have names: they read as that ``kind``."""
    field = uint(offset, size)
    get = field.get
    field.get = lambda data: kind(get(data))
    return field


def bit(offset: int, number: int, size: int = 4) -> Field[bool]:
    """One bit of the ``size``-byte word at ``offset``."""
    byte, mask = offset + number // 8, 1 << number % 8
    if number >= size * 8:
        raise TypeError(f"no bit {number} in {size} bytes")

    def put(data: bytearray, value: bool) -> None:
        data[byte] = data[byte] & ~mask | (mask if value else 0)

    return Field(byte, 1, lambda data: bool(data[byte] & mask), put)


def raw(offset: int, size: int) -> Field[bytes]:
    """``size`` bytes as they are; shorter ones are padded with zeros."""

    def put(data: bytearray, value: bytes) -> None:
        if len(value) > size:
            raise ValueError(f"{len(value)} bytes do not fit {size}")
        data[offset : offset + size] = value.ljust(size, b"\0")

    return Field(offset, size, lambda data: bytes(data[offset : offset + size]), put)


def text(offset: int, size: int) -> Field[str]:
    """ASCII, left justified, padded with spaces."""

    def put(data: bytearray, value: str) -> None:
        encoded = value.encode("ascii")
        if len(encoded) > size:
            raise ValueError(f"{value!r} is longer than {size} characters")
        data[offset : offset + size] = encoded.ljust(size)

    def get(data: Buffer) -> str:
        return bytes(data[offset : offset + size]).decode("ascii", "replace").rstrip(" \0")

    return Field(offset, size, get, put)


def records(offset: int, kind: type[R], number: int) -> Field[Sequence[R]]:
    """``number`` records of one kind, one after the other; fewer may be assigned, the others stay as they are."""
    size = kind.SIZE

    def get(data: Buffer) -> Sequence[R]:
        starts = range(offset, offset + number * size, size)
        return [kind(bytes(data[start : start + size])) for start in starts]

    def put(data: bytearray, value: Sequence[R]) -> None:
        if len(value) > number:
            raise ValueError(f"{len(value)} records do not fit {number}")
        for index, record in enumerate(value):
            data[offset + index * size : offset + (index + 1) * size] = bytes(record)

    return Field(offset, size * number, get, put)


class Record:
    """A fixed-size little-endian structure. Made from ``bytes`` it is read-only, otherwise it owns a bytearray."""

    SIZE: ClassVar[int] = 0
    BLANK: ClassVar[bytes] = b""  # what one made of no data holds
    __slots__ = ("data",)
    data: bytes | bytearray

    def __init_subclass__(cls, size: int | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if size is not None:
            cls.SIZE, cls.BLANK = size, bytes(size)
        for name, field in vars(cls).items():
            if isinstance(field, Field) and field.offset + field.size > cls.SIZE:
                raise TypeError(f"{cls.__name__}.{name} lies outside its {cls.SIZE} bytes")

    def __init__(self, data: bytes | None = None, **values: Any) -> None:
        if data is None:
            self.data = bytearray(self.BLANK)
        elif len(data) == self.SIZE:
            self.data = data
        else:
            raise ValueError(f"{type(self).__name__} is {self.SIZE} bytes, not {len(data)}")
        if values:  # a command that is fetched has none
            self._fill(values)

    def _fill(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if not isinstance(getattr(type(self), name, None), Field):
                raise TypeError(f"{type(self).__name__} has no field {name}")
            setattr(self, name, value)

    @classmethod
    def of(cls, value: int) -> Self:
        """The record whose bytes are this little-endian number."""
        return cls(value.to_bytes(cls.SIZE, "little"))

    def __int__(self) -> int:
        return int.from_bytes(self.data, "little")

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self) is type(other) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        shown = (f"{name}={field.show(value)}" for name, field in self.fields() if (value := field.get(self.data)))
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def fields(cls) -> Iterator[tuple[str, Field[Any]]]:
        """The declared fields, base classes first."""
        for base in reversed(cls.__mro__):
            for name, field in vars(base).items():
                if isinstance(field, Field):
                    yield name, field

    @classmethod
    def unpacker(cls, *names: str) -> Callable[[Buffer], tuple[int, ...]]:
        """A fast reader of several numbers at once, for hot paths: ``f(data)`` is their values.

        They must be whole bytes, named in the order of their offsets; 0's based ones cannot be had this way.
        """
        form, position = "<", 0
        for name in names:
            field = getattr(cls, name)
            width = (field.high - field.low + 1) // 8
            start = field.offset + field.low // 8
            if field.low % 8 or width not in _CODES or start < position or field.zero_based:
                raise TypeError(f"{cls.__name__}.{name} cannot be unpacked here")
            form += f"{start - position}x{_CODES[width]}"
            position = start + width
        return Struct(f"{form}{cls.SIZE - position}x").unpack


_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
