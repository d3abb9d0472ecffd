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

/* One end of the packet: its address, and its port if it has ports. */
static bool set_end(struct __sk_buff *skb, struct flow *flow, bool source, const struct addr *old, const struct addr *new,
		    __be16 old_port, __be16 new_port)
{
	u32 checksum = find_checksum(flow);
	/* A UDP checksum of 0 means none, and stays. */
	u64 flags = flow->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (checksum && is_summed_with_addresses(flow->protocol) && sum_address(skb, checksum, old, new, flags))
		return refuse(flow, REASON_MALFORMED);
	if (checksum && old_port != new_port) {
		if (bpf_l4_csum_replace(skb, checksum, old_port, new_port, flags | 2))
			return refuse(flow, REASON_MALFORMED);
		if (bpf_skb_store_bytes(skb, flow->l4 + (source ? 0 : 2), &new_port, 2, 0))
			return refuse(flow, REASON_MALFORMED);
	}
	bool sctp = flow->protocol == IPPROTO_SCTP && flow->fragment != FRAGMENT_LATER;
	if (sctp && old_port != new_port && !set_sctp_port(skb, flow, source, old_port, new_port))
		return false;
	return set_address(skb, flow, source, old, new);
}

static bool set_source(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	struct addr old = flow->source, new = *addr;
	__be16 old_port = flow->source_port;
	flow->source = new;
	if (flow->kind == KIND_PORTS)
		flow->source_port = port;
	return set_end(skb, flow, true, &old, &new, old_port, flow->source_port);
}

static bool set_destination(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	struct addr old = flow->destination, new = *addr;
	__be16 old_port = flow->destination_port;
	flow->destination = new;
	if (flow->kind == KIND_PORTS)
		flow->destination_port = port;
	return set_end(skb, flow, false, &old, &new, old_port, flow->destination_port);
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
	if (bpf_skb_store_bytes(skb, flow->quoted_l4 + (source ? 0 : 2), &port, 2, 0))
		return refuse(flow, REASON_MALFORMED);
	return true;
}
