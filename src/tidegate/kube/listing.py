"""All objects of some kinds, once: for who looks at a cluster and ends."""

from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import msgspec

from tidegate.kube.objects import UNDECODABLE
from tidegate.kube.watch import Api, Resource, Unreachable

Object = dict[str, Any]


class _Page(msgspec.Struct):
    items: list[Object] | None = None


async def read_objects(api: Api, resources: Iterable[Resource[Any]]) -> list[Object]:
    """As the API server has them, each with its kind. Raises Unreachable, GoneError (a list took too long)."""
    found = []
    for resource in resources:
        try:
            async with aclosing(api.pages(resource.path, resource.fields)) as pages:
                async for page in pages:
                    items = msgspec.json.decode(page, type=_Page).items or ()
                    found += [{**item, "kind": resource.kind} for item in items]
        except UNDECODABLE as error:
            raise Unreachable(f"{resource.path}: no list of objects: {error}") from error
    return found
