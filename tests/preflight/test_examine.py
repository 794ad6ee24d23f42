"""The order of the checks, the errors of checks, and the report over several processes."""

from collections.abc import Iterator

import pytest

from infogan_dist.launcher import ProcessPlace
from infogan_dist.preflight.examine import LISTED_FINDINGS, SET_BY, Check, checks, report_lines, run_check
from infogan_dist.preflight.finding import FAIL, OK, SKIPPED, WARN, Finding, PreflightContext, format_bytes


def test_a_check_follows_the_one_that_it_requires():
    names = [check.name for check in checks(with_run=True)]
    assert len(set(names)) == len(names)
    for check in checks(with_run=True):
        if check.requires is not None:
            assert names.index(SET_BY[check.requires]) < names.index(check.name)


def test_many_findings_are_counted():
    broken = [Finding(FAIL, f"shard {i}", "restore it", shared=True) for i in range(100)]
    lines = report_lines("shards", [broken[:50], broken[50:]])
    assert len(lines) == LISTED_FINDINGS + 1
    assert lines[0] == "FAIL shards        shard 0; restore it"
    assert lines[-1] == "FAIL shards        100 in total, 95 more like these"


def test_findings_of_other_processes_are_reported_with_their_rank():
    ours, theirs = Finding(OK, "torch 3", uniform=True), Finding(OK, "torch 2", uniform=True)
    full, free = Finding(FAIL, "no room", "make room"), Finding(OK, "5 GiB free")
    lines = report_lines("x", [[ours, Finding(OK, "6 GiB free")], [ours, free], [theirs, full], [ours, full]])
    assert lines == [
        "ok   x             torch 3",
        "ok   x             6 GiB free",
        "WARN x             not the same as on process 0, process 2: torch 2",
        "FAIL x             process 2, 3: no room; make room",
    ]


def test_a_quiet_report_contains_warnings_and_failures_only():
    findings = [Finding(level, level) for level in (OK, SKIPPED, WARN, FAIL)]
    assert report_lines("x", [findings], quiet=True) == ["WARN x             WARN", "FAIL x             FAIL"]
    differing = [[Finding(OK, "torch 3", uniform=True)], [Finding(OK, "torch 2", uniform=True)]]
    assert [line[:4] for line in report_lines("x", differing, quiet=True)] == [WARN]


def test_an_error_of_a_check_is_a_finding():
    def failing_check(context: PreflightContext) -> Iterator[Finding]:
        yield Finding(OK, "before")
        raise RuntimeError("the disk is\non fire")

    context = PreflightContext([], ProcessPlace(0, 1, 0, 1))
    before, failure = run_check(context, Check("x", failing_check))
    assert (before.level, failure.level) == (OK, FAIL)
    assert "RuntimeError: the disk is on fire" in report_lines("x", [[failure]])[0]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (5000 * 2**40, "5,000.0 TiB")],
)
def test_bytes_are_formatted_in_the_largest_fitting_unit(count: int, text: str):
    assert format_bytes(count) == text
