"""The guard: forwarded pod traffic that no program of ours has judged is dropped, IPv4 and IPv6.

Between the moment in which a pod's device appears and the one in which our programs sit on it, the kernel would forward
freely. The guard stands from before the first attachment on.
"""

import asyncio
import json
import subprocess

MARK_MASK, MARK_JUDGED = 0x00F00000, 0x00100000

TABLE = "inet tidegate"
RULES = 3  # of the chain

REASON = "UNJUDGED", "forwarded pod traffic that no program of ours has judged"


class GuardError(Exception):
    """nft did not do it; the text says why."""


def ruleset(pattern: str) -> str:
    """`pattern` is a shell pattern of pod devices with its only `*` at the end (nft knows no other)."""
    return f"""
table {TABLE}
delete table {TABLE}
table {TABLE} {{
  counter unjudged {{ }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    meta mark & {MARK_MASK:#x} == {MARK_JUDGED:#x} accept
    iifname "{pattern}" counter name unjudged drop
    oifname "{pattern}" counter name unjudged drop
  }}
}}
"""


async def install(pattern: str) -> None:
    """Raises GuardError."""
    await run_script(ruleset(pattern))


async def run_script(text: str) -> None:
    """In one transaction. Raises GuardError."""
    await _nft(["-f", "-"], text.encode())


async def has_table(table: str) -> bool:
    """`inet tidegate`, for example. Raises GuardError."""
    listed = json.loads(await _nft(["-j", "list", "tables"], b""))["nftables"]
    return any(f"{item['table']['family']} {item['table']['name']}" == table for item in listed if "table" in item)


async def restore(pattern: str) -> bool:
    """Installs the guard anew where it, or a rule of it, is gone; whether that was so. Raises GuardError."""
    try:
        listed = json.loads(await _nft(["-j", "list", "chain", "inet", "tidegate", "forward"], b""))["nftables"]
    except GuardError:
        listed = []
    if sum("rule" in item for item in listed) == RULES:
        return False
    await install(pattern)
    return True


async def _nft(arguments: list[str], text: bytes) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise GuardError("nft not found: install the package nftables") from error
    output, trouble = await process.communicate(text)
    if process.returncode:
        raise GuardError(f"nft: {trouble.decode(errors='replace').strip()}")
    return output


async def dropped() -> tuple[int, int]:
    """Packets and bytes that the guard has dropped. Raises GuardError, also where the table is gone."""
    answer = json.loads(await _nft(["-j", "list", "counter", "inet", "tidegate", "unjudged"], b""))
    for item in answer["nftables"]:
        if "counter" in item:
            return int(item["counter"]["packets"]), int(item["counter"]["bytes"])
    raise GuardError("nft: the counter of the table inet tidegate is missing")
