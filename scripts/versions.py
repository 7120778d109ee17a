"""The load of scripts/versions: two nodes of two releases on one Redis, each killed and started again.

Every job that was accepted must end within a bound, truthfully: durable ones succeed, others succeed unless
the node that ran them was killed, and those that were canceled say so, whichever node is asked. Each release
must have taken over durable jobs of the other.
"""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

# Longer than the lease of a node that was killed, and the backoff before its jobs are begun again.
SETTLE = 60
CLIENTS = 12
# How long a killed node stays away: longer than its lease and the backoff, so that the other release takes
# its durable jobs over.
AWAY = 14


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


class Node:
    """A process of one release, and those that it was before it was killed."""

    def __init__(self, name, program, redis):
        self.name, self.program, self.port, self.ids = name, program, free_port(), []
        self.env = dict(os.environ, REDIS_URL=f"redis://127.0.0.1:{redis}/")
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.program, f"127.0.0.1:{self.port}"], env=self.env, stdout=subprocess.DEVNULL
        )
        self.ids.append(self.process.pid)
        wait_for(self.port)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def ask(node, method, path, headers=None):
    """Status, headers and body; None where the node does not answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.port}{path}", method=method, headers=headers or {}
    )
    try:
        with urllib.request.urlopen(request, timeout=40) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers, answer.read()
    except (OSError, http.client.HTTPException):
        return None


def client(nodes, seed, until, jobs):
    """Sends jobs to any node; keeps what it was promised, by whom, and what it asked for."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        route = dice.choice(["work", "charges", "charges"])
        node = dice.choice(nodes)
        answer = ask(node, "POST", f"/{route}?seconds={dice.choice([0, 0, 0, 1, 2])}")
        if answer is None or answer[0] != 202:
            time.sleep(0.1)
            continue
        job = {"path": answer[1]["location"], "route": route, "by": node.name, "ends": {"succeeded"}}
        if dice.random() < 0.1:
            canceled = ask(dice.choice(nodes), "DELETE", job["path"])
            if canceled is not None and canceled[0] == 200:
                job["ends"] = {"canceled"}
            elif canceled is None or canceled[0] >= 500:
                # It may have been carried out.
                job["ends"].add("canceled")
        jobs.append(job)
        time.sleep(dice.random() * 0.05)


def document(nodes, path):
    """What each node says of a job; the nodes must agree once it has ended."""
    answers = [ask(node, "GET", f"{path}/status") for node in nodes]
    return [json.loads(answer[2]) if answer and answer[0] == 200 else None for answer in answers]


def settle(nodes, jobs):
    """How many jobs came to which end, those that did so wrongly, and how many each release took over."""
    wrong, until = [], time.monotonic() + SETTLE
    counts, taken_over = {}, {node.name: 0 for node in nodes}
    for job in jobs:
        while True:
            documents = document(nodes, job["path"])
            statuses = {said and said["status"] for said in documents}
            if len(statuses) == 1 and not statuses & {"queued", "running", None}:
                break
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        said = documents[0] or {}
        status, error = said.get("status"), (said.get("error") or {}).get("type", "")
        counts[status] = counts.get(status, 0) + 1
        is_lost = job["route"] == "work" and status == "failed" and error.endswith("node-lost")
        is_told = "canceled" not in job["ends"] or "succeeded" in job["ends"]
        if len(statuses) != 1 or status not in job["ends"] and not (is_lost and is_told):
            wrong.append((job, documents))
        elif status == "succeeded" and said.get("attempt", 1) > 1:
            result = ask(nodes[0], "GET", f"{job['path']}/result")
            process = int(result[2].split()[-1])
            taken_over[next(node.name for node in nodes if process in node.ids)] += 1
    return counts, wrong, taken_over


def main():
    baseline, head, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    folder, redis = tempfile.mkdtemp(), free_port()
    server = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    nodes = []
    try:
        wait_for(redis)
        nodes = [Node("baseline", baseline, redis), Node("head", head, redis)]
        jobs, until = [], time.monotonic() + seconds
        clients = [
            threading.Thread(target=client, args=(nodes, seed, until, jobs))
            for seed in range(CLIENTS)
        ]
        for thread in clients:
            thread.start()
        for node in nodes:
            time.sleep(seconds / 4)
            print(f"{node.name} is killed, after {len(jobs)} jobs", flush=True)
            node.kill()
            time.sleep(AWAY)
            node.start()
        for thread in clients:
            thread.join()
        counts, wrong, taken_over = settle(nodes, jobs)
    finally:
        for node in nodes:
            node.kill()
        server.kill()
        server.wait()
        shutil.rmtree(folder)
    for job, documents in wrong[:10]:
        print(f"WRONG {job}\n      {documents}")
    print(f"{len(jobs)} jobs accepted by two releases: {counts}; {len(wrong)} not as promised")
    print(f"durable jobs that were begun again, by the release that ended them: {taken_over}")
    sys.exit(1 if wrong or not all(taken_over.values()) else 0)


main()
