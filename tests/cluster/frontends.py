"""Services of every kind, in both families, on top of the shop."""

import json

# What stands for each address in the other family.
IPV6 = {
    "10.96.7.1": "fd96::71",
    "10.96.7.2": "fd96::72",
    "10.96.7.3": "fd96::73",
    "10.96.7.5": "fd96::75",
    "203.0.113.1": "2001:db8:113::1",
    "203.0.113.2": "2001:db8:113::2",
    "203.0.113.3": "2001:db8:113::3",
    "198.51.100.77": "2001:db8:198::77",
    "172.30.0.250": "fd30::250",
}


def spoken(address: str, ipv6: bool) -> str:
    return IPV6[address] if ipv6 else address


PORTS = "ports: [{name: keys, port: 6379}, {name: fast, port: 11211, protocol: UDP}]"
MANIFEST = f"""
apiVersion: v1
kind: Service
metadata: {{name: t-node, namespace: shop}}
spec:
  ipFamilyPolicy: PreferDualStack
  type: NodePort
  selector: {{app: cache}}
  ports: [{{name: keys, port: 6379, nodePort: 30379}}, {{name: fast, port: 11211, nodePort: 30379, protocol: UDP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: t-balancer, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  type: LoadBalancer, externalTrafficPolicy: Local, selector: {{app: cache}}, {PORTS}}}
---
apiVersion: v1
kind: Service
metadata: {{name: t-ranges, namespace: shop}}
spec:
  ipFamilyPolicy: PreferDualStack
  type: LoadBalancer
  loadBalancerSourceRanges: [172.30.0.250/32, 10.200.1.0/24, "fd30::250/128", "fd20:0:0:1::/64"]
  selector: {{app: cache}}
  {PORTS}
---
apiVersion: v1
kind: Service
metadata: {{name: t-carts, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  type: LoadBalancer, externalTrafficPolicy: Local, selector: {{app: cart}}, ports: [{{port: 7070}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: t-host, namespace: shop}}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 0
  containers:
  - name: responder
    image: tidegate/responder
    ports: [{{containerPort: 8080, hostPort: 18080}}, {{containerPort: 5353, hostPort: 18080, protocol: UDP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: t-external, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  externalIPs: ["198.51.100.77", "{IPV6["198.51.100.77"]}"], selector: {{app: cache}}, {PORTS}}}
---
apiVersion: v1
kind: Service
metadata: {{name: t-local, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  clusterIPs: ["10.96.7.1", "{IPV6["10.96.7.1"]}"], internalTrafficPolicy: Local,
  selector: {{app: cache}}, {PORTS}}}
---
apiVersion: v1
kind: Service
metadata: {{name: t-elsewhere, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  clusterIPs: ["10.96.7.2", "{IPV6["10.96.7.2"]}"], internalTrafficPolicy: Local,
  selector: {{app: cart}}, ports: [{{port: 7070}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: t-nobody, namespace: shop}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  clusterIPs: ["10.96.7.3", "{IPV6["10.96.7.3"]}"], internalTrafficPolicy: Local,
  selector: {{app: nobody}}, ports: [{{port: 7070}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: t-sticky, namespace: shop}}
spec:
  ipFamilyPolicy: PreferDualStack
  type: NodePort
  clusterIPs: ["10.96.7.5", "{IPV6["10.96.7.5"]}"]
  sessionAffinity: ClientIP
  selector: {{app: cache}}
  ports: [{{name: keys, port: 6379, nodePort: 30380}}]
---
apiVersion: v1
kind: Service
metadata: {{name: t-other-proxy, namespace: shop, labels: {{service.kubernetes.io/service-proxy-name: other}}}}
spec: {{
  ipFamilyPolicy: PreferDualStack,
  clusterIP: 10.96.7.4, selector: {{app: cache}}, {PORTS}}}
"""
STATUS = json.dumps(
    {
        "status": {
            "loadBalancer": {
                "ingress": [
                    {"ip": "203.0.113.1"},
                    {"ip": IPV6["203.0.113.1"]},
                    {"ip": "203.0.113.2", "ipMode": "Proxy"},
                    {"ip": IPV6["203.0.113.2"], "ipMode": "Proxy"},
                ]
            }
        }
    }
)
RANGES_STATUS = json.dumps(
    {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.3"}, {"ip": IPV6["203.0.113.3"]}]}}}
)
