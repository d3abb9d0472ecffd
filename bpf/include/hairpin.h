/* A pod that reaches itself through a Service, where no socket hook has seen to it. What came back to its sender with
 * its own address would be refused there, so it comes from the node's, as kube-proxy has it (KUBE-MARK-MASQ). No policy
 * keeps a pod from itself. */
#pragma once

static int hairpin(struct __sk_buff *skb, struct flow *flow)
{
	/* The stack takes no packet from a pod with an address of the node. */
	if (flow->ttl <= 1)
		return stop(flow, REASON_TTL);
	flow->hairpin = true;
	return deliver(flow, skb->ifindex);
}

/* What the pod answers itself, to the node as it believes. TC_ACT_UNSPEC: it is none of that. */
static int hairpin_reply(struct __sk_buff *skb, struct flow *flow)
{
	struct masqueraded *entry = find_masqueraded(flow);
	if (!entry)
		return TC_ACT_UNSPEC;
	unmasquerade_destination(flow, entry);
	unmasquerade_source(flow);
	return deliver(flow, skb->ifindex);
}

/* An ICMP error, whose quoted packet has been read: of the backend about the client's packet, or the other way. */
static int hairpin_error(struct __sk_buff *skb, struct flow *flow)
{
	struct addr node;
	struct masqueraded *entry = find_masqueraded_quoted(flow);
	if (entry) {
		unmasquerade_error(flow, entry);
		return deliver(flow, skb->ifindex);
	}
	if (!find_translation(flow) || !same_addr(&flow->translation.backend, &flow->source))
		return TC_ACT_UNSPEC;
	if (!read_node_address(NO_DEVICE, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	if (!masquerade_error(flow, &node))
		return NO_ACTION;
	set_source_address(flow, &node);
	return deliver(flow, skb->ifindex);
}
