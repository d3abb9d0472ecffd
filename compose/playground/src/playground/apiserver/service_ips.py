"""ClusterIPs: families and addresses of a Service, by `ipFamilyPolicy` (the API documentation of Service)."""

import ipaddress
from typing import Any

from playground.apiserver.kinds import SERVICE, Object, StatusError, invalid
from playground.apiserver.storage import Storage

IPV4, IPV6 = "IPv4", "IPv6"
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
FIELDS = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ServiceAddresses:
    """`cidrs`: one range, or one of each family with a comma between; the first is that of Services that do not ask."""

    def __init__(self, storage: Storage, cidrs: str) -> None:
        self._storage = storage
        networks = [ipaddress.ip_network(cidr) for cidr in cidrs.split(",")]
        self._ranges: dict[str, Network] = {f"IPv{network.version}": network for network in networks}
        # The lower addresses of a range are for those that ask for them.
        self._next = dict.fromkeys(self._ranges, 10)

    def assign(self, item: Object, before: Object | None) -> None:
        """Fills in `clusterIP(s)`, `ipFamilies` and `ipFamilyPolicy`, in place."""
        spec: dict[str, Any] = item["spec"]
        if before is not None and before["spec"].get("clusterIPs"):
            for name in FIELDS:
                if name in before["spec"]:
                    spec.setdefault(name, before["spec"][name])
        if not spec.get("clusterIPs") and spec.get("clusterIP"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        headless = spec.get("clusterIPs") == ["None"]
        self._choose_policy(spec, headless)
        if spec["ipFamilyPolicy"] == SINGLE and before is not None:
            # From two families back to one: the second goes.
            for name in ("clusterIPs", "ipFamilies"):
                if spec.get(name) and spec[name] == before["spec"].get(name):
                    spec[name] = spec[name][:1]
        spec["ipFamilies"] = self._families(item, spec, headless)
        if not headless:
            spec["clusterIPs"] = self._addresses(item, spec)
        spec["clusterIP"] = spec["clusterIPs"][0]

    def _choose_policy(self, spec: dict[str, Any], headless: bool) -> None:
        several = len(spec.get("ipFamilies") or ()) > 1 or len(spec.get("clusterIPs") or ()) > 1
        # Who writes the endpoints of such a Service chooses their family.
        free = headless and not spec.get("selector") and not spec.get("ipFamilies")
        if not spec.get("ipFamilyPolicy"):
            spec["ipFamilyPolicy"] = REQUIRE if several or free else SINGLE
        if free and spec["ipFamilyPolicy"] == REQUIRE:
            first = next(iter(self._ranges))
            spec["ipFamilies"] = [first, IPV6 if first == IPV4 else IPV4]

    def _families(self, item: Object, spec: dict[str, Any], headless: bool) -> list[str]:
        policy, asked = spec["ipFamilyPolicy"], list(spec.get("ipFamilies") or ())
        given = [] if headless else [_family(item, text) for text in spec.get("clusterIPs") or ()]
        for index, family in enumerate(given):
            if len(asked) > index and asked[index] != family:
                raise _refused(
                    item, f"clusterIPs[{index}]", spec["clusterIPs"][index], f"expected an {asked[index]} value"
                )
        found = asked if len(asked) >= len(given) else given
        found = found or [next(iter(self._ranges))]
        if len(found) > 2 or len(set(found)) < len(found):
            raise _refused(item, "ipFamilies", str(found), "may only hold each family once")
        if policy == SINGLE and len(found) > 1:
            text = "must be RequireDualStack or PreferDualStack when more than one family or address is specified"
            raise _refused(item, "ipFamilyPolicy", policy, text)
        if headless and not spec.get("selector"):
            return found
        for index, family in enumerate(found):
            if family not in self._ranges:
                raise _refused(item, f"ipFamilies[{index}]", family, "not configured on this cluster")
        if policy == REQUIRE and len(self._ranges) < 2:
            raise _refused(item, "ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
        if policy != SINGLE:
            found += [family for family in self._ranges if family not in found]
        return found

    def _addresses(self, item: Object, spec: dict[str, Any]) -> list[str]:
        given = spec.get("clusterIPs") or []
        for index, text in enumerate(given):
            self._check(item, index, text)
        return [*given, *(self._free(item, family) for family in spec["ipFamilies"][len(given) :])]

    def _taken(self, item: Object) -> set[str]:
        own = item["metadata"]["namespace"], item["metadata"]["name"]
        return {
            address
            for other in self._storage.all(SERVICE)
            if (other["metadata"]["namespace"], other["metadata"]["name"]) != own
            for address in other["spec"].get("clusterIPs") or []
        }

    def _free(self, item: Object, family: str) -> str:
        taken, network = self._taken(item), self._ranges[family]
        for _ in range(network.num_addresses):
            index = self._next[family]
            self._next[family] = index + 1 if index < network.num_addresses - 2 else 10
            if str(network[index]) not in taken:
                return str(network[index])
        raise invalid(SERVICE, item["metadata"]["name"], [("spec.clusterIPs", "no address left in the range")])

    def _check(self, item: Object, index: int, text: str) -> None:
        network = self._ranges[_family(item, text)]
        if ipaddress.ip_address(text) not in network:
            raise _refused(item, f"clusterIPs[{index}]", text, f"the provided IP is not in the valid range {network}")
        if text in self._taken(item):
            raise _refused(item, f"clusterIPs[{index}]", text, "provided IP is already allocated")


def _family(item: Object, text: str) -> str:
    try:
        return f"IPv{ipaddress.ip_address(text).version}"
    except ValueError as error:
        raise _refused(item, "clusterIPs", text, "must be a valid IP address") from error


def _refused(item: Object, field: str, value: str, why: str) -> StatusError:
    return invalid(SERVICE, item["metadata"]["name"], [(f"spec.{field}", f'Invalid value: "{value}": {why}')])
