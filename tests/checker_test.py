#!/usr/bin/python3
"""The checker sees what it must see: made-up messages, one fault each."""

import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest

import msgpack

import checker

AGENT = "0b1f3c52-7a5e-4d6f-9c3a-2f1e0d9c8b7a"
RUN = ["019a0000-0000-7000-8000-00000000000" + digit for digit in "123"]


def message(collector, seq, run=RUN[0], events=1, replayed=False, data=None, agent=AGENT):
    body = {
        "collector": collector,
        "schema_version": 1,
        "agent_id": agent,
        "run_id": run,
        "seq": seq,
        "events": [{"collected_at": "2026-01-01T00:00:00.000000Z", "data": data} for _ in range(events)],
    }
    properties = {
        "app_id": "postgres-agent",
        "content_type": "application/vnd.msgpack",
        "delivery_mode": 2,
        "message_id": f"{run}/{collector}/{seq}",
        "type": f"{collector}/1",
    }
    headers = dict(agent_id=agent, run_id=run, collector=collector, seq=seq, events=events, replayed=replayed)
    return properties, headers, msgpack.packb(body)


def status(seq, sent, run=RUN[0], waiting=(), lost=(), previous=(), agent=AGENT):
    """`waiting` and `lost`: (run, collector, first, last); `previous`: (run, {collector: last})."""
    names = ("run_id", "collector", "first_seq", "last_seq")
    data = {
        "sent": {"agent_status": seq, **sent},
        "waiting": [dict(zip(names, entry)) for entry in waiting],
        "lost": [dict(zip(names, entry), events=None, reason="evicted") for entry in lost],
        "previous_runs": [{"run_id": run_id, "last_seq": last} for run_id, last in previous],
    }
    return message("agent_status", seq, run=run, data=data, agent=agent)


def clean_run(run=RUN[0], last=5, previous=()):
    """`started`, five messages of pg_locks, `stopping`."""
    messages = [status(1, {}, run=run, previous=previous)]
    messages += [message("pg_locks", seq, run=run, events=2) for seq in range(1, last + 1)]
    return messages + [status(2, {"pg_locks": last}, run=run)]


def without(messages, *ids):
    return [m for m in messages if m[0]["message_id"] not in {f"{run}/{collector}/{seq}" for run, collector, seq in ids}]


class CheckerTest(unittest.TestCase):
    def check(self, messages, ok=True, gaps=None, provable=True, **total):
        found = checker.Checker()
        for entry in messages:
            found.add(*entry)
        report = found.report()
        self.assertEqual(report["ok"], ok, report)
        self.assertEqual(report["provable"], provable, report)
        told = {
            (line["run_id"], line["collector"]): line["gaps"]
            for agent in report["agents"]
            for line in agent["streams"]
            if line["gaps"]
        }
        self.assertEqual(told, gaps or {})
        for name, want in total.items():
            self.assertEqual(report["total"][name], want, (name, report))

    def test_a_whole_run_is_complete(self):
        self.check(clean_run(), events=12, judged=6, duplicates=0)

    def test_one_removed_message_is_a_gap(self):
        whole = clean_run()
        for seq in range(1, 6):
            removed = without(whole, (RUN[0], "pg_locks", seq))
            self.check(removed, ok=False, gaps={(RUN[0], "pg_locks"): [[seq, seq]]}, missing=1)

    def test_a_collector_that_never_arrived_is_a_gap(self):
        messages = [status(1, {}), status(2, {"pg_activity": 3})]
        self.check(messages, ok=False, gaps={(RUN[0], "pg_activity"): [[1, 3]]})

    def test_what_is_behind_the_last_status_is_not_judged(self):
        self.check([status(1, {}), status(2, {"pg_locks": 1}), message("pg_locks", 1), message("pg_locks", 9)])

    def test_what_was_settled_before_the_first_status_is_not_judged(self):
        messages = [status(7, {"pg_locks": 40}), message("pg_locks", 41), status(8, {"pg_locks": 41})]
        self.check(messages, judged=2)

    def test_what_waited_at_the_first_status_is_judged_of_any_run(self):
        first = status(1, {}, run=RUN[1], waiting=[(RUN[0], "pg_locks", 3, 4)], previous=[(RUN[0], {"pg_locks": 4})])
        last = status(2, {}, run=RUN[1])
        both = [message("pg_locks", 3), message("pg_locks", 4, replayed=True)]
        self.check([first, *both, last])
        self.check([first, both[0], last], ok=False, gaps={(RUN[0], "pg_locks"): [[4, 4]]})

    def test_what_waits_at_the_last_status_is_no_gap(self):
        messages = [status(1, {}), status(2, {"pg_locks": 3}, waiting=[(RUN[0], "pg_locks", 2, 3)])]
        self.check([*messages, message("pg_locks", 1), message("pg_locks", 3)], waiting=1)

    def test_what_waited_only_at_an_earlier_status_is_a_gap(self):
        waited = status(2, {"pg_locks": 3}, waiting=[(RUN[0], "pg_locks", 1, 3)])
        messages = [status(1, {}), waited, status(3, {"pg_locks": 3}), message("pg_locks", 1)]
        self.check(messages, ok=False, gaps={(RUN[0], "pg_locks"): [[2, 3]]})

    def test_a_declared_loss_is_no_gap_and_ranges_may_overlap(self):
        lost = [(RUN[0], "pg_locks", 2, 4), (RUN[0], "pg_locks", 3, 5)]
        messages = without(clean_run(), *[(RUN[0], "pg_locks", seq) for seq in (2, 3, 4)])
        # 5 is declared and arrived all the same.
        declared = [*messages, status(3, {"pg_locks": 5}, lost=lost)]
        self.check(declared, declared_and_not_received=3, declared=4)
        # A loss told once and not repeated still counts.
        self.check([*declared, status(4, {"pg_locks": 5})], declared_and_not_received=3)

    def test_an_open_loss_goes_to_the_end_of_its_run(self):
        previous = [(RUN[0], {"agent_status": 2, "pg_locks": 9})]
        lost = [(RUN[0], "pg_locks", 6, None)]
        later = [status(1, {}, run=RUN[1], previous=previous, lost=lost), status(2, {}, run=RUN[1])]
        self.check([*clean_run(), *later], declared_and_not_received=4)
        self.check([*clean_run(), status(1, {}, run=RUN[1], previous=previous)], ok=False, gaps={(RUN[0], "pg_locks"): [[6, 9]]})

    def test_a_killed_run_is_judged_by_what_the_next_one_says(self):
        killed = [status(1, {}), message("pg_locks", 1), message("pg_locks", 2)]
        later = clean_run(RUN[1], previous=[(RUN[0], {"agent_status": 1, "pg_locks": 3})])
        self.check([*killed, message("pg_locks", 3, replayed=True), *later])
        self.check([*killed, *later], ok=False, gaps={(RUN[0], "pg_locks"): [[3, 3]]})

    def test_a_run_of_which_nothing_arrived_is_missed(self):
        silent = (RUN[1], {"agent_status": 1, "pg_locks": 2})
        messages = [*clean_run(), *clean_run(RUN[2], previous=[(RUN[0], {"agent_status": 2, "pg_locks": 5}), silent])]
        self.check(messages, ok=False, gaps={(RUN[1], "pg_locks"): [[1, 2]], (RUN[1], "agent_status"): [[1, 1]]})

    def test_runs_before_the_first_status_are_not_judged(self):
        later = clean_run(RUN[1], previous=[(RUN[0], {"pg_locks": 100})])
        self.check([message("pg_locks", 100, replayed=True), *later])

    def test_a_clock_that_went_back_does_not_reorder_runs(self):
        # The first run's id is the higher one; the second says that it came after it.
        first, second = RUN[2], RUN[0]
        messages = clean_run(first) + clean_run(second, previous=[(first, {"agent_status": 2, "pg_locks": 6})])
        self.check(messages, ok=False, gaps={(first, "pg_locks"): [[6, 6]]})

    def test_duplicates_are_counted_and_harmless(self):
        again = message("pg_locks", 2, events=2, replayed=True)
        self.check([*clean_run(), again, again], duplicates=2, events=12)

    def test_two_contents_under_one_id_are_a_failure(self):
        self.check([*clean_run(), message("pg_locks", 2, events=2, data=["other"])], ok=False, conflicts=1)

    def test_order_of_arrival_does_not_matter(self):
        self.check(list(reversed(clean_run())), events=12)

    def test_one_status_proves_nothing(self):
        self.check([status(1, {}), message("pg_locks", 5)], provable=False)
        self.check([], provable=False)

    def test_agents_are_judged_apart(self):
        other = "5c0ffee0-0000-4000-8000-000000000000"
        hole = [status(1, {}, agent=other), status(2, {"pg_locks": 1}, agent=other)]
        self.check([*clean_run(), *hole], ok=False, gaps={(RUN[0], "pg_locks"): [[1, 1]]})

    def test_a_message_that_contradicts_itself_is_a_failure_and_a_foreign_one_is_not(self):
        for field, value in (("message_id", "else"), ("type", "pg_locks/2"), ("delivery_mode", 1)):
            wrong = copy.deepcopy(message("pg_locks", 6))
            wrong[0][field] = value
            self.check([*clean_run(), wrong], ok=False, contradictions=1)
        for field, value in (("seq", 7), ("events", 2), ("run_id", RUN[1]), ("agent_id", None)):
            wrong = copy.deepcopy(message("pg_locks", 6))
            wrong[1][field] = value
            self.check([*clean_run(), wrong], ok=False, contradictions=1)
        self.check([*clean_run(), ({"app_id": "somebody"}, {}, b"hello")], contradictions=0)
        self.check([*clean_run(), ({"app_id": "postgres-agent"}, {}, b"\xc1")], ok=False, contradictions=1)

    def test_a_dump_gives_the_same_verdict_and_exit_status(self):
        here = os.path.dirname(os.path.abspath(__file__))
        for messages, want in ((clean_run(), 0), (without(clean_run(), (RUN[0], "pg_locks", 3)), 1)):
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as dump:
                dump.writelines(checker.dump_line(*entry) for entry in messages)
                dump.flush()
                command = [sys.executable, os.path.join(here, "checker.py"), "--read", dump.name, "--json"]
                done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, want, done.stderr)
            self.assertEqual(json.loads(done.stdout)["ok"], want == 0)


if __name__ == "__main__":
    unittest.main()
