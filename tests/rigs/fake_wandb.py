"""A W&B backend on loopback: what `wandb sweep`, `wandb agent`, `wandb sync` and online runs ask of one.

It suggests every combination of a sweep's values, once each. As W&B does, it hands a run that said it was
preempted and then ended with another status than 0 to the next agent that asks, under the same id.
"""

import gzip
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "local" + 40 * "x"  # as long as W&B's client wants a key
ENTITY, PROJECT = "tester", "sweeps"
WHERE = {"id": "project", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}
VIEWER = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"

Fields = dict[str, Any]


@dataclass
class SeenRun:
    """What the server has been told of a run.

    Attributes:
        config: values by key, W&B's own under `_wandb`.
        history: the rows logged, in their order.
        summary: the last value of each metric.
        files: names of what was uploaded.
        ends: how it ended, each time: finished, failed or preempted.
        preempting: it has said, since it was last started, that it is being preempted.
    """

    config: Fields = field(default_factory=dict)
    history: list[Fields] = field(default_factory=list)
    summary: Fields = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    preempting: bool = False

    def stream(self, sent: Fields) -> None:
        """Takes in one message of the run's file stream."""
        files = sent.get("files") or {}
        if HISTORY in files:
            first, lines = files[HISTORY]["offset"], files[HISTORY]["content"]
            self.history[first : first + len(lines)] = [json.loads(line) for line in lines]
        if SUMMARY in files:
            self.summary = json.loads(files[SUMMARY]["content"][-1])
        self.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            failed = "preempted" if self.preempting else "failed"
            self.ends.append(failed if sent.get("exitcode") else "finished")
            self.preempting = False

    def bucket(self, name: str) -> Fields:
        """The run as W&B tells a client of it that goes on with it."""
        tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
        lines = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": json.dumps(self.summary)}
        config = json.dumps({key: {"value": value} for key, value in self.config.items()})
        own = json.dumps(self.config.get("_wandb", {}))
        about = {"id": name, "name": name, "displayName": name, "config": config, "wandbConfig": own}
        return {**about, **lines, **tails, "tags": [], "notes": "", "project": WHERE}


class FakeWandb:
    """The server.

    Attributes:
        url: where it listens.
        runs: the runs that were started, by id.
        sweeps: the configs of the sweeps, by id.
        suggested: the values that sweeps suggested, by the id of the run they are for.
        stopping: runs to stop, as early termination or a user on W&B's page does: they, and their agents, are
            told so. They are not handed out again.
    """

    def __init__(self, url: str):
        self.url = url
        self.runs: dict[str, SeenRun] = {}
        self.sweeps: dict[str, Fields] = {}
        self.suggested: dict[str, Fields] = {}
        self.stopping: set[str] = set()
        self._left: dict[str, Iterator[Fields]] = {}
        self._again: list[str] = []
        self._sweep_of: dict[str, str] = {}
        self._operations: dict[str, Callable[[Fields], Fields]] = {
            "Viewer": lambda given: {"viewer": VIEWER},
            "UpsertSweep": self._make_sweep,
            "SweepWithRuns": self._tell_sweep,
            "CreateAgent": lambda given: {"createAgent": {"agent": {"id": given["sweep"]}}},
            "Heartbeat": self._command_agent,
            "UpsertBucket": self._tell_or_make_run,
            "RunResumeStatus": self._tell_run,
            "CreateRunFiles": self._take_files,
        }

    def environment(self) -> dict[str, str]:
        """What a client needs to find it and to be let in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def answer(self, sent: Fields) -> Fields:
        """Carries out a GraphQL operation; one it does not know is an error that clients live with."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        operation = self._operations.get(named[1] if named else "")
        if operation is None:
            return {"errors": [{"message": f"unknown: {sent['query']}"}]}
        return {"data": operation(sent.get("variables") or {})}

    def stream(self, name: str, sent: Fields) -> Fields:
        """Takes in one message of a run's file stream, and says whether the run is to stop."""
        run = self.runs[name]
        run.stream(sent)
        if sent.get("complete") and run.ends[-1] == "preempted" and name not in self.stopping:
            self._again.append(name)
        return {"stopped": name in self.stopping}

    def _make_sweep(self, given: Fields) -> Fields:
        name, config = f"sweep{len(self.sweeps)}", yaml.safe_load(given["config"])
        values = {k: v.get("values", [v.get("value")]) for k, v in config["parameters"].items()}
        combinations = itertools.product(*values.values())
        self.sweeps[name] = config
        self._left[name] = (dict(zip(values, picked, strict=True)) for picked in combinations)
        return {"upsertSweep": {"sweep": {"name": name, "project": WHERE}, "configValidationWarnings": []}}

    def _tell_sweep(self, given: Fields) -> Fields:
        name = given["sweep"]
        return {"project": {"sweep": {"config": yaml.dump(self.sweeps[name]), "runs": {"edges": []}}}}

    def _command_agent(self, given: Fields) -> Fields:
        busy = [name for name, runs in json.loads(given["runState"]).items() if runs]
        commands = [{"type": "stop", "run_id": name} for name in busy if name in self.stopping]
        if not busy:
            commands = [self._next(given["id"])]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def _next(self, sweep: str) -> Fields:
        """An idle agent's command: to run a preempted run again, else a new suggestion, else to leave."""
        name = self._again.pop(0) if self._again else None
        if name is None:
            suggestion = next(self._left[sweep], None)
            if suggestion is None:
                return {"type": "exit"}
            name = f"suggested{len(self.suggested)}"
            self.suggested[name], self._sweep_of[name] = suggestion, sweep
        args = {key: {"value": value} for key, value in self.suggested[name].items()}
        return {"type": "run", "run_id": name, "program": self.sweeps[sweep].get("program"), "args": args}

    def _tell_or_make_run(self, given: Fields) -> Fields:
        name = given["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, SeenRun())
        if given.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(given["config"]).items()}
        bucket = {**run.bucket(name), "sweepName": self._sweep_of.get(name)}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _tell_run(self, given: Fields) -> Fields:
        run = self.runs.get(given["name"])
        return {"model": {**WHERE, "bucket": run and run.bucket(given["name"])}}

    def _take_files(self, given: Fields) -> Fields:
        self.runs[given["run"]].files += given["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: FakeWandb
    lock: threading.Lock

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        with self.lock:
            if self.path == "/graphql":
                answer = self.backend.answer(json.loads(body))
            elif stream:
                answer = self.backend.stream(stream[1], json.loads(body))
        self._send(answer)

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _send(self, answer: Fields) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed, or is in a hurry
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[FakeWandb]:
    """A server of one's own on a free port."""
    handler = type("Handler", (_Handler,), {"lock": threading.Lock()})
    with _Server(("127.0.0.1", 0), handler) as server:
        backend = FakeWandb(f"http://127.0.0.1:{server.server_port}")
        handler.backend = backend
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield backend
        server.shutdown()
