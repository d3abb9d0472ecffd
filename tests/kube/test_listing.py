"""All objects of some kinds, once."""

import pytest
from aiohttp import web
from tests.kube.conftest import Server, listing, pod

from tidegate.kube.client import KubeClient
from tidegate.kube.listing import read_objects
from tidegate.kube.watch import NAMESPACES, PODS, Unreachable


async def test_objects_in_pages_have_their_kinds(server: Server, client: KubeClient) -> None:
    server.lists += [listing({"metadata": {"name": "ns"}}, more="x"), listing(), listing(pod("a"), pod("b"))]
    found = await read_objects(client, (NAMESPACES, PODS))
    assert [(item["kind"], item["metadata"]["name"]) for item in found] == [
        ("Namespace", "ns"),
        ("Pod", "a"),
        ("Pod", "b"),
    ]
    assert server.queries[1]["continue"] == "x"


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"metadata": {}, "items": [1]}'])
async def test_what_is_no_list_is_trouble(server: Server, client: KubeClient, text: str) -> None:
    server.lists.append(web.Response(text=text))
    with pytest.raises(Unreachable, match="/api/v1/pods: no list of objects"):
        await read_objects(client, (PODS,))
