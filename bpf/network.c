/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry points at the node's own devices. from_network, at their ingress: packets for pods of this node, and for Services
 * from outside. to_network, at their egress: what the node itself says to clients of Services. What is neither passes
 * untouched. */

static int deliver_tracked(struct __sk_buff *skb, struct flow *flow, u32 ifindex)
{
	return track(skb, flow) ? deliver_to_pod(skb, flow, ifindex) : NO_ACTION;
}

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
	if (flow->kind != KIND_ICMP_ERROR)
		return deliver_tracked(skb, flow, ifindex);
	if (!read_quoted(skb, flow) || !relate(skb, flow))
		return NO_ACTION;
	return deliver_to_pod(skb, flow, ifindex);
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

/* The same; a packet that cannot go on gets back the ends that it came with, for the answer quotes it as it was sent. */
static int forward_or_restore(struct __sk_buff *skb, struct flow *flow, const struct addr *source, __be16 source_port,
			      const struct addr *destination, __be16 destination_port)
{
	int action = forward_translated(skb, flow);
	if (action == NO_ACTION && is_answerable(flow) && set_source(skb, flow, source, source_port))
		set_destination(skb, flow, destination, destination_port);
	return action;
}

/* A backend of the host network. From now on to_network has something to look for. */
static int deliver_to_own_node(struct __sk_buff *skb, struct flow *flow)
{
	u32 index = SETTING_HOST_BACKENDS;
	u64 *used = settings.lookup(&index);
	if (used && !*used)
		*used = 1;
	return track(skb, flow) ? TC_ACT_UNSPEC : NO_ACTION;
}

static int deliver_to_backend(struct __sk_buff *skb, struct flow *flow)
{
	struct endpoint *backend = endpoints.lookup(&flow->destination);
	if (backend && backend->ifindex)
		return deliver_tracked(skb, flow, backend->ifindex);
	if (backend && backend->flags & EP_OWN_NODE)
		return deliver_to_own_node(skb, flow);
	struct addr node;
	if (!read_node_address(skb->ifindex, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	if (!masquerade(skb, flow, &node))
		return NO_ACTION;
	struct masquerade_key *key = &flow->masquerade_key;
	return forward_or_restore(skb, flow, &key->client, key->client_port, &key->vip, key->vip_port);
}

/* An ICMP error to an address of the node or of a Service, about a connection from outside that we translated: it goes
 * on to the end whose packet it is about, in that end's words. All others are the stack's. */
static int handle_error(struct __sk_buff *skb, struct flow *flow)
{
	if (!read_quoted(skb, flow))
		return TC_ACT_UNSPEC;
	struct masqueraded *entry = find_masqueraded_quoted(flow);
	if (entry)
		return unmasquerade_error(skb, flow, entry) ? forward_translated(skb, flow) : NO_ACTION;
	if (!find_translation(flow))
		return TC_ACT_UNSPEC;
	struct endpoint *backend = endpoints.lookup(&flow->translation.backend);
	if (backend && backend->ifindex) {
		bool passed = translate_error(skb, flow) && relate(skb, flow);
		return passed ? deliver_to_pod(skb, flow, backend->ifindex) : NO_ACTION;
	}
	if (backend && backend->flags & EP_OWN_NODE)
		return translate_error(skb, flow) ? TC_ACT_UNSPEC : NO_ACTION;
	struct addr node;
	if (!read_node_address(skb->ifindex, &node))
		return stop(flow, REASON_NO_NODE_ADDRESS);
	return masquerade_error(skb, flow, &node) ? forward_translated(skb, flow) : NO_ACTION;
}

/* Clients in the cluster are those with an address of a pod or a node. */
static u32 selection_for(struct flow *flow, struct frontend *frontend)
{
	return endpoints.lookup(&flow->source) ? frontend->service : frontend->outside;
}

static bool has_host_backends(void)
{
	return setting(SETTING_HOST_BACKENDS);
}

/* A reply of a backend on another node. */
static int deliver_to_client(struct __sk_buff *skb, struct flow *flow, struct masqueraded *entry)
{
	if (!unmasquerade(skb, flow, entry))
		return NO_ACTION;
	struct masqueraded_key *key = &flow->masqueraded_key;
	return forward_or_restore(skb, flow, &key->backend, key->backend_port, &key->node, key->node_port);
}

/* A client addresses the node itself with a port by which it has used a Service with the same backend: on the wire both
 * are one connection, and what was addressed last holds. */
static void forget_translated(struct flow *flow)
{
	if (!has_host_backends() || !(flow->opens || flow->protocol == IPPROTO_UDP))
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
	if (flow->kind != KIND_PORTS)
		return TC_ACT_UNSPEC;
	struct masqueraded *entry = own ? find_masqueraded(flow) : NULL;
	if (entry)
		return deliver_to_client(skb, flow, entry);
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

int PROGRAM(from_network)(struct __sk_buff *skb)
{
	if (!is_ours(skb) || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_FROM_NETWORK, DIRECTION_INGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	if (!parse_ip(skb, flow))
		return TC_ACT_UNSPEC;
	struct endpoint *destination = endpoints.lookup(&flow->destination);
	if (destination && destination->ifindex)
		return finish(skb, flow, handle_to_pod_from_network(skb, flow, destination->ifindex));
	if (destination && !(destination->flags & EP_OWN_NODE))
		return TC_ACT_UNSPEC;
	int action = handle_to_service(skb, flow, destination != NULL);
	if (action == TC_ACT_UNSPEC)
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

/* Nothing of the node's own is dropped here, but what could be translated by half only. */
static int handle_to_network(struct __sk_buff *skb, struct flow *flow)
{
	if (!parse_ip(skb, flow) || !parse_transport(skb, flow))
		return TC_ACT_UNSPEC;
	if (flow->kind == KIND_ICMP_ERROR) {
		flow->judged = true;
		if (!read_quoted(skb, flow) || !relate(skb, flow))
			return TC_ACT_UNSPEC;
	} else if (!is_translated_reply(flow) || !track(skb, flow)) {
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

int PROGRAM(to_network)(struct __sk_buff *skb)
{
	if (!is_ours(skb) || skb->ingress_ifindex || !(has_host_backends() || is_icmp(skb)))
		return TC_ACT_UNSPEC;
	struct flow *flow = new_flow(HOOK_TO_NETWORK, DIRECTION_EGRESS);
	if (!flow)
		return TC_ACT_SHOT;
	return handle_to_network(skb, flow) == NO_ACTION ? drop(skb, flow) : TC_ACT_UNSPEC;
}
