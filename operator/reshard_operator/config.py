"""Configuration of the operator, from environment variables that the chart sets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.telemetry import LogFormat


_EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus reach the pod from outside


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration of the operator.

    Attributes:
        converter_image: image of the pods that run transforms.
        image_pull_policy: pull policy of that image. Empty means the default of Kubernetes.
        converter_resources: default resource requests and limits of these pods.
        namespaces: namespaces to watch. Empty means all namespaces.
        own_namespace: namespace of the operator and of its Lease.
        identity: name of this replica.
        lease: name of the Lease for leader election. Empty means no leader election.
        resync_seconds: interval of a full reconciliation, in addition to watch events.
        address: address on which metrics and the probe are served: all of IPv4, or all of IPv6 if the pod's is one.
        metrics_port: port of the metrics endpoint. 0 means no metrics.
        health_port: port of the liveness probe. 0 means no probe.
        log_format: "json" or "text", for the operator and for these pods.
        log_level: "debug", "info", "warning" or "error", for the operator and for these pods.
    """

    converter_image: str
    image_pull_policy: str = ""
    converter_resources: dict[str, Any] | None = None
    namespaces: tuple[str, ...] = ()
    own_namespace: str = "default"
    identity: str = "reshard-operator"
    lease: str = ""
    resync_seconds: float = 240.0
    address: str = _EVERY_IPV4
    metrics_port: int = 0
    health_port: int = 0
    log_format: LogFormat = "json"
    log_level: str = "info"


def load(environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration from the environment.

    Raises:
        UsageError: a variable is missing or invalid.
    """

    def number(name: str, default: float) -> float:
        text = environment.get(name, "")
        try:
            return float(text) if text else default
        except ValueError as error:
            raise UsageError("InvalidVariable", f"{text!r} is not a number", where=name) from error

    def one_of(name: str, default: str, *others: str) -> str:
        text = environment.get(name) or default
        if text not in {default, *others}:
            fix = f"set it to one of {', '.join((default, *others))}"
            raise UsageError("InvalidVariable", f"{text!r} is not supported", where=name, fix=fix)
        return text

    image = environment.get("RESHARD_CONVERTER_IMAGE", "")
    if not image:
        raise UsageError(
            "VariableMissing", "the variable is not set", where="RESHARD_CONVERTER_IMAGE", fix="set it to the converter's image"
        )
    resources = environment.get("RESHARD_CONVERTER_RESOURCES", "")
    try:
        converter_resources = msgspec.json.decode(resources, type=dict[str, Any]) if resources else None
    except msgspec.MsgspecError as error:
        raise UsageError("InvalidVariable", str(error), where="RESHARD_CONVERTER_RESOURCES") from error
    return Config(
        converter_image=image,
        image_pull_policy=environment.get("RESHARD_CONVERTER_PULL_POLICY", ""),
        converter_resources=converter_resources,
        namespaces=tuple(name for name in environment.get("RESHARD_NAMESPACES", "").split(",") if name),
        own_namespace=environment.get("POD_NAMESPACE") or "default",
        identity=environment.get("POD_NAME") or "reshard-operator",
        lease=environment.get("RESHARD_LEASE", ""),
        resync_seconds=number("RESHARD_RESYNC_SECONDS", 240),
        address="::" if ":" in environment.get("POD_IP", "") else _EVERY_IPV4,
        metrics_port=int(number("RESHARD_METRICS_PORT", 0)),
        health_port=int(number("RESHARD_HEALTH_PORT", 0)),
        log_format="json" if one_of("RESHARD_LOG_FORMAT", "json", "text") == "json" else "text",
        log_level=one_of("RESHARD_LOG_LEVEL", "info", "debug", "warning", "error"),
    )
