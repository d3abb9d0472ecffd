/* Why a packet was dropped, or that it was not, or why it would have been. The loader reads number, name and text from these lines
 * (REASON(number, NAME, "text")): the CLI and the metrics show the names. Numbers are never reused (10 and 16 are retired). */
#pragma once

#define REASONS(REASON) \
	REASON(0, FORWARDED, "forwarded") \
	REASON(1, POLICY_INGRESS, "the receiver's ingress policy does not allow it") \
	REASON(2, POLICY_EGRESS, "the sender's egress policy does not allow it") \
	REASON(3, SPOOFED, "a pod sent from an address that is not its own") \
	REASON(4, CLOSED, "the pod's rules do not stand yet") \
	REASON(5, NO_BACKEND, "the Service has no backend") \
	REASON(6, NO_SERVICE_PORT, "the address is a Service's, the port is not") \
	REASON(7, MALFORMED, "a header is cut short or contradicts itself") \
	REASON(8, FRAGMENT_UNKNOWN, "a fragment came before the first one of its packet") \
	REASON(9, NOT_IP, "neither IP nor ARP") \
	REASON(11, PROTOCOL, "a protocol that no rule can allow") \
	REASON(12, TRANSLATION_CLASH, "no backend left that this source port does not already talk to") \
	REASON(13, NO_ROUTE, "the kernel has no route to the destination") \
	REASON(14, MAP_FULL, "an entry of the connection maps could not be written") \
	REASON(15, ICMP_UNRELATED, "an ICMP error about no known connection") \
	REASON(17, NOT_UPLINK, "the route leads neither to a known pod nor through a device known as uplink") \
	REASON(18, NO_LOCAL_BACKEND, "the Service has no backend on this node, and its traffic policy is Local") \
	REASON(19, NO_SOURCE_PORT, "no port left for one more connection that would leave under the node's address to this end") \
	REASON(20, TTL, "a packet that is translated here, and goes on from here, has come to the end of its life") \
	REASON(21, TOO_BIG, "a packet between a client outside and a backend on another node does not fit on the way") \
	REASON(22, NO_NODE_ADDRESS, "the address under which packets leave this device is not known") \
	REASON(23, SOURCE_RANGE, "the Service's loadBalancerSourceRanges leave the client out") \
	REASON(24, LINK_LOCAL, "a pod sent from a link-local address, and not for neighbour discovery") \
	REASON(25, EXTENSIONS, "more IPv6 extension headers than are read") \
	REASON(26, SCTP_FRAGMENT, "a fragment of SCTP whose port would have to be another one") \
	REASON(27, AUDITED_INGRESS, "the receiver's ingress policy does not allow it, and audit lets it pass") \
	REASON(28, AUDITED_EGRESS, "the sender's egress policy does not allow it, and audit lets it pass")

#define REASON_ENUM(number, name, text) REASON_##name = number,
enum reason { REASONS(REASON_ENUM) };
