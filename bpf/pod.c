/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry points at a pod's host-side veth: from_pod at its ingress, to_pod at its egress. Each file of packet programs is
 * compiled once for each family (FAMILY is 4 or 6), and both stand at each hook. */

/* What the kernel is told of all programs: several helpers are for GPL-compatible ones. */
#define BPF_LICENSE GPL

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "include/types.h"
#include "include/reasons.h"
#include "include/maps.h"
#include "include/helpers.h"
#include "include/flow.h"
#include "include/events.h"
#if FAMILY == 6
#include "include/ipv6.h"
#else
#include "include/ipv4.h"
#endif
#include "include/fragments.h"
#include "include/sctp.h"
#include "include/parse.h"
#include "include/policy.h"
#include "include/leave.h"
#include "include/conntrack.h"
#include "include/established.h"
#include "include/nat.h"
#include "include/ring.h"
#include "include/lb.h"
#include "include/masquerade.h"
#include "include/icmp.h"
#include "include/deliver.h"
#include "include/hairpin.h"
#include "include/answer.h"

/* Of what is not IP, or hides in a VLAN, ARP passes. The IPv4 programs see to it; those of the other family see to
 * the rest. */
static int not_ours(struct __sk_buff *skb, u8 hook, u8 direction)
{
	bool arp = skb->protocol == htons(ETH_P_ARP), ip = skb->protocol == htons(ETH_P_IP);
	bool ipv6 = skb->protocol == htons(ETH_P_IPV6);
	if (FAMILY != 4 || (!skb->vlan_present && (arp || ip || ipv6)))
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(hook, direction);
	return flow ? finish(skb, flow, stop(flow, REASON_NOT_IP)) : TC_ACT_SHOT;
}

/* A pod sends from its own addresses only. */
static bool check_source(struct __sk_buff *skb, struct flow *flow)
{
	struct endpoint *source = endpoints.lookup(&flow->source);
	if (!source)
		return refuse(flow, is_link_local(&flow->source) ? REASON_LINK_LOCAL : REASON_CLOSED);
	return source->ifindex == skb->ifindex || refuse(flow, REASON_SPOOFED);
}

/* From the pod to whom it is for by now: a pod, the node, or out of it. */
static int find_receiver(struct flow *flow)
{
	if (flow->ifindex)
		return DELIVER;
	struct endpoint *destination = endpoints.lookup(&flow->destination);
	if (destination && destination->flags & EP_OWN_NODE)
		return TC_ACT_UNSPEC;
	return destination && destination->ifindex ? deliver(flow, destination->ifindex) : LEAVE;
}

static int handle_error_from_pod(struct __sk_buff *skb, struct flow *flow)
{
	if (!read_quoted(skb, flow))
		return NO_ACTION;
	int action = hairpin_error(skb, flow);
	if (action != TC_ACT_UNSPEC)
		return action;
	translate_error(flow);
	/* A pod can complain about packets to itself only. */
	if (!same_addr(&flow->translation_key.vip, &flow->source))
		return stop(flow, REASON_ICMP_UNRELATED);
	return relate(flow) ? find_receiver(flow) : NO_ACTION;
}

static int handle_from_pod(struct __sk_buff *skb, struct flow *flow)
{
	if (follow_connection(skb, flow, skb->ifindex))
		return flow->ifindex ? DELIVER : LEAVE;
	if (is_link_control(skb))
		return TC_ACT_UNSPEC;
	if (!parse_ip(skb, flow) || !check_source(skb, flow) || !parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR)
		return handle_error_from_pod(skb, flow);
	struct endpoint *addressed = endpoints.lookup(&flow->destination);
	u32 flags = addressed ? addressed->flags : 0;
	if (flags & EP_OWN_NODE) {
		int action = hairpin_reply(skb, flow);
		if (action != TC_ACT_UNSPEC)
			return action;
	}
	if (flags & EP_POD)
		flow->ifindex = addressed->ifindex;
	else if (!translate(flow))
		return NO_ACTION;
	if (is_of_stack(flow))
		return TC_ACT_UNSPEC;
	if (flow->vip_known && same_addr(&flow->source, &flow->destination))
		return hairpin(skb, flow);
	if (!(flags & EP_OWN_NODE) && !flow->vip_known)
		note_sides(flow, skb->ifindex, flow->ifindex ? flow->ifindex : ELSEWHERE);
	return track(skb, flow) ? find_receiver(flow) : NO_ACTION;
}

/* Each of the ways on stands here once: the compiler puts all of it into one program. */
static int carry_from_pod(struct __sk_buff *skb, struct flow *flow, int decided)
{
	int action = settle(flow, decided);
	if (action == LEAVE)
		action = find_way_out(skb, flow);
	else if (action == DELIVER)
		action = find_way_in(skb, flow);
	action = settle(flow, action);
	if (action != PASS_ON)
		return action;
	bool into_pod = flow->ifindex;
	if (into_pod ? flow->hairpin : flow->as_node)
		if (!speak_as_node(flow, into_pod ? NO_DEVICE : flow->route.ifindex))
			return NO_ACTION;
	return pass_on(skb, flow);
}

int PROGRAM(from_pod)(struct __sk_buff *skb)
{
	if (!is_ours(skb))
		return not_ours(skb, HOOK_FROM_POD, DIRECTION_EGRESS);
	struct flow *flow = new_flow(HOOK_FROM_POD, DIRECTION_EGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	int action = seal(skb, flow, carry_from_pod(skb, flow, handle_from_pod(skb, flow)));
	if (action == NO_ACTION && is_answerable(flow))
		return answer(skb, flow, true);
	return finish(skb, flow, action);
}

/* Only what comes through the stack gets here: the node's own packets, and those that a program before the stack has
 * judged. "From my own node" is what no device received, never a source address. */
static int handle_to_pod(struct __sk_buff *skb, struct flow *flow)
{
	bool from_node = skb->ingress_ifindex == 0;
	flow->from_node = from_node;
	flow->judged = !from_node && (skb->mark & MARK_MASK) == MARK_JUDGED;
	if (is_link_control(skb))
		return TC_ACT_UNSPEC;
	if (!parse_ip(skb, flow))
		return NO_ACTION;
	struct endpoint *destination = endpoints.lookup(&flow->destination);
	if (!destination || destination->ifindex != skb->ifindex)
		return from_node ? TC_ACT_UNSPEC : stop(flow, REASON_CLOSED);
	if (!parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR) {
		if (!read_quoted(skb, flow))
			return NO_ACTION;
		if (!relate(flow))
			return from_node || flow->judged ? TC_ACT_UNSPEC : NO_ACTION;
	} else if (!track(skb, flow)) {
		return NO_ACTION;
	}
	untranslate(flow);
	return TC_ACT_UNSPEC;
}

int PROGRAM(to_pod)(struct __sk_buff *skb)
{
	if (!is_ours(skb))
		return not_ours(skb, HOOK_TO_POD, DIRECTION_INGRESS);
	struct flow *flow = new_flow(HOOK_TO_POD, DIRECTION_INGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	return finish(skb, flow, seal(skb, flow, handle_to_pod(skb, flow)));
}
