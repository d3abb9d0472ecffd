/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry point at the ingress of the node's own devices. What is not for a pod of this node passes untouched. */

static int handle_from_network(struct __sk_buff *skb, struct flow *flow, struct endpoint *destination)
{
	/* The addresses of our own pods and of the node itself do not come from outside. */
	struct endpoint *source = endpoints.lookup(&flow->source);
	if (source && (source->ifindex || source->flags & EP_OWN_NODE))
		return stop(flow, REASON_SPOOFED);
	if (!parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR) {
		if (!read_quoted(skb, flow) || !relate(skb, flow))
			return NO_ACTION;
	} else if (!track(skb, flow)) {
		return NO_ACTION;
	}
	return deliver_to_pod(skb, flow, destination->ifindex);
}

int from_network(struct __sk_buff *skb)
{
	if (!is_ipv4(skb) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_FROM_NETWORK, DIRECTION_INGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	if (!parse_ip(skb, flow))
		return TC_ACT_UNSPEC;
	struct endpoint *destination = endpoints.lookup(&flow->destination);
	if (!destination || !destination->ifindex)
		return TC_ACT_UNSPEC;
	return finish(skb, flow, handle_from_network(skb, flow, destination));
}
