"""A W&B backend on the loopback interface, sufficient for `wandb sweep`, `agent` and `sync` and online runs.

It suggests every combination of a sweep's values once. Like W&B it requeues a run that was marked as
preempting and ended with a status other than 0: the next idle agent starts that run again, under the same id.
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

KEY = "local" + 40 * "x"  # W&B's client checks the length
ENTITY, PROJECT = "tester", "sweeps"
PROJECT_FIELDS = {"id": "project", "name": PROJECT, "entity": {"id": "entity", "name": ENTITY}}
VIEWER = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"

Fields = dict[str, Any]


@dataclass
class RunRecord:
    """The data of a run that the server has received.

    Attributes:
        config: values by key; W&B's own values under `_wandb`.
        history: the logged rows, in order.
        summary: the last value of each metric.
        files: names of the uploaded files.
        ends: the outcome of each start: finished, failed or preempted.
        preempting: whether the run has been marked as preempting since its last start.
    """

    config: Fields = field(default_factory=dict)
    history: list[Fields] = field(default_factory=list)
    summary: Fields = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    preempting: bool = False

    def receive(self, message: Fields) -> None:
        """Record a message of the run's file stream."""
        files = message.get("files") or {}
        if HISTORY in files:
            first, lines = files[HISTORY]["offset"], files[HISTORY]["content"]
            self.history[first : first + len(lines)] = [json.loads(line) for line in lines]
        if SUMMARY in files:
            self.summary = json.loads(files[SUMMARY]["content"][-1])
        self.preempting |= bool(message.get("preempting"))
        if message.get("complete"):
            failure = "preempted" if self.preempting else "failed"
            self.ends.append(failure if message.get("exitcode") else "finished")
            self.preempting = False

    def bucket(self, name: str) -> Fields:
        """Return the fields of the run that a client needs in order to continue it."""
        tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
        lines = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": json.dumps(self.summary)}
        config = json.dumps({key: {"value": value} for key, value in self.config.items()})
        wandb_config = json.dumps(self.config.get("_wandb", {}))
        names = {"id": name, "name": name, "displayName": name}
        configs = {"config": config, "wandbConfig": wandb_config}
        return {**names, **configs, **lines, **tails, "tags": [], "notes": "", "project": PROJECT_FIELDS}


class FakeWandb:
    """The server.

    Attributes:
        url: its address.
        runs: the runs that have been started, by id.
        sweeps: the configs of the sweeps, by id.
        suggestions: the values that sweeps suggested, by the id of the run.
        stopping: ids of runs to stop, as by early termination or by a user on W&B's page: they and their
            agents receive a request to stop, and they are not requeued.
    """

    def __init__(self, url: str):
        self.url = url
        self.runs: dict[str, RunRecord] = {}
        self.sweeps: dict[str, Fields] = {}
        self.suggestions: dict[str, Fields] = {}
        self.stopping: set[str] = set()
        self._remaining: dict[str, Iterator[Fields]] = {}  # suggestions by sweep
        self._requeued: list[str] = []
        self._sweep_of: dict[str, str] = {}
        self._operations: dict[str, Callable[[Fields], Fields]] = {
            "Viewer": lambda variables: {"viewer": VIEWER},
            "UpsertSweep": self._create_sweep,
            "SweepWithRuns": self._describe_sweep,
            "CreateAgent": lambda variables: {"createAgent": {"agent": {"id": variables["sweep"]}}},
            "Heartbeat": self._command_agent,
            "UpsertBucket": self._create_or_update_run,
            "RunResumeStatus": self._describe_run,
            "CreateRunFiles": self._create_files,
        }

    def environment(self) -> dict[str, str]:
        """Return the variables by which a client finds the server and logs in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def execute(self, request: Fields) -> Fields:
        """Execute a GraphQL operation; an unknown one is answered by an error, which clients tolerate."""
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = self._operations.get(match[1] if match else "")
        if operation is None:
            return {"errors": [{"message": f"unknown: {request['query']}"}]}
        return {"data": operation(request.get("variables") or {})}

    def receive(self, name: str, message: Fields) -> Fields:
        """Record a message of a run's file stream; the answer contains whether the run is to stop."""
        run = self.runs[name]
        run.receive(message)
        if message.get("complete") and run.ends[-1] == "preempted" and name not in self.stopping:
            self._requeued.append(name)
        return {"stopped": name in self.stopping}

    def _create_sweep(self, variables: Fields) -> Fields:
        name, config = f"sweep{len(self.sweeps)}", yaml.safe_load(variables["config"])
        values = {k: v.get("values", [v.get("value")]) for k, v in config["parameters"].items()}
        combinations = itertools.product(*values.values())
        self.sweeps[name] = config
        self._remaining[name] = (dict(zip(values, combination, strict=True)) for combination in combinations)
        return {
            "upsertSweep": {
                "sweep": {"name": name, "project": PROJECT_FIELDS},
                "configValidationWarnings": [],
            }
        }

    def _describe_sweep(self, variables: Fields) -> Fields:
        name = variables["sweep"]
        return {"project": {"sweep": {"config": yaml.dump(self.sweeps[name]), "runs": {"edges": []}}}}

    def _command_agent(self, variables: Fields) -> Fields:
        busy = [name for name, runs in json.loads(variables["runState"]).items() if runs]
        commands = [{"type": "stop", "run_id": name} for name in busy if name in self.stopping]
        if not busy:
            commands = [self._next(variables["id"])]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _next(self, sweep: str) -> Fields:
        """Return the command for an idle agent: start a requeued run, else a new suggestion, else exit."""
        name = self._requeued.pop(0) if self._requeued else None
        if name is None:
            suggestion = next(self._remaining[sweep], None)
            if suggestion is None:
                return {"type": "exit"}
            name = f"suggested{len(self.suggestions)}"
            self.suggestions[name], self._sweep_of[name] = suggestion, sweep
        args = {key: {"value": value} for key, value in self.suggestions[name].items()}
        return {"type": "run", "run_id": name, "program": self.sweeps[sweep].get("program"), "args": args}

    def _create_or_update_run(self, variables: Fields) -> Fields:
        name = variables["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, RunRecord())
        if variables.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(variables["config"]).items()}
        bucket = {**run.bucket(name), "sweepName": self._sweep_of.get(name)}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _describe_run(self, variables: Fields) -> Fields:
        run = self.runs.get(variables["name"])
        return {"model": {**PROJECT_FIELDS, "bucket": run and run.bucket(variables["name"])}}

    def _create_files(self, variables: Fields) -> Fields:
        self.runs[variables["run"]].files += variables["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


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
                answer = self.backend.execute(json.loads(body))
            elif stream:
                answer = self.backend.receive(stream[1], json.loads(body))
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
        if not isinstance(
            sys.exc_info()[1], ConnectionError
        ):  # of a client that was killed or has closed the connection early
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[FakeWandb]:
    """Start a server on a free port, and stop it at the end."""
    handler = type("Handler", (_Handler,), {"lock": threading.Lock()})
    with _Server(("127.0.0.1", 0), handler) as server:
        backend = FakeWandb(f"http://127.0.0.1:{server.server_port}")
        handler.backend = backend
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield backend
        server.shutdown()
