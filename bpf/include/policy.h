/* May the initiator open this connection to the responder? One function answers for all hooks. */
#pragma once

/* The pass of the loop below that looks for rules without a port. */
#define ANY_PROTOCOL 17

/* Whether a set of blocks has the peer's address in it. flow->peer_block.addr is that, flow->member.member the peer. */
static bool blocks_allow(struct flow *flow, u32 set)
{
	flow->peer_block.prefix = PEER_BLOCK_BITS;
	flow->peer_block.set = set;
	u32 *needed = peer_blocks.lookup(&flow->peer_block);
	if (!needed || *needed == SET_NONE)
		return false;
	flow->member.set = *needed;
	return *needed == SET_ANY || members.lookup(&flow->member);
}

/* Whether the rule at flow->rule, if there is one, names a set with the peer in it. */
static bool rule_allows(struct flow *flow)
{
	struct rule *rule = rules.lookup(&flow->rule);
	if (!rule)
		return false;
	flow->rule_flags = rule->flags;
	u32 count = rule->count;
	if (rule->sets[0] == SET_ANY && count)
		return true;
	LOOP for (int i = 0; i < RULE_SETS; i++) {
		if (i >= count)
			break;
		flow->member.set = rule->sets[i];
		if (members.lookup(&flow->member))
			return true;
	}
	return rule->blocks && blocks_allow(flow, rule->blocks);
}

/* The verdict of one subject's rules on its peer. Rules add up: any that matches allows. */
static bool ask_subject(struct flow *flow, u8 direction, u32 identity, u32 peer)
{
	struct subject *subject = subjects.lookup(&identity);
	if (!subject)
		return refuse(flow, REASON_CLOSED);
	flow->policy = subject->policy;
	flow->subject_flags = subject->flags;
	bool egress = direction == DIRECTION_EGRESS;
	if (!(subject->flags & (egress ? SUBJECT_EGRESS_ISOLATED : SUBJECT_INGRESS_ISOLATED)))
		return true;
	u32 lengths = egress ? subject->egress_lengths : subject->ingress_lengths;
	u32 passes = has_ports(flow->protocol) ? lengths & 0x1ffff : 0;
	if (lengths & LENGTH_ANY_PROTOCOL)
		passes |= 1U << ANY_PROTOCOL;
	u16 port = ntohs(flow->responder_port);
	flow->rule.policy = subject->policy;
	flow->rule.direction = direction;
	flow->member.member = peer;
	LOOP for (int length = ANY_PROTOCOL; length >= 0; length--) {
		if (!(passes & (1U << length)))
			continue;
		bool any = length == ANY_PROTOCOL;
		flow->rule.protocol = any ? 0 : flow->protocol;
		flow->rule.length = any ? 0 : length;
		flow->rule.port = any ? 0 : htons(port & (0xffff0000U >> length));
		if (rule_allows(flow)) {
			flow->logged[direction & 1] = logs(LOG_ALLOWED, LOG_ALLOWED_MARKED, flow->rule_flags & RULE_LOG);
			flow->policies[direction & 1] = subject->policy;
			return true;
		}
	}
	if (!has_ports(flow->protocol) && flow->protocol != PROTO_ICMP)
		return refuse(flow, REASON_PROTOCOL);
	return refuse(flow, egress ? REASON_POLICY_EGRESS : REASON_POLICY_INGRESS);
}

/* Whether what the subject judged last denies passes: it or the node is in audit. A pod without rules stays closed. */
static bool is_audited(struct flow *flow)
{
	return flow->reason != REASON_CLOSED && (flow->subject_flags & SUBJECT_AUDIT || setting(SETTING_AUDIT));
}

/* Asks the subject, and tells what it says. Returns whether the packet may go on. */
static bool judge_side(struct __sk_buff *skb, struct flow *flow, bool egress, u32 identity, u32 peer)
{
	flow->direction = egress ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	flow->reason = REASON_FORWARDED;
	flow->peer_block.addr = egress ? flow->responder : flow->initiator;
	bool allowed = ask_subject(flow, flow->direction, identity, peer);
	bool audited = !allowed && is_audited(flow);
	if (audited) {
		flow->audited = true;
		flow->reason = egress ? REASON_AUDITED_EGRESS : REASON_AUDITED_INGRESS;
		count(flow->reason, skb->len);
	}
	tell_verdict(skb, flow, flow->reason);
	if (!allowed && flow->reason != REASON_CLOSED)
		log_denied_packet(flow, audited);
	return allowed || audited;
}

/* The initiator's egress rules, if it is a pod of this node, then the responder's ingress rules, if that is one and
 * the initiator is not the node itself. flow->initiator, responder, responder_port and from_node are set. */
static bool judge(struct __sk_buff *skb, struct flow *flow)
{
	struct endpoint *initiator = endpoints.lookup(&flow->initiator);
	struct endpoint *responder = endpoints.lookup(&flow->responder);
	u32 from = initiator ? initiator->identity : ID_WORLD;
	u32 to = responder ? responder->identity : ID_WORLD;
	bool from_pod = initiator && initiator->ifindex;
	bool to_pod = responder && responder->ifindex;

	if (same_addr(&flow->initiator, &flow->responder))
		return true;
	/* A closed pod and its own node reach each other, so that it can be probed while it starts. */
	if (from_pod && initiator->flags & EP_CLOSED)
		return (responder && responder->flags & EP_OWN_NODE) || refuse(flow, REASON_CLOSED);
	if (to_pod && responder->flags & EP_CLOSED)
		return flow->from_node || refuse(flow, REASON_CLOSED);

	u8 hook_direction = flow->direction;
	LOOP for (int egress = 1; egress >= 0; egress--) {
		if (egress ? !from_pod : !to_pod || flow->from_node)
			continue;
		if (!judge_side(skb, flow, egress, egress ? from : to, egress ? to : from))
			return false;
	}
	flow->direction = hook_direction;
	return true;
}
