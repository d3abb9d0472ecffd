"""ipBlock as a real API server takes it: what it lets through we understand, what it refuses we refuse."""

import pytest

from playground.realapi import RealApiServer
from policy_sync.ipblocks import ip_block
from policy_sync.selectors import PolicyError
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.objects import IPBlock

pytestmark = pytest.mark.apiserver

POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
# Older API servers, and objects of their time, have these (KEP-4858, StrictIPCIDRValidation).
LEGACY = ("must not have bits set beyond", "must not have leading 0s", "must not have an IPv4-mapped")
Blocks = list[tuple[str, tuple[str, ...]]]
ALONE = [
    "10.0.0.0/8", "10.9.9.9/8", "010.0.0.0/8", "10.0.0.0/08", "10.0.0.1/32", "0.0.0.0/0", "::/0", "fd00::1/64",
    "FD00::/64", "::ffff:10.0.0.0/104", "::ffff:10.0.0.0/64", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/-1",
    "10.0.0.0/255.0.0.0", "10.0.0.0/+8", " 10.0.0.0/8", "10.0.0.0/8 ", "fd00::%eth0/64", "fd00::/129", "x/8",
    "256.0.0.0/8", "10.0.0.0/8/8", "fd00:::/64",
]  # fmt: skip
WITH_EXCEPTIONS: Blocks = [
    ("10.0.0.0/8", ("10.1.0.0/16",)), ("10.0.0.0/8", ("10.1.2.3/16", "10.1.0.0/24")), ("10.0.0.0/8", ("10.0.0.0/8",)),
    ("10.0.0.0/8", ("10.0.0.0/7",)), ("10.0.0.0/8", ("11.0.0.0/16",)), ("10.0.0.0/8", ("fd00::/16",)),
    ("::/0", ("10.0.0.0/8",)), ("::/0", ("fd00::/8",)), ("::/0", ("::ffff:10.0.0.0/104",)), ("10.0.0.0/8", ("",)),
    ("10.0.0.0/8", ("010.1.0.0/16",)), ("10.0.0.0/8", ("10.1.0.0",)), ("fd00::/8", ("fe00::/16",)),
    ("::ffff:10.0.0.0/104", ("::ffff:10.1.0.0/112",)),
]  # fmt: skip
BLOCKS: Blocks = [*((cidr, ()) for cidr in ALONE), *WITH_EXCEPTIONS]


def _is_wrong(text: str) -> bool:
    """Whether something else is the matter as well."""
    return "strict subset" in text or "must be a valid CIDR" in text


async def test_blocks_are_understood_and_refused_alike(real: RealApiServer) -> None:
    wrong = []
    async with await KubeClient.load(real.kubeconfig) as api:
        for number, (cidr, excepts) in enumerate(BLOCKS):
            block = {"cidr": cidr, "except": list(excepts)}
            spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]}
            try:
                await api.create(POLICIES, {"metadata": {"name": f"p{number}"}, "spec": spec})
                taken = ""
            except ApiError as error:
                taken = "" if any(word in str(error) for word in LEGACY) and not _is_wrong(str(error)) else str(error)
            try:
                ip_block(IPBlock(cidr=cidr, except_=excepts), "ipBlock")
                understood = ""
            except PolicyError as error:
                understood = str(error)
            if bool(taken) != bool(understood):
                wrong.append(f"{cidr} {excepts}: the API: {taken or 'taken'}; we: {understood or 'understood'}")
    assert not wrong, "\n".join(wrong)
