"""Random operations and failures on a real cluster, from a seed. `make soak MINUTES=60 SEED=1` runs it.

After each action, every target is compared with the definition of a transform: a target with a manifest is right, and a transform
that is Complete has a manifest. At the end, every transform must complete, and the operator must use about as much as at first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import s3_server
from cluster.layout import BRIDGE, NODE_ADDRESS, PODS, Layout, program
from kubernetes import client, config
from kubernetes.client import ApiException
from kubernetes_objects import claim_folder, wait_for
from simulated_transforms import usage
from transforms_on_cluster import RELEASE, SYSTEM, Stage, install

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import main as reshard

if TYPE_CHECKING:
    from collections.abc import Callable

_LIVE = 4  # transforms at once
_PLACES = ("claim", "claim", "small", "bucket")
# How often each action is chosen, relative to the others.
_WEIGHTS = {
    "create": 6,
    "kill": 5,
    "evict": 3,
    "suspend": 3,
    "resume": 4,
    "delete": 2,
    "fill": 2,
    "cut_bucket": 2,
    "cut_pod": 2,
    "cut_node": 1,
    "rotate": 1,
    "restart_operator": 1,
    "upgrade": 1,
}
_SETTLE_SECONDS = 600.0
_MORE_MEMORY, _MORE_DESCRIPTORS, _MORE_THREADS = 40_000_000, 20, 8


@dataclass
class Case:
    """A transform and its target.

    Attributes:
        place: where its target is: "claim", "small" (a small file system) or "bucket".
        kind: format of its files.
        exists: whether the resource exists.
    """

    name: str
    spec: dict[str, Any]
    place: str
    kind: str
    exists: bool = True
    suspended: bool = False
    attempt: int = 1
    complete: bool = False


@dataclass
class Soak:
    """One run."""

    stage: Stage
    server: s3_server.Server
    small: Path
    chance: random.Random
    bucket: str = ""
    cases: list[Case] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    user: str = s3_server.KEY

    def step(self) -> None:
        """Perform one random action that is possible now, and check all targets."""
        name = self.chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        action: Callable[[], bool] = getattr(self, f"_{name}")
        if action():
            self.counts[name] += 1
        self.check()
        time.sleep(self.chance.uniform(0, 1))

    def _live(self) -> list[Case]:
        return [case for case in self.cases if case.exists and not case.complete]

    def _pick(self, cases: list[Case]) -> Case | None:
        return self.chance.choice(cases) if cases else None

    def _create(self) -> bool:
        if gone := [case for case in self.cases if not case.exists and not case.complete]:
            case = self.chance.choice(gone)
            case.exists, case.suspended, case.attempt = True, False, 1
        elif len(self._live()) < _LIVE:
            case = self._new()
            self.cases.append(case)
        else:
            return False
        self.stage.create(case.name, case.spec)
        return True

    def _new(self) -> Case:
        number, place = len(self.cases), self.chance.choice(_PLACES)
        name = f"soak-{number}"
        kind = self.chance.choice(("ckpt", "safetensors"))
        storage: dict[str, Any] = {
            "persistentVolumeClaim": {"claimName": "small" if place == "small" else "results", "path": name}
        }
        if place == "bucket":
            s3 = {"bucket": self.bucket, "prefix": name, "endpoint": self.server.endpoint, "addressingStyle": "Path"}
            storage = {"s3": s3 | {"region": "us-east-1", "credentialsSecretRef": {"name": "keys"}}}
        target = {"storage": storage, "format": {"ckpt": "Ckpt", "safetensors": "Safetensors"}[kind]}
        execution: dict[str, Any] = {"parallelism": self.chance.randint(1, 6), "ranksPerPod": self.chance.randint(1, 3)}
        if self.chance.random() < 0.3:
            execution["mode"] = "SinglePod"
        spec = self.stage.spec(target=target, execution=execution, verification=self.chance.choice(("None", "Sample", "Full")))
        return Case(name, spec, place, kind)

    def _pods(self) -> list[Any]:
        pods = self.stage.core.list_namespaced_pod(self.stage.namespace).items
        return [pod for pod in pods if pod.status.phase in {"Pending", "Running"}]

    def _kill(self) -> bool:
        return self._end_pod(
            lambda name: self.stage.core.delete_namespaced_pod(name, self.stage.namespace, grace_period_seconds=0)
        )

    def _evict(self) -> bool:
        def evict(name: str) -> object:
            return self.stage.core.create_namespaced_pod_eviction(name, self.stage.namespace, {"metadata": {"name": name}})

        return self._end_pod(evict)

    def _end_pod(self, end: Callable[[str], object]) -> bool:
        pods = self._pods()
        if not pods:
            return False
        try:
            end(self.chance.choice(pods).metadata.name)
        except ApiException as error:
            if error.status not in {404, 409}:  # it has ended meanwhile
                raise
            return False
        return True

    def _suspend(self) -> bool:
        return self._set_suspended(value=True)

    def _resume(self) -> bool:
        return self._set_suspended(value=False)

    def _set_suspended(self, *, value: bool) -> bool:
        case = self._pick([case for case in self._live() if case.suspended is not value])
        if case is None:
            return False
        case.suspended = value
        self.stage.change(case.name, {"suspend": value})
        return True

    def _delete(self) -> bool:
        case = self._pick(self._live())
        if case is None:
            return False
        self.stage.delete(case.name, self.chance.choice(("Background", "Foreground", "Orphan")))
        wait_for(lambda: case.name not in self._resources())
        case.exists = False
        return True

    def _resources(self) -> dict[str, dict[str, Any]]:
        items = self.stage.custom.list_namespaced_custom_object(*self.stage.where)["items"]
        return {item["metadata"]["name"]: item.get("status") or {} for item in items}

    def _fill(self) -> bool:
        filler = self.small / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        time.sleep(self.chance.uniform(1, 6))
        filler.unlink()
        return True

    def _cut_bucket(self) -> bool:
        """Stop the S3 server for a while, as a network that loses all packets."""
        process = _process_with(f":{self.server.endpoint.rpartition(':')[2]}")
        os.kill(process, signal.SIGSTOP)
        time.sleep(self.chance.uniform(1, 8))
        os.kill(process, signal.SIGCONT)
        return True

    def _cut_pod(self) -> bool:
        """Lose all packets of a pod for a while."""
        addresses = [pod.status.pod_ip for pod in self._pods() if pod.status.pod_ip]
        return bool(addresses) and self._cut(self.chance.choice(addresses))

    def _cut_node(self) -> bool:
        """Lose all packets of the node's pods for a while, including those of the operator."""
        return self._cut(PODS)

    def _cut(self, addresses: str) -> bool:
        rule = ("PREROUTING", "--in-interface", BRIDGE, "--source", addresses, "--jump", "DROP")
        iptables = (program("iptables"), "--wait", "--table", "mangle")
        subprocess.run([*iptables, "--insert", *rule], check=True)
        try:
            time.sleep(self.chance.uniform(1, 15))
        finally:
            subprocess.run([*iptables, "--delete", *rule], check=True)
        return True

    def _rotate(self) -> bool:
        """Replace the bucket's keys, and delete the old ones."""
        old, self.user = self.user, f"user-{self.counts['rotate']}"
        self.server.administer("create-user", "--access", self.user, "--secret", f"{self.user}-secret", "--role", "admin")
        self.write_keys(f"{self.user}-secret")
        if old != s3_server.KEY:
            self.server.administer("delete-user", "--access", old)
        return True

    def write_keys(self, secret: str) -> None:
        """Write the bucket's current keys into the Secret."""
        self.stage.secret("keys", {"accessKeyId": self.user.encode(), "secretAccessKey": secret.encode()})

    def _restart_operator(self) -> bool:
        for pod in self.stage.core.list_namespaced_pod(SYSTEM, label_selector=f"app.kubernetes.io/instance={RELEASE}").items:
            self.stage.core.delete_namespaced_pod(pod.metadata.name, SYSTEM, grace_period_seconds=0)
        return True

    def _upgrade(self) -> bool:
        install(f"operator.podAnnotations.soak=n{self.counts['upgrade']}")
        return True

    def check(self) -> None:
        """Compare all targets that claim to be complete, and give failed transforms another attempt."""
        statuses = self._resources()
        for case in self.cases:
            if case.complete:
                self._compare(case)
                continue
            status = statuses.get(case.name, {})
            phase = status.get("phase") if status.get("attempt", 1) == case.attempt else None
            claims = self._has_manifest(case)
            if claims:
                self._compare(case)
            if phase == "Complete":
                assert claims, f"{case.name} is Complete, but its target has no manifest"
                case.complete = True
                self.counts["completed"] += 1
            elif phase == "Failed" and case.exists:
                reason = next(c["reason"] for c in status["conditions"] if c["type"] == "Ready")
                self.counts[f"failed: {reason}"] += 1
                case.attempt += 1
                self.stage.change(case.name, {"execution": {"attempt": case.attempt}})

    def _has_manifest(self, case: Case) -> bool:
        return (self._folder(case) / MANIFEST_NAME).exists()

    def _folder(self, case: Case) -> Path:
        roots = {"claim": self.stage.results, "small": self.small, "bucket": self.server.folder / self.bucket}
        return roots[case.place] / case.name

    def _compare(self, case: Case) -> None:
        """Compare a complete target with the definition. The server's buckets are folders."""
        folder = self._folder(case)
        wrong = disk.differences(self.stage.made.model, folder, case.kind)
        assert not wrong, f"{case.name} in {case.place}: {wrong}"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = reshard(["verify", str(folder)])
        assert code == 0, f"{case.name} in {case.place} does not verify"

    def settle(self) -> None:
        """Undo what keeps transforms from completing, and wait until all are complete."""
        for case in self.cases:
            if not case.exists and not case.complete:
                self.stage.create(case.name, case.spec)
                case.exists, case.attempt = True, 1
            elif case.suspended and not case.complete:
                self.stage.change(case.name, {"suspend": False})
            case.suspended = False

        def complete() -> bool:
            self.check()
            return all(case.complete for case in self.cases)

        wait_for(complete, _SETTLE_SECONDS)


def _process_with(argument: str) -> int:
    """Return the process whose command line has an argument that ends so."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(part.endswith(argument) for part in (place / "cmdline").read_bytes().decode(errors="replace").split("\0")):
                return int(place.name)
    raise LookupError(argument)


def main() -> int:
    """Run for a time, and print the seed and how often each action happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"soak: seed {seed}, {options.minutes:g} minutes", flush=True)
    layout = Layout(Path(os.environ["RESHARD_CLUSTER"]))
    install()
    with (
        config.new_client_from_config(str(layout.kubeconfig)) as api,
        tempfile.TemporaryDirectory() as folder,
        s3_server.running(Path(folder, "s3"), NODE_ADDRESS) as server,
    ):
        place, small = Path(folder, "stage"), Path(folder, "small")
        for path in (place, small):
            path.mkdir()
        Path(folder).chmod(0o755)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "soak"}})
        stage = Stage(api, "soak", place, rows=6144, columns=288)
        subprocess.run([program("mount"), "-t", "tmpfs", "-o", "size=1g,mode=777", "tmpfs", str(small)], check=True)
        try:
            claim_folder(api, "soak", "small", small)
            soak = Soak(stage, server, small, random.Random(seed), server.bucket())
            soak.write_keys(server.secret)
            before = wait_for(usage)
            run(soak, options.minutes)
            time.sleep(5)
            after = usage()
        finally:
            subprocess.run([program("umount"), "--lazy", str(small)], check=True)
    print(f"soak: {', '.join(f'{name} {count}' for name, count in sorted(soak.counts.items()))}")
    for name, used in (("before", before), ("after", after)):
        print(f"soak: operator {name}: {used.memory / 1e6:.0f} MB, {used.descriptors} descriptors, {used.threads} threads")
    assert after.memory < before.memory + _MORE_MEMORY
    assert after.descriptors < before.descriptors + _MORE_DESCRIPTORS
    assert after.threads < before.threads + _MORE_THREADS
    return 0


def run(soak: Soak, minutes: float) -> None:
    """Perform actions for a time, and let all transforms complete."""
    end = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end:
            soak.step()
        soak.settle()
    except BaseException:
        print(f"soak: {dict(soak.counts)}\n{soak.stage.kubectl('get', 'checkpointtransforms')}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
