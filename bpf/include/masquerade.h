/* Connections from outside to a backend on another node: they leave this node under its own address, so that the
 * replies come back here, and the client gets them from the address that it spoke to. */
#pragma once

/* Source ports: below the NodePorts and the kernel's own range (ip_local_port_range), both by default. What the node
 * itself opens from there, or listens on, is told apart by the backend's address and port. */
#define MASQUERADE_FIRST 1024
#define MASQUERADE_PORTS (30000 - MASQUERADE_FIRST)
#define MASQUERADE_ATTEMPTS 16
#define MASQUERADE_STEP 7919

static void set_masqueraded_key(struct masqueraded_key *key, struct flow *flow, const struct addr *backend,
				__be16 backend_port, const struct addr *node, __be16 node_port)
{
	key->backend = *backend;
	key->node = *node;
	key->backend_port = backend_port;
	key->node_port = node_port;
	key->protocol = flow->protocol;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/* Notes what the packet does to the connection; as touch() does for the others. */
static void touch_masqueraded(struct flow *flow, struct masqueraded *entry, bool reply, u64 now)
{
	u32 flags = entry->flags;
	if (is_syn(flow))
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

static bool is_of_client(struct flow *flow, struct masqueraded *entry)
{
	return entry->client_port == flow->source_port && same_addr(&entry->client, &flow->source);
}

/* The port under which the packet's connection leaves already; 0: none. */
static __be16 known_port(struct flow *flow, const struct addr *node, u64 now)
{
	__be16 *port = masquerades.lookup(&flow->masquerade_key);
	if (!port)
		return 0;
	set_masqueraded_key(&flow->masqueraded_key, flow, &flow->destination, flow->destination_port, node, *port);
	struct masqueraded *entry = masqueraded.lookup(&flow->masqueraded_key);
	if (!entry || entry->expires <= now || !is_of_client(flow, entry))
		return 0;
	touch_masqueraded(flow, entry, false, now);
	return *port;
}

static __be16 new_port(struct flow *flow, const struct addr *node, u64 now)
{
	struct masqueraded *fresh = &flow->masqueraded;
	fresh->client = flow->source;
	fresh->client_port = flow->source_port;
	fresh->vip = flow->vip;
	fresh->vip_port = flow->vip_port;
	touch_masqueraded(flow, fresh, false, now);
	u32 start = bpf_get_prandom_u32();
	LOOP for (int i = 0; i < MASQUERADE_ATTEMPTS; i++) {
		__be16 port = htons(MASQUERADE_FIRST + (start + i * MASQUERADE_STEP) % MASQUERADE_PORTS);
		set_masqueraded_key(&flow->masqueraded_key, flow, &flow->destination, flow->destination_port, node, port);
		struct masqueraded *taken = masqueraded.lookup(&flow->masqueraded_key);
		if (taken && taken->expires > now)
			continue;
		if (masqueraded.update(&flow->masqueraded_key, fresh))
			continue;
		masquerades.update(&flow->masquerade_key, &port);
		return port;
	}
	return 0;
}

/* Gives the packet, which is for a backend by now, this node's address and a port as its source. */
static bool masquerade(struct __sk_buff *skb, struct flow *flow, const struct addr *node)
{
	u64 now = seconds();
	struct masquerade_key *key = &flow->masquerade_key;
	key->client = flow->source;
	key->backend = flow->destination;
	key->client_port = flow->source_port;
	key->backend_port = flow->destination_port;
	key->protocol = flow->protocol;
	__be16 port = known_port(flow, node, now);
	if (!port)
		port = new_port(flow, node, now);
	if (!port)
		return refuse(flow, REASON_NO_SOURCE_PORT);
	return set_source(skb, flow, node, port);
}

/* A reply of a backend on another node, to this node's address: what it is really for. NULL: it is the node's own. */
static struct masqueraded *find_masqueraded(struct flow *flow)
{
	set_masqueraded_key(&flow->masqueraded_key, flow, &flow->source, flow->source_port, &flow->destination,
			    flow->destination_port);
	struct masqueraded *entry = masqueraded.lookup(&flow->masqueraded_key);
	return entry && entry->expires > seconds() ? entry : NULL;
}

static bool unmasquerade(struct __sk_buff *skb, struct flow *flow, struct masqueraded *entry)
{
	touch_masqueraded(flow, entry, true, seconds());
	flow->masqueraded = *entry;
	return set_destination(skb, flow, &flow->masqueraded.client, flow->masqueraded.client_port) &&
	       set_source(skb, flow, &flow->masqueraded.vip, flow->masqueraded.vip_port);
}
