/* What leaves the node under the node's own address, and by which ports it may. */
#pragma once

static void set_masquerade_key(struct flow *flow, const struct addr *vip, __be16 vip_port)
{
	struct masquerade_key *key = &flow->masquerade_key;
	key->client = flow->source;
	key->vip = *vip;
	key->backend = flow->destination;
	key->client_port = flow->source_port;
	key->vip_port = vip_port;
	key->backend_port = flow->destination_port;
	key->protocol = flow->protocol;
	key->pad = 0;
}

/* Whether a connection to this address leaves the cluster, and is to be known outside by the node's address. */
static bool is_masqueraded_address(struct flow *flow, const struct addr *addr)
{
	u32 node = NO_DEVICE;
	struct device *device = devices.lookup(&node);
	if (!device || !(device->flags & DEVICE_MASQUERADE))
		return false;
	flow->cidr.prefix = CIDR_BITS;
	flow->cidr.addr = *addr;
	return !endpoints.lookup(&flow->cidr.addr) && !non_masquerade.lookup(&flow->cidr);
}

/* Whether the connection that the packet of a pod opens leaves under the node's address: decided once, it holds for its
 * life. What is in the middle of a stream, of which nothing is known, goes on as it has begun. */
static bool opens_as_node(struct flow *flow)
{
	if (flow->hook != HOOK_FROM_POD)
		return false;
	bool stream = flow->protocol == IPPROTO_TCP || flow->protocol == IPPROTO_SCTP;
	if (!stream || flow->opens)
		return is_masqueraded_address(flow, &flow->destination);
	set_masquerade_key(flow, &flow->destination, flow->destination_port);
	return masquerades.lookup(&flow->masquerade_key);
}

/* A port for a connection that leaves under the node's address, drawn from those that the agent has found free; 0: there
 * is none. For ICMP echo it is an identifier. */
static __be16 draw_port(void)
{
	u64 blocks[PORT_BLOCKS];
	u32 count = 0;
	for (u32 i = 0; i < PORT_BLOCKS; i++) {
		blocks[i] = setting(SETTING_PORTS + i);
		count += blocks[i] & 0xffff;
	}
	if (!count)
		return 0;
	u32 drawn = bpf_get_prandom_u32() % count;
	for (u32 i = 0; i < PORT_BLOCKS; i++) {
		u32 length = blocks[i] & 0xffff;
		if (drawn < length)
			return htons((blocks[i] >> 16) + drawn);
		drawn -= length;
	}
	return 0;
}
