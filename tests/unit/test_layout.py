"""Layouts declared as data: each field at its place, and nothing but its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeemu.spec.layout import Field, Number, Record, bit, bits, count, raw, records, text, uint


class Pair(Record, size=4):
    low = uint(0, 2)
    high = uint(2, 2)


class Sample(Record, size=32):
    byte = uint(0, 1)
    word = uint(2, 4)
    wide = uint(8, 8)
    flag = bit(16, 31)
    nibble = bits(16, 7, 4)
    number = count(16, 27, 16)
    name = text(20, 4)
    blob = raw(24, 4)
    pair = records(28, Pair, 1)


class Longer(Sample, size=40):
    tail = uint(32, 8)


NUMBERS = {name: field for name, field in Longer.fields() if isinstance(field, Number)}


def test_fields_lie_where_they_are_declared() -> None:
    sample = Sample(byte=0x11, word=0x22334455, wide=0x66778899AABBCCDD, flag=True, nibble=0xE, number=1, name="ab")
    expected = "1100 55443322 0000 ddccbbaa99887766 e0000080 61622020 00000000 00000000"
    assert bytes(sample) == bytes.fromhex(expected)
    assert (sample.byte, sample.word, sample.flag, sample.nibble, sample.number) == (0x11, 0x22334455, True, 0xE, 1)
    assert (sample.name, sample.blob, list(sample.pair)) == ("ab", bytes(4), [Pair()])


@given(st.binary(min_size=40, max_size=40), st.sampled_from(sorted(NUMBERS)), st.data())
def test_a_number_is_read_back_and_changes_no_bit_of_others(data: bytes, name: str, draw: st.DataObject) -> None:
    field = NUMBERS[name]
    width = field.high - field.low + 1
    value = draw.draw(st.integers(0, (1 << width) - 1)) + field.zero_based
    record = Longer(bytes(data))
    copy = Longer()
    copy.data[:] = data  # type: ignore[index]
    setattr(copy, name, value)
    assert getattr(copy, name) == value
    mask = ((1 << width) - 1) << (field.offset * 8 + field.low)
    assert int(copy) & ~mask == int(record) & ~mask
    assert int(copy) & mask == (value - field.zero_based) << (field.offset * 8 + field.low)


@pytest.mark.parametrize(
    ("name", "bad"), [("byte", 256), ("byte", -1), ("nibble", 16), ("number", 0), ("number", 4097)]
)
def test_a_number_that_does_not_fit_is_refused_by_name(name: str, bad: int) -> None:
    sample = Sample()
    with pytest.raises(ValueError, match=name):
        setattr(sample, name, bad)
    assert bytes(sample) == bytes(32)


def test_a_zero_based_count_reads_as_what_it_means() -> None:
    assert Sample().number == 1
    assert Sample(bytes(16) + b"\0\0\xff\x0f" + bytes(12)).number == 0x1000


def test_bits_beyond_the_first_byte() -> None:
    for number in range(32):
        field = bit(0, number)
        data = bytearray(4)
        field.put(data, True)
        assert int.from_bytes(data, "little") == 1 << number
        assert field.get(data)
        field.put(data, False)
        assert not any(data)
    with pytest.raises(TypeError, match="no bit 8"):
        bit(0, 8, size=1)


def test_text_is_padded_with_spaces_and_read_without() -> None:
    sample = Sample(name="a")
    assert bytes(sample)[20:24] == b"a   "
    assert sample.name == "a"
    assert Sample(bytes(20) + b"\xffb\0\0" + bytes(8)).name == "\N{REPLACEMENT CHARACTER}b"
    with pytest.raises(ValueError, match="longer than 4"):
        sample.name = "abcde"
    with pytest.raises(UnicodeEncodeError):
        sample.name = "\N{LATIN SMALL LETTER U WITH DIAERESIS}"


def test_raw_bytes_are_padded_with_zeros() -> None:
    sample = Sample(blob=b"abcd")
    sample.blob = b"x"
    assert sample.blob == b"x\0\0\0"
    with pytest.raises(ValueError, match="do not fit"):
        sample.blob = b"abcde"


def test_records_in_records() -> None:
    class Outer(Record, size=16):
        pairs = records(4, Pair, 3)

    outer = Outer(pairs=[Pair(low=1), Pair(high=2)])
    assert bytes(outer) == bytes(4) + b"\1\0\0\0" + b"\0\0\2\0" + bytes(4)
    assert [pair.high for pair in outer.pairs] == [0, 2, 0]
    with pytest.raises(ValueError, match="4 records do not fit 3"):
        outer.pairs = [Pair()] * 4


def test_a_record_of_bytes_is_only_read() -> None:
    sample = Sample(bytes(32))
    with pytest.raises(TypeError, match="read-only"):
        sample.byte = 1
    Sample().byte = 1


def test_a_record_has_its_size_and_its_fields_and_no_others() -> None:
    with pytest.raises(ValueError, match="Sample is 32 bytes, not 31"):
        Sample(bytes(31))
    with pytest.raises(TypeError, match="no field nonsense"):
        Sample(nonsense=1)
    with pytest.raises(TypeError, match="no field SIZE"):
        Sample(SIZE=1)
    with pytest.raises(TypeError, match="outside its 4 bytes"):

        class TooSmall(Record, size=4):
            x = uint(2, 4)


def test_a_derived_record_has_the_fields_of_its_base_first() -> None:
    assert [name for name, _ in Longer.fields()] == [name for name, _ in Sample.fields()] + ["tail"]
    assert isinstance(Longer.tail, Field)
    assert Longer.SIZE == 40
    assert Longer(byte=1, tail=2).byte == 1


def test_records_are_numbers_and_compare_by_content() -> None:
    assert int(Pair.of(0x00020001)) == 0x00020001
    assert Pair.of(0x00020001) == Pair(low=1, high=2)
    assert Pair(low=1) != Pair(low=2)
    assert Pair() != bytes(4)
    with pytest.raises(OverflowError):
        Pair.of(1 << 32)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Pair())
    assert repr(Pair(high=2)) == "Pair(high=2)"


@given(st.binary(min_size=40, max_size=40))
def test_an_unpacker_reads_what_the_fields_read(data: bytes) -> None:
    longer = Longer(data)
    assert Longer.unpacker("byte", "word", "wide", "tail")(data) == (longer.byte, longer.word, longer.wide, longer.tail)


@pytest.mark.parametrize("names", [("word", "byte"), ("nibble",), ("number",), ("byte", "byte")])
def test_an_unpacker_of_anything_else_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="cannot be unpacked"):
        Longer.unpacker(*names)
