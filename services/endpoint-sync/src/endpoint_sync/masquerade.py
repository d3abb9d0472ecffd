"""The ConfigMap of ip-masq-agent: which packets of pods leave the nodes under the nodes' addresses.

Name, content, defaults and checks are those of kubernetes-sigs/ip-masq-agent, which mounts the ConfigMap's key `config`
as its file and takes the defaults where there is none. Its IPv6 is behind a flag and without defaults; ours is always
on, and leaves out the private range (RFC 4193) by default as it leaves out those of IPv4 (RFC 1918).
"""

import re
from typing import Annotated

import msgspec
import yaml
from msgspec import UNSET, Meta, UnsetType

from endpoint_sync.normalise import ObjectError, cidr
from tidegate.kube import objects
from tidegate.kube.track import Key
from tidegate.kube.watch import Invalid, Resource
from tidegate.records import Masquerade
from tidegate.store.publisher import Publisher

NAMESPACE, NAME, KEY = "kube-system", "ip-masq-agent", "config"
CONFIG = Resource("ConfigMap", f"/api/v1/namespaces/{NAMESPACE}/configmaps", objects.ConfigMap, f"metadata.name={NAME}")

PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
LINK_LOCAL, LINK_LOCAL6 = "169.254.0.0/16", "fe80::/10"
LIMIT = 64  # CIDRs, where `cidrLimit` does not say otherwise
LONGEST = 32 * 1024  # characters: reading them takes a second

# What Go's time.ParseDuration takes.
DURATION = re.compile(r"[-+]?(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")


class Config(msgspec.Struct, frozen=True):
    """What stands under KEY, in YAML or JSON. Others' fields do not count; null is as if absent, but for the list."""

    cidrs: tuple[str, ...] | UnsetType | None = msgspec.field(default=UNSET, name="nonMasqueradeCIDRs")
    cidr_limit: Annotated[int, Meta(ge=0)] | None = msgspec.field(default=None, name="cidrLimit")
    link_local: bool | None = msgspec.field(default=None, name="masqLinkLocal")
    link_local6: bool | None = msgspec.field(default=None, name="masqLinkLocalIPv6")
    resync_interval: str | None = msgspec.field(default=None, name="resyncInterval")


class _Loader(yaml.SafeLoader):
    """Without merge keys, with which a few lines of aliases become more nodes than there is memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)


def read_config(text: str) -> Config:
    """Raises ObjectError."""
    if len(text) > LONGEST:
        raise ObjectError(f"data.{KEY}: {len(text)} characters, and at most {LONGEST} are read")
    try:
        # YAML is not quite all of JSON: PyYAML knows no tabs between things.
        if text.lstrip().startswith("{") and "\t" in text:
            return msgspec.json.decode(text, type=Config)
        # Not msgspec.yaml: it takes PyYAML's parser in C, which deep nesting crashes.
        return msgspec.convert(yaml.load(text, _Loader), Config | None) or Config()  # noqa: S506  # a safe one
    except RecursionError as error:
        raise ObjectError(f"data.{KEY}: nested too deeply") from error
    except (LookupError, AttributeError) as error:  # what PyYAML lets out then, as of `!!bool x` and `!!timestamp x`
        raise ObjectError(f"data.{KEY}: a value is not what its tag (!!…) says") from error
    except (msgspec.DecodeError, yaml.YAMLError, ValueError) as error:
        raise ObjectError(f"data.{KEY}: {' '.join(str(error).split())}") from error


def masquerade_record(data: dict[str, str] | None) -> Masquerade:
    """From the ConfigMap's data; None where there is no ConfigMap. Raises ObjectError."""
    config = read_config((data or {}).get(KEY, ""))
    limit = LIMIT if config.cidr_limit is None else config.cidr_limit
    listed = PRIVATE if config.cidrs is UNSET else config.cidrs or ()
    if config.cidrs is not UNSET and len(listed) > limit:
        raise ObjectError(f"data.{KEY}: nonMasqueradeCIDRs: {len(listed)} of them, and cidrLimit is {limit}")
    if config.resync_interval is not None and not DURATION.fullmatch(config.resync_interval):
        raise ObjectError(f"data.{KEY}: resyncInterval: {config.resync_interval!r} is no duration, as 30s or 1h30m")
    ranges = [cidr(text, f"data.{KEY}: nonMasqueradeCIDRs") for text in listed]
    if not config.link_local:
        ranges.append(cidr(LINK_LOCAL, ""))
    if not config.link_local6:
        ranges.append(cidr(LINK_LOCAL6, ""))
    return Masquerade(non_masquerade=tuple(sorted(set(ranges))))


class MasqueradeConfig:
    """Handler of that one ConfigMap's events."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._key = publisher.keys.masquerade()
        self._present = False
        self._good = False

    def changed(self, item: objects.ConfigMap) -> None:
        self._present = True
        try:
            record = masquerade_record(item.data)
        except ObjectError as error:
            self._refuse(str(error))
            return
        self._put(record)

    def deleted(self, _: Key) -> None:
        self._present = False
        self._put(masquerade_record(None))

    def invalid(self, item: Invalid) -> None:
        self._present = True
        self._refuse(item.reason)

    def listed(self) -> None:
        """All there is has been told."""
        if not self._present:
            self._put(masquerade_record(None))

    def _put(self, record: Masquerade) -> None:
        self._good = True
        self._publisher.problem(CONFIG.kind, NAMESPACE, NAME, None)
        self._publisher.put(self._key, record)

    def _refuse(self, reason: str) -> None:
        """What was in force stays so."""
        self._publisher.problem(CONFIG.kind, NAMESPACE, NAME, reason)
        if not self._good:
            self._publisher.keep(self._key)
