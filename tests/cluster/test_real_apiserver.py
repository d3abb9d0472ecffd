"""Against a real kube-apiserver: lists, watches and their ends as it has them, and what the playground's own server
takes, fills in and refuses, beside it. Run where KUBEBUILDER_ASSETS names one."""

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from playground.apiserver.routes import serve
from playground.realapi import RealApiServer, kubeconfig
from tidegate.kube import client as client_module
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.watch import NAMESPACES, SERVICES, Changed, Deleted, Event, Listed, Page, list_watch

pytestmark = pytest.mark.apiserver

PATIENCE = 60.0
RANGE = "10.96.0.0/16"
NAMESPACE = "/api/v1/namespaces"
Object = dict[str, Any]


@pytest.fixture
async def api(real: RealApiServer) -> AsyncIterator[KubeClient]:
    async with await KubeClient.load(real.kubeconfig) as client:
        yield client


async def make(api: KubeClient, name: str) -> None:
    with contextlib.suppress(ApiError):  # an earlier test has made it
        await api.create(NAMESPACE, {"metadata": {"name": name}})


def name_of(event: Event[Any]) -> str:
    return event.item.metadata.name if isinstance(event, Changed) else getattr(event, "name", "")


def labelled(name: str, **labels: str) -> Callable[[Event[Any]], bool]:
    """The namespace has the labels, by a change or in a list."""

    def check(event: Event[Any]) -> bool:
        items = event.items if isinstance(event, Page) else [event.item] if isinstance(event, Changed) else []
        return any(item.metadata.name == name and labels.items() <= item.labels.items() for item in items)

    return check


async def listed(events: AsyncIterator[Event[Any]]) -> set[str]:
    """The pages of a list, and nothing else, to its end; the names in them."""
    names: set[str] = set()
    while isinstance(event := await anext(events), Page):
        assert len(event.items) <= client_module.PAGE
        names.update(item.metadata.name for item in event.items)
    assert event == Listed()
    return names


class Followed:
    """A client whose lists, watches and bookmarks are noted, and whose next watch can be made to begin elsewhere."""

    def __init__(self, api: KubeClient) -> None:
        self._api = api
        self.lists = 0
        self.watches: list[str] = []
        self.bookmarks: list[str] = []
        self.begin: str | None = None

    async def pages(self, path: str, fields: str) -> AsyncGenerator[bytes, None]:
        self.lists += 1
        async with aclosing(self._api.pages(path, fields)) as pages:
            async for page in pages:
                yield page

    async def watch(self, path: str, fields: str, resource_version: str) -> AsyncGenerator[bytes, None]:
        version, self.begin = self.begin or resource_version, None
        self.watches.append(version)
        async with aclosing(self._api.watch(path, fields, version)) as lines:
            async for line in lines:
                event = json.loads(line)
                if event["type"] == "BOOKMARK":
                    self.bookmarks.append(event["object"]["metadata"]["resourceVersion"])
                yield line


async def until(events: AsyncGenerator[Event[Any], None], condition: Callable[[Event[Any]], bool]) -> list[Event[Any]]:
    seen = []
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            seen.append(event)
            if condition(event):
                return seen
    raise AssertionError("the events ended")


async def test_a_list_in_pages_is_whole(api: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        await make(api, f"page-{number}")
    monkeypatch.setattr(client_module, "PAGE", 2)
    pages = [page async for page in api.pages(NAMESPACE, "")]
    assert len(pages) > 3
    assert len({json.loads(page)["metadata"]["resourceVersion"] for page in pages}) == 1
    async with aclosing(list_watch(api, NAMESPACES)) as events:
        assert {f"page-{number}" for number in range(7)} <= await listed(events)


async def test_events_in_order_also_of_what_was_deleted(api: KubeClient) -> None:
    await make(api, "events")
    path = f"{NAMESPACE}/events/services"
    async with aclosing(list_watch(api, SERVICES)) as events:
        await listed(events)
        for number in range(3):
            await api.create(path, {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80 + number}]}})
            await api.merge(f"{path}/s", {"metadata": {"labels": {"n": str(number)}}})
            await api.delete(f"{path}/s")
        await api.create(path, {"metadata": {"name": "end"}, "spec": {"ports": [{"port": 80}]}})
        seen = [event for event in await until(events, lambda e: name_of(e) == "end") if name_of(event) == "s"]
    assert [type(event) for event in seen] == [Changed, Changed, Deleted] * 3
    ports = [event.item.spec.ports[0].port for event in seen if isinstance(event, Changed) and event.item.spec.ports]
    assert ports == [80, 80, 81, 81, 82, 82]


async def test_a_watch_that_ends_goes_on_from_its_last_bookmark(
    api: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happens to what is watched, and yet its position follows what happens beside it."""
    await make(api, "bookmarks")
    monkeypatch.setattr(client_module, "WATCH", 5)  # seconds: the server sends a bookmark shortly before the end
    followed, path = Followed(api), f"{NAMESPACE}/bookmarks/services"
    spec = {"ports": [{"port": 80}]}
    await api.create(path, {"metadata": {"name": "other"}, "spec": spec})
    only = replace(SERVICES, fields="metadata.name=late")
    async with asyncio.timeout(PATIENCE), aclosing(list_watch(followed, only)) as events:
        await listed(events)
        following = asyncio.ensure_future(anext(events))
        while len(followed.watches) < 3:
            labels = {"n": str(len(followed.watches))}
            await api.merge(f"{path}/other", {"metadata": {"labels": labels}})
            await asyncio.wait([following], timeout=0.2)
        await api.create(path, {"metadata": {"name": "late"}, "spec": spec})
        assert name_of(await following) == "late"
    assert set(followed.watches[1:]) <= set(followed.bookmarks)
    assert int(followed.watches[2]) > int(followed.watches[0])
    assert followed.lists == 1


async def test_over_a_restart_of_the_server_no_event_is_lost(real: RealApiServer, api: KubeClient) -> None:
    """Of what was before it the server knows nothing any more: a watch from there ends with 410, and lists anew."""
    await make(api, "restart")
    async with aclosing(list_watch(api, NAMESPACES)) as events:
        await listed(events)
        last = asyncio.ensure_future(until(events, labelled("restart", n="2")))
        await api.merge(f"{NAMESPACE}/restart", {"metadata": {"labels": {"n": "1"}}})
        await asyncio.to_thread(real.stop)
        await real.start()
        await api.merge(f"{NAMESPACE}/restart", {"metadata": {"labels": {"n": "2"}}})
        await last
    followed = Followed(api)
    followed.begin = "1"
    async with aclosing(list_watch(followed, NAMESPACES)) as events:
        await listed(events)
        await listed(events)
        assert (followed.lists, followed.watches) == (2, ["1"])
        await api.merge(f"{NAMESPACE}/restart", {"metadata": {"labels": {"n": "3"}}})
        await until(events, labelled("restart", n="3"))
    assert followed.lists == 2


# ---- the playground's own server beside it ----------------------------------------------------------------------

CORE, DISCOVERY, NETWORKING = "/api/v1", "/apis/discovery.k8s.io/v1", "/apis/networking.k8s.io/v1"
SERVICE_NAME = {"kubernetes.io/service-name": "s"}


def svc(*ports: Object, **spec: Any) -> tuple[str, Object]:
    return f"{CORE}/namespaces/default/services", {"metadata": {"name": "s"}, "spec": {"ports": list(ports), **spec}}


def slice_of(*addresses: str, family: str = "IPv4", ports: list[Object] | None = None) -> tuple[str, Object]:
    return f"{DISCOVERY}/namespaces/default/endpointslices", {
        "metadata": {"name": "s-1", "labels": SERVICE_NAME},
        "addressType": family,
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"port": 80}] if ports is None else ports,
    }


def netpol(**spec: Any) -> tuple[str, Object]:
    path = f"{NETWORKING}/namespaces/default/networkpolicies"
    return path, {"metadata": {"name": "p"}, "spec": {"podSelector": {}, **spec}}


def pod_of(*ports: Object, name: str = "a") -> tuple[str, Object]:
    containers = [{"name": "c", "image": "i", "ports": list(ports)}]
    return f"{CORE}/namespaces/default/pods", {"metadata": {"name": name}, "spec": {"containers": containers}}


def config(**metadata: Any) -> tuple[str, Object]:
    return f"{CORE}/namespaces/default/configmaps", {"metadata": {"name": "m", **metadata}}


def expression(operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": "a", "operator": operator, **({"values": list(values)} if values else {})}]}


def block(cidr: str, *exceptions: str) -> Object:
    return {"ipBlock": {"cidr": cidr, **({"except": list(exceptions)} if exceptions else {})}}


OBJECTS: dict[str, tuple[str, Object]] = {
    "service": svc({"port": 80}),
    "service of a name": svc({"port": 80, "name": "http", "targetPort": "web"}),
    "service of two ports": svc({"port": 53, "name": "u", "protocol": "UDP"}, {"port": 53, "name": "t"}),
    "service with affinity": svc({"port": 80}, sessionAffinity="ClientIP"),
    "headless service": svc({"port": 80}, clusterIP="None"),
    "headless service without ports": svc(clusterIP="None"),
    "node port": svc({"port": 80, "nodePort": 30123}, type="NodePort"),
    "load balancer": svc({"port": 80}, type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0/8"]),
    "external name": svc(type="ExternalName", externalName="example.org"),
    "service without ports": svc(),
    "service port 0": svc({"port": 0}),
    "service port too high": svc({"port": 65536}),
    "service port names collide": svc({"port": 80, "name": "a"}, {"port": 81, "name": "a"}),
    "service ports collide": svc({"port": 80, "name": "a"}, {"port": 80, "name": "b"}),
    "service ports without names": svc({"port": 80}, {"port": 81}),
    "service of a foreign protocol": svc({"port": 80, "protocol": "IPX"}),
    "service of a bad address": svc({"port": 80}, clusterIP="10.300.0.1"),
    "service of an address out of range": svc({"port": 80}, clusterIP="10.97.0.1"),
    "service of a bad type": svc({"port": 80}, type="Sideways"),
    "node port out of range": svc({"port": 80, "nodePort": 80}, type="NodePort"),
    "external IP": svc({"port": 80}, externalIPs=["192.0.2.1"]),
    "external IP that is none": svc({"port": 80}, externalIPs=["192.0.2.300"]),
    "external IP of the loopback": svc({"port": 80}, externalIPs=["127.0.0.1"]),
    "affinity for too long": svc(
        {"port": 80}, sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}}
    ),
    "bad traffic policy": svc({"port": 80}, internalTrafficPolicy="Sideways"),
    "slice": slice_of("10.1.0.2", "10.1.0.3"),
    "slice of IPv6": slice_of("fd00::2", family="IPv6"),
    "slice of a malformed address": slice_of("10.300.1.2"),
    "slice of the other family": slice_of("fd00::2"),
    "slice of an unknown family": slice_of("10.1.0.2", family="IPX"),
    "slice of a port too high": slice_of("10.1.0.2", ports=[{"port": 70000}]),
    "slice of a port twice": slice_of("10.1.0.2", ports=[{"port": 80}, {"port": 81}]),
    "slice of the loopback": slice_of("127.0.0.1"),
    "slice without addresses": slice_of(),
    "policy": netpol(ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]),
    "policy with egress": netpol(egress=[{"ports": [{"port": "http", "protocol": "UDP"}]}]),
    "policy of a range": netpol(ingress=[{"ports": [{"port": 80, "endPort": 90}]}]),
    "policy of blocks": netpol(ingress=[{"from": [block("10.0.0.0/8", "10.1.0.0/16")]}]),
    "policy of expressions": netpol(podSelector=expression("NotIn", "x")),
    "policy of an unknown operator": netpol(podSelector=expression("Near", "x")),
    "policy of In without values": netpol(podSelector=expression("In")),
    "policy of Exists with values": netpol(podSelector=expression("Exists", "x")),
    "policy of a bad label": netpol(podSelector={"matchLabels": {"a": "not a value"}}),
    "policy of a port too high": netpol(ingress=[{"ports": [{"port": 70000}]}]),
    "policy of a backward range": netpol(ingress=[{"ports": [{"port": 90, "endPort": 80}]}]),
    "policy of a range of a name": netpol(ingress=[{"ports": [{"port": "http", "endPort": 80}]}]),
    "policy of endPort alone": netpol(ingress=[{"ports": [{"endPort": 80}]}]),
    "policy of a foreign protocol": netpol(ingress=[{"ports": [{"protocol": "IPX"}]}]),
    "policy of an unknown type": netpol(policyTypes=["Sideways"]),
    "policy of an empty peer": netpol(ingress=[{"from": [{}]}]),
    "policy of a block and a selector": netpol(ingress=[{"from": [{**block("10.0.0.0/8"), "podSelector": {}}]}]),
    "policy of a bad block": netpol(ingress=[{"from": [block("10.0.0.0/33")]}]),
    "policy of an exception outside": netpol(ingress=[{"from": [block("10.0.0.0/8", "11.0.0.0/16")]}]),
    "pod": pod_of({"containerPort": 80, "name": "http"}),
    "pod with a host port": pod_of({"containerPort": 80, "hostPort": 8080}),
    "pod of a port too high": pod_of({"containerPort": 70000}),
    "pod of a bad name": pod_of(name="A_b"),
    "pod without containers": (f"{CORE}/namespaces/default/pods", {"metadata": {"name": "a"}, "spec": {}}),
    "pod in no namespace": (f"{CORE}/namespaces/none/pods", pod_of()[1]),
    "annotations of 300 kB": config(annotations={"a": "x" * 300_000}),
    "label of a bad value": config(labels={"a": "not a value"}),
}

# What a dataplane reads and a server fills in.
FIELDS: dict[str, tuple[str, ...]] = {
    "services": (
        *("type", "ports", "selector", "externalIPs", "loadBalancerSourceRanges", "ipFamilies", "ipFamilyPolicy"),
        *("sessionAffinity", "sessionAffinityConfig", "internalTrafficPolicy", "externalTrafficPolicy"),
    ),
    "networkpolicies": ("podSelector", "ingress", "egress", "policyTypes"),
    "pods": ("restartPolicy", "hostNetwork", "terminationGracePeriodSeconds"),
    "endpointslices": ("addressType", "endpoints", "ports"),
}


async def answer(api: KubeClient, path: str, item: Object) -> Object | str:
    """What was stored, as far as it is compared, or the code of the refusal; it is taken away again."""
    try:
        made = await api.create(path, copy.deepcopy(item))
    except ApiError as error:
        return f"refused with {error.code}"
    await api.delete(f"{path}/{item['metadata']['name']}", grace=0)
    plural = path.rsplit("/", 1)[-1]
    part = made if plural == "endpointslices" else made.get("spec", {})
    found = {name: part[name] for name in FIELDS.get(plural, ()) if part.get(name) not in (None, [], {})}
    for port in found.get("ports", []):
        port.pop("nodePort", None)  # drawn at random
    return found


Both = Callable[[str, Object], Awaitable[tuple[Object | str, Object | str]]]


@pytest.fixture
async def both(api: KubeClient, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    """The answers of the playground's own server, and of the real one."""
    async with serve(service_cidr=RANGE) as server:
        path = tmp_path_factory.mktemp("own") / "kubeconfig"
        path.write_text(kubeconfig(f"http://127.0.0.1:{server.port}", "token"))
        async with await KubeClient.load(path) as own:

            async def ask(where: str, item: Object) -> tuple[Object | str, Object | str]:
                return await answer(own, where, item), await answer(api, where, item)

            yield ask


@pytest.mark.parametrize("which", OBJECTS)
async def test_the_playgrounds_server_takes_fills_in_and_refuses_as_the_real_one(both: Both, which: str) -> None:
    own, real = await both(*OBJECTS[which])
    assert own == real
