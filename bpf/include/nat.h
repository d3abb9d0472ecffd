/* Rewriting addresses and ports, with the checksums. All updates are incremental, and right for packets whose
 * transport checksum is still to be computed by the device (BPF_F_PSEUDO_HDR tells the kernel which parts are in it
 * already) as for those that the device has summed up (what we change in an IP header cancels out in that sum). */
#pragma once

#define IP_CHECK_AT offsetof(struct iphdr, check)
#define IP_SOURCE_AT offsetof(struct iphdr, saddr)
#define IP_DESTINATION_AT offsetof(struct iphdr, daddr)

/* Sets one address of the IP header at `at`. */
static bool set_ip(struct __sk_buff *skb, struct flow *flow, u32 at, u32 field, __be32 old, __be32 new)
{
	if (bpf_l3_csum_replace(skb, at + IP_CHECK_AT, old, new, 4))
		return refuse(flow, REASON_MALFORMED);
	return !bpf_skb_store_bytes(skb, at + field, &new, 4, 0) || refuse(flow, REASON_MALFORMED);
}

/* The transport checksum for a new address and port, and the port itself. */
static bool set_port(struct __sk_buff *skb, struct flow *flow, u32 field, __be32 old, __be32 new, __be16 old_port,
		    __be16 new_port)
{
	u32 checksum = flow->l4;
	u64 flags = 0;
	if (flow->protocol == IPPROTO_TCP) {
		checksum += offsetof(struct tcphdr, check);
	} else if (flow->protocol == IPPROTO_UDP) {
		checksum += offsetof(struct udphdr, check);
		/* A UDP checksum of 0 means none, and stays. */
		flags = BPF_F_MARK_MANGLED_0;
	} else {
		return true;
	}
	if (bpf_l4_csum_replace(skb, checksum, old, new, flags | BPF_F_PSEUDO_HDR | 4))
		return refuse(flow, REASON_MALFORMED);
	if (old_port == new_port)
		return true;
	if (bpf_l4_csum_replace(skb, checksum, old_port, new_port, flags | 2))
		return refuse(flow, REASON_MALFORMED);
	return !bpf_skb_store_bytes(skb, flow->l4 + field, &new_port, 2, 0) || refuse(flow, REASON_MALFORMED);
}

static bool set_source(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	__be32 old = flow->source.w[3], new = addr->w[3];
	__be16 old_port = flow->source_port;
	flow->source = *addr;
	if (flow->kind == KIND_PORTS) {
		flow->source_port = port;
		if (flow->fragment != FRAGMENT_LATER && !set_port(skb, flow, 0, old, new, old_port, port))
			return false;
	}
	return set_ip(skb, flow, IP_AT, IP_SOURCE_AT, old, new);
}

static bool set_destination(struct __sk_buff *skb, struct flow *flow, const struct addr *addr, __be16 port)
{
	__be32 old = flow->destination.w[3], new = addr->w[3];
	__be16 old_port = flow->destination_port;
	flow->destination = *addr;
	if (flow->kind == KIND_PORTS) {
		flow->destination_port = port;
		if (flow->fragment != FRAGMENT_LATER && !set_port(skb, flow, 2, old, new, old_port, port))
			return false;
	}
	return set_ip(skb, flow, IP_AT, IP_DESTINATION_AT, old, new);
}

/* One end of the packet that an ICMP error quotes. The quoted address cancels out against the quoted header's own
 * checksum; the port changes the checksum of the error. Quoted transport checksums stay: nobody can verify them. */
static bool set_quoted(struct __sk_buff *skb, struct flow *flow, bool source, __be32 old, const struct addr *addr,
		      __be16 old_port, __be16 port)
{
	if (!set_ip(skb, flow, flow->quoted, source ? IP_SOURCE_AT : IP_DESTINATION_AT, old, addr->w[3]))
		return false;
	if (old_port == port)
		return true;
	if (bpf_l4_csum_replace(skb, flow->l4 + ICMP_CHECKSUM, old_port, port, 2))
		return refuse(flow, REASON_MALFORMED);
	if (bpf_skb_store_bytes(skb, flow->quoted_l4 + (source ? 0 : 2), &port, 2, 0))
		return refuse(flow, REASON_MALFORMED);
	return true;
}

/* As ip_decrease_ttl() of the kernel does it: the TTL is the upper byte of its word. */
static bool lower_ttl(struct __sk_buff *skb, struct flow *flow)
{
	__be16 old = htons(flow->ttl << 8), new = htons((flow->ttl - 1) << 8);
	u8 ttl = flow->ttl - 1;
	if (bpf_l3_csum_replace(skb, IP_AT + IP_CHECK_AT, old, new, 2))
		return refuse(flow, REASON_MALFORMED);
	if (bpf_skb_store_bytes(skb, IP_AT + offsetof(struct iphdr, ttl), &ttl, 1, 0))
		return refuse(flow, REASON_MALFORMED);
	return true;
}
