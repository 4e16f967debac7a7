"""Driver profiles: our device passes each; a device that is broken where it hurts the driver fails it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from nvmeemu.profiles import Break, Item, Profile, ProfileError, breaks, built_in, load, parse, run
from nvmeemu.profiles.from_trace import profile_text
from nvmeemu.profiles.learning import Learning
from nvmeemu.profiles.profile import NEVER
from nvmeemu.regs import INTMS
from nvmeemu.replay import replay
from nvmeemu.trace import Doorbell, PciChange, RegisterWrite

PROFILES = {name: load(name) for name in built_in()}
BREAKS = [(name, one) for name, profile in PROFILES.items() for one in breaks(profile)]


def profile(steps: str, head: str = "") -> Profile:
    return parse(f'title = "x"\nstanding = "source"\n{head}\nsteps = """\n{steps}\n"""', "x")


START = """\
write CC = 0
wait rdy = 0
write AQA = 0x1f001f
write ASQ = memory
write ACQ = memory
write CC = 0x460001
wait rdy = 1
"""


def found(steps: str, fault: Mapping[str, object] | None = None, head: str = "") -> list[str]:
    broken = Break(Item("step"), "", fault) if fault else None
    return [str(one.item) for one in run(profile(START + steps, head), broken).findings]


def test_the_drivers_of_the_issues_are_there() -> None:
    assert set(PROFILES) == {
        *("freebsd-12", "freebsd-12-intx", "freebsd-15", "freebsd-15-intx", "openbsd-intx", "openbsd-msix"),
        *("nvmewin", "nvme2k", "windows-10", "windows-11", "haiku", "9front", "serenityos"),
    }


@pytest.mark.parametrize("name", PROFILES)
def test_our_device_passes(name: str) -> None:
    outcome = run(PROFILES[name])
    assert [str(one) for one in outcome.findings] == []
    assert outcome.commands > 10


@pytest.mark.parametrize(
    ("name", "broken"), BREAKS, ids=[f"{name}-{one.item}-{at}" for at, (name, one) in enumerate(BREAKS)]
)
def test_a_broken_device_fails(name: str, broken: Break) -> None:
    outcome = run(PROFILES[name], broken)
    assert broken.found_by(outcome), [str(one) for one in outcome.findings]


@pytest.mark.parametrize("name", PROFILES)
def test_each_says_what_it_is_and_where_from(name: str) -> None:
    one = PROFILES[name]
    assert one.title
    assert one.about
    assert one.facts
    assert all(at.startswith(("https://", "observed")) for at in [known.at for known in one.facts])
    assert all(never.at.startswith(("https://", "observed", "assumed")) and never.why for never in one.nevers)
    assert (one.standing == "reconstruction") == name.startswith("windows")


def test_every_thing_that_must_never_happen_is_provoked_somewhere() -> None:
    assert {never.item for one in PROFILES.values() for never in one.nevers} == set(NEVER)


@pytest.mark.parametrize("name", PROFILES)
def test_the_trace_of_a_run_replays(name: str) -> None:
    result = replay(run(PROFILES[name]).trace)
    assert result.differences == []


def test_freebsds_deadline() -> None:
    for wait, expected in (("800ms", []), ("1200ms", ["late_answer"])):
        for name in ("freebsd-12", "freebsd-15"):
            broken = Break(Item("step"), "", {"match": {"opcode": "identify", "cns": 1}, "do": {"delay": wait}})
            assert [str(one.item) for one in run(PROFILES[name], broken).findings] == expected


def test_a_device_that_is_gone() -> None:
    gone = {"match": {"opcode": "identify"}, "at": "execute", "do": "remove"}
    assert found("admin identify cns=controller", gone) == ["fatal_status"]


def test_an_event_is_no_mistake_of_the_device() -> None:
    """The driver reads the log that it names, and gives the request again."""
    flood = {"match": {"opcode": "flush"}, "at": "completion", "do": {"flood": 3}}
    queues = "admin create_cq qid=1 qsize=2 pc=1\nadmin create_sq qid=1 qsize=2 pc=1 cqid=1\n"
    steps = f"admin async_event_request x2 -> parked\n{queues}q1 flush nsid=1\npause 1s"
    outcome = run(profile(START + steps), Break(Item("step"), "", flood))
    assert outcome.findings == []
    assert outcome.commands == 5 + 2 * 3


def test_what_a_step_expects() -> None:
    identify = "admin identify cns=controller"
    assert found(f"{identify} -> nn<=16 aerl>=4 sqes_min=6") == []
    assert found(f"{identify} -> success nn<=15") == ["line 12"]
    assert found("admin get_features fid=0xd0") == ["line 12"]
    assert found("admin get_features fid=0xd0 -> any") == []
    assert found("admin set_features fid=number_of_queues cdw11=0x10001 -> dw0=0x3f003f") == []
    assert found("admin set_features fid=number_of_queues cdw11=0x10001 -> dw0=1") == ["line 12"]
    assert found("read CC = 0x460001\nread ASQ = written\nread ACQ+4 = written\nread VS = 0x20000") == []
    assert found("read AQA = 0") == ["line 12"]
    assert found("q1 flush nsid=1") == ["line 12"]
    assert found("admin identify cns=controller x32") == ["line 12"]
    assert found("reset\nread ASQ = 0\nread AQA = 0") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "jump",
            "profile:5: jump: a step begins with read, write, wait, pci, pause, reset, admin, q1, polling, msix, pin",
        ),
        ("read CD", "none of cap, vs"),
        ("write CC", "REGISTER = VALUE"),
        ("write CC = 0x100000000", "is not within"),
        ("wait cfs = 1", "wait rdy = 1"),
        ("admin", "the command is missing"),
        ("admin indentify", "'indentify' is none of delete_sq"),
        ("admin identify slba=1", "slba: this command has no such field"),
        ("admin identify cns=x", "'x' is none of namespace"),
        ("admin identify cns=256", "is not within"),
        ("admin identify -> ok", "'ok' is none of success"),
        ("admin get_log_page -> nn=1", "nothing in the answer to this command has that name"),
        ("q1 read nlb=0", "0 does not fit nlb"),
        ("q1 read x0", "is not within"),
        ("q1 write data=xy", "non-hexadecimal"),
        ("msix maskin", "there is only: masking"),
        ("pin masking=", "there is only: masking, or masking=BITS"),
        ("pin masking=0", "masking: 0 is not within"),
        ("polling masking", "there is only: late"),
        ("+ q1 flush", "no command stands before it"),
        ("read CC\n+ q1 flush", "no command stands before it"),
        ("+", "a command follows it: + admin COMMAND"),
        ("+ reset", "a command follows it"),
        ("q1 flush\n+ admin create_sq qid=1", "a queue is made by itself"),
        ("pause soon", "no time"),
        ("read CAP+0\nread CAP = before", "it was not read before"),
        ("pci", "pci interrupt_disable = 1, or"),
        ("pci bus_master = 1", "pci interrupt_disable = 1, or"),
        ("pci interrupt_disable = 2", "pci interrupt_disable = 1, or"),
    ],
)
def test_a_bad_step_is_told_in_a_line(text: str, why: str) -> None:
    with pytest.raises(ProfileError) as error:
        profile(text)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("titel = 1", "titel: a profile has"),
        ("deadline = 'soon'", "deadline: 'soon' is no time"),
        ("device = {color = 1}", "device: color: there are"),
        ("device = {blocks = 8}", "device.blocks: it is a namespace's: give it in a [[namespace]]"),
        ("namespace = [{block_size = 513}]", "block_size: 512 or 4096"),
        ("namespace = [{blocks = 0x100000000000}]", "more than 1 TiB"),
        ("namespace = [{color = 1}]", "namespace: color: there are block_size, blocks, nsid, write_cache"),
        ("namespace = [{write_cache = 1}]", "write_cache: 1 is neither true nor false"),
        ("never = [{item = 'x'}]", "never.item: 'x' is none of late_answer"),
        ("never = [{item = 'late_answer', why = '', at = ''}]", "either fault or device"),
        ("never = [{item = 'late_answer', why = '', at = '', fault = {do = 'x'}}]", "do: 'x' is none of"),
        ("never = [{item = 'late_answer', why = '', at = '', fault = 1}]", "never.fault: 1 is no table"),
        ("never = [{item = 'late_answer', why = '', at = '', fault = {match = 1, do = 'drop'}}]", "match"),
        ("fact = 1", "begin each with [[fact]]"),
        ("= ", "Invalid"),
    ],
)
def test_a_bad_profile_is_told_in_a_line(head: str, why: str) -> None:
    with pytest.raises(ProfileError) as error:
        profile("read CC", head)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


QUEUES = """\
admin create_cq qid=1 qsize=8 pc=1 ien=1
admin create_sq qid=1 qsize=8 pc=1 cqid=1
admin create_sq qid=2 qsize=8 pc=1 cqid=1
"""


def test_commands_are_joined_over_queues_that_share_a_completion_queue() -> None:
    pair = "q1 write nsid=1 slba=8 nlb=8 x4\n+ q2 write nsid=1 slba=64 nlb=8 x3\n"
    steps = f"{QUEUES}{pair}+ q1 flush nsid=1\nq2 read nsid=1 slba=8 nlb=32\nq1 read nsid=1 slba=64 nlb=24"
    assert found(f"msix\n{steps}") == []
    assert found(f"pin masking=0x3\n{steps}") == []
    late = {"match": {"opcode": "flush"}, "at": "completion", "do": "drop"}
    assert found(f"msix\n{steps}", late) == ["late_answer"]
    lost = {"match": {"opcode": "write", "queue": 2}, "at": "backend", "do": "lose"}
    assert found(f"msix\n{steps}", lost) == ["wrong_data"]
    assert found(f"{QUEUES}q1 flush nsid=1 x5\n+ q1 flush nsid=1 x3") == ["line 15"]  # it has room for seven


def test_identifiers_may_be_the_same() -> None:
    steps = f"{QUEUES}q1 flush nsid=1 cid=7\n+ q1 flush nsid=1 cid=7\n+ q2 flush nsid=1 cid=7"
    cached = "namespace = [{write_cache = true}]"
    assert found(steps, head=cached) == []
    assert found(steps, {"match": {"opcode": "flush"}, "do": {"unknown_cid": 9}}, cached) == ["unknown_completion"]


def test_a_driver_that_is_late_moves_the_head_after_its_next_command() -> None:
    """As nvme2k does in its start; with the last one before it goes on."""
    steps = f"{START}polling late\nadmin get_features fid=1\nadmin get_features fid=1\npin\nadmin get_features fid=1"
    records = [one for one in run(profile(steps)).trace if isinstance(one, Doorbell)]
    assert [(one.is_cq, one.value) for one in records] == [(0, 1), (0, 2), (1, 1), (1, 2), (0, 3), (1, 3)]


def test_masking_with_messages() -> None:
    """The bit of each vector; what a handler does is no step of a profile that is made of it."""
    steps = f"{START}msix masking\n{QUEUES.replace('ien=1', 'ien=1 iv=2')}q1 flush nsid=1\nq2 flush nsid=1"
    outcome = run(profile(steps))
    assert outcome.findings == []
    records = list(outcome.trace)
    masks = [one.data[0] for one in records if isinstance(one, RegisterWrite) and one.offset == INTMS.offset]
    assert masks == [1, 1, 1, 4, 4]
    assert set(Learning(records).modes.values()) == {"msix masking"}
    assert len(Learning(records).handlers) == 2 * len(masks)


def test_a_register_that_changes_is_found_out() -> None:
    """nvmewin takes another VS for a drive that was removed."""
    changed = {"match": {"register": "vs"}, "at": "register", "do": {"set": 0x10300}}
    text = "read VS\nread CAP+0\nread VS = before\npause 1s\nread VS = before"
    assert found(text) == []
    assert found(text, changed) == []  # it has always been so
    assert found(text, {**changed, "when": {"after": 1}}) == ["line 14"]
    assert found(text, {**changed, "when": {"nth": 3}}) == ["line 16"]


def test_interrupt_disable_hides_the_pin() -> None:
    """As nvme2k sets it while it polls. It is in the trace, and a profile that is made of that has it, too."""
    polled = "pci interrupt_disable = 1\nwrite INTMS = 1\npolling\nadmin get_features fid=1\npin\n"
    text = f"{polled}pci interrupt_disable = 0\nwrite INTMC = 1\nadmin get_features fid=1"
    dropped = {"match": {"register": "intms", "access": "write"}, "at": "register", "do": "drop"}
    assert found(text) == []
    assert found(text, dropped) == []  # nothing is to be seen of the pin
    assert found(text.replace("interrupt_disable = 1", "interrupt_disable = 0"), dropped) == ["masked_interrupt"]
    hidden = "pci interrupt_disable = 1\npin\nadmin get_features fid=1"
    assert found(hidden) == ["lost_interrupt"]
    after_reset = f"pci interrupt_disable = 1\nreset\n{START}pin\nadmin get_features fid=1"
    assert found(after_reset) == []
    outcomes = [run(profile(START + text)) for _ in range(2)]
    assert [one.interrupt_disable for one in outcomes[0].trace if isinstance(one, PciChange)] == [True, False]
    steps = [step.text for step in parse(profile_text(outcomes[1].trace), "again").steps]
    assert [step for step in steps if step.startswith("pci")] == [
        "pci interrupt_disable = 1",
        "pci interrupt_disable = 0",
    ]


def test_a_device_that_cannot_be() -> None:
    with pytest.raises(ProfileError, match="there is no such device"):
        run(profile("read CC", "device = {entries = 0}"))
    with pytest.raises(ProfileError, match="do not fit into 256 MiB"):
        run(
            profile(
                f"{START}admin get_log_page lid=smart numd=0x40000 x1024".replace("0x1f001f", "0xfff0fff"),
                "most_admin = 2000",
            )
        )
