/* Rewriting addresses and ports, with the checksums. What a packet is to become is noted in struct flow by the stages
 * that decide it, and written once, at the end: the code to write it is long, everything is inlined, and a packet that
 * is refused on the way is still as its sender made it.
 *
 * All updates of checksums are incremental, and right for packets whose transport checksum is still to be computed by
 * the device (BPF_F_PSEUDO_HDR tells the kernel which parts are in it already) as for those that the device has summed
 * up (what we change must cancel out in that sum, or be told). */
#pragma once

static bool has_port(struct flow *flow)
{
	return flow->kind == KIND_PORTS || flow->kind == KIND_ECHO;
}

/* Before the first change: how the packet is on the wire. */
static void note_change(struct flow *flow)
{
	if (flow->changed)
		return;
	flow->changed = true;
	flow->wire.source = flow->source;
	flow->wire.destination = flow->destination;
	flow->wire.source_port = flow->source_port;
	flow->wire.destination_port = flow->destination_port;
}

/* As it is on the wire again. */
static void forget_changes(struct flow *flow)
{
	if (!flow->changed)
		return;
	flow->changed = false;
	flow->source = flow->wire.source;
	flow->destination = flow->wire.destination;
	flow->source_port = flow->wire.source_port;
	flow->destination_port = flow->wire.destination_port;
}

static void set_source_address(struct flow *flow, const struct addr *addr)
{
	note_change(flow);
	flow->source = *addr;
}

static void set_destination_address(struct flow *flow, const struct addr *addr)
{
	note_change(flow);
	flow->destination = *addr;
}

static void set_source(struct flow *flow, const struct addr *addr, __be16 port)
{
	set_source_address(flow, addr);
	if (has_port(flow))
		flow->source_port = port;
}

static void set_destination(struct flow *flow, const struct addr *addr, __be16 port)
{
	set_destination_address(flow, addr);
	if (has_port(flow))
		flow->destination_port = port;
}

/* The ends of the packet that an ICMP error quotes, which stand in flow->translation_key. */
static void set_quoted_source(struct flow *flow, const struct addr *addr, __be16 port)
{
	flow->quoted_changed = true;
	flow->translation_key.client = *addr;
	flow->translation_key.client_port = port;
}

static void set_quoted_destination(struct flow *flow, const struct addr *addr, __be16 port)
{
	flow->quoted_changed = true;
	flow->translation_key.vip = *addr;
	flow->translation_key.vip_port = port;
}

/* Offset of the transport checksum in the frame; 0: there is none here. */
static u32 find_checksum(struct flow *flow)
{
	if (flow->fragment == FRAGMENT_LATER)
		return 0;
	switch (flow->protocol) {
	case IPPROTO_TCP:
		return flow->l4 + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return flow->l4 + offsetof(struct udphdr, check);
	case PROTO_ICMP:
		return flow->l4 + ICMP_CHECKSUM;
	default:
		return 0;
	}
}

/* Source and destination port as one word, as they stand in a header. Of ICMP echo one of them is the identifier, the
 * other one 0. */
static u32 both_ports(const __be16 *ports)
{
	return ports[0] | (u32)ports[1] << 16;
}

static bool store_ports(struct __sk_buff *skb, struct flow *flow, u32 l4, u8 protocol, u32 ports, u64 flags)
{
	u16 identifier = ports | ports >> 16;
	long failed = protocol == PROTO_ICMP ? bpf_skb_store_bytes(skb, l4 + 4, &identifier, 2, flags)
					     : bpf_skb_store_bytes(skb, l4, &ports, 4, flags);
	return !failed || refuse(flow, REASON_MALFORMED);
}

/* The packet's addresses, in its header and in what sums it up. */
static bool write_addresses(struct __sk_buff *skb, struct flow *flow, u32 checksum, u64 flags)
{
	struct ends *wire = &flow->wire;
	if (same_addr(&flow->source, &wire->source) && same_addr(&flow->destination, &wire->destination))
		return true;
	u32 change = sum_change(&wire->source, &flow->source);
	if (checksum && is_summed_with_addresses(flow->protocol) &&
	    bpf_l4_csum_replace(skb, checksum, 0, change, flags | BPF_F_PSEUDO_HDR))
		return refuse(flow, REASON_MALFORMED);
	return store_addresses(skb, flow, &flow->source, change);
}

/* The packet's ports, where they stand in it: later fragments have none. */
static bool write_ports(struct __sk_buff *skb, struct flow *flow, u32 checksum, u64 flags)
{
	u32 old = both_ports(&flow->wire.source_port), new = both_ports(&flow->source_port);
	if (old == new || flow->fragment == FRAGMENT_LATER)
		return true;
	if (flow->protocol == IPPROTO_SCTP)
		return sum_sctp(skb, flow, old ^ new) &&
		       store_ports(skb, flow, flow->l4, flow->protocol, new, BPF_F_RECOMPUTE_CSUM);
	if (bpf_l4_csum_replace(skb, checksum, old, new, flags | 4))
		return refuse(flow, REASON_MALFORMED);
	return store_ports(skb, flow, flow->l4, flow->protocol, new, 0);
}

/* The packet that an ICMP error quotes. Its ports change the checksum of the error. Quoted transport checksums stay:
 * nobody can verify them. */
static bool write_quoted(struct __sk_buff *skb, struct flow *flow)
{
	struct ends *wire = &flow->quoted_wire;
	struct translation_key *quoted = &flow->translation_key;
	u32 old = both_ports(&wire->source_port), new = both_ports(&quoted->client_port);
	if (!store_quoted_addresses(skb, flow, &quoted->client, sum_change(&wire->source, &quoted->client)))
		return false;
	if (old == new)
		return true;
	if (bpf_l4_csum_replace(skb, flow->l4 + ICMP_CHECKSUM, old, new, 4))
		return refuse(flow, REASON_MALFORMED);
	return store_ports(skb, flow, flow->quoted_l4, quoted->protocol, new, 0);
}

/* Makes the packet what the stages have said. */
static bool rewrite(struct __sk_buff *skb, struct flow *flow)
{
	if (flow->quoted_changed && !write_quoted(skb, flow))
		return false;
	if (!flow->changed)
		return true;
	u32 checksum = find_checksum(flow);
	/* A UDP checksum of 0 means none, and stays. */
	u64 flags = flow->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	return write_addresses(skb, flow, checksum, flags) && write_ports(skb, flow, checksum, flags);
}

/* A number by way of memory: the verifier walks what follows once, and not once for every number that it knows this one
 * to be. */
static int settle(struct flow *flow, int action)
{
	flow->action = action;
	FORGET();
	return flow->action;
}

/* The end of what stages have to say. Returns the action, or NO_ACTION where the packet cannot be what it is to be. */
static int seal(struct __sk_buff *skb, struct flow *flow, int action)
{
	if (settle(flow, action) != NO_ACTION && !rewrite(skb, flow))
		return NO_ACTION;
	return flow->action;
}
