/* A pod that reaches itself through a Service, where no socket hook has seen to it. What came back to its sender with
 * its own address would be refused there, so it comes from the node's, as kube-proxy has it (KUBE-MARK-MASQ). No policy
 * keeps a pod from itself. */
#pragma once

static int hairpin(struct __sk_buff *skb, struct flow *flow)
{
	struct addr node;
	/* The stack takes no packet from a pod with an address of the node. The answer quotes it as it was sent. */
	if (flow->ttl <= 1)
		return set_destination(skb, flow, &flow->vip, flow->vip_port) ? stop(flow, REASON_TTL) : NO_ACTION;
	if (!read_node_address(NO_DEVICE, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	return masquerade(skb, flow, &node) ? deliver_to_pod(skb, flow, skb->ifindex) : NO_ACTION;
}

/* What the pod answers itself, to the node as it believes. TC_ACT_UNSPEC: it is none of that. */
static int hairpin_reply(struct __sk_buff *skb, struct flow *flow)
{
	struct masqueraded *entry = find_masqueraded(flow);
	if (!entry)
		return TC_ACT_UNSPEC;
	bool passed = unmasquerade_destination(skb, flow, entry) && unmasquerade_source(skb, flow);
	return passed ? deliver_to_pod(skb, flow, skb->ifindex) : NO_ACTION;
}

/* An ICMP error, whose quoted packet has been read: of the backend about the client's packet, or the other way. */
static int hairpin_error(struct __sk_buff *skb, struct flow *flow)
{
	struct addr node;
	struct masqueraded *entry = find_masqueraded_quoted(flow);
	bool passed;
	if (entry) {
		passed = unmasquerade_error(skb, flow, entry);
	} else if (find_translation(flow) && same_addr(&flow->translation.backend, &flow->source)) {
		if (!read_node_address(NO_DEVICE, &node))
			return stop(flow, REASON_NO_NODE_ADDRESS);
		passed = masquerade_error(skb, flow, &node) && set_source_address(skb, flow, &node);
	} else {
		return TC_ACT_UNSPEC;
	}
	return passed ? deliver_to_pod(skb, flow, skb->ifindex) : NO_ACTION;
}
