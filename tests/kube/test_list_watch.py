"""Against an API server over HTTP: every trouble is recovered, no event is lost, one bad object costs itself alone."""

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web
from tests.kube.conftest import Server, event, listing, pod, send, serving

from tidegate.kube.client import KubeClient
from tidegate.kube.objects import Pod
from tidegate.kube.watch import PODS, Changed, Deleted, Invalid, Listed, Page, Resource, list_watch

Told = Page[Pod] | Changed[Pod] | Deleted | Invalid


async def take(client: KubeClient, count: int) -> list[Told]:
    """The first events, a list that has ended as one page; a generator that never gives them fails the test."""
    found: list[Told] = []
    pages: list[Page[Pod]] = []
    async with asyncio.timeout(60):
        async with aclosing(list_watch(client, PODS)) as events:
            async for one in events:
                if isinstance(one, Page):
                    pages = [one] if one.first else [*pages, one]
                elif isinstance(one, Listed):
                    items = [item for page in pages for item in page.items]
                    found.append(Page(items, [bad for page in pages for bad in page.invalid], first=True))
                else:
                    found.append(one)
                if len(found) == count:
                    break
    return found


def told(events: list[Told]) -> list[str]:
    """Short forms: names listed, or what happened to which name."""
    forms = []
    for one in events:
        if isinstance(one, Page):
            forms.append("listed " + " ".join(item.metadata.name for item in one.items))
        elif isinstance(one, Changed):
            forms.append(f"changed {one.item.metadata.name}")
        elif isinstance(one, Deleted):
            forms.append(f"deleted {one.name}")
        else:
            forms.append(f"invalid {one.name}")
    return forms


async def test_a_list_comes_in_pages_and_the_watch_begins_at_its_end(server: Server, client: KubeClient) -> None:
    server.lists += [listing(pod("a"), version=5, more="next"), listing(pod("b"), version=5)]
    server.watches.append(send(event("ADDED", pod("c", 6)), event("DELETED", pod("a", 7))))
    assert told(await take(client, 3)) == ["listed a b", "changed c", "deleted a"]
    assert server.queries[0]["limit"] == "500"
    assert server.queries[1]["continue"] == "next"
    assert server.watched_from == ["5"]
    assert server.queries[2]["allowWatchBookmarks"] == "true"


async def test_a_field_selector_goes_along_with_list_and_watch(server: Server, client: KubeClient) -> None:
    server.lists.append(listing(pod("a")))
    server.watches.append(send(event("MODIFIED", pod("a", 2))))
    resource = Resource("Pod", "/api/v1/namespaces/ns/pods", Pod, "metadata.name=a")
    async with aclosing(list_watch(client, resource)) as events:
        assert [type(await anext(events)) for _ in range(3)] == [Page, Listed, Changed]
    assert [query["fieldSelector"] for query in server.queries] == ["metadata.name=a"] * 2


@pytest.mark.parametrize("body", ["{}", '{"metadata": {}, "items": []}', '{"error": "try later"}', "[]", "<html>"])
async def test_what_is_no_list_is_not_taken_for_an_empty_one(server: Server, client: KubeClient, body: str) -> None:
    server.lists += [web.Response(text=body, content_type="application/json"), listing(pod("a"))]
    assert told(await take(client, 1)) == ["listed a"]


@pytest.mark.parametrize("cut", [0, 1, 60, 150])
async def test_cut_anywhere_it_goes_on_after_the_last_event(server: Server, client: KubeClient, cut: int) -> None:
    events = [event("ADDED", pod(name, version)) for version, name in enumerate("bcd", 2)]
    server.lists.append(listing(pod("a")))
    server.watches.append(send(*events, cut=cut))

    async def rest(response: web.StreamResponse) -> None:
        reached = int(server.watched_from[-1])
        await send(*(e for e in events if int(e["object"]["metadata"]["resourceVersion"]) > reached))(response)  # type: ignore[index]

    server.watches.append(rest)
    assert told(await take(client, 4)) == ["listed a", "changed b", "changed c", "changed d"]
    assert len(server.watched_from) == 2


async def test_the_end_of_a_watch_is_no_trouble(server: Server, client: KubeClient) -> None:
    server.lists.append(listing())
    server.watches += [send(event("ADDED", pod("a", 2))), send(), send(event("ADDED", pod("b", 3)))]
    assert told(await take(client, 3)) == ["listed ", "changed a", "changed b"]
    assert server.watched_from == ["1", "2", "2"]


async def test_a_bookmark_moves_the_position(server: Server, client: KubeClient) -> None:
    server.lists.append(listing())
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "90"}})
    server.watches += [send(bookmark), send(event("ADDED", pod("a", 91)))]
    assert told(await take(client, 2)) == ["listed ", "changed a"]
    assert server.watched_from == ["1", "90"]


GONE = {"kind": "Status", "code": 410, "message": "too old resource version"}
FAILED = {"kind": "Status", "code": 500, "message": "required revision has been compacted"}


@pytest.mark.parametrize(
    "trouble",
    [
        web.json_response(GONE, status=410),
        send(event("ERROR", GONE)),
        send(event("ERROR", FAILED)),
        send(event("ERROR", "odd")),
        send(b"<html>no event</html>\n"),
        send(b'{"type": "\xff", "object": {}}\n'),
    ],
    ids=["410", "410 in the stream", "500 in the stream", "odd error", "no JSON", "no UTF-8"],
)
async def test_a_watch_that_cannot_go_on_lists_again(server: Server, client: KubeClient, trouble: web.Response) -> None:
    server.lists += [listing(pod("a")), listing(pod("b"), version=9)]
    server.watches += [trouble, send(event("ADDED", pod("c", 10)))]
    assert told(await take(client, 3)) == ["listed a", "listed b", "changed c"]
    assert server.watched_from == ["1", "9"]


async def test_a_continue_token_that_ran_out_begins_the_list_again(server: Server, client: KubeClient) -> None:
    server.lists += [listing(pod("a"), more="x"), web.json_response(GONE, status=410), listing(pod("b"))]
    assert told(await take(client, 1)) == ["listed b"]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_refusals_are_outlasted(server: Server, client: KubeClient, status: int) -> None:
    server.lists += [web.Response(status=status), listing(pod("a"))]
    server.watches += [web.Response(status=status), send(event("ADDED", pod("b", 2)))]
    assert told(await take(client, 2)) == ["listed a", "changed b"]
    assert server.watched_from == ["1", "1"]


async def test_a_list_that_is_none_is_asked_for_again(server: Server, client: KubeClient) -> None:
    server.lists += [web.Response(text="<html>"), web.Response(text='{"items": 5}'), listing(pod("a"))]
    assert told(await take(client, 1)) == ["listed a"]


async def test_a_server_that_is_away_is_waited_for(client: KubeClient, server: Server) -> None:
    port = server.port
    other = Server()
    client._server = client._server.replace(str(port), "1")  # nobody listens on port 1

    async def come_back() -> None:
        await asyncio.sleep(0.3)
        async with serving(other):
            other.lists.append(listing(pod("a")))
            client._server = f"http://127.0.0.1:{other.port}"
            await asyncio.Event().wait()

    task = asyncio.create_task(come_back())
    try:
        assert told(await take(client, 1)) == ["listed a"]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


BAD = {"spec": {"nodeName": 7}, "metadata": {"namespace": "ns", "name": "bad", "labels": {"app": "x", "n": 5}}}


async def test_an_object_that_cannot_be_decoded_costs_itself_alone(server: Server, client: KubeClient) -> None:
    server.lists.append(listing(pod("a"), BAD, pod("b")))
    server.watches.append(send(event("MODIFIED", BAD), event("ADDED", pod("c", 5)), event("DELETED", BAD)))
    events = await take(client, 4)
    assert told(events) == ["listed a b", "invalid bad", "changed c", "deleted bad"]
    first, second = events[0], events[1]
    assert isinstance(first, Page)
    assert isinstance(second, Invalid)
    assert first.invalid == [second]
    assert "nodeName" in second.reason
    assert second.labels == {"app": "x"}


@pytest.mark.parametrize("odd", [{"metadata": 5}, {"metadata": {"name": 5}}, 5, [], "x", None, {}])
async def test_odd_objects_end_nothing(server: Server, client: KubeClient, odd: object) -> None:
    server.lists.append(listing(odd, pod("a")))
    server.watches.append(send(event("ADDED", odd), event("BOOKMARK", odd), event("ADDED", pod("b", 2))))
    events = await take(client, 3)
    assert told(events)[-1] == "changed b"


async def test_an_annotation_of_ten_megabytes_passes(server: Server, client: KubeClient) -> None:
    large = pod("large", 2, annotations={"note": "x" * 10_000_000})
    server.lists.append(listing(large))
    server.watches.append(send(event("MODIFIED", large), event("ADDED", pod("b", 3))))
    assert told(await take(client, 3)) == ["listed large", "changed large", "changed b"]
