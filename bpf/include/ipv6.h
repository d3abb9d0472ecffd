/* What IPv6 has of its own; see ipv4.h. */
#pragma once

#define PROGRAM(name) name##6
#define ETH_P_FAMILY ETH_P_IPV6
#define AF_FAMILY AF_INET6
#define PROTO_ICMP IPPROTO_ICMPV6
/* RFC 8200, 5. */
#define SMALLEST_MTU 1280

#define IP_HEADER sizeof(struct ipv6hdr)
#define PROTOCOL_AT offsetof(struct ipv6hdr, nexthdr)
#define IP_OFFSET_MASK 0xfff8
#define IP_MORE_FRAGMENTS 0x0001

#define HOP_BY_HOP 0
#define ROUTING 43
#define FRAGMENT 44
#define AUTHENTICATION 51
#define DESTINATION_OPTIONS 60
#define MOBILITY 135
/* So many are read; nothing that is meant well has more. */
#define EXTENSIONS 8

#define ICMP_ECHO_REPLY 129
#define ICMP_ECHO_REQUEST 128
#define ICMP_UNREACHABLE 1
#define ICMP_UNREACHABLE_PORT 4
#define ICMP_TOO_BIG 2
#define ICMP_TOO_BIG_CODE 0
#define ICMP_TIME_EXCEEDED 3
#define ICMP_TOS 0

static bool is_icmp_error(u8 type)
{
	return type >= 1 && type <= 4;
}

/* Neighbour discovery (RFC 4861: never forwarded, which the hop limit proves) and multicast listener reports (RFC
 * 3810: behind a hop-by-hop header of eight bytes, to a group of the link): without them the link itself fails. */
static bool is_link_control(struct __sk_buff *skb)
{
	struct {
		u8 head[6];
		u8 next;
		u8 hop_limit;
		u8 addresses[32];
		u8 type;
	} packet;
	u8 option[9];
	if (bpf_skb_load_bytes(skb, IP_AT, &packet, sizeof(packet)))
		return false;
	if (packet.next == IPPROTO_ICMPV6)
		return packet.hop_limit == 255 && packet.type >= 133 && packet.type <= 137;
	if (packet.next != HOP_BY_HOP || bpf_skb_load_bytes(skb, IP_AT + IP_HEADER, option, sizeof(option)))
		return false;
	if (option[0] != IPPROTO_ICMPV6 || option[1] != 0)
		return false;
	u8 type = option[8];
	return packet.addresses[16] == 0xff && packet.addresses[17] == 0x02 &&
	       ((type >= 130 && type <= 132) || type == 143);
}

static bool is_link_local(const struct addr *addr)
{
	return (addr->w[0] & htonl(0xffc00000)) == htonl(0xfe800000);
}

static const struct addr *node_address(struct device *device)
{
	return &device->addr6;
}

/* Later fragments name the protocol of the first header behind the fragment header, which may be another extension
 * (RFC 8200, 4.5). */
static u8 fragment_protocol(struct flow *flow)
{
	return 0;
}

static bool is_extension(u8 protocol)
{
	return protocol == HOP_BY_HOP || protocol == ROUTING || protocol == FRAGMENT || protocol == AUTHENTICATION ||
	       protocol == DESTINATION_OPTIONS || protocol == MOBILITY;
}

static void read_fragment(struct packet *packet, u8 *header)
{
	u16 fragment = ntohs(*(__be16 *)(header + 2));
	packet->fragment = fragment & IP_MORE_FRAGMENTS ? FRAGMENT_FIRST : FRAGMENT_NONE;
	if (fragment & IP_OFFSET_MASK)
		packet->fragment = FRAGMENT_LATER;
	packet->fragment_id = *(__be32 *)(header + 4);
}

/* Goes behind the extension header that flow->packet.l4 points to. */
static bool skip_extension(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	u8 *header = flow->header;
	if (bpf_skb_load_bytes(skb, packet->l4, header, 8))
		return refuse(flow, REASON_MALFORMED);
	u32 length = (header[1] + 1) * 8;
	if (packet->protocol == AUTHENTICATION) {
		length = (header[1] + 2) * 4;
	} else if (packet->protocol == FRAGMENT) {
		length = 8;
		read_fragment(packet, header);
	}
	packet->protocol = header[0];
	packet->l4 += length;
	return true;
}

static bool read_ip(struct __sk_buff *skb, struct flow *flow, u32 at)
{
	struct ipv6hdr *ip = &flow->ip.v6;
	struct packet *packet = &flow->packet;
	if (bpf_skb_load_bytes(skb, at, ip, sizeof(*ip)) || ip->version != 6)
		return refuse(flow, REASON_MALFORMED);
	__builtin_memcpy(&packet->source, &ip->saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip->daddr, sizeof(packet->destination));
	packet->fragment = FRAGMENT_NONE;
	packet->protocol = ip->nexthdr;
	packet->ttl = ip->hop_limit;
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->l4 = at + IP_HEADER;
	packet->total = IP_HEADER + ntohs(ip->payload_len);
	LOOP for (int i = 0; i < EXTENSIONS; i++) {
		if (packet->fragment == FRAGMENT_LATER || !is_extension(packet->protocol))
			return true;
		if (!skip_extension(skb, flow))
			return false;
	}
	return !is_extension(packet->protocol) || refuse(flow, REASON_EXTENSIONS);
}

static bool read_plain_ip(struct __sk_buff *skb, struct flow *flow)
{
	struct ipv6hdr *ip = (void *)(long)skb->data + IP_AT;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->version != 6)
		return false;
	__builtin_memcpy(&flow->source, &ip->saddr, sizeof(flow->source));
	__builtin_memcpy(&flow->destination, &ip->daddr, sizeof(flow->destination));
	flow->protocol = ip->nexthdr;
	flow->ttl = ip->hop_limit;
	flow->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	flow->total = IP_HEADER + ntohs(ip->payload_len);
	return true;
}

static bool lower_ttl(struct __sk_buff *skb, struct flow *flow)
{
	u8 hop_limit = flow->ttl - 1;
	u32 at = IP_AT + offsetof(struct ipv6hdr, hop_limit);
	return !bpf_skb_store_bytes(skb, at, &hop_limit, 1, BPF_F_RECOMPUTE_CSUM) || refuse(flow, REASON_MALFORMED);
}

static bool is_summed_with_addresses(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_ICMPV6;
}

static u32 sum_change(const struct addr *old, const struct addr *new)
{
	return bpf_csum_diff((__be32 *)old, 2 * sizeof(*old), (__be32 *)new, 2 * sizeof(*new), 0);
}

static bool store_pair(struct __sk_buff *skb, struct flow *flow, u32 at, const struct addr *pair, u64 flags)
{
	return !bpf_skb_store_bytes(skb, at + offsetof(struct ipv6hdr, saddr), (void *)pair, 2 * sizeof(*pair), flags) ||
	       refuse(flow, REASON_MALFORMED);
}

/* There is no checksum of the header: the addresses change the sum of the packet, and that takes back what
 * bpf_l4_csum_replace() has subtracted from it for BPF_F_PSEUDO_HDR. */
static bool store_addresses(struct __sk_buff *skb, struct flow *flow, const struct addr *pair, u32 change)
{
	return store_pair(skb, flow, IP_AT, pair, BPF_F_RECOMPUTE_CSUM);
}

/* To the checksum of the error the quoted addresses are content, and cancel out against it in the sum of the packet. */
static bool store_quoted_addresses(struct __sk_buff *skb, struct flow *flow, const struct addr *pair, u32 change)
{
	if (bpf_l4_csum_replace(skb, flow->l4 + ICMP_CHECKSUM, 0, change, 0))
		return refuse(flow, REASON_MALFORMED);
	return store_pair(skb, flow, flow->quoted, pair, 0);
}

static void fill_route_addresses(struct flow *flow)
{
	flow->route.flowinfo = htonl((u32)flow->tos << 20);
	__builtin_memcpy(flow->route.ipv6_src, flow->source.w, sizeof(flow->source.w));
	__builtin_memcpy(flow->route.ipv6_dst, flow->destination.w, sizeof(flow->destination.w));
}

static void fill_answer_ip(struct flow *flow, u8 protocol, u8 tos, u16 length)
{
	struct ipv6hdr *ip = &flow->answer.ip.v6;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, flow->destination.w, sizeof(flow->destination.w));
	__builtin_memcpy(&ip->daddr, flow->source.w, sizeof(flow->source.w));
}

static u32 sum_answer_ip(struct flow *flow, u8 protocol, u16 length)
{
	struct pseudo_v6 *pseudo = &flow->answer.pseudo.v6;
	pseudo->source = flow->destination;
	pseudo->destination = flow->source;
	pseudo->length = htonl(length);
	pseudo->protocol = htonl(protocol);
	return bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(*pseudo), 0);
}

static u32 sum_answer_icmp(struct flow *flow, u16 length)
{
	return sum_answer_ip(flow, IPPROTO_ICMPV6, length);
}
