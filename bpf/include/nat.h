/* Rewriting addresses and ports, with the checksums. All updates are incremental, and right for packets whose
 * transport checksum is still to be computed by the device (BPF_F_PSEUDO_HDR tells the kernel which parts are in it
 * already) as for those that the device has summed up (what we change must cancel out in that sum, or be told). */
#pragma once

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

/* Where a port stands in a transport header; of ICMP echo, its identifier. */
static u32 port_at(u8 protocol, bool source)
{
	return protocol == PROTO_ICMP ? 4 : source ? 0 : 2;
}

static bool has_port(struct flow *flow)
{
	return flow->kind == KIND_PORTS || flow->kind == KIND_ECHO;
}

/* One address of the packet, in its header and in what sums it up. */
static bool replace_address(struct __sk_buff *skb, struct flow *flow, bool source, const struct addr *old,
			    const struct addr *new)
{
	u32 checksum = find_checksum(flow);
	/* A UDP checksum of 0 means none, and stays. */
	u64 flags = flow->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (checksum && is_summed_with_addresses(flow->protocol) && sum_address(skb, checksum, old, new, flags))
		return refuse(flow, REASON_MALFORMED);
	return set_address(skb, flow, source, old, new);
}

/* One port of the packet, where it stands in it: later fragments have none. */
static bool replace_port(struct __sk_buff *skb, struct flow *flow, bool source, __be16 old, __be16 new)
{
	if (old == new || flow->fragment == FRAGMENT_LATER)
		return true;
	if (flow->protocol == IPPROTO_SCTP)
		return set_sctp_port(skb, flow, source, old, new);
	u64 flags = flow->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (bpf_l4_csum_replace(skb, find_checksum(flow), old, new, flags | 2))
		return refuse(flow, REASON_MALFORMED);
	return !bpf_skb_store_bytes(skb, flow->l4 + port_at(flow->protocol, source), &new, 2, 0) ||
	       refuse(flow, REASON_MALFORMED);
}

static bool set_source_address(struct __sk_buff *skb, struct flow *flow, const struct addr *addr)
{
	struct addr old = flow->source, new = *addr;
	flow->source = new;
	return replace_address(skb, flow, true, &old, &new);
}

static bool set_destination_address(struct __sk_buff *skb, struct flow *flow, const struct addr *addr)
{
	struct addr old = flow->destination, new = *addr;
	flow->destination = new;
	return replace_address(skb, flow, false, &old, &new);
}

static bool set_source(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	__be16 old = flow->source_port;
	if (has_port(flow))
		flow->source_port = port;
	return set_source_address(skb, flow, addr) && replace_port(skb, flow, true, old, flow->source_port);
}

static bool set_destination(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	__be16 old = flow->destination_port;
	if (has_port(flow))
		flow->destination_port = port;
	return set_destination_address(skb, flow, addr) && replace_port(skb, flow, false, old, flow->destination_port);
}

/* One end of the packet that an ICMP error quotes. Its port changes the checksum of the error. Quoted transport
 * checksums stay: nobody can verify them. */
static bool set_quoted(struct __sk_buff *skb, struct flow *flow, bool source, const struct addr *old, const struct addr *addr,
		      __be16 old_port, __be16 port)
{
	struct addr from = *old, to = *addr;
	if (!set_quoted_address(skb, flow, source, &from, &to))
		return false;
	if (old_port == port)
		return true;
	if (bpf_l4_csum_replace(skb, flow->l4 + ICMP_CHECKSUM, old_port, port, 2))
		return refuse(flow, REASON_MALFORMED);
	if (bpf_skb_store_bytes(skb, flow->quoted_l4 + port_at(flow->translation_key.protocol, source), &port, 2, 0))
		return refuse(flow, REASON_MALFORMED);
	return true;
}
