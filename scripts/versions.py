"""The load of scripts/versions: two nodes of two releases on one Redis, each killed and started again.

Every job that was accepted must end within a bound, truthfully: durable ones succeed, others succeed unless
the node that ran them was killed, and those that were canceled say so, whichever node is asked.
"""

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
    """A process of one release; `lock` is held while it is down."""

    def __init__(self, name, program, redis):
        self.name, self.program, self.port = name, program, free_port()
        self.env = dict(os.environ, REDIS_URL=f"redis://127.0.0.1:{redis}/")
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.program, f"127.0.0.1:{self.port}"], env=self.env, stdout=subprocess.DEVNULL
        )
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
        return answer.code, answer.headers, answer.read()
    except (OSError, urllib.error.URLError):
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
        job = {"path": answer[1]["location"], "route": route, "by": node.name, "canceled": False}
        if dice.random() < 0.1:
            other = dice.choice(nodes)
            canceled = ask(other, "DELETE", job["path"])
            job["canceled"] = canceled is not None and canceled[0] == 200
        jobs.append(job)
        time.sleep(dice.random() * 0.05)


def document(nodes, path):
    """What each node says of a job; the nodes must agree once it has ended."""
    answers = [ask(node, "GET", f"{path}/status") for node in nodes]
    return [json.loads(answer[2]) if answer and answer[0] == 200 else None for answer in answers]


def settle(nodes, jobs):
    wrong, until = [], time.monotonic() + SETTLE
    counts = {}
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
        lost = job["route"] == "work" and status == "failed" and error.endswith("node-lost")
        expected = "canceled" if job["canceled"] else "succeeded"
        if len(statuses) != 1 or (status != expected and not (lost and not job["canceled"])):
            wrong.append((job, documents))
    return counts, wrong


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
            print(f"{node.name} is killed, after {len(jobs)} jobs")
            node.kill()
            time.sleep(2)
            node.start()
        for thread in clients:
            thread.join()
        counts, wrong = settle(nodes, jobs)
    finally:
        for node in nodes:
            node.kill()
        server.kill()
        server.wait()
        shutil.rmtree(folder)
    for job, documents in wrong[:10]:
        print(f"WRONG {job}\n      {documents}")
    print(f"{len(jobs)} jobs accepted by two releases: {counts}; {len(wrong)} not as promised")
    sys.exit(1 if wrong or not jobs else 0)


main()
