"""The drive file: what it may say, what is said of a bad one, and that options, schema and file are one."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest

from nvmeemu.app.arguments import complain
from nvmeemu.app.cli import _parser
from nvmeemu.app.drive import file as drive_file
from nvmeemu.app.drive.command_line import drives_of
from nvmeemu.app.drive.description import Drive, check_together
from nvmeemu.app.drive.keys import TABLES, TOP, ControllerTable, IdentityTable, NamespaceTable
from nvmeemu.app.drive.schema import schema
from nvmeemu.app.drive.source import Failure

WHOLE = """
name = "first"
state = "first.state"
pool = "rooms"
capacity = "1G"
plugins = ["p.py", "/abs/q.py"]

[identity]
serial = "S 1"
model = "A Model"
firmware = "FW 2"
subnqn = "nqn.2014-08.org.example:one"
vendor_id = 0x1B36
device_id = 16

[limits]
queues = 4
mqes = 64
mdts = 5
aerl = 3
cap_to = 20
mpsmin = 1
mpsmax = 2
dstrd = 1
max_namespaces = 8
max_attached = 4
nvme_version = "1.4"
sgls = "off"

[[namespace]]
disk = "raw:disks/a.img"
nsid = 3
create = true
size = "10G"
block_size = 4096
metadata = 64
extended = true
protection = 2
protection_first = false
guard = 64
storage_tag = 16
block_map = true
atomic = "64K"
companion = "disks/a.pair"
format = "allow"
delete = "allow"
nguid = "0011223344556677-8899aabbccddeeff"
uuid = "01234567-89ab-cdef-0123-456789abcdef"
eui64 = "00:25:38:01:02:03:04:05"

[[namespace]]
disk = "/abs/b.img"
read_only = true
direct = true

[[namespace]]
disk = "mem:64M"

[[namespace]]
disk = "c.img"
overlay = true

[[controller]]
socket = "nvme.sock"
cntlid = 7
queues = 2
msix = false
engine = "native"
doorbells = "trapped"
io_threads = 3
trace = "a.trace"
trace_payload = true
faults = ["f.toml", "scenario:flaky"]
control = "a.ctl"
ocp = true
"""
LEAST = '[[namespace]]\ndisk = "mem:1M"\n[[controller]]\nsocket = "s"\n'


def parse(text: str, path: str = "drive.toml") -> Drive:
    return drive_file.parse(text, path).drive()


def test_a_file_says_all_that_there_is_to_say() -> None:
    drive = parse(WHOLE, "lab/drive.toml")
    written = tomllib.loads(WHOLE)
    for name, keys in TABLES.items():
        tables = written.get(name, [written])
        said = {key for table in (tables if isinstance(tables, list) else [tables]) for key in table}
        assert said - {"identity", "limits", "namespace", "controller"} == set(keys), name
    assert (drive.name, drive.state) == ("first", "lab/first.state")
    assert (drive.pool, drive.capacity) == ("lab/rooms", 1 << 30)
    named: list[str] = []
    drive_file.parse(WHOLE, "lab/drive.toml", lambda paths, source: named.extend(paths))
    assert named == ["lab/p.py", "/abs/q.py"]
    assert vars(drive.identity) == vars(
        IdentityTable("S 1", "A Model", "FW 2", "nqn.2014-08.org.example:one", 0x1B36, 16)
    )
    limits = drive.limits_of(drive.controller)
    assert (limits.io_queues, limits.entries, limits.mdts, limits.aerl, limits.timeout) == (2, 64, 5, 3, 20)
    assert (limits.min_page_shift, limits.max_page_shift, limits.dstrd, limits.namespaces) == (1, 2, 1, 8)
    assert limits.attached == 4
    assert limits.vectors == 0
    ids = (bytes.fromhex("00112233445566778899aabbccddeeff"), UUID("01234567-89ab-cdef-0123-456789abcdef").bytes)
    first = NamespaceTable(
        "raw:lab/disks/a.img", 3, 10 << 30, True, block_size=4096, nguid=ids[0], uuid=ids[1],
        eui64=bytes.fromhex("0025380102030405"), metadata=64, extended=True, protection=2, guard=64, storage_tag=16,
        block_map=True, atomic="64K", companion="lab/disks/a.pair", format="allow", delete="allow",
    )  # fmt: skip
    assert {nsid: vars(one) for nsid, one in drive.numbered.items()} == {
        3: vars(first),
        1: vars(NamespaceTable("/abs/b.img", read_only=True, direct=True)),
        2: vars(NamespaceTable("mem:64M")),
        4: vars(NamespaceTable("lab/c.img", overlay=True)),
    }
    controller = ControllerTable(
        "lab/nvme.sock", 7, 2, False, "native", "trapped", 3, "lab/a.trace", True,
        ["lab/f.toml", "scenario:flaky"], "lab/a.ctl", True,
    )  # fmt: skip
    assert vars(drive.controller) == vars(controller)


def test_what_is_not_said_is_as_without_options() -> None:
    drive = parse(LEAST, "lab/drive.toml")
    assert drive.name == "drive"
    assert vars(drive.controller) == vars(ControllerTable(socket="lab/s"))
    options = of_options("--disk", "mem:1M", "--socket", "lab/s")
    assert same(drive, options)


def of_options(*words: str) -> Drive:
    (drive,) = drives_of(_parser().parse_args(["serve", *words]))
    return drive


def same(one: Drive, other: Drive) -> bool:
    return asdict(one) == asdict(replace(other, name=one.name, source=one.source))


def test_options_mean_a_drive_file_of_one() -> None:
    file = parse(
        """
        [identity]
        serial = "S1"
        vendor_id = 0x1234
        [limits]
        queues = 3
        max_namespaces = 2
        [[namespace]]
        disk = "a"
        read_only = true
        block_size = 4096
        nguid = "11111111111111111111111111111111"
        [[namespace]]
        disk = "b"
        read_only = true
        block_size = 4096
        [[controller]]
        socket = "s"
        msix = false
        io_threads = 2
        faults = ["scenario:flaky", "f.toml"]
        """
    )
    words = "--serial S1 --vendor-id 0x1234 --queues 3 --max-namespaces 2 --disk a --disk b --read-only --socket s"
    words += f" --block-size 4096 --nguid {32 * '1'} --no-msix --io-threads 2 --faults scenario:flaky --faults f.toml"
    options = of_options(*words.split())
    assert same(file, replace(options, added={}))
    assert options.added == {"read_only": True, "block_size": 4096}


# In LEAST, what is replaced by what; the line, and what is said; whether a schema says so, too.
BAD: list[tuple[str, str, str, bool]] = [
    ("", "[[namespace]\n", "1: Expected ']]'", False),
    ("", "nmae = 'x'\n", "1: nmae: there is no such key: is name meant?", True),
    ("", "[identty]\n", "1: identty: there is no such key: is identity meant?", True),
    (
        "",
        "zzz = 1\n",
        "1: zzz: there is no such key, but name, state, pool, capacity, plugins, identity, limits, namespace, ",
        True,
    ),
    ("", "name = ''\n", "1: name: '': give 1 to 40 printable ASCII characters", True),
    ("", "identity = 3\n", "1: 3 is no table: write [identity]", True),
    ("", "[identity]\n\nseriel = 'x'\n", "3: identity: seriel: there is no such key: is serial meant?", True),
    ("", "[identity]\nserial = 'x '\n", "2: identity: serial: 'x ': give 1 to 20 printable ASCII", True),
    ("", "[identity]\nserial = ' '\n", "2: identity: serial: ' ': give 1 to 20 printable ASCII", True),
    ("", f"[identity]\nmodel = '{41 * 'x'}'\n", "2: identity: model: 'xxx", True),
    ("", '[identity]\nfirmware = "a\\u007f"\n', "2: identity: firmware: 'a\\x7f': give 1 to 8", True),
    ("", '[identity]\nserial = "a\\n"\n', "2: identity: serial: 'a\\n': give 1 to 20", False),  # $ of Python's
    (
        "",
        "[identity]\nsubnqn = 'x'\n",
        "2: identity: subnqn: 'x': give 1 to 223 printable ASCII characters, that",
        True,
    ),
    ("", f"[identity]\nsubnqn = 'nqn.{220 * 'x'}'\n", "2: identity: subnqn: 'nqn.xx", True),
    ("", "[identity]\nvendor_id = 65536\n", "2: identity: vendor_id: 65536 is not a number from 0 to 65535", True),
    ("", "[identity]\nvendor_id = true\n", "2: identity: vendor_id: True is not a number from 0 to", True),
    ("", "[limits]\n# queues = 65\nqueues = 65\n", "3: limits: queues: 65 is not a number from 1 to 64", True),
    ("", "[limits]\nqueues = 2.0\n", "2: limits: queues: 2.0 is not a number", False),  # JSON has no other numbers
    ("", "[limits]\nmpsmin = 3\nmpsmax = 2\n", "1: there is no such controller: mpsmin 3 is above mpsmax 2", False),
    ("", "[[limits]]\nqueues = 3\n", "1: [{'queues': 3}] is no table: write [limits]", True),
    ("", "namespace = 3\n", "2: Cannot overwrite a value", False),
    ('[[namespace]]\ndisk = "mem:1M"\n', "", "1: there is no namespace: give disk SPEC", True),
    ("[[namespace]]", "[namespace]", "1: namespace: begin each with [[namespace]]", True),
    ('disk = "mem:1M"', "size = 3", "1: namespace 1: disk: is missing: a raw file, a block device", True),
    ('"mem:1M"', "3", "2: namespace 1: disk: 3 is not text", True),
    ('"mem:1M"', '"a\\u0000b"', "2: namespace 1: disk: 'a\\x00b' is not text", True),
    ('"mem:1M"', '"x"\nblock_size = 1000', "3: namespace 1: block_size: 1000 is neither 512 nor 4096", True),
    ('"mem:1M"', '"x"\nblock_size = "512"', "3: namespace 1: block_size: '512' is neither 512 nor 4096", True),
    ('"mem:1M"', '"x"\nread_only = 1', "3: namespace 1: read_only: 1 is neither true nor false", True),
    ('"mem:1M"', '"x"\nread-only = true', "3: namespace 1: read-only: there is no such key: is read_only meant?", True),
    ('"mem:1M"', '"x"\nsize = "10X"', "3: namespace 1: size: bad size '10X': give bytes or a number", True),
    ('"mem:1M"', '"x"\nsize = 0', "3: namespace 1: size: bad size '0'", True),
    ('"mem:1M"', '"x"\nsize = true', "3: namespace 1: size: True is neither a number of bytes nor", True),
    ('"mem:1M"', '"x"\nnsid = 0', "3: namespace 1: nsid: 0 is not a number from 1 to 255", True),
    ('"mem:1M"', '"x"\nnsid = 17', "3: namespace 1: nsid: 17 is more than max_namespaces, 16", False),
    ('"mem:1M"', f'"x"\nnguid = "{32 * "0"}"', "3: namespace 1: nguid: '000", True),
    ('"mem:1M"', '"x"\neui64 = "12"', "3: namespace 1: eui64: '12' is not 16 hexadecimal digits", True),
    ('"mem:1M"', '"x"\nuuid = 12', "3: namespace 1: uuid: 12 is not 32 hexadecimal digits", True),
    (
        '"mem:1M"',
        '"x"\nnsid = 2\n[[namespace]]\ndisk = "y"\nnsid = 2',
        "6: namespace 2: nsid: give each namespace",
        False,
    ),
    (
        '"mem:1M"',
        '"x"\nuuid = "' + 32 * "1" + '"\n[[namespace]]\ndisk = "y"\n\nuuid = "' + 32 * "1" + '"',
        "7: namespace 2: uuid: give each namespace one of its own",
        False,
    ),
    (
        '"mem:1M"',
        '"x"' + 16 * '\n[[namespace]]\ndisk = "y"',
        "33: namespace 17: at most 16 disks, as max",
        False,
    ),
    ('socket = "s"', "", "3: controller 1: socket: is missing: where to listen", False),  # --socket can give it
    ('socket = "s"', "socket = ''", "4: controller 1: socket: '' is not a path", True),
    ('socket = "s"', "socket = 5", "4: controller 1: socket: 5 is not a path", True),
    (
        'socket = "s"',
        "socket = 's'\nengine = 'c'",
        "5: controller 1: engine: 'c' is none of auto, native, ",
        True,
    ),
    ('socket = "s"', "socket = 's'\nmsix = 'no'", "5: controller 1: msix: 'no' is neither true nor false", True),
    ('socket = "s"', "socket = 's'\nfaults = 'f'", "5: controller 1: faults: 'f' is not a list of files", True),
    ('socket = "s"', "socket = 's'\nfaults = ['f', 3]", "5: controller 1: faults: ['f', 3] is not a list", True),
    (
        'socket = "s"',
        "socket = 's'\nio_threads = 2\nengine = 'python'",
        "5: controller 1: io_threads is for",
        False,
    ),
    (
        'socket = "s"',
        "socket = 's'\nengine = 'python'\ndoorbells = 'mapped'",
        "6: controller 1: doorbells mapped",
        False,
    ),
    ('socket = "s"', "socket = 's'\ntrace_payload = true", "5: controller 1: trace_payload is for a trace", False),
    (
        'socket = "s"',
        "socket = 's'\n[[controller]]\nsocket = 't'",
        "5: controller 2: 2 controllers: a drive ha",
        True,
    ),
]


def json_of(text: str) -> Any:
    return tomllib.loads(text)


@pytest.mark.parametrize(("old", "new", "said", "is_for_schemas"), BAD, ids=[one[2][:50] for one in BAD])
def test_a_bad_file_is_refused_with_file_line_and_reason(old: str, new: str, said: str, is_for_schemas: bool) -> None:
    text = LEAST.replace(old, new, 1)
    assert text != LEAST
    with pytest.raises(Failure) as refused:
        parse(text, "lab/drive.toml")
    assert str(refused.value).startswith(f"lab/drive.toml:{said}")
    assert "\n" not in str(refused.value)
    assert refused.value.status == 2
    if is_for_schemas:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json_of(text), schema())


def test_the_schema_is_one_and_takes_what_the_file_takes() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    for text in (WHOLE, LEAST, '[[namespace]]\ndisk = "x"\nsize = 4096\ncreate = true\nnguid = "0x' + 32 * "a" + '"\n'):
        jsonschema.validate(json_of(text), schema())
        parse(text + ("" if "socket" in text else "[[controller]]\nsocket = 's'"))


def test_every_key_is_in_the_schema_with_its_words() -> None:
    properties = schema()["properties"]
    for name, keys in TABLES.items():
        table = properties if name == TOP else properties[name].get("items", properties[name])["properties"]
        for key in keys.values():
            assert table[key.name]["description"].startswith(key.about)
        if name != TOP:
            assert set(table) == set(keys)


def test_options_beside_a_file_replace_what_it_says(tmp_path: Any) -> None:
    file = tmp_path / "drive.toml"
    file.write_text(LEAST + 'trace = "t"\n[limits]\nqueues = 3\nmqes = 8\n')
    drive = of_options("--drive", str(file), "--socket", "elsewhere", "--queues", "2", "--serial", "S", "--no-msix")
    assert vars(drive.controller) == vars(ControllerTable(socket="elsewhere", trace=f"{tmp_path}/t", msix=False))
    assert (drive.limits, drive.identity.serial) == ({"queues": 2, "mqes": 8}, "S")
    with pytest.raises(Failure, match=r"^--io-threads is for the native engine"):  # no file says so
        of_options("--drive", str(file), "--io-threads", "2", "--engine", "python")
    for option in ("--read-only", "--disk=x", "--block-size=512"):
        name = option.partition("=")[0]
        with pytest.raises(Failure, match=rf"^{name} does not go with --drive: the file has \w+ in \[\[namespace\]\]"):
            of_options("--drive", str(file), option)
    with pytest.raises(Failure, match=r"^--no-msix is for one drive, and there are 2: each file can have it"):
        of_options("--drive", str(file), "--drive", str(file), "--no-msix")


def test_drives_together_have_names_and_paths_of_their_own() -> None:
    one, other = parse(LEAST, "a.toml"), parse(LEAST.replace('"s"', '"t"'), "b.toml")
    check_together([one, other], "pid")
    with pytest.raises(Failure, match=r"^x/a.toml:1: name: 2 drives are called a: give each a name of its own"):
        check_together([one, parse(LEAST, "x/a.toml")], None)
    with pytest.raises(Failure, match=r"^b.toml:4: controller 1: socket of a.toml and socket are both s: give each"):
        check_together([one, parse(LEAST, "b.toml")], None)
    trace = parse(LEAST.replace("mem:1M", "d") + "trace = 'd'\n", "c.toml")
    with pytest.raises(Failure, match=r"^c.toml:2: namespace 1: trace and disk are both d: give each a path"):
        check_together([trace], None)
    with pytest.raises(Failure, match=r"^a.toml:4: controller 1: socket and --pid-file are both s: give each"):
        check_together([one], "s")


@pytest.mark.kills("files-of-a-pool-are-anybodys")
def test_a_file_of_a_pool_is_nothing_else(tmp_path: Path) -> None:
    """Of any drive's, whatever path leads there; what else lies in the folder is the user's."""
    name = f"{UUID(int=7)}.raw"
    head = f"pool = '{tmp_path}/p'\ncapacity = '1M'\n"
    (tmp_path / "p").mkdir()
    (tmp_path / "q").symlink_to(tmp_path / "p")
    other = parse(f"{head}[[controller]]\nsocket = 't'\n", "b.toml")
    for disk, is_of_pool in ((f"p/{name}", True), (f"q/{name}.nvme", True), ("p/lock", True), ("p/x.raw", False)):
        drive = parse(LEAST.replace("mem:1M", f"raw:{tmp_path}/{disk}"), "a.toml")
        if not is_of_pool:
            check_together([drive, other], None)
            continue
        with pytest.raises(
            Failure, match=rf"^a.toml:2: namespace 1: disk .*/{disk} is a file of the pool {tmp_path}/p: "
        ):
            check_together([drive, other], None)


@pytest.mark.kills("a-line-break-makes-two-lines")
def test_what_is_wrong_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("nvmeemu serve", "disk a\nb\x1b[2J: \u00fc", 2) == 2
    assert capsys.readouterr().err == "nvmeemu serve: disk a\\nb\\x1b[2J: \u00fc\n"


@pytest.mark.parametrize(
    ("content", "said"), [(b"a = '\xff'\n", "1: no text"), (b" " * (1 << 20) + b"x", "more than 1 MiB")]
)
def test_what_is_no_drive_file(tmp_path: Any, content: bytes, said: str) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(Failure, match=said) as refused:
        of_options("--drive", str(file))
    assert refused.value.status == 2
    with pytest.raises(Failure, match=r"^--drive /none: No such file"):
        of_options("--drive", "/none")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("protection = 1", "protection: 0 bytes of metadata have no room for 8 of protection"),
        ("metadata = 8\nprotection = 1\nguard = 64", "no room for 16"),
        ("metadata = 16\nprotection = 1\nguard = 64", "for blocks of 4096 bytes or more"),
        ("guard = 64", "give its type, 1, 2 or 3"),
        ("extended = true", "blocks without metadata are not extended"),
        ("metadata = 8\nprotection = 1\nstorage_tag = 33", "a storage tag has 0 to 32 bits here, not 33"),
        ("metadata = 7", "7 is none of 0, 8, 16, 64"),
    ],
)
def test_a_format_that_cannot_be_is_refused(keys: str, why: str) -> None:
    text = f'[[namespace]]\ndisk = "mem:1M"\n{keys}\n[[controller]]\nsocket = "s"\n'
    with pytest.raises(Failure, match=why) as caught:
        parse(text)
    assert str(caught.value).startswith("drive.toml:")


@pytest.mark.parametrize(
    ("keys", "may"),
    [
        ('disk = "mem:1M"', True),
        ('disk = "a.img"', False),
        ('disk = "a.img"\nformat = "allow"', True),
        ('disk = "a.img"\noverlay = true', True),
        ('disk = "a.img"\nread_only = true\nformat = "allow"', False),
        ('disk = "mem:1M"\nformat = "refuse"', False),
    ],
)
def test_a_host_erases_no_image_unless_the_user_allows_it(keys: str, may: bool) -> None:
    drive = parse(f'[[namespace]]\n{keys}\n[[controller]]\nsocket = "s"\n')
    assert drive.namespaces[0].may_be_formatted == may
