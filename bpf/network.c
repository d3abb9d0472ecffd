/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry points at the node's own devices. from_network, at their ingress: packets for pods of this node, and for Services
 * from outside. to_network, at their egress: what the node itself says to clients of Services, and what the stack forwards
 * for pods that speak as the node. What is none of that passes untouched. */

/* What becomes of a packet besides what deliver.h has: */
#define ACCEPT 0x104  /* to the node itself, if its connection may pass */
#define FORWARD 0x105 /* out of the node again */

/* The addresses of our own pods and of the node itself do not come from outside. */
static bool check_foreign(struct flow *flow)
{
	struct endpoint *source = endpoints.lookup(&flow->source);
	return !(source && (source->ifindex || source->flags & EP_OWN_NODE)) || refuse(flow, REASON_SPOOFED);
}

static int handle_to_pod_from_network(struct __sk_buff *skb, struct flow *flow, u32 ifindex)
{
	if (!check_foreign(flow) || !parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR && !read_quoted(skb, flow))
		return NO_ACTION;
	note_sides(flow, ELSEWHERE, ifindex);
	return deliver(flow, ifindex);
}

/* Out of the node again. The stack must not see such a packet: it bears an address of the node as its source. */
static int find_way_back(struct __sk_buff *skb, struct flow *flow)
{
	if (flow->ttl <= 1)
		return stop(flow, REASON_TTL);
	long found = find_route(skb, flow, flow->length);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		flow->mtu = flow->route.mtu_result;
		return stop(flow, REASON_TOO_BIG);
	}
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return stop(flow, REASON_NO_ROUTE);
	if (!is_uplink(flow->route.ifindex))
		return stop(flow, REASON_NOT_UPLINK);
	return PASS_ON;
}

/* A backend of the host network, whose replies are the node's own packets. */
static int accept(void)
{
	watch_own_packets();
	return ACCEPT;
}

static int deliver_to_backend(struct __sk_buff *skb, struct flow *flow)
{
	if (is_of_stack(flow))
		return TC_ACT_UNSPEC;
	struct endpoint *backend = endpoints.lookup(&flow->destination);
	if (backend && backend->ifindex)
		return deliver(flow, backend->ifindex);
	if (backend && backend->flags & EP_OWN_NODE)
		return accept();
	struct addr node;
	if (!read_node_address(skb->ifindex, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	return masquerade(flow, &node) ? FORWARD : NO_ACTION;
}

/* An error for who it was that spoke as this node: a pod of ours, or a client elsewhere. */
static int deliver_error(struct flow *flow)
{
	struct endpoint *client = endpoints.lookup(&flow->destination);
	return client && client->ifindex ? deliver(flow, client->ifindex) : FORWARD;
}

/* An ICMP error to an address of the node or of a Service, about a connection that we translated: it goes on to the end
 * whose packet it is about, in that end's words. All others are the stack's. */
static int handle_error(struct __sk_buff *skb, struct flow *flow)
{
	if (!read_quoted(skb, flow))
		return TC_ACT_UNSPEC;
	struct masqueraded *entry = find_masqueraded_quoted(flow);
	if (entry) {
		unmasquerade_error(flow, entry);
		return deliver_error(flow);
	}
	if (!find_translation(flow))
		return TC_ACT_UNSPEC;
	struct endpoint *backend = endpoints.lookup(&flow->translation.backend);
	if (backend && (backend->ifindex || backend->flags & EP_OWN_NODE)) {
		translate_error(flow);
		return backend->ifindex ? deliver(flow, backend->ifindex) : TC_ACT_UNSPEC;
	}
	struct addr node;
	if (!read_node_address(skb->ifindex, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	return masquerade_error(flow, &node) ? FORWARD : NO_ACTION;
}

/* Clients in the cluster are those with an address of a pod or a node. */
static u32 selection_for(struct flow *flow, struct frontend *frontend)
{
	return endpoints.lookup(&flow->source) ? frontend->service : frontend->outside;
}

/* A reply to a connection that left under the node's address: a pod's, or one from outside to a backend elsewhere. */
static int deliver_to_client(struct __sk_buff *skb, struct flow *flow, struct masqueraded *entry)
{
	struct endpoint *client = endpoints.lookup(&entry->client);
	bool local = client && client->ifindex;
	if (local && !check_foreign(flow))
		return NO_ACTION;
	unmasquerade_destination(flow, entry);
	if (local)
		return deliver(flow, client->ifindex);
	unmasquerade_source(flow);
	return FORWARD;
}

/* A client addresses the node itself with a port by which it has used a Service with the same backend: on the wire both
 * are one connection. What lives stands against another one; where nothing tells, what was addressed last holds. */
static bool forget_translated(struct flow *flow)
{
	if (!setting(SETTING_OWN_PACKETS) || !(flow->opens || flow->protocol == IPPROTO_UDP))
		return true;
	set_tuple(flow, &flow->source, flow->source_port, &flow->destination, flow->destination_port, flow->protocol);
	struct connection *connection = find_connection(flow, seconds());
	bool translated = connection && connection->flags & CONN_NAT;
	if (translated && flow->opens)
		return refuse(flow, REASON_TRANSLATION_CLASH);
	if (!flow->ended && !translated)
		return true;
	connections.delete(&flow->tuple);
	connections_new.delete(&flow->tuple);
	return true;
}

/* A packet for an address of this node (`own`), or for one that is nobody's in the cluster. */
static int handle_to_service(struct __sk_buff *skb, struct flow *flow, bool own)
{
	/* What we cannot read, or is no Service's, is the stack's business. */
	if (!parse_transport(skb, flow))
		return TC_ACT_UNSPEC;
	if (flow->kind == KIND_ICMP_ERROR)
		return handle_error(skb, flow);
	struct masqueraded *entry = own ? find_masqueraded(flow) : NULL;
	if (entry)
		return deliver_to_client(skb, flow, entry);
	if (flow->kind != KIND_PORTS)
		return TC_ACT_UNSPEC;
	struct frontend *frontend =
		find_frontend(&flow->frontend, &flow->destination, flow->destination_port, flow->protocol);
	if (!frontend) {
		if (!forget_translated(flow))
			return NO_ACTION;
		bool closed = !own && is_closed_address(&flow->frontend, &flow->destination);
		return closed ? stop(flow, REASON_NO_SERVICE_PORT) : TC_ACT_UNSPEC;
	}
	u32 service = selection_for(flow, frontend);
	if (!check_foreign(flow) || !check_range(flow, frontend) || !send_to_backend(flow, service, true))
		return NO_ACTION;
	return deliver_to_backend(skb, flow);
}

static int handle_from_network(struct __sk_buff *skb, struct flow *flow)
{
	if (follow_connection(skb, flow, ELSEWHERE))
		return DELIVER;
	if (!parse_ip(skb, flow))
		return TC_ACT_UNSPEC;
	struct endpoint *destination = endpoints.lookup(&flow->destination);
	if (destination && destination->ifindex)
		return handle_to_pod_from_network(skb, flow, destination->ifindex);
	if (destination && !(destination->flags & EP_OWN_NODE))
		return TC_ACT_UNSPEC;
	return handle_to_service(skb, flow, destination != NULL);
}

static bool admit(struct __sk_buff *skb, struct flow *flow)
{
	return flow->kind == KIND_ICMP_ERROR ? relate(flow) : track(skb, flow);
}

/* Each of the ways on stands here once: the compiler puts all of it into one program. */
static int carry_from_network(struct __sk_buff *skb, struct flow *flow, int decided)
{
	int action = settle(flow, decided);
	if (action == FORWARD) {
		action = find_way_back(skb, flow);
	} else if (action == DELIVER || action == ACCEPT) {
		flow->ours = true;
		if (!flow->followed && !admit(skb, flow))
			return NO_ACTION;
		action = flow->ifindex ? find_way_in(skb, flow) : TC_ACT_UNSPEC;
	}
	action = settle(flow, action);
	return action == PASS_ON ? pass_on(skb, flow) : action;
}

int PROGRAM(from_network)(struct __sk_buff *skb)
{
	if (!is_ours(skb) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_FROM_NETWORK, DIRECTION_INGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	int action = seal(skb, flow, carry_from_network(skb, flow, handle_from_network(skb, flow)));
	/* What is none of ours is not counted. */
	if (action == TC_ACT_UNSPEC && !flow->ours)
		return TC_ACT_UNSPEC;
	if (action == NO_ACTION && is_answerable(flow))
		return answer(skb, flow, false);
	return finish(skb, flow, action);
}

/* Whether the packet is the node's to a client of a Service. */
static bool is_translated_reply(struct flow *flow)
{
	set_tuple(flow, &flow->source, flow->source_port, &flow->destination, flow->destination_port, flow->protocol);
	struct connection *connection = find_connection(flow, seconds());
	return connection && connection->flags & CONN_NAT && is_reply(flow, connection);
}

/* What the node itself sends to a Service was left to its packets by the socket program: source ranges leave the node out,
 * or the traffic policy is Local. */
static bool may_leave(struct flow *flow)
{
	struct frontend *frontend = NULL;
	if (flow->kind == KIND_PORTS)
		frontend = find_frontend(&flow->frontend, &flow->destination, flow->destination_port, flow->protocol);
	if (!frontend)
		return true;
	if (!check_range(flow, frontend))
		return false;
	struct service *service = services.lookup(&frontend->service);
	return !service || service->count || !(service->flags & SERVICE_DROP) || refuse(flow, REASON_NO_LOCAL_BACKEND);
}

/* Whether the node may say in it what only it knows of a Service's packets: that they are too big, or too old. */
static bool is_icmp(struct __sk_buff *skb)
{
	u8 protocol = 0;
	return !bpf_skb_load_bytes(skb, IP_AT + PROTOCOL_AT, &protocol, 1) && protocol == PROTO_ICMP;
}

static bool is_judged(struct __sk_buff *skb)
{
	return (skb->mark & MARK_MASK) == MARK_JUDGED;
}

/* What is the node's own, or has been judged before the stack forwarded it, most often cut to fragments. Of the node's own
 * nothing is dropped here, but what it may not send and what could be translated by half only. */
static int handle_to_network(struct __sk_buff *skb, struct flow *flow)
{
	bool forwarded = skb->ingress_ifindex;
	int unknown = forwarded ? NO_ACTION : TC_ACT_UNSPEC;
	if (!parse_ip(skb, flow) || !parse_transport(skb, flow))
		return unknown;
	bool error = flow->kind == KIND_ICMP_ERROR;
	flow->judged = forwarded || error;
	if (error && !read_quoted(skb, flow))
		return unknown;
	if (!flow->judged && !is_translated_reply(flow))
		return may_leave(flow) ? TC_ACT_UNSPEC : NO_ACTION;
	if (!admit(skb, flow))
		return unknown;
	if (flow->as_node && !speak_as_node(flow, skb->ifindex))
		return NO_ACTION;
	untranslate(flow);
	return TC_ACT_UNSPEC;
}

int PROGRAM(to_network)(struct __sk_buff *skb)
{
	bool passes = skb->ingress_ifindex ? !is_judged(skb) : !setting(SETTING_OWN_PACKETS) && !is_icmp(skb);
	if (!is_ours(skb) || passes)
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_TO_NETWORK, DIRECTION_EGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	int action = seal(skb, flow, handle_to_network(skb, flow));
	return action == NO_ACTION ? drop(skb, flow) : TC_ACT_UNSPEC;
}
