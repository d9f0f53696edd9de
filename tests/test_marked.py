"""Marked names: many taken at a time are what they are one by one."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from mailsvc.store import filenames, marked

usual = st.builds(
    lambda head, stored, more, info: b"%b,S=%d,W=%d%b" % (head, stored, stored + more, info),
    st.from_regex(rb"\A[0-9]{1,3}\.[a-c_+-]{1,3}\Z"), st.integers(1, 40), st.integers(0, 41),
    st.sampled_from([b"", b":2,", b":2,S", b":1,x,S=3"]))
odd = st.one_of(
    st.binary(min_size=1, max_size=12).filter(
        lambda name: not (b"/" in name or b"\0" in name or name.startswith(b"."))),
    st.sampled_from([b"1.a,W=3,S=3", b"1.a,S=3", b"1.a:2,,S=3,W=3", b"1.a,S=9,W=3", b"1.a",
                     b"1.a,U=4,S=3,W=3", b"x" * 71 + b",S=3,W=3", b"a b,S=3,W=3", b"1.a,S=3,W=9"]))


@given(st.lists(st.one_of(usual, usual, usual, odd), unique=True, max_size=12))
def test_the_quick_way_leads_where_the_long_one_does(names: list[bytes]) -> None:
    those = sorted(map(marked.mark, names))
    sizes = marked.usual_sizes(those)
    if sizes is not None:
        plain = [name.replace(b"\0", b"") for name in those]
        assert sizes == array("Q", [filenames.sent_octets(name) or 0 for name in plain])
        assert [marked.head_of(each) for each in those] == [
            filenames.unique_id(name) for name in plain]
        assert len({filenames.plain_id(name) for name in plain}) == len(plain)


@given(st.lists(usual, unique_by=lambda name: name.partition(b",")[0], max_size=12))
def test_what_deliveries_make_goes_the_quick_way(names: list[bytes]) -> None:
    wrong = [name for name in names if filenames.sent_octets(name) is None]
    found = marked.usual_sizes(sorted(map(marked.mark, names)))
    assert (found is None) == bool(wrong)


@given(st.lists(st.one_of(usual, odd), unique=True, max_size=12))
def test_marks_are_the_same_one_by_one_and_together(names: list[bytes]) -> None:
    assert marked.marks(names) == list(map(marked.mark, names))
    assert marked.marks([b"." + name for name in names]) == []


@given(st.lists(st.lists(st.binary(max_size=3), max_size=6).map(sorted), max_size=9))
def test_runs_are_merged(runs: list[list[bytes]]) -> None:
    assert marked.merged(runs) == sorted(name for run in runs for name in run)
