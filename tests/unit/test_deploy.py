"""The files in deploy/ say what the tools that read them understand."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from easd.core.rules import EASD
from easd.integrations.vllm.serving import Serving

DEPLOY = Path(__file__).parents[2] / "deploy"


def _read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def _kubernetes() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize("resource", _kubernetes(), ids=lambda resource: resource["kind"])
def test_kubernetes_knows_every_field(resource: dict) -> None:
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_settings_are_those_of_the_plugin() -> None:
    rule = Serving.parse(_read("serve.yaml")["additional-config"]["easd"]).rule
    assert rule == EASD(tau_h=1.5, tau_o=0.8)


def test_both_ways_give_the_gpus_that_the_settings_need() -> None:
    wanted = _read("serve.yaml")["tensor-parallel-size"]
    service = _read("compose.yaml")["services"]["vllm"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    deployment = next(each for each in _kubernetes() if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert device["count"] == container["resources"]["limits"]["nvidia.com/gpu"] == wanted
    assert service["command"] == container["args"]
    assert service["image"] == container["image"]


def test_names_agree_across_the_manifest() -> None:
    claim, deployment, service = _kubernetes()
    pod = deployment["spec"]["template"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    (generated,) = _read("kustomization.yaml")["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
