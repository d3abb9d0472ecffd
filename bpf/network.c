/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry points at the node's own devices. from_network, at their ingress: packets for pods of this node, and for Services
 * from outside. to_network, at their egress: what the node itself says to clients of Services, and what the stack forwards
 * for pods that speak as the node. What is none of that passes untouched. */

/* What becomes of a packet that is none of tc's actions, and not refused. */
#define DELIVER 0x101 /* to the pod of this node behind flow->ifindex, if its connection may pass */
#define ACCEPT 0x102  /* to the node itself, the same */
#define FORWARD 0x103 /* out of the node again */

/* The addresses of our own pods and of the node itself do not come from outside. */
static bool check_foreign(struct flow *flow)
{
	struct endpoint *source = endpoints.lookup(&flow->source);
	return !(source && (source->ifindex || source->flags & EP_OWN_NODE)) || refuse(flow, REASON_SPOOFED);
}

static int deliver(struct flow *flow, u32 ifindex)
{
	flow->ifindex = ifindex;
	return DELIVER;
}

static int handle_to_pod_from_network(struct __sk_buff *skb, struct flow *flow, u32 ifindex)
{
	if (!check_foreign(flow) || !parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR && !read_quoted(skb, flow))
		return NO_ACTION;
	return deliver(flow, ifindex);
}

/* The ends of a packet that is translated here and goes on from here: the answer to one that cannot quotes them. */
static void note_ends(struct flow *flow, const struct addr *destination, __be16 destination_port)
{
	flow->came.source = flow->source;
	flow->came.source_port = flow->source_port;
	flow->came.destination = *destination;
	flow->came.destination_port = destination_port;
}

static bool restore_ends(struct __sk_buff *skb, struct flow *flow)
{
	struct ends *came = &flow->came;
	return set_source(skb, flow, &came->source, came->source_port) &&
	       set_destination(skb, flow, &came->destination, came->destination_port);
}

/* Out of the node again. The stack must not see such a packet: it bears an address of the node as its source. */
static int forward_translated(struct __sk_buff *skb, struct flow *flow)
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
	return send_out(skb, flow);
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
	note_ends(flow, &flow->vip, flow->vip_port);
	return masquerade(skb, flow, &node) ? FORWARD : NO_ACTION;
}

/* An error for who it was that spoke as this node: a pod of ours, or a client elsewhere. */
static int deliver_error(struct flow *flow)
{
	struct endpoint *client = endpoints.lookup(&flow->destination);
	if (!client || !client->ifindex)
		return FORWARD;
	flow->translation_key.client = flow->masqueraded.client;
	flow->translation_key.client_port = flow->masqueraded.client_port;
	return deliver(flow, client->ifindex);
}

/* An ICMP error to an address of the node or of a Service, about a connection that we translated: it goes on to the end
 * whose packet it is about, in that end's words. All others are the stack's. */
static int handle_error(struct __sk_buff *skb, struct flow *flow)
{
	if (!read_quoted(skb, flow))
		return TC_ACT_UNSPEC;
	struct masqueraded *entry = find_masqueraded_quoted(flow);
	if (entry)
		return unmasquerade_error(skb, flow, entry) ? deliver_error(flow) : NO_ACTION;
	if (!find_translation(flow))
		return TC_ACT_UNSPEC;
	struct endpoint *backend = endpoints.lookup(&flow->translation.backend);
	if (backend && (backend->ifindex || backend->flags & EP_OWN_NODE)) {
		u32 ifindex = backend->ifindex;
		if (!translate_error(skb, flow))
			return NO_ACTION;
		return ifindex ? deliver(flow, ifindex) : TC_ACT_UNSPEC;
	}
	struct addr node;
	if (!read_node_address(skb->ifindex, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	return masquerade_error(skb, flow, &node) ? FORWARD : NO_ACTION;
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
	note_ends(flow, &flow->destination, flow->destination_port);
	if (!unmasquerade_destination(skb, flow, entry))
		return NO_ACTION;
	if (local)
		return deliver(flow, client->ifindex);
	return unmasquerade_source(skb, flow) ? FORWARD : NO_ACTION;
}

/* A client addresses the node itself with a port by which it has used a Service with the same backend: on the wire both
 * are one connection, and what was addressed last holds. */
static void forget_translated(struct flow *flow)
{
	if (!setting(SETTING_OWN_PACKETS) || !(flow->opens || flow->protocol == IPPROTO_UDP))
		return;
	set_tuple(flow, &flow->source, flow->source_port, &flow->destination, flow->destination_port, flow->protocol);
	struct connection *connection = find_connection(flow, seconds());
	if (!connection || !(connection->flags & CONN_NAT))
		return;
	connections.delete(&flow->tuple);
	connections_new.delete(&flow->tuple);
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
		forget_translated(flow);
		bool closed = !own && is_closed_address(&flow->frontend, &flow->destination);
		return closed ? stop(flow, REASON_NO_SERVICE_PORT) : TC_ACT_UNSPEC;
	}
	u32 service = selection_for(flow, frontend);
	if (!check_foreign(flow) || !check_range(flow, frontend) || !send_to_backend(skb, flow, service, true))
		return NO_ACTION;
	return deliver_to_backend(skb, flow);
}

static int handle_from_network(struct __sk_buff *skb, struct flow *flow)
{
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
	return flow->kind == KIND_ICMP_ERROR ? relate(skb, flow) : track(skb, flow);
}

/* Each of the ways on stands here once: the compiler puts all of it into one program. */
static int carry_out(struct __sk_buff *skb, struct flow *flow, int action)
{
	if (action == FORWARD)
		return forward_translated(skb, flow);
	if (action != DELIVER && action != ACCEPT)
		return action;
	if (!admit(skb, flow))
		return NO_ACTION;
	return action == ACCEPT ? TC_ACT_UNSPEC : deliver_to_pod(skb, flow, flow->ifindex);
}

int PROGRAM(from_network)(struct __sk_buff *skb)
{
	if (!is_ours(skb) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_FROM_NETWORK, DIRECTION_INGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	int decided = handle_from_network(skb, flow);
	OPAQUE(decided);
	int action = carry_out(skb, flow, decided);
	/* What is none of ours is not counted. */
	if (action == TC_ACT_UNSPEC && decided != DELIVER)
		return TC_ACT_UNSPEC;
	if (action != NO_ACTION || !is_answerable(flow))
		return finish(skb, flow, action);
	if (decided == FORWARD && !restore_ends(skb, flow))
		return drop(skb, flow);
	return answer(skb, flow, false);
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

/* Of the node's own replies nothing is dropped here, but what could be translated by half only. */
static int handle_to_network(struct __sk_buff *skb, struct flow *flow)
{
	if (!parse_ip(skb, flow) || !parse_transport(skb, flow))
		return TC_ACT_UNSPEC;
	if (flow->kind == KIND_ICMP_ERROR) {
		flow->judged = true;
		if (!read_quoted(skb, flow) || !relate(skb, flow))
			return TC_ACT_UNSPEC;
		if (!leave(skb, flow, skb->ifindex))
			return NO_ACTION;
	} else if (!is_translated_reply(flow)) {
		return may_leave(flow) ? TC_ACT_UNSPEC : NO_ACTION;
	} else if (!track(skb, flow)) {
		return TC_ACT_UNSPEC;
	}
	return untranslate(skb, flow) ? TC_ACT_UNSPEC : NO_ACTION;
}

/* Whether the node may say in it what only it knows of a Service's packets: that they are too big, or too old. */
static bool is_icmp(struct __sk_buff *skb)
{
	u8 protocol = 0;
	return !bpf_skb_load_bytes(skb, IP_AT + PROTOCOL_AT, &protocol, 1) && protocol == PROTO_ICMP;
}

/* A packet of a pod that the stack has forwarded, most often cut to fragments. */
static int handle_forwarded(struct __sk_buff *skb, struct flow *flow)
{
	flow->judged = true;
	if (!parse_ip(skb, flow) || !parse_transport(skb, flow))
		return NO_ACTION;
	if (flow->kind == KIND_ICMP_ERROR && !read_quoted(skb, flow))
		return NO_ACTION;
	return admit(skb, flow) && leave(skb, flow, skb->ifindex) ? TC_ACT_UNSPEC : NO_ACTION;
}

static bool is_judged(struct __sk_buff *skb)
{
	return (skb->mark & MARK_MASK) == MARK_JUDGED;
}

int PROGRAM(to_network)(struct __sk_buff *skb)
{
	bool forwarded = skb->ingress_ifindex;
	if (!is_ours(skb) || !(forwarded ? is_judged(skb) : setting(SETTING_OWN_PACKETS) || is_icmp(skb)))
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_TO_NETWORK, DIRECTION_EGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	int action = forwarded ? handle_forwarded(skb, flow) : handle_to_network(skb, flow);
	return action == NO_ACTION ? drop(skb, flow) : TC_ACT_UNSPEC;
}
