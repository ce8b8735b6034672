#!/usr/bin/python3
"""Proves, from messages alone, that nothing of an agent is missing: the second opinion to `tap --audit`.

    tests/checker.py --url amqp://guest:guest@127.0.0.1:5672/%2f --queue Q [--queue Q2] [--keep] [--dump FILE]
    tests/checker.py --read FILE [--json]

Shares no code with the agent and trusts none of its words but the statuses that the proof rests on. What lies
between the first and the last `agent_status` of an agent is judged: a seq that the last status counts as sent,
that was not settled at the first, and that is neither received, nor declared lost, nor still waiting, is a gap.

A queue is emptied (`--keep` puts everything back); `--dump` writes what was read as JSON lines for `--read`.
Exit status: 0 no gap and no contradiction, 1 otherwise, 2 for a question that cannot be answered.
An agent with fewer than two statuses is "not provable", which is no failure.
"""

import argparse
import base64
import collections
import hashlib
import heapq
import json
import subprocess
import sys

STATUS = "agent_status"


class Foreign(Exception):
    """A message that no agent sent, or one that contradicts itself."""


class Message:
    """One delivery: who sent it, which number it carries, and a digest of all that may not change."""

    def __init__(self, properties, headers, body):
        import msgpack

        if properties.get("app_id") != "postgres-agent":
            raise Foreign(f"app_id is {properties.get('app_id')!r}")
        if properties.get("content_encoding") == "zstd":
            body = subprocess.run(["zstd", "-dc"], input=body, capture_output=True, check=True).stdout
        try:
            self.body = msgpack.unpackb(body, raw=False, strict_map_key=True)
            self.agent, self.run = self.body["agent_id"], self.body["run_id"]
            self.collector, self.seq = self.body["collector"], self.body["seq"]
            self.events = len(self.body["events"])
        except (ValueError, KeyError, TypeError) as error:
            raise Foreign(f"body cannot be read: {error!r}") from error
        self.id = properties.get("message_id")
        said = {
            "message_id": (self.id, f"{self.run}/{self.collector}/{self.seq}"),
            "type": (properties.get("type"), f"{self.collector}/{self.body.get('schema_version')}"),
            "header agent_id": (headers.get("agent_id"), self.agent),
            "header run_id": (headers.get("run_id"), self.run),
            "header collector": (headers.get("collector"), self.collector),
            "header seq": (headers.get("seq"), self.seq),
            "header events": (headers.get("events"), self.events),
            "delivery_mode": (properties.get("delivery_mode"), 2),
        }
        wrong = [f"{name} is {is_!r}, not {want!r}" for name, (is_, want) in said.items() if is_ != want]
        if wrong or self.seq < 1 or self.events < 1:
            raise Foreign("; ".join(wrong) or "seq and events begin at 1")
        self.replayed = headers.get("replayed")
        # Deliveries of one message may differ in `replayed` alone.
        constant = [sorted(properties.items()), sorted((k, v) for k, v in headers.items() if k != "replayed")]
        self.digest = hashlib.sha256(repr(constant).encode() + body).digest()

    def statuses(self):
        """The statuses in it, none for other collectors."""
        if self.collector != STATUS:
            return []
        return [(self.seq, place, event["data"]) for place, event in enumerate(self.body["events"])]


class Stream:
    """What was received of one (agent, run, collector)."""

    def __init__(self):
        self.received = {}  # seq -> digest of its first delivery
        self.events = self.duplicates = 0
        self.conflicts = set()

    def add(self, message):
        known = self.received.get(message.seq)
        if known is None:
            self.received[message.seq] = message.digest
            self.events += message.events
            return
        self.duplicates += 1
        if known != message.digest:
            self.conflicts.add(message.seq)


class Agent:
    """Everything received of one agent."""

    def __init__(self):
        self.streams = collections.defaultdict(Stream)  # (run, collector)
        self.statuses = collections.defaultdict(dict)  # run -> {(seq, place): status}

    def add(self, message):
        self.streams[message.run, message.collector].add(message)
        for seq, place, status in message.statuses():
            self.statuses[message.run][seq, place] = status

    def runs_in_order(self):
        """Runs as statuses tell it (a run knows those before it), by their ids where no status tells."""
        before = collections.defaultdict(set)
        runs = {run for run, _ in self.streams}
        for run, statuses in self.statuses.items():
            for status in statuses.values():
                for earlier in status["previous_runs"]:
                    before[run].add(earlier["run_id"])
                    runs.add(earlier["run_id"])
        after = collections.defaultdict(set)
        open_ = {run: len(before[run]) for run in runs}
        for run in runs:
            for earlier in before[run]:
                after[earlier].add(run)
        ready = [run for run in runs if open_[run] == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            run = heapq.heappop(ready)
            order.append(run)
            for later in after[run]:
                open_[later] -= 1
                if open_[later] == 0:
                    heapq.heappush(ready, later)
        if len(order) != len(runs):
            raise Foreign("runs that each say to be after the other")
        return order

    def judge(self):
        order = self.runs_in_order()
        place = {run: number for number, run in enumerate(order)}
        told = [
            (place[run], seq, nth, run, status)
            for run, statuses in self.statuses.items()
            for (seq, nth), status in statuses.items()
        ]
        told.sort(key=lambda entry: entry[:3])
        provable = len(told) >= 2
        sent = self.sent(told)
        lost = self.lost(told, sent)
        due = self.due(told, sent, order) if provable else {}
        waiting = spans(told[-1][4]["waiting"], sent) if told else {}
        lines = []
        for run, collector in sorted(
            {*self.streams, *due, *lost, *waiting}, key=lambda key: (place.get(key[0], -1), key)
        ):
            key = run, collector
            stream = self.streams.get(key) or Stream()
            received = set(stream.received)
            gone = lost.get(key, set()) - received
            gaps = due.get(key, set()) - received - gone - waiting.get(key, set())
            lines.append(
                {
                    "run_id": run,
                    "collector": collector,
                    "first_seq": min(received, default=None),
                    "last_seq": max(received, default=None),
                    "messages": len(received),
                    "events": stream.events,
                    "duplicates": stream.duplicates,
                    "conflicts": ranges(stream.conflicts),
                    "judged": len(due.get(key, ())),
                    "declared": ranges(lost.get(key, set())),
                    "declared_and_not_received": len(gone),
                    "waiting": ranges(waiting.get(key, set()) - received - gone),
                    "gaps": ranges(gaps),
                    "missing": len(gaps),
                }
            )
        return provable, lines

    def sent(self, told):
        """(run, collector) -> the last seq that any status counts as sent."""
        sent = collections.defaultdict(int)
        for _, _, _, run, status in told:
            counts = [(run, status["sent"])]
            counts += [(earlier["run_id"], earlier["last_seq"]) for earlier in status["previous_runs"]]
            for of, last in counts:
                for collector, seq in last.items():
                    sent[of, collector] = max(sent[of, collector], seq)
        return sent

    def lost(self, told, sent):
        lost = collections.defaultdict(set)
        for *_, status in told:
            for key, seqs in spans(status["lost"], sent).items():
                lost[key] |= seqs
        return lost

    def due(self, told, sent, order):
        """(run, collector) -> the seqs that must be accounted for."""
        _, _, _, first_run, first = told[0]
        last_place, *_ = told[-1]
        due = collections.defaultdict(set)
        begun = order.index(first_run)
        for (run, collector), last in sent.items():
            place = order.index(run) if run in order else -1
            if place < begun or place > last_place:
                continue
            settled = first["sent"].get(collector, 0) if run == first_run else 0
            due[run, collector] |= set(range(settled + 1, last + 1))
        # What was under way at the first status is judged, of whatever run.
        for key, seqs in spans(first["waiting"], sent).items():
            due[key] |= seqs
        return due


def spans(entries, sent):
    """Ranges of a status as sets; an open one goes to the end of its run."""
    found = collections.defaultdict(set)
    for entry in entries:
        key = entry["run_id"], entry["collector"]
        last = entry["last_seq"]
        found[key] |= set(range(entry["first_seq"], (sent.get(key, 0) if last is None else last) + 1))
    return found


def ranges(seqs):
    """[1, 2, 3, 7] as [[1, 3], [7, 7]]."""
    out = []
    for seq in sorted(seqs):
        if out and out[-1][1] == seq - 1:
            out[-1][1] = seq
        else:
            out.append([seq, seq])
    return out


class Checker:
    """All messages of all agents; `report` is the verdict."""

    def __init__(self):
        self.agents = collections.defaultdict(Agent)
        self.foreign = []

    def add(self, properties, headers, body):
        try:
            message = Message(properties, headers, body)
            self.agents[message.agent].add(message)
        except Foreign as why:
            self.foreign.append(f"{properties.get('message_id')}: {why}")

    def report(self):
        agents, total = [], collections.Counter()
        for agent_id in sorted(self.agents):
            provable, lines = self.agents[agent_id].judge()
            agents.append({"agent_id": agent_id, "provable": provable, "streams": lines})
            for line in lines:
                for name in ("messages", "events", "duplicates", "judged", "declared_and_not_received", "missing"):
                    total[name] += line[name]
                total["declared"] += count(line["declared"])
                total["conflicts"] += count(line["conflicts"])
                total["waiting"] += count(line["waiting"])
        # What says to be ours and contradicts itself is as bad as a gap; what others sent is none of our business.
        total["contradictions"] = sum("app_id is" not in why for why in self.foreign)
        good = total["missing"] == total["conflicts"] == total["contradictions"] == 0
        provable = bool(agents) and all(agent["provable"] for agent in agents)
        return {"ok": good, "provable": provable, "total": total, "foreign": self.foreign, "agents": agents}


def count(pairs):
    return sum(last - first + 1 for first, last in pairs)


def from_queues(url, queues, keep):
    """Yields what lies in the queues now; acknowledges it once all was read, or puts it back."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for queue in queues:
        while True:
            method, properties, body = channel.basic_get(queue)
            if method is None:
                break
            headers = properties.headers or {}
            yield {k: v for k, v in vars(properties).items() if k != "headers" and v is not None}, headers, body
    if not keep:
        channel.basic_ack(0, multiple=True)
    # Whatever is not acknowledged goes back into its queue.
    connection.close()


def from_dump(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            yield entry["properties"], entry["headers"], base64.b64decode(entry["body"])


def dump_line(properties, headers, body):
    entry = {"properties": properties, "headers": headers, "body": base64.b64encode(body).decode()}
    return json.dumps(entry) + "\n"


def show(report):
    for agent in report["agents"]:
        print(f"agent {agent['agent_id']}" + ("" if agent["provable"] else "  not provable: fewer than two statuses"))
        for line in agent["streams"]:
            notes = [f"{name} {line[name]}" for name in ("gaps", "conflicts", "declared", "waiting") if line[name]]
            print(
                f"  {line['run_id']} {line['collector']:<15} {line['first_seq']}..{line['last_seq']}"
                f"  messages {line['messages']}  events {line['events']}  duplicates {line['duplicates']}"
                + "".join(f"  {note}" for note in notes)
            )
    for why in report["foreign"]:
        print(f"not understood: {why}")
    total = report["total"]
    print(
        f"{'complete' if report['ok'] else 'NOT COMPLETE'}: {total['messages']} messages, {total['events']} events, "
        f"{total['duplicates']} duplicates, {total['missing']} missing, {total['conflicts']} with two contents, "
        f"{total['declared_and_not_received']} lost as declared, {total['waiting']} still waiting"
        + ("" if report["provable"] else " (not provable)")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--queue", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="put everything back")
    parser.add_argument("--dump", help="write what was read to this file")
    parser.add_argument("--read", help="read a dump instead of queues")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if bool(args.read) == bool(args.queue):
        parser.error("either --queue or --read")
    checker = Checker()
    dump = open(args.dump, "w", encoding="utf-8") if args.dump else None
    for message in from_dump(args.read) if args.read else from_queues(args.url, args.queue, args.keep):
        if dump:
            dump.write(dump_line(*message))
        checker.add(*message)
    if dump:
        dump.close()
    report = checker.report()
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ImportError, subprocess.CalledProcessError, Foreign) as error:
        print(f"checker: {error!r}", file=sys.stderr)
        sys.exit(2)
