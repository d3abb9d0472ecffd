"""The playground's API server, by real kubectl."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.apiserver.kinds import CONFIG_MAP, StatusError
from playground.apiserver.patch import json_patch, merge, strategic
from playground.apiserver.protobuf import MAGIC, read_object
from playground.apiserver.routes import Server, serve
from playground.apiserver.selectors import label_selector
from playground.apiserver.storage import Storage
from playground.demo.command import kubectl, shop
from playground.realapi import kubeconfig
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.watch import PODS, Changed, Deleted, Listed, Page, list_watch

POD: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"app": "x"}},
    "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
}


class Kubectl:
    def __init__(self, config: Path) -> None:
        self._config = config

    async def __call__(self, *arguments: str, text: str | None = None, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            kubectl(),
            f"--kubeconfig={self._config}",
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, trouble = await process.communicate(text.encode() if text else None)
        assert (process.returncode == 0) == (code == 0), f"{arguments}: {output.decode()}{trouble.decode()}"
        return (output if code == 0 else trouble).decode()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as found:
        yield found


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig(f"http://127.0.0.1:{server.port}", "token"))
    return path


@pytest.fixture
def kube(config: Path) -> Kubectl:
    return Kubectl(config)


@pytest.fixture
async def api(config: Path) -> AsyncIterator[KubeClient]:
    async with await KubeClient.load(config) as client:
        yield client


async def test_apply_get_label_patch_delete(kube: Kubectl) -> None:
    for name in ("namespaces", "services", "pods", "policies"):
        await kube("apply", "-f", str(shop() / f"{name}.yaml"))
    assert "unchanged" in await kube("apply", "-f", str(shop() / "policies.yaml"))
    table = await kube("get", "pods", "-n", "shop", "-l", "app=web")
    assert table.splitlines()[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert len(table.splitlines()) == 4
    assert "TCP" in await kube("get", "services", "-A", "-o", "wide")
    await kube("label", "pod", "-n", "shop", "web-1", "colour=red")
    assert (await kube("get", "pods", "-A", "-l", "colour=red", "-o", "name")).strip() == "pod/web-1"
    await kube("annotate", "pod", "-n", "shop", "web-1", "note=x")
    labels = '[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]'
    await kube("patch", "service", "-n", "shop", "web", "--type=json", "-p", labels)
    await kube("patch", "service", "-n", "shop", "web", "-p", '{"spec":{"ports":[{"port":80,"targetPort":81}]}}')
    service = json.loads(await kube("get", "service", "-n", "shop", "web", "-o", "json"))
    assert service["metadata"]["labels"] == {"a": "b"}
    assert [(port["port"], port["targetPort"], port["name"]) for port in service["spec"]["ports"]] == [(80, 81, "http")]
    assert "deleted" in await kube("delete", "netpol", "-n", "shop", "--all")
    assert (await kube("get", "netpol", "-n", "shop", "-o", "name")).strip() == ""
    await kube("delete", "namespace", "ops")
    assert "not found" in (await kube("get", "namespace", "ops", code=1)).lower()


async def test_apply_takes_away_what_is_no_longer_named(kube: Kubectl) -> None:
    first = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}}
    await kube("apply", "-f", "-", text=json.dumps(first))
    await kube("apply", "-f", "-", text=json.dumps({**first, "data": {"a": "3"}}))
    assert json.loads(await kube("get", "cm", "m", "-o", "json"))["data"] == {"a": "3"}
    await kube("apply", "--server-side", "-f", "-", text=json.dumps({**first, "data": {"c": "4"}}))
    assert json.loads(await kube("get", "cm", "m", "-o", "json"))["data"] == {"a": "3", "c": "4"}


async def test_create_which_kubectl_sends_in_protobuf(kube: Kubectl) -> None:
    await kube("create", "namespace", "made")
    await kube("create", "configmap", "m", "-n", "made", "--from-literal=a=b", "--from-literal=c=")
    assert json.loads(await kube("get", "cm", "m", "-n", "made", "-o", "json"))["data"] == {"a": "b", "c": ""}
    await kube("create", "service", "nodeport", "s", "-n", "made", "--tcp=80:web", "--node-port=30123")
    service = json.loads(await kube("get", "service", "s", "-n", "made", "-o", "json"))
    (port,) = service["spec"]["ports"]
    assert (service["spec"]["type"], service["spec"]["selector"]) == ("NodePort", {"app": "s"})
    assert (port["port"], port["targetPort"], port["nodePort"], port["protocol"]) == (80, "web", 30123, "TCP")


@given(st.binary(max_size=60))
def test_what_is_no_protobuf(raw: bytes) -> None:
    for body in (raw, MAGIC + raw):
        with contextlib.suppress(StatusError):
            read_object(body)


CORE = "/api/v1/namespaces/default"
MISTYPED: list[tuple[str, Any]] = [
    (f"{CORE}/pods", {"metadata": "x"}),
    (f"{CORE}/pods", {"metadata": {"name": 5}}),
    (f"{CORE}/pods", {"metadata": {"name": "x", "labels": ["a"]}}),
    (f"{CORE}/pods", {"metadata": {"name": "x"}, "spec": "x"}),
    (f"{CORE}/pods", {"metadata": {"name": "x"}, "spec": {"containers": {"a": 1}}}),
    (f"{CORE}/pods", {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "ports": [80]}]}}),
    (f"{CORE}/services", {"metadata": {"name": "x"}, "spec": {"ports": 80}}),
    (f"{CORE}/services", {"metadata": {"name": "x"}, "spec": {"ports": [{"port": "80"}]}}),
    (f"{CORE}/services", {"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}], "selector": "a"}}),
    (f"{CORE}/services", {"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}], "externalIPs": "a"}}),
    (f"{CORE}/configmaps", {"metadata": {"name": "x"}, "data": ["a"]}),
    ("/api/v1/namespaces", {"metadata": ["x"]}),
    ("/api/v1/nodes", {"metadata": {"name": "x"}, "spec": {"podCIDRs": "a"}}),
    ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", {"metadata": {"name": "x"}, "endpoints": "a"}),
    ("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", {"metadata": {"name": "x"}, "spec": []}),
]


@pytest.mark.parametrize(("path", "item"), MISTYPED)
async def test_what_is_no_object_of_its_kind_is_refused(api: KubeClient, path: str, item: Any) -> None:
    with pytest.raises(ApiError, match="cannot be handled as a"):
        await api.create(path, item)


async def test_an_object_does_not_become_one(api: KubeClient) -> None:
    await api.create(f"{CORE}/configmaps", {"metadata": {"name": "m"}})
    with pytest.raises(ApiError) as refused:
        await api.merge(f"{CORE}/configmaps/m", {"data": ["a"]})
    assert refused.value.code == 400


RANGES = "10.96.0.0/16,fd96::/112"
DUAL = "IPv4,IPv6"
# ranges, spec → families, policy, families of the ClusterIPs; or the field that is refused
SERVICES: list[tuple[str, dict[str, Any], tuple[str, str] | str]] = [
    (RANGES, {}, ("IPv4", "SingleStack")),
    (RANGES, {"ipFamilies": ["IPv6"]}, ("IPv6", "SingleStack")),
    (RANGES, {"clusterIP": "fd96::50"}, ("IPv6", "SingleStack")),
    (RANGES, {"ipFamilyPolicy": "PreferDualStack"}, (DUAL, "PreferDualStack")),
    (RANGES, {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, ("IPv6,IPv4", "RequireDualStack")),
    (RANGES, {"ipFamilies": ["IPv4", "IPv6"]}, (DUAL, "RequireDualStack")),
    (RANGES, {"clusterIPs": ["10.96.0.50", "fd96::51"]}, (DUAL, "RequireDualStack")),
    (RANGES, {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}, "spec.ipFamilyPolicy"),
    (RANGES, {"clusterIP": "10.96.0.50", "ipFamilies": ["IPv6"]}, "spec.clusterIPs[0]"),
    (RANGES, {"clusterIP": "fd97::50"}, "spec.clusterIPs[0]"),
    ("fd96::/112", {}, ("IPv6", "SingleStack")),
    ("fd96::/112", {"ipFamilyPolicy": "PreferDualStack"}, ("IPv6", "PreferDualStack")),
    ("fd96::/112", {"ipFamilyPolicy": "RequireDualStack"}, "spec.ipFamilyPolicy"),
    ("fd96::/112", {"ipFamilies": ["IPv4"]}, "spec.ipFamilies[0]"),
]


@pytest.mark.parametrize(("ranges", "spec", "wanted"), SERVICES)
async def test_families_of_services(ranges: str, spec: dict[str, Any], wanted: tuple[str, str] | str) -> None:
    async with serve(service_cidr=ranges) as server:
        path = "/api/v1/namespaces/default/services"
        body = {"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}, **spec}}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            answer = await (await session.post(path, json=body)).json()
        if isinstance(wanted, str):
            assert [cause["field"] for cause in answer["details"]["causes"]] == [wanted]
            return
        made = answer["spec"]
        assert (",".join(made["ipFamilies"]), made["ipFamilyPolicy"]) == wanted
        assert ",".join("IPv6" if ":" in address else "IPv4" for address in made["clusterIPs"]) == wanted[0]
        assert made["clusterIP"] == made["clusterIPs"][0]


async def test_a_service_takes_a_second_family_and_gives_it_back() -> None:
    async with serve(service_cidr=RANGES) as server:
        path = "/api/v1/namespaces/default/services/kubernetes"
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            before = (await (await session.get(path)).json())["spec"]
            for policy, count in (("PreferDualStack", 2), ("RequireDualStack", 2), ("SingleStack", 1)):
                change = {"spec": {"ipFamilyPolicy": policy}}
                kind = {"Content-Type": "application/merge-patch+json"}
                after = (await (await session.patch(path, json=change, headers=kind)).json())["spec"]
                assert (len(after["clusterIPs"]), len(after["ipFamilies"])) == (count, count)
                assert after["clusterIP"] == before["clusterIP"] == after["clusterIPs"][0]
            assert after == before


async def test_bad_objects_are_refused_with_their_cause(kube: Kubectl) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]},
            "ingress": [{"ports": [{"port": 70000}]}],
        },
    }
    said = await kube("create", "-f", "-", text=json.dumps(policy), code=1)
    assert "spec.podSelector.matchExpressions[0].operator" in said
    assert "must be between 1 and 65535" in said


async def test_pods_go_when_their_kubelet_says_so(api: KubeClient) -> None:
    path = "/api/v1/namespaces/default/pods"
    await api.create(path, POD)
    await api.delete(f"{path}/a")
    assert (await api.get(f"{path}/a"))["metadata"]["deletionTimestamp"]
    await api.delete(f"{path}/a", grace=0)
    with pytest.raises(ApiError, match="not found"):
        await api.get(f"{path}/a")


async def test_stale_updates_are_refused(api: KubeClient) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    first = await api.create(path, {"metadata": {"name": "m"}, "data": {"a": "1"}})
    await api.replace(f"{path}/m", {**first, "data": {"a": "2"}})
    with pytest.raises(ApiError, match="has been modified"):
        await api.replace(f"{path}/m", {**first, "data": {"a": "3"}})


async def test_list_and_watch(api: KubeClient, server: Server) -> None:
    path = "/api/v1/namespaces/default/pods"
    events = list_watch(api, PODS)
    assert [type(await anext(events)) for _ in range(2)] == [Page, Listed]
    await api.create(path, POD)
    changed = await anext(events)
    assert isinstance(changed, Changed)
    assert changed.item.key == ("default", "a")
    server.expire()
    await api.delete(f"{path}/a", grace=0)
    # The history is gone: the watch is told 410 and everything is listed anew.
    seen: list[Any] = [await anext(events)]
    while not isinstance(seen[-1], (Page, Deleted)):
        seen.append(await anext(events))
    assert isinstance(seen[-1], Deleted) or not seen[-1].items
    await events.aclose()


async def test_cluster_ips_are_given_once(api: KubeClient) -> None:
    path = "/api/v1/namespaces/default/services"
    spec = {"ports": [{"port": 80}]}
    given = [
        (await api.create(path, {"metadata": {"name": f"s{i}"}, "spec": spec}))["spec"]["clusterIP"] for i in range(5)
    ]
    assert len(set(given)) == 5
    with pytest.raises(ApiError, match="already allocated"):
        await api.create(path, {"metadata": {"name": "again"}, "spec": {**spec, "clusterIP": given[0]}})
    headless = await api.create(path, {"metadata": {"name": "h"}, "spec": {**spec, "clusterIP": "None"}})
    assert headless["spec"]["clusterIPs"] == ["None"]


def test_a_journal_brings_the_objects_back(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = Storage(journal=journal)
    for name in ("a", "b"):
        first.put(CONFIG_MAP, {"metadata": {"name": name, "namespace": "n"}})
    first.remove(CONFIG_MAP, ("n", "a"))
    journal.write_text(journal.read_text() + '{"kind": "ConfigMap", "ke')  # killed while it wrote
    second = Storage(journal=journal)
    assert [item["metadata"]["name"] for item in second.all(CONFIG_MAP)] == ["b"]
    assert second.version > first.version
    third = Storage(journal=journal)
    assert third.version > second.version, "also where nothing was written in between"


def test_a_watch_from_a_version_that_was_never_given_is_told_to_list() -> None:
    storage = Storage()
    storage.put(CONFIG_MAP, {"metadata": {"name": "a", "namespace": "n"}})
    assert list(storage.events_after(storage.version)) == []
    with pytest.raises(StatusError, match="too old"):
        storage.events_after(storage.version + 1)


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("app=web", "a"),
        ("app!=web", "bc"),
        ("app in (web, db)", "ab"),
        ("app notin (web)", "bc"),
        ("tier", "a"),
        ("!tier", "bc"),
        ("app=web,tier=x", "a"),
        ("", "abc"),
    ],
)
def test_label_selectors(selector: str, matching: str) -> None:
    labels: dict[str, dict[str, str]] = {"a": {"app": "web", "tier": "x"}, "b": {"app": "db"}, "c": {}}
    match = label_selector(selector)
    assert "".join(name for name in "abc" if match({"metadata": {"labels": labels[name]}})) == matching


def test_strategic_merge_keeps_what_it_does_not_name() -> None:
    before = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "list": [1, 2]}}
    patch = {"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}], "list": [3]}}
    assert strategic(before, patch) == {"spec": {"containers": [{"name": "a", "image": "2"}], "list": [3]}}


def test_json_patch_of_each_kind() -> None:
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": "/a/0", "value": 1},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "replace", "path": "/b", "value": {"c/d": 1}},
        {"op": "copy", "from": "/b/c~1d", "path": "/e"},
        {"op": "move", "from": "/a/0", "path": "/f"},
        {"op": "remove", "path": "/a/0"},
    ]
    assert json_patch({"a": [1, 2], "b": 0}, operations) == {"a": [3], "b": {"c/d": 1}, "e": 1, "f": 1}


json_values = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_merging_what_is_there_changes_nothing(before: Any, after: Any) -> None:
    assert merge(before, before) == before
    assert merge(merge(before, after), after) == merge(before, after)
