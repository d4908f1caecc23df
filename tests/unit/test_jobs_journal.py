"""The journal of a job: events, torn lines, long files, rates and ids."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from phitui.jobs import journal
from phitui.jobs.context import Rate
from phitui.jobs.create import new_id
from phitui.jobs.journal import EventReader, EventWriter


def test_events_are_read_as_written_and_only_once(tmp_path: Path) -> None:
    writer, reader = EventWriter(tmp_path), EventReader(tmp_path)
    writer.write("state", state="running", attempt=1, pid=7, started=5.0)
    writer.write("progress", done=3, total=9, text="چی", rate=1.5, seconds_left=4)
    first = reader.read()
    assert [event.type for event in first] == ["state", "progress"]
    assert first[1].progress is not None and first[1].progress.text == "چی"
    assert reader.read() == []
    writer.write("note", text="two\nlines")
    assert [event.text for event in reader.read()] == ["two\nlines"]
    assert (reader.fold.state, reader.fold.pid, reader.fold.started) == ("running", 7, 5.0)
    assert reader.fold.progress.fraction == pytest.approx(1 / 3)


def test_nothing_comes_after_the_final_state(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    assert writer.write("state", state="cancelled")
    assert not writer.write("state", state="done", result={})
    assert not writer.write("note", text="late")
    assert [event.state for event in EventReader(tmp_path).read()] == ["cancelled"]


def test_a_torn_line_is_skipped_and_the_next_writer_starts_a_fresh_one(tmp_path: Path) -> None:
    EventWriter(tmp_path).write("state", state="running", attempt=1)
    with (tmp_path / journal.EVENTS).open("ab") as file:
        file.write(b'{"time": 1, "type": "progress", "done": 5')
    reader = EventReader(tmp_path)
    assert [event.state for event in reader.read()] == ["running"]
    EventWriter(tmp_path).write("state", state="queued", attempt=2)
    assert [event.state for event in reader.read()] == ["queued"]
    assert reader.fold.attempt == 2


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 40,
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"time": "soon", "type": "note"}',
        b'{"time": 1, "type": "progress"}',
        b'{"time": 1, "type": "state", "pid": {}}',
    ],
)
def test_strange_lines_do_not_stop_a_reader(tmp_path: Path, line: bytes) -> None:
    good = json.dumps({"time": 1, "type": "state", "state": "done", "result": {}}).encode()
    (tmp_path / journal.EVENTS).write_bytes(line + b"\n" + good + b"\n")
    reader = EventReader(tmp_path)
    assert [event.state for event in reader.read()] == ["done"]


def test_unknown_event_types_and_keys_of_a_later_version_are_tolerated(tmp_path: Path) -> None:
    writer, reader = EventWriter(tmp_path), EventReader(tmp_path)
    writer.write("picture", anything=[1])
    writer.write("state", state="running", attempt=1, more="x")
    reader.read()
    assert reader.fold.state == "running"


@pytest.mark.parametrize("ended", [True, False])
def test_skimming_a_long_journal_says_the_same_as_reading_it(tmp_path: Path, ended: bool) -> None:
    writer = EventWriter(tmp_path)
    writer.write("state", state="running", attempt=3, started=100.5, pid=8)
    for done in range(2000):
        writer.write("progress", done=done, total=2000, text="x" * 50)
    if ended:
        writer.write("state", state="done", attempt=3, started=100.5, result={"size": 4})
    whole, skimmed = EventReader(tmp_path), EventReader(tmp_path)
    whole.read()
    skimmed.skim()
    assert skimmed.fold == whole.fold
    assert skimmed.fold.progress.done == 1999
    EventWriter(tmp_path).write("state", state="queued", attempt=4)
    skimmed.skim()
    assert (skimmed.fold.state, skimmed.fold.attempt) == ("queued", 4)


def test_a_final_state_bigger_than_the_tail_is_found(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write("state", state="running", attempt=1)
    writer.write("state", state="done", attempt=1, result={"text": "y" * 100_000})
    reader = EventReader(tmp_path)
    reader.skim()
    assert reader.fold.state == "done"


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [writer.write("note", text=str(n) * 500) for _ in range(50)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(EventReader(tmp_path).read()) == 200


def test_what_json_cannot_hold_is_written_as_text(tmp_path: Path) -> None:
    EventWriter(tmp_path).write("state", state="done", result={"path": Path("/x"), "odd": "\ud800"})
    assert EventReader(tmp_path).read()[0].state == "done"


def test_rate_is_right_from_the_second_report_and_follows_a_change() -> None:
    rate = Rate()
    assert rate.update(0.0, 0, 1000) == 0.0
    assert rate.update(1.0, 100, 1000) == pytest.approx(100)
    for second in range(2, 30):
        latest = rate.update(float(second), 100 + (second - 1) * 10, 1000)
    assert latest == pytest.approx(10, rel=0.05)


def test_rate_does_not_count_what_a_resumed_job_finds_done() -> None:
    rate = Rate()
    rate.update(0.0, 900, 1000)
    assert rate.update(1.0, 910, 1000) == pytest.approx(10)


@pytest.mark.parametrize(("done", "total"), [(5, 1000), (600, 2000)])
def test_rate_starts_anew_in_another_phase(done: int, total: int) -> None:
    rate = Rate()
    rate.update(0.0, 0, 1000)
    rate.update(1.0, 500, 1000)
    assert rate.update(2.0, done, total) == 0.0
    assert rate.update(3.0, done + 7, total) == pytest.approx(7)


def test_rate_survives_two_reports_at_one_moment() -> None:
    rate = Rate()
    rate.update(1.0, 1, 10)
    assert rate.update(1.0, 2, 10) == 0.0


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id(1_700_000_000 + step / 16) for step in range(200)]
    assert ids == sorted(ids)
    assert len({new_id(1_700_000_000) for _ in range(20)}) > 1
    assert all(len(name) == 10 and name.isalnum() and name.islower() | name.isdigit() for name in ids)
