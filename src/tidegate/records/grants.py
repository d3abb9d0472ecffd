"""What each service may do in an etcd with roles: it writes its own keys, and reads what all read; agents only read."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidegate.records.keys import Keyspace

# Prefixes below v1/ (see keys.py); each writer has its own in meta/ besides.
WRITTEN = {
    "endpoint-sync": (
        "meta/capacity",
        "config/masquerade",
        "nodes/",
        "identities/",
        "endpoints/",
        "services/",
        "backends/",
    ),
    "policy-sync": ("config/identity-keys", "config/logging", "config/audit", "peers/", "rules/", "subjects/"),
    "node-agent": (),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """etcd's permission on all keys that begin with `prefix`: it includes reading where `writes`."""

    prefix: str
    writes: bool


def grants(keys: Keyspace, service: str) -> Iterator[Grant]:
    """Of one of the services in WRITTEN."""
    yield Grant(keys.prefix, writes=False)
    if not WRITTEN[service]:
        return
    own = [keys.synced(service), keys.last_write(service), keys.problems(service), keys.leader(service)]
    for prefix in [*own, *(keys.prefix + written for written in WRITTEN[service])]:
        yield Grant(prefix, writes=True)


def role(keys: Keyspace, service: str) -> str:
    """Its name in etcd, where other clusters may have theirs."""
    return f"tidegate-{keys.cluster}-{service}"


def script(keys: Keyspace, user_prefix: str = "", password_files: Mapping[str, Path] | None = None) -> Iterator[str]:
    """Lines for a shell that make roles and users, or add to them what they lack. A user is a certificate's CN.

    `user_prefix` tells the users of clusters apart that share an etcd: roles add up. Services in `password_files` log
    in with the password that lies there (and by certificate, too); where the user is there already, it is changed.
    """
    files = password_files or {}
    yield "set -e"
    for service in WRITTEN:
        name = role(keys, service)
        yield f"etcdctl role get {name} >/dev/null 2>&1 || etcdctl role add {name}"
        for grant in grants(keys, service):
            permission = "readwrite" if grant.writes else "read"
            yield f"etcdctl role grant-permission {name} --prefix=true {permission} {grant.prefix}"
        user = f"{user_prefix}{service}"
        if service in files:
            file = shlex.quote(str(files[service]))  # etcdctl reads one word
            yield f"etcdctl user get {user} >/dev/null 2>&1 && command=passwd || command=add"
            yield f"etcdctl user $command {user} --interactive=false < {file}"
        else:
            yield f"etcdctl user get {user} >/dev/null 2>&1 || etcdctl user add {user} --no-password"
        yield f"etcdctl user grant-role {user} {name}"
