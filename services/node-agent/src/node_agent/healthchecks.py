"""healthCheckNodePort: load balancers ask each node whether it has backends of a Service whose policy is Local."""

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from tidegate.runtime.logging import get_logger

log = get_logger()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`local`: backends on this node that are ready; those that terminate do not count (KEP-1669)."""

    namespace: str
    name: str
    local: int


class HealthChecks:
    """Answers on the ports of `apply`, on every address of the node, as kube-proxy does."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._checks: dict[int, HealthCheck] = {}
        self._sites: dict[int, web.TCPSite] = {}
        self._runner: web.ServerRunner | None = None
        self.problems: dict[int, str] = {}  # port → why nobody listens there

    async def apply(self, want: Mapping[int, HealthCheck]) -> None:
        """These are to be answered now; `want` may change while that is brought about."""
        checks = self._checks = dict(want)
        for port in [port for port in self._sites if port not in checks]:
            await self._sites.pop(port).stop()
        self.problems = {port: reason for port, reason in self.problems.items() if port in checks}
        for port in checks:
            if port not in self._sites:
                await self._listen(port)

    async def _listen(self, port: int) -> None:
        if self._runner is None:
            self._runner = web.ServerRunner(web.Server(self._answer))
            await self._runner.setup()
        site = web.TCPSite(self._runner, None, port)
        try:
            await site.start()
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "") or str(error)
            if self.problems.get(port) != reason:
                check = self._checks[port]
                log.warning("cannot listen for health checks", port=port, service=check.name, reason=str(error))
            self.problems[port] = reason
            return
        self._sites[port] = site
        self.problems.pop(port, None)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        check = self._checks.get(port)
        if check is None:
            return web.Response(status=404)
        healthy = self._healthy()
        body = {
            "service": {"namespace": check.namespace, "name": check.name},
            "localEndpoints": check.local,
            "serviceProxyHealthy": healthy,
        }
        headers = {"X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": str(check.local)}
        return web.Response(
            status=200 if check.local and healthy else 503,
            text=json.dumps(body, indent="\t"),
            content_type="application/json",
            headers=headers,
        )

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
