"""The Kubernetes manifests: built by kustomize, against Kubernetes' own schemas, and hardened."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from hmer.engine_images import DEFAULT
from tests.deploy_tools import KUBERNETES, OVERLAYS, built, documents, metric_names

Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


def validate(manifest: Manifest) -> None:
    """Against the schema of its kind, unknown fields included; raises for a violation."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (manifest,) = of_kind(manifests, kind)
    return manifest


def inference_service() -> Manifest:
    text = (KUBERNETES / "kserve" / "inferenceservice.yaml").read_text(encoding="utf-8")
    (manifest,) = documents(text)
    return manifest


def pods() -> Iterator[Manifest]:
    """The specification of every kind of pod that these files start."""
    for name in OVERLAYS:
        yield one(built(name), "Deployment")["spec"]["template"]["spec"]
    yield inference_service()["spec"]["predictor"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_manifest_is_valid(overlay: list[Manifest]) -> None:
    kinds = {manifest["kind"] for manifest in overlay}
    assert kinds == {
        *("Deployment", "Service", "ServiceAccount", "Namespace", "NetworkPolicy"),
        *("PodDisruptionBudget", "HorizontalPodAutoscaler"),
    }
    for manifest in overlay:
        validate(manifest)


def test_the_validation_can_fail(overlay: list[Manifest]) -> None:
    broken = deepcopy(one(overlay, "Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(Exception, match="livenessprobe"):
        validate(broken)
    broken = deepcopy(one(overlay, "HorizontalPodAutoscaler"))
    broken["spec"]["maxReplicas"] = "eight"
    with pytest.raises(Exception, match="eight"):
        validate(broken)


def test_the_predictor_of_kserve_is_a_valid_pod() -> None:
    """KServe's own schema is in no package; its predictor is a pod with a few fields more."""
    predictor = dict(inference_service()["spec"]["predictor"])
    assert predictor.pop("minReplicas") <= predictor.pop("maxReplicas")
    assert [c["name"] for c in predictor["containers"]] == ["kserve-container"]
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": predictor})


def test_selectors_match_the_pods(overlay: list[Manifest]) -> None:
    deployment = one(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(service["spec"]["selector"] for service in of_kind(overlay, "Service")),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    target = one(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # or every apply would undo the autoscaler
    ports = {
        port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    for service in of_kind(overlay, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_pods_are_hardened() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_pods_are_looked_after() -> None:
    for pod in pods():
        server = pod["containers"][0]
        for probe, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
            assert server[f"{probe}Probe"]["httpGet"]["path"] == f"/v2/health/{path}"
        assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]
        assert pod["terminationGracePeriodSeconds"] >= 40
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]] == {"medium": "Memory", "sizeLimit": "1Gi"}
        assert "/tmp" in mounts


def test_the_gpu_builds_its_engines_first() -> None:
    pod = one(built("gpu"), "Deployment")["spec"]["template"]["spec"]
    (builder,), (server,) = pod["initContainers"], pod["containers"]
    shared = {m["name"]: m for m in builder["volumeMounts"]}["served"]
    assert shared["mountPath"] == "/served"
    assert next(m for m in server["volumeMounts"] if m["name"] == "served")["readOnly"] is True
    assert builder["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (builder["image"], server["image"]) == ("hmer:gpu-builder", "hmer:gpu")
    assert DEFAULT.tag not in str(pod)  # the tag stands in one place: the Dockerfile


def test_the_autoscaler_follows_what_the_adapter_makes(overlay: list[Manifest]) -> None:
    text = (KUBERNETES / "monitoring" / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    (rule,) = documents(text)[0]["rules"]["custom"]
    (metric,) = one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["name"]["matches"].strip("^$") in rule["seriesQuery"]
    assert metric_names(rule["name"]["matches"]) == {"hmer_recognize_pictures"}
