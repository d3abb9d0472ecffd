/* Connections that leave this node under its own address, so that the replies come back here: those from outside to a
 * backend on another node, whose client gets the replies from the address that it spoke to, and those of pods to what
 * knows no pods. What the node itself opens from the ports that they get, or listens on, is told apart by the other
 * end's address and port. */
#pragma once

#define MASQUERADE_ATTEMPTS 32

static void set_masqueraded_key(struct masqueraded_key *key, u8 protocol, const struct addr *backend,
				__be16 backend_port, const struct addr *node, __be16 node_port)
{
	key->backend = *backend;
	key->node = *node;
	key->backend_port = backend_port;
	key->node_port = node_port;
	key->protocol = protocol;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/* The address under which connections leave the device; of device 0, under which the node is known to its pods. */
static bool read_node_address(u32 ifindex, struct addr *node)
{
	struct device *device = devices.lookup(&ifindex);
	if (!device)
		return false;
	*node = *node_address(device);
	return node->w[0] | node->w[1] | node->w[2] | node->w[3];
}

/* Notes what the packet does to the connection; as touch() does for the others. */
static void touch_masqueraded(struct flow *flow, struct masqueraded *entry, bool reply, u64 now)
{
	u32 flags = entry->flags;
	if (flow->opens)
		flags = 0; /* the client uses its port again */
	if (reply)
		flags |= CONN_REPLIED;
	if (flow->tcp_flags & TCP_FIN)
		flags |= reply ? CONN_FIN_REPLY : CONN_FIN_ORIGINAL;
	if (flow->tcp_flags & TCP_RST)
		flags |= CONN_RST;
	if (flags != entry->flags)
		entry->flags = flags;
	u64 expires = now + lifetime(flow->protocol, flags, !!(flags & CONN_REPLIED));
	if (expires != entry->expires)
		entry->expires = expires;
}

static bool is_of_connection(struct flow *flow, struct masqueraded *entry)
{
	return entry->client_port == flow->source_port && entry->vip_port == flow->vip_port &&
	       same_addr(&entry->client, &flow->source) && same_addr(&entry->vip, &flow->vip);
}

/* The entry that says who has the port towards the packet's destination. */
static struct masqueraded *find_holder(struct flow *flow, const struct addr *node, __be16 port, u64 now)
{
	set_masqueraded_key(&flow->masqueraded_key, flow->protocol, &flow->destination, flow->destination_port, node, port);
	struct masqueraded *entry = masqueraded.lookup(&flow->masqueraded_key);
	return entry && entry->expires > now ? entry : NULL;
}

/* A port that nobody has towards the packet's destination: the one of before, if there is one whose entry was lost, or
 * any. What has no ports gets on without, one client at a time. */
static bool take_port(struct flow *flow, const struct addr *node, __be16 before, u64 now)
{
	struct masqueraded *fresh = &flow->masqueraded;
	fresh->client = flow->source;
	fresh->client_port = flow->source_port;
	fresh->vip = flow->vip;
	fresh->vip_port = flow->vip_port;
	fresh->flags = 0;
	touch_masqueraded(flow, fresh, false, now);
	bool portless = !has_port(flow);
	__be16 port = before;
	LOOP for (int i = 0; i < MASQUERADE_ATTEMPTS; i++) {
		if (!port && !portless)
			port = draw_port();
		if (!port && !portless)
			break;
		if (!find_holder(flow, node, port, now) && !masqueraded.update(&flow->masqueraded_key, fresh)) {
			masquerades.update(&flow->masquerade_key, &port);
			return true;
		}
		port = 0;
	}
	return refuse(flow, REASON_NO_SOURCE_PORT);
}

/* Gives the packet, which is for a backend by now, this node's address and a port as its source. flow->vip is what was
 * addressed. */
static bool masquerade(struct flow *flow, const struct addr *node)
{
	u64 now = seconds();
	set_masquerade_key(flow, &flow->vip, flow->vip_port);
	__be16 *known = masquerades.lookup(&flow->masquerade_key);
	__be16 port = known ? *known : 0;
	struct masqueraded *entry = known ? find_holder(flow, node, port, now) : NULL;
	if (entry && is_of_connection(flow, entry))
		touch_masqueraded(flow, entry, false, now);
	else if (!take_port(flow, node, port, now))
		return false;
	set_source(flow, node, flow->masqueraded_key.node_port);
	return true;
}

/* The port under which the connection to this backend left whose reply an ICMP error quotes; NULL: there is none. */
static __be16 *find_quoted_port(struct flow *flow, const struct addr *backend, __be16 backend_port)
{
	struct translation_key *quoted = &flow->translation_key;
	struct masquerade_key *key = &flow->masquerade_key;
	key->client = quoted->vip;
	key->vip = quoted->client;
	key->backend = *backend;
	key->client_port = quoted->vip_port;
	key->vip_port = quoted->client_port;
	key->backend_port = backend_port;
	key->protocol = quoted->protocol;
	key->pad = 0;
	return masquerades.lookup(key);
}

/* An error of a pod's, or of this node's stack, about a packet that came for the pod to the node's address: the one who
 * sent it knows no pod. */
static bool masquerade_pod_error(struct flow *flow, const struct addr *node)
{
	struct translation_key *quoted = &flow->translation_key;
	__be16 *known = find_quoted_port(flow, &quoted->client, quoted->client_port);
	if (!known)
		return refuse(flow, REASON_ICMP_UNRELATED);
	if (same_addr(&flow->source, &quoted->vip))
		set_source_address(flow, node);
	set_quoted_destination(flow, node, *known);
	return true;
}

/* The packet of a connection that is known by the node's address behind this device. */
static bool speak_as_node(struct flow *flow, u32 ifindex)
{
	struct addr node;
	if (!read_node_address(ifindex, &node))
		return refuse(flow, REASON_NO_NODE_ADDRESS);
	if (flow->kind == KIND_ICMP_ERROR)
		return masquerade_pod_error(flow, &node);
	if (!flow->hairpin) {
		flow->vip = flow->destination;
		flow->vip_port = flow->destination_port;
	}
	return masquerade(flow, &node);
}

/* A reply to this node's address: what it is really for. NULL: it is the node's own. */
static struct masqueraded *find_masqueraded(struct flow *flow)
{
	set_masqueraded_key(&flow->masqueraded_key, flow->protocol, &flow->source, flow->source_port, &flow->destination,
			    flow->destination_port);
	struct masqueraded *entry = masqueraded.lookup(&flow->masqueraded_key);
	return entry && entry->expires > seconds() ? entry : NULL;
}

/* The same for the packet that an ICMP error quotes. */
static struct masqueraded *find_masqueraded_quoted(struct flow *flow)
{
	struct translation_key *quoted = &flow->translation_key;
	set_masqueraded_key(&flow->masqueraded_key, quoted->protocol, &quoted->vip, quoted->vip_port, &quoted->client,
			    quoted->client_port);
	struct masqueraded *entry = masqueraded.lookup(&flow->masqueraded_key);
	return entry && entry->expires > seconds() ? entry : NULL;
}

/* An error about a packet that we masqueraded, from the backend's side: for the client, about what it sent. */
static void unmasquerade_error(struct flow *flow, struct masqueraded *entry)
{
	struct masqueraded *of = &flow->masqueraded;
	*of = *entry;
	/* The backend itself is known to the client by the Service's address. */
	if (same_addr(&flow->source, &flow->translation_key.vip))
		set_source_address(flow, &of->vip);
	set_quoted_source(flow, &of->client, of->client_port);
	set_quoted_destination(flow, &of->vip, of->vip_port);
	set_destination_address(flow, &of->client);
}

/* An error from the client's side about a reply that we gave the Service's address: for the backend, about what it sent
 * to this node. flow->translation is the client's. */
static bool masquerade_error(struct flow *flow, const struct addr *node)
{
	struct masquerade_key *key = &flow->masquerade_key;
	__be16 *known = find_quoted_port(flow, &flow->translation.backend, flow->translation.backend_port);
	if (!known)
		return refuse(flow, REASON_ICMP_UNRELATED);
	set_quoted_source(flow, &key->backend, key->backend_port);
	set_quoted_destination(flow, node, *known);
	set_destination_address(flow, &key->backend);
	return true;
}

/* A reply of the one that the connection went to: for whom it is. Leaves the entry in flow->masqueraded. */
static void unmasquerade_destination(struct flow *flow, struct masqueraded *entry)
{
	touch_masqueraded(flow, entry, true, seconds());
	flow->masqueraded = *entry;
	set_destination(flow, &flow->masqueraded.client, flow->masqueraded.client_port);
}

/* And from what address, as that one sees it. Pods know the one that they speak to. */
static void unmasquerade_source(struct flow *flow)
{
	set_source(flow, &flow->masqueraded.vip, flow->masqueraded.vip_port);
}
