"""Client of the Kubernetes API. Every request has a timeout. Objects are dicts, as in the responses of the API server."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from reshard.spec.resource import API_VERSION, KIND
from reshard_operator import rivals
from reshard_operator.decision import Action, Create, Patch
from reshard_operator.labels import ANNOTATION_INDEX, ANNOTATION_TRANSFORM, LABEL_JOB, LABEL_STEP, LABEL_TRANSFORM
from reshard_operator.objects import Event, Job, Object, Pod
from reshard_operator.observation import Observation, Transform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "checkpointtransforms"
FIELD_MANAGER = "reshard-operator"
_SECONDS = 30.0
# In a step with thousands of pods, this many are enough for a diagnosis, or for the report of a commit.
_MOST_WAITING = 50
_MOST_INDEXES = 200
# Objects per page. Users determine the sizes of transforms, Jobs and pods, up to 1.5 MB each.
PAGE = 50
_SMALL_PAGE = 10
_MOST_PODS_OF_A_PAGE = 500
_PAGE_BYTES = 4 << 20
_POD_BYTES = 6 << 10  # without what its Job determines
# At most this many pods that run are read, to find one whose node is lost.
_MOST_RUNNING = 500
# Reading more pods than this for the report of a commit takes longer than a commit step.
_MOST_READ = 2000
# Pods that start within this time need no diagnosis. Many pods take longer, because a cluster starts about this many per second.
_USUAL_START = timedelta(seconds=5)
_USUAL_STARTS_PER_SECOND = 20
# Kubernetes records a repeated Event of an object every 5 minutes, after the first 25.
_EVENTS_COUNT_FOR = timedelta(minutes=15)
_ALIVE = "status.phase!=Succeeded,status.phase!=Failed"
T = TypeVar("T")
_OF_WEBHOOK = "admission webhook "
_LONGEST_NOTE = 1024  # bytes, in Kubernetes 1.37
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


class ApiError(Exception):
    """The API server rejected a request, or could not be reached.

    Attributes:
        status: HTTP status. 0 means that the API server could not be reached.
        reason: reason in the response, such as "AlreadyExists".
        fields: invalid fields, such as "spec.template.spec.tolerations[0].key". It is empty if a webhook rejected the request.
    """

    def __init__(self, status: int, reason: str, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status, self.reason, self.fields = status, reason, fields

    @property
    def refuses(self) -> bool:
        """True if the API server refused the object, also because it could not ask a webhook, and not the request as such."""
        return self.status in {400, 403, 404, 413, 422} or (self.status == 500 and "calling webhook" in str(self))

    @property
    def invalid(self) -> bool:
        """True if no retry can succeed, because the object itself is invalid.

        A webhook may deny an object with any status, 400 if it names none, and may accept it later.
        """
        if str(self).startswith(_OF_WEBHOOK):
            return False
        refused = self.status == HTTPStatus.BAD_REQUEST and self.reason == "BadRequest"
        too_large = self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return refused or too_large or any(field.startswith("spec") for field in self.fields)


class NameTakenError(Exception):
    """A Job with the required name belongs to another owner."""


class Cluster:
    """Reads and writes transforms and the objects that belong to them."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> Cluster:
        """Connect with the service account of the pod, or with the kubeconfig."""
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
        return cls(client.ApiClient())

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self._api.configuration.host)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def transforms(self, namespaces: Sequence[str]) -> AsyncIterator[Object]:
        """Yield the transforms in these namespaces, or in all namespaces if the argument is empty."""
        for place in [_custom(namespace) for namespace in namespaces] or [f"/apis/{API_VERSION}/{PLURAL}"]:
            async for page in self._pages(place, "", "", PAGE):
                for item in page:
                    yield item

    async def observe(self, namespace: str, name: str) -> Observation | None:
        """Return the observation of a transform, or None if it was deleted."""
        resource = await self._find(f"{_custom(namespace)}/{name}")
        if resource is None:
            return None
        transform = Transform.parse(resource)
        now = datetime.now(UTC).replace(microsecond=0)
        if transform.deleting:
            return Observation(transform, now)
        own, others = await self._jobs(transform)
        seen = Observation.of(transform, now, own)
        pods, writing = await self._pods(transform, now, seen.jobs)
        conflicts = tuple(dict.fromkeys((*writing, *rivals.conflicting_jobs(seen, others))))
        events = await self._events(transform, now, seen.jobs, pods)
        return replace(seen, pods=tuple(pods), rivals=conflicts, events=tuple(events))

    async def act(self, transform: Transform, action: Action) -> None:
        """Execute one action. Conflicting changes are left to the next observation.

        Raises:
            NameTakenError: a Job with the name exists and belongs to another owner.
            ApiError: the API server rejects the request.
        """
        if isinstance(action, Create):
            await self._create(transform, action)
            return
        place = _jobs_path(transform.namespace)
        metadata = action.job.raw["metadata"]
        try:
            if isinstance(action, Patch):
                versions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
                body = {"metadata": versions, "spec": action.spec}
                await self._call("PATCH", f"{place}/{action.name}", {"fieldManager": FIELD_MANAGER}, body, _MERGE)
            else:
                options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
                await self._call("DELETE", f"{place}/{action.name}", body=options)
        except ApiError as error:
            if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise

    async def _create(self, transform: Transform, action: Create) -> None:
        job = action.kind == "Job"
        place = _jobs_path(transform.namespace) if job else f"/api/v1/namespaces/{transform.namespace}/configmaps"
        try:
            await self._call("POST", place, {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}, action.manifest)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            if not job:
                return  # its name is derived from its content, and pods check that
            found = Job(await self._call("GET", f"{place}/{action.name}"))
            if found.owner != transform.uid:
                raise NameTakenError(f"Job {found.name} already exists and belongs to another owner; delete it") from error

    async def write_status(self, transform: Transform, status: Object) -> None:
        """Write the whole status if the resource is unchanged since the observation.

        The API server drops fields that an older CRD does not have. In a server-side apply, it would reject them.

        Raises:
            ApiError: the request failed. The status is 409 if the resource has changed.
        """
        body = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": transform.resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        query = {"fieldManager": FIELD_MANAGER}
        await self._call("PATCH", f"{_custom(transform.namespace)}/{transform.name}/status", query, body, _JSON_PATCH)

    async def record_event(self, transform: Transform, kind: str, reason: str, action: str, note: str) -> None:
        """Record an Event for a transform."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        short = note.encode()[:_LONGEST_NOTE].decode(errors="ignore")
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{transform.name[:200]}-", "namespace": transform.namespace},
            "eventTime": moment,
            "reportingController": "reshard.dev/operator",
            "reportingInstance": FIELD_MANAGER,
            "action": action,
            "reason": reason,
            "type": kind,
            "note": short,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": transform.name,
                "namespace": transform.namespace,
                "uid": transform.uid,
            },
        }
        await self._call("POST", f"/apis/events.k8s.io/v1/namespaces/{transform.namespace}/events", {}, body)

    async def has_resource(self) -> bool:
        """Return whether the CRD of CheckpointTransforms is installed."""
        found = await self._find(f"/apis/{API_VERSION}")
        return found is not None and any(resource["name"] == PLURAL for resource in found["resources"])

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        """Return a Lease, or None if it does not exist."""
        return await self._find(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}")

    async def put_lease(self, namespace: str, lease: Object) -> Object:
        """Create a Lease, or replace the one with its resourceVersion.

        Raises:
            ApiError: the request failed. The status is 409 if another replica has changed the Lease.
        """
        place = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        if "resourceVersion" in lease["metadata"]:
            return await self._call("PUT", f"{place}/{lease['metadata']['name']}", {}, lease)
        return await self._call("POST", place, {}, lease)

    async def _jobs(self, transform: Transform) -> tuple[list[Job], list[Job]]:
        """Return the Jobs of a transform, and those of other transforms with the same target."""
        place = _jobs_path(transform.namespace)
        target = rivals.selector(transform.spec) if transform.spec is not None and not transform.spec.dry_run else ""
        own = f"{LABEL_TRANSFORM}={transform.uid}"
        found = [Job(item) for item in await self._list(place, target or own)]
        mine = [job for job in found if job.owner == transform.uid]
        return mine, [job for job in found if job.label(LABEL_TRANSFORM) != transform.uid]

    async def _pods(self, transform: Transform, now: datetime, current: dict[str, Job]) -> tuple[list[Pod], list[str]]:
        if transform.spec is None or transform.ended:
            return [], []
        place = f"/api/v1/namespaces/{transform.namespace}/pods"
        own = f"{LABEL_TRANSFORM}={transform.uid}"
        pods: list[Pod] = []
        if untold := [step for step in ("plan", "commit", "transform") if step in current and not transform.knows(step)]:
            pods += await self._pods_in(place, f"{LABEL_JOB} in ({','.join(current[step].uid for step in untold)})")
        if any(_works(current[step], pods) for step in untold):  # no other Job is created meanwhile
            return pods, []
        if (job := current.get("ranks")) is not None:
            return pods + await self._pods_of_ranks(place, now, job, current), []
        # Pods of earlier attempts and of other transforms may still write: wait for them.
        pods += await self._pods_in(place, own, _ALIVE, _MOST_WAITING)
        if transform.spec.dry_run:
            return pods, []
        same = f"{rivals.selector(transform.spec)},{LABEL_TRANSFORM}!={transform.uid}"
        writing = f"{same},{LABEL_STEP} in (ranks,commit,transform)"
        alive = await self._pods_in(place, writing, _ALIVE, _MOST_WAITING)
        return pods, [f"CheckpointTransform {pod.annotation(ANNOTATION_TRANSFORM)} (pod {pod.name})" for pod in alive]

    async def _pods_of_ranks(self, place: str, now: datetime, job: Job, current: dict[str, Job]) -> list[Pod]:
        """Return some pods of the ranks step: why it does not progress, why it failed, or the report of the commit."""
        labels, page = f"{LABEL_JOB}={job.uid}", _pods_of_a_page(job)
        pods: list[Pod] = []
        if job.ended:
            # The Job may also fail after a pod has committed, for example at its deadline.
            if "commit" not in current:
                pods += await self._committing(place, labels, job, page)
        else:
            waiting = [] if job.runs else await self._pods_in(place, labels, "status.phase=Pending", _MOST_WAITING, page)
            late = any(pod.waits_since(_usual_start(now, current)) for pod in waiting)
            others = job.active - job.ready - len(waiting) if len(waiting) < _MOST_WAITING else 0  # neither ready nor waiting
            if late or others > 0 or job.status.get("terminating"):
                # A pod that waits does not show that its node is lost, but one that runs there does.
                running = await self._pods_in(place, labels, "status.phase=Running", _MOST_RUNNING, page)
                # Pods on a lost node are not ready either, but their containers run: no report, however often all pods are read.
                if job.ends and not waiting and all(pod.succeeded for pod in running):
                    pods += await self._committing(place, labels, job, page)
                waiting += running
            pods += waiting
        failed = job.indexes("failedIndexes")[:_MOST_INDEXES]
        if not job.complete and (failed or job.failed is not None):
            of_failed = f"{labels},{_among(failed)}" if failed else labels
            pods += await self._pods_in(place, of_failed, "status.phase=Failed", _MOST_INDEXES, page)
        return pods

    async def _committing(self, place: str, labels: str, job: Job, page: int) -> list[Pod]:
        """Return the pod of a Job that reports a commit, if it is one of those that start last.

        Any index can be finished last. Otherwise, a commit step finds the checkpoint complete, unless the Job has failed.
        """
        count = int(job.spec["completions"])
        last = min(_MOST_READ, max(_MOST_INDEXES, int(job.spec["parallelism"])))
        among = labels if job.failed is not None else f"{labels},{_among(range(max(0, count - last), count))}"
        async for items in self._pages(place, among, "", page):
            for pod in map(Pod.parse, items):
                if pod.committed is not None:
                    return [pod]
        return []

    async def _events(self, transform: Transform, now: datetime, current: dict[str, Job], pods: list[Pod]) -> list[Event]:
        """Return the Warning Events of Jobs and pods that make no progress."""
        found: list[Event] = []
        place = f"/api/v1/namespaces/{transform.namespace}/events"
        idle = [job.uid for job in current.values() if not job.ended and not job.status.get("active")]
        # The API server reads all Events of the namespace for each object.
        waiting = [pod.uid for pod in pods if pod.waits_since(_usual_start(now, current))][:1]
        for uid in idle + waiting:
            items = await self._list(place, "", f"involvedObject.uid={uid},type=Warning", _MOST_WAITING)
            # The kubelet repeats a warning at least every few minutes while the cause exists.
            found += [event for event in map(Event.parse, items) if event.last_seen >= now - _EVENTS_COUNT_FOR]
        return found

    async def _find(self, path: str) -> Object | None:
        """Return the object at a path, or None if it does not exist."""
        try:
            return await self._call("GET", path)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def _list(self, place: str, labels: str = "", fields: str = "", most: int | None = None) -> list[Object]:
        """Return the matching objects, or the first `most` of them."""
        return await _first(self._pages(place, labels, fields, most or PAGE), most)

    async def _pods_in(
        self, place: str, labels: str, fields: str = "", most: int | None = None, page: int = _SMALL_PAGE
    ) -> list[Pod]:
        """Return the matching pods, or the first `most` of them, read in pages."""
        pages = self._pages(place, labels, fields, min(page, most or page))
        return await _first(([Pod.parse(item) for item in items] async for items in pages), most)

    async def _pages(self, place: str, labels: str, fields: str, limit: int) -> AsyncIterator[list[Object]]:
        """Yield the matching objects, at most `limit` at a time."""
        query = {"limit": str(limit)}
        query |= ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})
        while True:
            page = await self._call("GET", place, query)
            yield page.get("items") or []
            if not (more := page["metadata"].get("continue")):
                return
            query["continue"] = more

    async def _call(
        self, method: str, path: str, query: dict[str, str] | None = None, body: object = None, kind: str = "application/json"
    ) -> Object:
        try:
            response = await self._api.call_api(
                quote(path),
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                response_types_map={},
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=_SECONDS,
            )
            text = await response.read()
        except (client.ApiException, aiohttp.ClientError, OSError) as error:
            raise _translated(error) from error
        if response.status >= 400:
            raise _of_response(response.status, text)
        try:
            found: Object = json.loads(text)
        except ValueError as error:
            raise ApiError(0, "Garbled", f"the response is not JSON: {error}") from error
        return found


async def _first(pages: AsyncIterator[list[T]], most: int | None) -> list[T]:
    """Return what the pages contain, or the first `most` of it, without reading further pages."""
    found: list[T] = []
    async for page in pages:
        found += page
        if most is not None and len(found) >= most:
            break
    return found[:most]


def _among(indexes: Iterable[int]) -> str:
    """Return the label selector of pods with these completion indexes."""
    return f"{ANNOTATION_INDEX} in ({','.join(map(str, indexes))})"


def _pods_of_a_page(job: Job) -> int:
    """Return how many pods of a Job are read at once."""
    return max(1, min(_MOST_PODS_OF_A_PAGE, _PAGE_BYTES // (_POD_BYTES + len(json.dumps(job.spec["template"])))))


def _usual_start(now: datetime, current: dict[str, Job]) -> datetime:
    """Return the moment after which the pods that still wait for their start were created, unless something is wrong."""
    active = sum(int(job.status.get("active") or 0) for job in current.values())
    return now - _USUAL_START - timedelta(seconds=active / _USUAL_STARTS_PER_SECOND)


def _works(job: Job, pods: list[Pod]) -> bool:
    """Return whether a Job has not ended, and no container of its pods has succeeded."""
    return not job.ended and not any(pod.succeeded for pod in pods if pod.owner == job.uid)


def _custom(namespace: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


def _jobs_path(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def _translated(error: Exception) -> ApiError:
    if isinstance(error, client.ApiException):
        return _of_response(error.status, error.body or "")
    return ApiError(0, "Unreachable", f"{type(error).__name__}: {error}")


def _of_response(status: int, text: bytes | str) -> ApiError:
    try:
        said = json.loads(text)
        causes = (said.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
        return ApiError(status, said.get("reason", ""), said.get("message", ""), fields)
    except (ValueError, AttributeError):
        return ApiError(status, "", str(text)[:300])
